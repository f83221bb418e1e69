"""How the edge service is put together."""

from collections.abc import Awaitable, Callable

import grpc
from grpc_health.v1 import health_pb2 as grpc_health_pb2
from grpc_health.v1 import health_pb2_grpc as grpc_health_pb2_grpc
from msgspec.structs import replace

from gateway import metrics
from gateway.health import WholeHealth
from gateway.servicer import HealthServicer
from services.chassis import gauges, telemetry
from services.chassis.access import Gate
from services.chassis.callers import TokenAuthenticator
from services.chassis.clock import Clock
from services.chassis.edge import Edge
from services.chassis.limits import Limits
from services.chassis.peers import Peer, channel
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.server import serve
from services.chassis.service_identity import ServiceIdentity
from services.chassis.settings import ChassisSettings, load
from watchword.errors import DependencyUnavailable
from watchword.gateway.v1 import health_pb2
from watchword.token.v1 import token_pb2_grpc

CONTEXTS = ("identity", "token", "rbac")


async def main() -> None:
    """Run the edge service until it is told to stop."""
    settings = load(ChassisSettings)
    telemetry.configure(settings, "gateway")
    identity = ServiceIdentity.load("gateway", settings.SERVICE_KEY.reveal(), settings.SERVICE_PUBLIC_KEYS)
    # It only pings: two connections are plenty.
    small = replace(settings, DATABASE_POOL_SIZE=1, DATABASE_MAX_OVERFLOW=1)
    async with Database.open(small, "gateway", lazily=True) as database, Redis.open(settings) as redis, channel(settings) as peers:
        contexts = {name: _asks(peers, name) for name in CONTEXTS}
        health = WholeHealth({"database": database.ping, "redis": redis.ping}, contexts)
        authenticator = TokenAuthenticator(token_pb2_grpc.TokenServiceStub(peers), Peer("token", identity))
        edge = Edge(Gate(identity, authenticator, None), Limits.of(settings, redis))
        services = [(health_pb2.DESCRIPTOR.services_by_name["HealthService"], HealthServicer(health, settings, Clock()))]
        own = (gauges.redis(redis), metrics.told(health, redis))
        await serve(settings, edge, services, redis=redis, probe=_always, metrics=own)


def _asks(peers: grpc.aio.Channel, context: str) -> Callable[[], Awaitable[None]]:
    stub = grpc_health_pb2_grpc.HealthStub(peers)  # type: ignore[no-untyped-call]

    async def check() -> None:
        answer = await stub.Check(grpc_health_pb2.HealthCheckRequest(), metadata=(("x-watchword-service", context),), timeout=0.4)
        if answer.status != grpc_health_pb2.HealthCheckResponse.SERVING:
            raise DependencyUnavailable

    return check


async def _always() -> None:
    """The edge service is ready whenever it runs: it is the one who must say that others are not."""
