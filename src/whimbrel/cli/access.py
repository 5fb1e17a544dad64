"""Which server, user and store a command works with, and opening a client on them.

The options here are the same for every command of a client. What is not said comes from the
environment, then from the profile that ``login`` saved. The key of the store is opened first, since
that may ask the person at the terminal. Several commands may have one store open at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from whimbrel import errors
from whimbrel.cli import profiles
from whimbrel.cli.output import escaped, say

if TYPE_CHECKING:
    from whimbrel.client.client import Client
    from whimbrel.model import Explanation, Message

PASSWORD_VARIABLE = "WHIMBREL_PASSWORD"  # noqa: S105 - a name
PASSWORD_BYTES_MAX = 16 * 1024
STORE_WAIT_S = 3.0
_STORE_AGAIN_S = 0.05
_LOOK_AGAIN_S = 0.1

CONNECTION = Group("Connection", sort_key=90)
OUTPUT = Group("Output", sort_key=91)

Json = Annotated[
    bool,
    Parameter(
        negative="",
        show_default=False,
        group=OUTPUT,
        help="Machine output: JSON on standard output, words on standard error.",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Access:
    """Which server, user and store."""

    profile: Annotated[
        str, Parameter(env_var="WHIMBREL_PROFILE", group=CONNECTION, help="The profile that `login` saved.")
    ] = profiles.DEFAULT
    url: Annotated[
        str | None,
        Parameter(env_var="WHIMBREL_URL", group=CONNECTION, help="The server, instead of the profile's."),
    ] = None
    store: Annotated[
        Path | None,
        Parameter(
            env_var="WHIMBREL_STORE", group=CONNECTION, help="The store's file, instead of the profile's."
        ),
    ] = None
    key_file_plain: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            group=CONNECTION,
            help="The store's key is in a plain file beside it, not in the system's key store.",
        ),
    ] = False
    insecure: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            env_var="WHIMBREL_INSECURE",
            group=CONNECTION,
            help="Accept plain http off this machine, which others on the way can read.",
        ),
    ] = False


DEFAULTS = Access()


class Target:
    """A store whose key is open, and the server it belongs to."""

    def __init__(self, *, url: str, store: Path, key: bytes, insecure: bool, user: str = "") -> None:
        self.url = url
        self.store = store
        self.insecure = insecure
        self.user = user
        self._key = key

    def __repr__(self) -> str:
        return f"<Target {self.store}>"

    def client(self) -> Client:
        """A client on it, not open yet."""
        from whimbrel.client.client import Client

        return Client(self.url, self.store, key=self._key, insecure=self.insecure)


def unlock(access: Access) -> Target:
    """Find out what to work with, and open the store's key. Raises ``UsageError`` without a profile."""
    profile = profiles.load(access.profile)
    url = access.url or (profile.url if profile is not None else None)
    store = access.store or (Path(profile.store) if profile is not None else None)
    if url is None or store is None:
        name = "" if access.profile == profiles.DEFAULT else f" --profile {access.profile}"
        raise errors.UsageError("not logged in", hint=f"whimbrel login URL NAME{name}")
    if not _exists(store):
        raise errors.StoreUnavailable(f"there is no store at {store}", hint="log in again to make a new one")
    plain = access.key_file_plain or (profile is not None and profile.key == "file")
    return Target(
        url=url,
        store=store,
        key=open_store_key(store, plain=plain),
        insecure=access.insecure or (profile is not None and profile.insecure),
        user=profile.user if profile is not None else "",
    )


def _exists(store: Path) -> bool:
    try:
        return store.is_file()
    except OSError as error:
        raise errors.StoreUnavailable(f"{store} cannot be opened: {error.strerror}") from error


def open_store_key(store: Path, *, plain: bool) -> bytes:
    """The key of the store, or a new one for a new store; may ask for a passphrase."""
    from whimbrel.store.keys import open_key

    until = time.monotonic() + STORE_WAIT_S
    while True:
        try:
            return open_key(store, place="file" if plain else None, prompt=_ask_passphrase)
        except errors.StoreInUse:  # somebody is making it just now
            if time.monotonic() >= until:
                raise
            time.sleep(_STORE_AGAIN_S)
        except errors.StoreKeyError as error:
            # The same hint in the words of the command line.
            hint = error.hint.replace("key='file'", "--key-file-plain")
            raise errors.StoreKeyError(error.text, hint=hint) from error


def _ask_passphrase(new: bool) -> str | None:
    if not sys.stdin.isatty():
        return None
    if not new:
        return ask_secret("Passphrase of the store: ")
    words = ask_secret("Choose a passphrase for the store on this device: ")
    if words and ask_secret("The same again: ") != words:
        raise errors.InvalidArgument("the two passphrases differ")
    return words


