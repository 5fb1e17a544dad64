"""``login`` and ``logout``: making a profile and a store that is signed in, and forgetting it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whimbrel import errors
from whimbrel.cli import profiles
from whimbrel.cli.access import (
    DEFAULTS,
    PASSWORD_VARIABLE,
    Access,
    Json,
    Target,
    catch_up,
    open_store_key,
    opened,
    read_password,
    unlock,
    waiting,
)
from whimbrel.cli.exits import Exit, run
from whimbrel.cli.output import counted, emit, escaped, say, show

_CATCH_UP_S = 5.0


def login(
    url: str,
    name: str,
    /,
    *,
    password_stdin: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    access: Access = DEFAULTS,
    json: Json = False,
) -> int:
    """Log in on this device, and remember it as a profile.

    Makes an encrypted store for what is sent and received. Its key goes into the
    system's key store; else it is sealed under a passphrase (WHIMBREL_PASSPHRASE,
    or asked for). The password is asked for, and never kept. Logging in again
    renews the session and keeps the store.

    Parameters
    ----------
    url
        The server, such as https://chat.example.org or http://127.0.0.1:8000.
    name
        Your name there.
    password_stdin
        Read the password from standard input (else WHIMBREL_PASSWORD, else asked for).
    """
    profile = _profile(url, name, access)
    plain = profile.key == "file"
    store = Path(profile.store)
    password = read_password(from_stdin=password_stdin, variable=PASSWORD_VARIABLE)
    target = Target(
        url=profile.url,
        store=store,
        key=open_store_key(store, plain=plain),
        insecure=profile.insecure,
        user=profile.user,
    )
    device = run(_login(target, profile.user, password))
    profiles.save(access.profile, profile)
    if json:
        asked = {"profile": access.profile, "url": profile.url, "user": profile.user}
        emit(asked | {"device": device, "store": profile.store})
    else:
        show(f"logged in as {escaped(profile.user)} at {profile.url} (profile {access.profile})")
    return Exit.OK


def _profile(url: str, name: str, access: Access) -> profiles.Profile:
    """The profile to be made, or made again. Raises ``InvalidArgument`` if it is that of another login."""
    from whimbrel.client.address import parse_address

    address = parse_address(url, insecure=access.insecure)
    user = name.strip().casefold()
    if not user or len(user) > 64:
        raise errors.InvalidArgument("a name has 1 to 64 characters")
    former = profiles.load(access.profile)
    if former is not None and (former.url, former.user) != (address.http, user):
        raise errors.InvalidArgument(
            f"profile {access.profile} is {former.user} at {former.url}",
            hint="choose another with --profile, or log out first",
        )
    same = former.store if former is not None else None
    store = (access.store or Path(same or profiles.store_path(address.http, user))).absolute()
    plain = access.key_file_plain or (former is not None and former.key == "file")
    return profiles.Profile(
        url=address.http,
        user=user,
        store=str(store),
        key="file" if plain else None,
        insecure=access.insecure,
    )


async def _login(target: Target, user: str, password: str) -> str:
    from whimbrel.client.credentials import Credentials

    async with opened(target) as client:
        try:
            await client.sign_in(Credentials(user, password))
        except errors.Unauthorized as error:
            raise errors.Unauthorized(error.text, hint="check the name and the password") from error
        with contextlib.suppress(errors.LinkError):  # signed in all the same; the next command catches up
            await catch_up(client, _CATCH_UP_S)
        return client.device


def logout(*, access: Access = DEFAULTS, json: Json = False) -> int:
    """Log out on this device: forget the session here and on the server, and the profile.

    Messages stay in the encrypted store, and so do those that wait: they go out
    after the next login as the same user.
    """
    target = unlock(access)
    pending = run(_logout(target))
    if access.store is None and access.url is None:
        profiles.remove(access.profile)
    if json:
        emit({"profile": access.profile, "pending": pending, "store": str(target.store)})
    else:
        show(f"logged out (what was received is still in {target.store})")
    if pending:
        say(f"whimbrel: {counted(pending, 'message')} not delivered; log in again to send them")
    return Exit.OK


async def _logout(target: Target) -> int:
    async with opened(target) as client:
        await client.sign_out()
        return len(await waiting(client))
