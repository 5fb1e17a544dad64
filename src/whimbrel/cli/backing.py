"""``backup`` and ``restore``: copies of the server's data folder, and going back to one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whimbrel.cli.access import Json
from whimbrel.cli.exits import Exit
from whimbrel.cli.output import emit, escaped, show
from whimbrel.cli.serving import Data, data_folder


def back_up(
    target: Path,
    /,
    *,
    data: Data = None,
    without_key: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Json = False,
) -> int:
    """Copy the server's data into a new folder; also while the server runs.

    The copy is read through before it gets its name: a backup that is there is
    whole. It is encrypted as the data folder is, and holds the key, unless that is
    to be kept apart.

    Parameters
    ----------
    target
        The folder to make. It must not be there yet.
    without_key
        Leave `server.key` out. Keep a copy of it elsewhere: without it the backup is of no use.
    """
    from whimbrel.server.backup import back_up as make

    target = target.absolute()
    manifest = make(data_folder(data), target, with_key=not without_key)
    if json:
        emit({"backup": str(target), "commit": manifest.commit, "made_at": manifest.made_at})
    else:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.made_at))
        show(f"backed up to {escaped(str(target))} ({made}, commit {manifest.commit})")
    return Exit.OK


def restore(
    backup: Path,
    /,
    *,
    data: Data = None,
    replace: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    key_file: Path | None = None,
    json: Json = False,
) -> int:
    """Make the server's data folder what a backup holds. The server must be stopped.

    Begins a new history: clients fetch it anew when they connect, and send again
    what it lacks. Whoever signed in after the backup was made signs in again.

    Parameters
    ----------
    backup
        A folder that `whimbrel backup` made.
    replace
        If there is data already, keep that folder under another name, and take its place.
    key_file
        The key, for a backup that was made without.
    """
    from whimbrel.server.backup import restore as bring_back

    folder = data_folder(data)
    kept = bring_back(backup.absolute(), folder, key_file=key_file, replace=replace)
    if json:
        emit({"data": str(folder), "kept": None if kept is None else str(kept)})
    else:
        show(f"restored {escaped(str(folder))}; it begins a new history")
        if kept is not None:
            show(f"what was there before is {escaped(str(kept))}")
    return Exit.OK
