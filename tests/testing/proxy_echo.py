"""The two ends of a connection through the fault proxy: a server that echoes and tells, a bare client."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Literal, Self

LIMIT_S = 30.0

Ending = Literal["eof", "reset"]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; far beyond what it may take, give up."""
    async with asyncio.timeout(LIMIT_S):
        # What is waited for happens in sockets and in code under test, where no event tells of it.
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.002)


async def turns(count: int = 50) -> None:
    """Give everyone in this loop the chance to do what they would wrongly do."""
    for _ in range(count):
        await asyncio.sleep(0)


class Echo:
    """Sends back what it receives. `received` and `endings` tell what it saw of each connection, in order."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.received: list[bytearray] = []
        self.endings: dict[int, Ending] = {}
        self._handlers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for writer in self._handlers.values():
            writer.transport.abort()
        await asyncio.gather(*self._handlers)
        await self._server.wait_closed()

    def push(self, data: bytes) -> None:
        """Say something to every client without having been asked."""
        for writer in self._handlers.values():
            writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = writer
        index = len(self.received)
        self.received.append(bytearray())
        try:
            while data := await reader.read(65536):
                self.received[index] += data
                writer.write(data)
                await writer.drain()
            self.endings[index] = "eof"
        except ConnectionError:
            self.endings[index] = "reset"
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            del self._handlers[task]


class Client:
    """A bare socket: nothing is read ahead, nothing is buffered, errors are seen as they are."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sock = socket.socket()
        self.sock.setblocking(False)

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.get_running_loop().sock_connect(self.sock, ("127.0.0.1", self._port))
        except BaseException:
            self.sock.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.sock.close()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(LIMIT_S):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int) -> bytes:
        received = bytearray()
        async with asyncio.timeout(LIMIT_S):
            while len(received) < size:
                data = await asyncio.get_running_loop().sock_recv(self.sock, size - len(received))
                if not data:
                    raise EOFError(f"ended after {len(received)} bytes")
                received += data
        return bytes(received)

    async def echoes(self, data: bytes) -> None:
        """Send and get back the same; sending and receiving go on side by side."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.send(data))
            answer = group.create_task(self.receive(len(data)))
        assert answer.result() == data

    async def ending(self) -> Ending:
        """Read to the end, and say how it ended."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                    pass
        except ConnectionResetError:
            return "reset"
        return "eof"

    def hears_nothing(self) -> bool:
        """Whether there is neither a byte nor an end to read, just now."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
