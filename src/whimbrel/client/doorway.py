"""Where guests find the one that syncs a store: a Unix socket beside it, or in the temporary folder.

The address follows from the store's path alone, so nobody has to tell it. Paths of such sockets are
short (about a hundred bytes); for a store that lies deeper, the socket is in a folder of this user's
own in the system's temporary folder, under a name derived from the store's. Where none can be made
or reached, guests live without: they look into the store once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from whimbrel.client.relay import FRAME_BYTES_MAX, Line

PATH_BYTES_MAX = 100
"""Systems differ: 104 to 108, with the end."""
GUESTS_MAX = 64


def address_of(store: Path) -> Path | None:
    """The path of the socket of this store; None if there is no place for it."""
    beside = store.with_name(store.name + ".sock")
    if len(os.fsencode(beside)) <= PATH_BYTES_MAX:
        return beside
    folder = Path(tempfile.gettempdir()) / f"whimbrel-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    # Anybody may make folders there: only one that is ours alone will do.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        return None
    address = folder / (hashlib.sha256(os.fsencode(store.resolve())).hexdigest()[:32] + ".sock")
    return address if len(os.fsencode(address)) <= PATH_BYTES_MAX else None


def take_down(address: Path) -> None:
    """Remove the socket, and the folder of those of deep paths if it was the last. Raises OSError."""
    address.unlink()
    if address.parent.parent == Path(tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            address.parent.rmdir()  # refused while others are in it


def listen(address: Path) -> socket.socket:
    """A listening socket at this address, for this user only. Only the one that syncs may. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        address.unlink()  # of one that was killed: nobody else can be here
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.bind(str(address))
        address.chmod(0o600)
        listening.listen(GUESTS_MAX)
    except BaseException:
        listening.close()
        raise
    return listening


async def connect(address: Path) -> Line | None:
    """A connection to the one that syncs, or None if nobody is there."""
    try:
        reader, writer = await asyncio.open_unix_connection(address, limit=FRAME_BYTES_MAX)
    except (OSError, ValueError):
        return None
    return Line(reader, writer)