def ask_secret(question: str) -> str:
    """Ask the person at the terminal, without showing what is typed."""
    try:
        return getpass.getpass(question)
    except EOFError:
        raise KeyboardInterrupt from None


def read_password(*, from_stdin: bool, new: bool = False, variable: str | None = None) -> str:
    """A password: from standard input, the environment, or the person. Raises ``UsageError`` without one."""
    if from_stdin:
        try:
            text = sys.stdin.buffer.read(PASSWORD_BYTES_MAX).decode()
        except UnicodeDecodeError:
            raise errors.InvalidArgument("the password on standard input is not UTF-8 text") from None
        password = text.removesuffix("\n").removesuffix("\r")
        if not password:
            raise errors.InvalidArgument("there is no password on standard input")
        return password
    if variable is not None and (given := os.environ.get(variable)):
        return given
    if not sys.stdin.isatty():
        hint = "use --password-stdin" + (f", or set {variable}" if variable is not None else "")
        raise errors.UsageError("there is no terminal to ask for the password", hint=hint)
    password = ask_secret("Password: ")
    if new and ask_secret("The same again: ") != password:
        raise errors.InvalidArgument("the two passwords differ")
    return password


@asynccontextmanager
async def opened(target: Target) -> AsyncIterator[Client]:
    """A client on the target. Connecting goes on behind; closing waits for nothing that is queued."""
    client = target.client()
    await client.open()
    try:
        await _tell_rebuilt(client)
        yield client
    finally:
        await client.close(timeout=0.0)


async def _tell_rebuilt(client: Client) -> None:
    """Say what became of a store that was damaged; once, as the first stream of events does."""
    from whimbrel.model import StoreRebuilt

    if client.rebuilt is None:
        return
    async with client.events() as events:
        event = await anext(events)
    if isinstance(event, StoreRebuilt):
        lost = f"{len(event.lost)} lost" if event.lost else "none known to be lost"
        more = ", perhaps more" if event.lost_unknown else ""
        say(
            f"whimbrel: the store was damaged ({event.reason}) and made anew; the old one is"
            f" {escaped(event.kept_at or 'gone')}; unsent messages: {event.salvaged} kept, {lost}{more}"
        )
        for gone in event.lost:
            say(f"whimbrel: lost: {gone.id or f'message {gone.n}'} of {escaped(gone.conversation)}")


async def catch_up(client: Client, timeout_s: float) -> None:
    """Wait until this store has all that the server had when asked.

    Raises ``NotConnected`` when that takes too long, ``Unauthorized`` when only logging in helps.
    """
    from whimbrel.errors import EventsLost

    try:
        async with asyncio.timeout(timeout_s):
            await signed_in(client)
            answer = await client.call_server(op="list")
            wanted = {info.id: info.seq for info in answer.conversations}
            async with client.events() as events:
                while not await _has(client, wanted):
                    # Whatever happens is a reason to look again; so is a moment without anything.
                    with contextlib.suppress(TimeoutError, EventsLost):
                        await asyncio.wait_for(anext(events, None), _LOOK_AGAIN_S)
    except TimeoutError:
        cause = client.connection.cause or "no answer in time"
        raise errors.NotConnected(f"not caught up with the server: {cause}") from None


async def _has(client: Client, wanted: dict[str, int]) -> bool:
    here = {conversation.id: conversation for conversation in await client.conversations()}
    return all(
        id in here and (here[id].position >= seq or here[id].status == "left") for id, seq in wanted.items()
    )


async def signed_in(client: Client) -> None:
    """Wait for the link; like ``Client.connected``, with the hint of the command line."""
    try:
        await client.connected()
    except errors.Unauthorized as error:
        raise errors.Unauthorized(error.text, hint="whimbrel login URL NAME") from error


async def catch_up_if_possible(client: Client, timeout_s: float) -> bool:
    """Catch up; if there is no way to the server, say so and go on with what is here."""
    try:
        await catch_up(client, timeout_s)
    except errors.LinkError as error:
        say(f"whimbrel: {escaped(str(error))} (this is what this device has)")
        return False
    return True


async def waiting(client: Client) -> list[Message]:
    """Own messages that are to be delivered: not those given up, of which only the server is to be told."""
    return [
        message for message in await client.pending() if message.status is None or not message.status.settled
    ]


def reason_of(explanation: Explanation) -> str:
    """Why a message waits, in a few words."""
    cause = f"; {explanation.last_error}" if explanation.last_error else ""
    return f"{explanation.blocked_by or 'on its way'}{cause}"
