"""The durable consumers that are read in this client, and the right to read under their names.

A name is read in one client at a time, of all on the store: the first stream of a name claims it, and it
is released when no stream of it is left. Within a client the newest stream of a name owns it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable

from whimbrel.client.consumer import ConsumerStream
from whimbrel.client.role import Claim
from whimbrel.errors import ClientClosed, InvalidArgument


class Consumers:
    """See the module. A stream that nobody holds any more is forgotten."""

    def __init__(self) -> None:
        self._streams: weakref.WeakValueDictionary[str, ConsumerStream] = weakref.WeakValueDictionary()
        self._claims: dict[str, Claim] = {}
        self._claiming: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Consumers reading={len(self._streams)} claimed={len(self._claims)}>"

    def begin(self, stream: ConsumerStream) -> ConsumerStream:
        """Wake this stream from now on; an older one of its name is ended."""
        older = self._streams.get(stream.name)
        self._streams[stream.name] = stream
        weakref.finalize(stream, self._release, stream.name).atexit = False
        if older is not None:
            older.end(InvalidArgument(f"another stream of consumer {stream.name} was opened"))
        return stream

    async def claim(self, name: str, make: Callable[[], Awaitable[Claim]]) -> None:
        """Claim a name with ``make``, unless it is claimed here already. Raises ``StoreInUse``.

        It goes on when the caller is cancelled: a claim that is made belongs to somebody, or is released.
        """
        if name in self._claims:
            return
        task = self._claiming.get(name)
        if task is None:
            task = self._claiming[name] = asyncio.ensure_future(self._claim(name, make))
            task.add_done_callback(_looked_at)
        await asyncio.shield(task)

    async def _claim(self, name: str, make: Callable[[], Awaitable[Claim]]) -> None:
        try:
            claim = await make()
        finally:
            del self._claiming[name]
        if name in self._streams:
            self._claims[name] = claim
        else:  # all its streams ended meanwhile
            claim.release()

    def ended(self, stream: ConsumerStream) -> None:
        """This stream hands out nothing more: others may read under its name, unless another one does."""
        if self._streams.get(stream.name) is stream:
            del self._streams[stream.name]
            self._release(stream.name)

    def wake(self) -> None:
        """There may be new entries."""
        for stream in list(self._streams.values()):
            stream.wake()

    def end(self, error: ClientClosed | None) -> None:
        """End every stream."""
        for stream in list(self._streams.values()):
            stream.end(error)

    def release_all(self) -> None:
        """Let others have all names."""
        while self._claims:
            self._claims.popitem()[1].release()

    def _release(self, name: str) -> None:
        if name not in self._streams:
            claim = self._claims.pop(name, None)
            if claim is not None:
                claim.release()


def _looked_at(task: asyncio.Task[None]) -> None:
    """A caller that was cancelled does not fetch its error."""
    if not task.cancelled():
        task.exception()
