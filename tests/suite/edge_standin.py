"""Stand-ins for the services behind the edge, and a real Envoy in front of them.

An `Instance` serves every RPC of the contract: it notes the call, and answers with an empty message unless a test says
otherwise. As a program (`python -m tests.suite.edge_standin`) it is an instance that a test can kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.certificates import EdgeTls
from gateway.render import render
from gateway.upstreams import CONTEXTS
from services.embedded import envoy_command

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
PROBE = re.compile(r"(health_checks:\n(?:\s+.*\n)*?\s+timeout: )0\.3s")  # how long a probe waits
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, Context], Awaitable[Message]]
Address = tuple[str, int]


def contract() -> descriptor_pb2.FileDescriptorSet:
    """Return the committed descriptor set, which Envoy transcodes by."""
    return descriptor_pb2.FileDescriptorSet.FromString((ROOT / "gateway" / "descriptors.pb").read_bytes())


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in contract().file:
        pool.Add(file)
    return pool


POOL = _pool()


def message(name: str, **fields: object) -> Message:
    """Return a message of the contract, such as `message("google.api.HttpBody", data=b"...")`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))(**fields)


@dataclass(frozen=True, slots=True)
class Seen:
    """A call as it arrived: the RPC's name, its metadata, its request, and how many seconds of its deadline were left."""

    rpc: str
    metadata: Mapping[str, Sequence[str]]
    request: Any
    seconds_left: float | None


@dataclass
class Instance(grpc.GenericRpcHandler):
    """One instance of every service at once."""

    seen: list[Seen] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)  # paths that are no RPC, apart from health checks
    answers: dict[str, Answer] = field(default_factory=dict)
    health: Any = field(default_factory=cast(Any, health).aio.HealthServicer)
    address: Address = (LOOPBACK, 0)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        service, _, name = handler_call_details.method.lstrip("/").rpartition("/")
        try:
            method = POOL.FindServiceByName(service).methods_by_name[name]
        except KeyError:
            if service != "grpc.health.v1.Health":
                self.strays.append(handler_call_details.method)
            return None
        request_type, response_type = (message_factory.GetMessageClass(t) for t in (method.input_type, method.output_type))

        async def handle(request: Message, context: Context) -> Message:
            metadata: dict[str, list[str]] = {}
            for key, value in context.invocation_metadata() or ():
                metadata.setdefault(key, []).append(str(value))
            self.seen.append(Seen(name, metadata, request, context.time_remaining()))
            answer = self.answers.get(name)
            return await answer(request, context) if answer else response_type()

        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            cast(Any, handle), request_deserializer=request_type.FromString, response_serializer=lambda m: m.SerializeToString()
        )
        return handler

    def calls(self, rpc: str) -> list[Seen]:
        """Return the calls of one RPC, oldest first."""
        return [call for call in self.seen if call.rpc == rpc]

    async def say(self, status: int) -> None:
        """Answer health checks with `status` from now on."""
        await self.health.set("", status)


@contextlib.asynccontextmanager
async def instance(port: int = 0, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Instance]:
    """Serve one stand-in on loopback until the block ends."""
    server, standin = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), Instance()
    server.add_generic_rpc_handlers((standin,))
    health_pb2_grpc.add_HealthServicer_to_server(standin.health, server)  # type: ignore[no-untyped-call]
    await standin.say(SERVING)
    listen = f"{LOOPBACK}:{port}"
    standin.address = (LOOPBACK, server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen))
    await server.start()
    try:
        yield standin
    finally:
        await server.stop(None)


