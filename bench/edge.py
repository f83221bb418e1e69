"""An Envoy of its own, set up as the suite's is, in front of something else: what the edge costs if there is nothing behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.stack import HOST, Stack
from gateway.render import render
from gateway.upstreams import CONTEXTS, Address
from services import embedded
from services.up.child import Child, Command
from services.up.ports import reserve_any
from services.up.probes import envoy_ready


@dataclass(frozen=True, slots=True)
class Edge:
    """A running Envoy."""

    rest: str  # URL
    grpc: str  # host:port
    pid: int


@asynccontextmanager
async def edge(stack: Stack, server: Address) -> AsyncIterator[Edge]:
    """Run an Envoy in front of `server`, which stands for all contexts, away from the measured core, while inside."""
    rest, grpc, admin = reserve_any(), reserve_any(), reserve_any()
    home = stack.home / "edge"
    configuration = render(home, rest=rest.address, grpc=grpc.address, admin=admin.address, upstreams={name: [server] for name in CONTEXTS})
    child = Child(Command(embedded.envoy_command(configuration), embedded.SERVER_ENVIRONMENT, home), stack.home / "edge.log")
    for port in (rest, grpc, admin):
        port.release()
    async with stack.running(child, envoy_ready(HOST, admin.port), core=stack.cores.others):
        assert child.pid is not None
        yield Edge(f"http://{HOST}:{rest.port}", f"{HOST}:{grpc.port}", child.pid)
