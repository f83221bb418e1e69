"""A TCP proxy on loopback that can fail in the ways that networks do: slow, silent, refusing, cut."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


class FaultProxy:
    """Passes bytes between `port` and a target until told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.delay = 0.0  # seconds, each way
        self.loses_answers = False  # what is asked arrives, what is answered does not
        self._answers_left: int | None = None  # bytes, until every connection breaks

    @classmethod
    @asynccontextmanager
    async def before(cls, host: str, port: int) -> AsyncIterator["FaultProxy"]:
        """Stand before HOST:PORT while inside."""
        proxy = cls((host, port))
        await proxy.restore()
        try:
            yield proxy
        finally:
            await proxy.cut()

    async def cut(self) -> None:
        """Break every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()
        self._flowing.set()
        await asyncio.sleep(0)

    async def restore(self) -> None:
        """Pass again, on the same port."""
        self._flowing.set()
        self.delay, self.loses_answers, self._answers_left = 0.0, False, None
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        """Accept everything and answer nothing."""
        self._flowing.clear()

    def cut_after(self, count: int) -> None:
        """Break every connection once, in the middle of an answer: when so many more bytes of answers have passed."""
        self._answers_left = count

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            there, back = await asyncio.open_connection(*self._target)
            self._open.add(back)
            await asyncio.gather(self._pump(reader, back, self._ask), self._pump(there, writer, self._answer))
        except OSError:
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._flowing.wait()
                sink.write(passes(data))
                await sink.drain()
                if self._answers_left == 0:
                    self._break()
        self._open.discard(sink)
        sink.close()

    def _ask(self, data: bytes) -> bytes:
        return data

    def _answer(self, data: bytes) -> bytes:
        if self.loses_answers:
            return b""
        if self._answers_left is None:
            return data
        passing = data[: self._answers_left]
        self._answers_left -= len(passing)
        return passing

    def _break(self) -> None:
        self._answers_left = None
        for writer in list(self._open):
            writer.close()  # what was written before arrives
