"""``serve`` and ``user``: the server, and who may use it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from whimbrel import errors
from whimbrel.cli import profiles
from whimbrel.cli.access import Json, read_password
from whimbrel.cli.exits import Exit
from whimbrel.cli.output import emit, escaped, say, show

_SERVER = Group("Server", sort_key=10)

Data = Annotated[
    Path | None,
    Parameter(
        env_var="WHIMBREL_DATA",
        group=_SERVER,
        help="The server's data folder. By default `whimbrel/server` in XDG_DATA_HOME.",
    ),
]


def serve(
    *,
    data: Data = None,
    host: Annotated[str, Parameter(group=_SERVER)] = "127.0.0.1",
    port: Annotated[int, Parameter(group=_SERVER)] = 8000,
    tls_cert: Annotated[Path | None, Parameter(group=_SERVER)] = None,
    tls_key: Annotated[Path | None, Parameter(group=_SERVER)] = None,
    insecure: Annotated[
        bool, Parameter(negative="", show_default=False, env_var="WHIMBREL_INSECURE", group=_SERVER)
    ] = False,
    no_rate_limit: Annotated[bool, Parameter(negative="", show_default=False, group=_SERVER)] = False,
    json: Json = False,
) -> int:
    """Run the server until SIGTERM or Ctrl-C.

    Prints its address when it is ready. Everything is kept in one folder,
    encrypted; one process serves from it. Stopping answers what was begun and tells
    every client when to come back.

    Parameters
    ----------
    host
        The address to listen on.
    port
        The port; 0 takes any free one.
    tls_cert
        A certificate chain (PEM): serve https.
    tls_key
        Its key (PEM).
    insecure
        Serve plain http to other machines, for others on the way to read.
    no_rate_limit
        Take messages as fast as they come: for tests and imports.
    """
    if not 0 <= port <= 65535:
        raise errors.InvalidArgument("a port is a number from 0 to 65535")
    from whimbrel.server.run import ServeSettings, run
    from whimbrel.server.settings import ServerSettings

    settings = ServeSettings(
        data=data_folder(data),
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
        server=ServerSettings(rate_limit=None) if no_rate_limit else ServerSettings(),
    )

    def ready(url: str) -> None:
        if json:
            emit({"url": url, "data": str(settings.data)})
        else:
            show(f"whimbrel serves at {url} (data in {escaped(str(settings.data))})")

    run(settings, ready=ready)
    if not json:
        say("stopped")
    return Exit.OK


def data_folder(data: Path | None) -> Path:
    """The folder asked for, or the one by default."""
    return (data or profiles.server_data_path()).absolute()


def add_user(
    name: str,
    /,
    *,
    password_stdin: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    generate: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    data: Data = None,
    json: Json = False,
) -> int:
    """Add a user; also while the server runs.

    Parameters
    ----------
    name
        1 to 64 of a-z 0-9 . _ -
    password_stdin
        Read the password from standard input, instead of asking for it.
    generate
        Make a password, and print it this once.
    """
    return _give_password(name, data, password_stdin, generate, json, new=True)


def change_password(
    name: str,
    /,
    *,
    password_stdin: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    generate: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    data: Data = None,
    json: Json = False,
) -> int:
    """Give a user another password, and log out all devices of that user.

    Parameters
    ----------
    name
        The user.
    password_stdin
        Read the password from standard input, instead of asking for it.
    generate
        Make a password, and print it this once.
    """
    return _give_password(name, data, password_stdin, generate, json, new=False)


def _give_password(
    name: str, data: Path | None, from_stdin: bool, generate: bool, json: bool, *, new: bool
) -> int:
    if from_stdin and generate:
        raise errors.InvalidArgument("give --password-stdin or --generate, not both")
    from whimbrel.server.accounts import fold_name
    from whimbrel.server.data import open_accounts

    user = fold_name(name)
    password = secrets.token_urlsafe(15) if generate else read_password(from_stdin=from_stdin, new=True)
    accounts = open_accounts(data_folder(data))
    try:
        if new:
            accounts.add_user(name, password)
        else:
            accounts.set_password(name, password)
    finally:
        accounts.close()
    if json:
        emit({"user": user} | ({"password": password} if generate else {}))
    else:
        show(f"{'added' if new else 'changed the password of'} {user}")
        if generate:
            show(f"password: {password}")
    return Exit.OK