@dataclass(frozen=True, slots=True)
class Edge:
    """A running Envoy: REST by `http`, native gRPC by `channel`."""

    directory: Path
    rest: Address
    grpc: Address
    admin: Address
    http: httpx.AsyncClient
    channel: Any
    log: Path

    async def call(self, rpc: str, *, timeout: float | None = 5.0, metadata: Sequence[tuple[str, str]] = ()) -> Message:
        """Call `package.Service/Method` on the internal listener with an empty request."""
        service, _, name = rpc.partition("/")
        method = POOL.FindServiceByName(service).methods_by_name[name]
        response_type = message_factory.GetMessageClass(method.output_type)
        stub: Any = self.channel.unary_unary(f"/{rpc}", request_serializer=lambda m: m, response_deserializer=response_type.FromString)
        answer: Message = await stub(b"", timeout=timeout, metadata=metadata)
        return answer

    async def healthy(self, context: str) -> int:
        """Return how many instances of a context Envoy sends traffic to."""
        name = f"cluster.{context}.membership_healthy"
        answer = await self.http.get(f"http://{self.admin[0]}:{self.admin[1]}/stats", params={"filter": f"^{name}$", "format": "json"})
        return int(answer.json()["stats"][0]["value"])

    async def raw(self, request: str, *, until_closed: bool = False) -> tuple[int, bytes]:
        """Send bytes that no client library would; return the status and the body."""
        reader, writer = await asyncio.open_connection(*self.rest)
        writer.write(request.encode("latin-1"))
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode("latin-1").lower()
        length = 0 if request.startswith("HEAD") else int(head.partition("content-length: ")[2].split("\r\n")[0])
        body = await asyncio.wait_for(reader.readexactly(length), 5)
        if until_closed:
            body += await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return int(head.split()[1]), body


def free_ports(count: int) -> list[int]:
    """Return so many ports of loopback that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


def everywhere(*instances: Address) -> dict[str, list[Address]]:
    """Return upstreams where these instances serve every context."""
    return {context: list(instances) for context in CONTEXTS}


@contextlib.asynccontextmanager
async def edge(
    directory: Path, upstreams: Mapping[str, Sequence[Address]], *, verify: Any = True, is_patient: bool = False, **options: Any
) -> AsyncIterator[Edge]:
    """Run a real Envoy in front of `upstreams` until the block ends. `options` are those of render().

    is_patient  probes wait for seconds: for tests that are not about probes, and whose stand-in lives in this process, which may be busy
    """
    rest, internal, admin = free_ports(3)
    path = render(directory, rest=(LOOPBACK, rest), grpc=(LOOPBACK, internal), admin=(LOOPBACK, admin), upstreams=upstreams, **options)
    if is_patient:
        clusters = directory / "clusters.yaml"
        hasty = clusters.read_text(encoding="utf-8")
        clusters.write_text(PROBE.sub(r"\g<1>5s", hasty), encoding="utf-8")
        assert clusters.read_text(encoding="utf-8") != hasty
    log = directory / "envoy.log"
    tls: EdgeTls = options.get("tls") or EdgeTls()
    scheme = "https" if tls.edge else "http"
    with log.open("wb") as sink:
        process = subprocess.Popen([*envoy_command(path), "--concurrency", "1"], stdout=sink, stderr=sink)  # noqa: ASYNC220
    try:
        async with (
            httpx.AsyncClient(base_url=f"{scheme}://{LOOPBACK}:{rest}", verify=verify, timeout=20) as http,
            grpc.aio.insecure_channel(f"{LOOPBACK}:{internal}") as channel,
        ):
            await until(lambda: _answers(http), what=lambda: log.read_text(encoding="utf-8"))
            yield Edge(directory, (LOOPBACK, rest), (LOOPBACK, internal), (LOOPBACK, admin), http, channel, log)
    finally:
        process.terminate()
        process.wait(10)


async def _answers(http: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await http.get("/health")).status_code == 200
    return False


async def until(holds: Callable[[], Awaitable[bool]], *, seconds: float = 10.0, what: Callable[[], str] = str) -> None:
    """Ask again and again until `holds`; fail with `what` after `seconds`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not await holds():
        assert loop.time() < end, f"not within {seconds} s: {what()}"
        await asyncio.sleep(0.02)


async def main() -> None:
    """Serve until killed; the first line on stdout is the port."""
    async with instance() as standin:
        print(standin.address[1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
