"""The commands, their names and their help; each is loaded when it is used.

The first line of a command's help stands here too, so that ``whimbrel --help`` loads none of them.
The parser raises its errors; ``cli.exits`` tells them like all others.
"""

from __future__ import annotations

from cyclopts import App, Group

from whimbrel import __version__
from whimbrel.cli.exits import EXIT_CODES

_HELP = """\
Messaging for bad networks: once queued, a message arrives, once and in order.

To begin:
  whimbrel serve                                  run a server
  whimbrel user add ann                           add a user to it
  whimbrel login http://127.0.0.1:8000 ann        log in on this device
  whimbrel conversation create bob --id team      make a conversation
  whimbrel send team "hello"                      send a message
  whimbrel chat team                              talk

Every command explains itself with --help, and speaks JSON with --json."""

_VARIABLES = """\
Variables:
  WHIMBREL_PROFILE, WHIMBREL_URL, WHIMBREL_STORE, WHIMBREL_INSECURE
                                    as the options of these names
  WHIMBREL_PASSWORD                 the password for `login`
  WHIMBREL_PASSPHRASE               seals the store's key where the system has
                                    no key store
  WHIMBREL_DATA                     the data folder of `serve`, `user`, `backup`
                                    and `restore`
  WHIMBREL_DEBUG=1                  logs and tracebacks on standard error
  NO_COLOR                          no colour
  XDG_CONFIG_HOME, XDG_DATA_HOME    where profiles and stores are"""

_MESSAGES = Group("Messages", sort_key=1)
_ACCOUNT = Group("Account", sort_key=2)
_SERVER = Group("Server", sort_key=3)
_PROOF = Group("See for yourself", sort_key=4)

app = App(
    name="whimbrel",
    version=__version__,
    help=_HELP,
    help_epilogue=f"{EXIT_CODES}\n\n{_VARIABLES}",
    help_format="plaintext",
    usage="Usage: whimbrel COMMAND [OPTIONS]",
    exit_on_error=False,
    print_error=False,
    help_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


def _command(on: App, path: str, name: str, line: str, *examples: str, group: Group | None = None) -> None:
    """Register what ``path`` names, to be imported when it is used."""
    epilogue = "\n".join(["Examples:", *(f"  {example}" for example in examples)])
    on.command(f"whimbrel.cli.{path}", name=name, help=line, group=group, help_epilogue=epilogue)


_command(
    app, "sending:send", "send", "Send a message, and wait until it is delivered.",
    'whimbrel send team "hello"',
    "date | whimbrel send team -",
    "whimbrel send orders '{\"item\": 42}' --parse-json --key order-42",
    group=_MESSAGES,
)  # fmt: skip
_command(
    app, "chat:chat", "chat", "Talk in a conversation, line by line.",
    "whimbrel chat team",
    group=_MESSAGES,
)  # fmt: skip
_command(
    app, "following:tail", "tail", "Show the last messages, then each one that arrives.",
    "whimbrel tail",
    "whimbrel tail team --since 120",
    "whimbrel tail team --json | jq .content",
    group=_MESSAGES,
)  # fmt: skip
_command(
    app, "sending:outbox", "outbox", "Show the messages that wait on this device.",
    "whimbrel outbox",
    "whimbrel outbox --json",
    group=_MESSAGES,
)  # fmt: skip
_command(
    app, "sending:explain", "explain", "Explain why a message is where it is.",
    "whimbrel explain 2uymoh4ovckkvvqtkpnqpzlnpm",
    group=_MESSAGES,
)  # fmt: skip
_command(
    app, "sending:sync_once", "sync-once", "Send what waits, receive what is new, and end.",
    "whimbrel sync-once --timeout 60",
    group=_MESSAGES,
)  # fmt: skip

conversation = App(
    name="conversation", help="Make conversations, list them, change who is in them.", group=_MESSAGES
)
app.command(conversation)
_command(
    conversation, "conversations:create", "create", "Create a conversation.",
    'whimbrel conversation create bob carol --title "The team" --id team',
)  # fmt: skip
_command(
    conversation, "conversations:show_all", "list", "List the conversations.",
    "whimbrel conversation list",
    "whimbrel conversation list --offline --json",
)  # fmt: skip
_command(
    conversation, "conversations:add", "add", "Add a user to a conversation.",
    "whimbrel conversation add team dave",
)  # fmt: skip
_command(
    conversation, "conversations:remove", "remove", "Remove a user from a conversation.",
    "whimbrel conversation remove team dave",
)  # fmt: skip
_command(
    conversation, "conversations:leave", "leave", "Leave a conversation.",
    "whimbrel conversation leave team",
)  # fmt: skip

_command(
    app, "accounts:login", "login", "Log in on this device.",
    "whimbrel login https://chat.example.org ann",
    "whimbrel login https://chat.example.org bot --profile bot",
    "whimbrel login https://chat.example.org bot --password-stdin < secret.txt",
    group=_ACCOUNT,
)  # fmt: skip
_command(
    app, "accounts:logout", "logout", "Log out on this device.",
    "whimbrel logout",
    "whimbrel logout --profile bot",
    group=_ACCOUNT,
)  # fmt: skip

_command(
    app, "serving:serve", "serve", "Run the server.",
    "whimbrel serve",
    "whimbrel serve --data state --host 0.0.0.0 --port 443 --tls-cert chain.pem --tls-key key.pem",
    "whimbrel serve --port 0 --json",
    group=_SERVER,
)  # fmt: skip
_command(
    app, "backing:back_up", "backup", "Copy the server's data, also while it runs.",
    "whimbrel backup backups/monday",
    "whimbrel backup backups/monday --data state --without-key",
    group=_SERVER,
)  # fmt: skip
_command(
    app, "backing:restore", "restore", "Go back to a backup.",
    "whimbrel restore backups/monday --replace",
    group=_SERVER,
)  # fmt: skip
user = App(name="user", help="Add users, change passwords.", group=_SERVER)
app.command(user)
_command(
    user, "serving:add_user", "add", "Add a user; also while the server runs.",
    "whimbrel user add ann",
    "whimbrel user add bot --generate --json",
)  # fmt: skip
_command(
    user, "serving:change_password", "password", "Give a user another password.",
    "whimbrel user password ann",
)  # fmt: skip

_command(
    app, "demo:demo", "demo", "See messages survive a storm, with real processes.",
    "whimbrel demo",
    group=_PROOF,
)  # fmt: skip
_command(
    app, "replay:replay", "replay", "Replay a chat log through a storm, and judge what arrived.",
    "whimbrel replay chat.log",
    group=_PROOF,
)  # fmt: skip
_command(
    app, "simulate:sim", "sim", "Simulate storms, and judge whether every promise was kept.",
    "whimbrel sim --seeds 500",
    "whimbrel sim --seed 17 --verbose",
    group=_PROOF,
)  # fmt: skip
