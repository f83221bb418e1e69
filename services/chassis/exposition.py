"""The door that Prometheus asks at: `GET /metrics` on METRICS_ADDRESS, plain HTTP, nothing else. Without that setting nothing of this is loaded.

It runs in the event loop of the service, so that what it reads cannot change while it is read. It says no secret and no name of a person, but is
meant for the operator's network only.
"""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.chassis.metrics import Family, Source

PATH = "/metrics"
PATIENCE = 5.0  # seconds for a request to arrive and its answer to leave
MAX_REQUEST = 8192  # bytes
OWN = "watchword_"  # families that also say of which context they are; the others' names are the world's

Encoder = Callable[[Collector], bytes]


class Snapshot(Collector):
    """What was read at one instant."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        """Return it."""
        return self._families


class Exposition:
    """Reads all sources and writes what they say in Prometheus's words."""

    def __init__(self, context: str, sources: Sequence[Source]) -> None:
        self._context = context
        self._sources = tuple(sources)
        self._process = ProcessCollector(registry=None)

    async def snapshot(self) -> Snapshot:
        """Ask every source."""
        families: list[Family] = []
        for source in self._sources:
            said = source()
            families += await said if inspect.isawaitable(said) else said
        return Snapshot((*(self._metric(family) for family in families), *self._process.collect()))

    def _metric(self, family: Family) -> Metric:
        name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
        own = {"context": self._context} if name.startswith(OWN) else {}
        metric = Metric(name, family.text, family.kind)
        for sample in family.samples:
            metric.add_sample(family.name + sample.suffix, {**own, **sample.labels}, sample.value)
        return metric


@asynccontextmanager
async def exposed(address: str, exposition: Exposition) -> AsyncIterator[None]:
    """Answer at `address`, HOST:PORT, while inside. Raises OSError if it cannot be bound."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.writelines(await _answer(request.decode("latin-1"), exposition))
                await writer.drain()
        writer.close()

    host, _, port = address.rpartition(":")
    async with await asyncio.start_server(converse, host.strip("[]"), int(port), limit=MAX_REQUEST):
        yield


async def _answer(request: str, exposition: Exposition) -> list[bytes]:
    first, *headers = request.split("\r\n")
    method, _, rest = first.partition(" ")
    if rest.split(" ")[0].partition("?")[0] != PATH:
        return _reply("404 Not Found", f"the metrics are at {PATH}\n".encode())
    if method != "GET":
        return _reply("405 Method Not Allowed", b"", "allow: GET")
    encode, content_type = choose_encoder(next(_values(headers, "accept"), ""))
    return _reply("200 OK", encode(await exposition.snapshot()), f"content-type: {content_type}")


def _values(headers: Sequence[str], name: str) -> Iterator[str]:
    for header in headers:
        key, _, value = header.partition(":")
        if key.lower() == name:
            yield value.strip()


def _reply(status: str, body: bytes, *headers: str) -> list[bytes]:
    lines = (f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "connection: close", "", "")
    return ["\r\n".join(lines).encode(), body]
