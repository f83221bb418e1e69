"""The server of a service: binds, answers health, drains on SIGTERM and ends with status 0.

The drain (the figures behind it: a fixed wait failed calls, this failed none): say NOT_SERVING, keep serving until the balancer has seen it twice,
half a second has passed without a call and none is in flight, and only then stop.
"""

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import structlog
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.chassis import gauges, grpc_threads, telemetry
from services.chassis.access import AccessUndeclared
from services.chassis.edge import Edge, services_of
from services.chassis.health import Health, watched, watched_redis
from services.chassis.metrics import LoopLag, Source, rpcs
from services.chassis.postgres import PoolTooLarge, SchemaBehind
from services.chassis.redis import Redis
from services.chassis.service_identity import ServiceKeyError
from services.chassis.settings import ChassisSettings, SettingsError
from watchword.errors import WatchwordError

MAX_METADATA = 16 * 1024  # bytes
MAX_STREAMS = 1000  # per connection; connections come from Envoy and peers
QUIET = 0.5  # seconds without a call
PROBER_GONE = 1.0  # seconds without a probe: nobody is balancing to us
STOP_GRACE = 5.0  # seconds

log = structlog.get_logger()


class UnusableAddress(Exception):
    """The address cannot be bound, or TLS files cannot be used."""


async def serve(
    settings: ChassisSettings,
    edge: Edge,
    servicers: Sequence[tuple[ServiceDescriptor, object]],
    *,
    redis: Redis,
    probe: Callable[[], Awaitable[None]],
    metrics: Sequence[Source] = (),
    max_message_bytes: int = 64 * 1024,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `probe` raises while this instance cannot answer; `metrics` say what only this service knows."""
    names = services_of(servicers)
    health = Health(names)
    await health.start()
    tracing = telemetry.Spans.tracing
    server = grpc.aio.server(options=_options(max_message_bytes), interceptors=tracing.of_server if tracing else None)
    server.add_generic_rpc_handlers(tuple(edge.handler(service, servicer) for service, servicer in servicers))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)  # type: ignore[no-untyped-call]
    if settings.REFLECTION:
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*names, health_name, reflection.SERVICE_NAME), server)  # type: ignore[no-untyped-call]
    _bind(server, settings)
    stop = _stop_signal()
    await server.start()
    # What was made until now lives as long as the process: the collector need not look at it again, nor look for garbage every 700 objects.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    log.info("listening", bound=settings.GRPC_ADDRESS)
    async with _metered(settings, edge, health, servicers, metrics):
        async with watched(health, probe), watched_redis(health, redis):
            await stop.wait()
            await _drain(health, edge, settings.DRAIN_TIMEOUT)
        await server.stop(STOP_GRACE)
    log.info("stopped")


@asynccontextmanager
async def _metered(
    settings: ChassisSettings, edge: Edge, health: Health, servicers: Sequence[tuple[ServiceDescriptor, object]], own: Sequence[Source]
) -> AsyncIterator[None]:
    """Answer Prometheus while inside, if METRICS_ADDRESS says where. Raises UnusableAddress."""
    if not settings.METRICS_ADDRESS:
        yield
        return
    from services.chassis.exposition import Exposition, exposed  # noqa: PLC0415  (its library is not for those who do not ask for it)

    lag = LoopLag()
    sources = (gauges.build(settings), lambda: rpcs(edge.meters.values()), gauges.serving(health, edge.activity, lag), *own)
    context = servicers[0][0].file.package.split(".")[1]  # watchword.CONTEXT.v1
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(lag.watched())
        try:
            await stack.enter_async_context(exposed(settings.METRICS_ADDRESS, Exposition(context, sources)))
        except OSError as error:
            raise UnusableAddress(f"cannot answer for metrics on {settings.METRICS_ADDRESS}: {error.strerror}") from None
        yield


def _options(max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA),
        ("grpc.absolute_max_metadata_size", MAX_METADATA),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_connection_age_ms", 300_000),
        ("grpc.max_connection_age_grace_ms", 30_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _bind(server: grpc.aio.Server, settings: ChassisSettings) -> None:
    try:
        if settings.TLS_CERT:
            port = server.add_secure_port(settings.GRPC_ADDRESS, _credentials(settings))
        else:
            port = server.add_insecure_port(settings.GRPC_ADDRESS)
    except (RuntimeError, ValueError) as error:
        raise UnusableAddress(f"cannot listen on {settings.GRPC_ADDRESS}: {error}") from None
    if port == 0:
        raise UnusableAddress(f"cannot listen on {settings.GRPC_ADDRESS}: is it in use, or the certificate not usable?")


def _credentials(settings: ChassisSettings) -> grpc.ServerCredentials:
    client_ca = settings.TLS_CLIENT_CA.encode() or None
    pair = (settings.TLS_KEY.reveal().encode(), settings.TLS_CERT.encode())
    return grpc.ssl_server_credentials([pair], root_certificates=client_ca, require_client_auth=client_ca is not None)


def _stop_signal() -> asyncio.Event:
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event


async def _drain(health: Health, edge: Edge, limit: float) -> None:
    await health.drain()
    edge.activity.end_streams()
    began = time.monotonic()
    log.info("draining")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit):
            while not _is_quiet(health, edge, began):  # noqa: ASYNC110  (time passing is what is waited for)
                await asyncio.sleep(0.02)
    edge.activity.closed = True
    if not _is_quiet(health, edge, began):
        await asyncio.sleep(QUIET)  # who is still here is told UNAVAILABLE and goes elsewhere; the stop would cancel the call


def _is_quiet(health: Health, edge: Edge, began: float) -> bool:
    now = time.monotonic()
    seen = health.refusals >= 2 or now - max(health.last_probe, began) > PROBER_GONE
    return seen and edge.activity.in_flight == 0 and now - max(edge.activity.last_arrival, began) > QUIET


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a service's main on uvloop (decision 18); what an operator can mend is said in words, without a traceback."""

    async def begin() -> None:
        grpc_threads.begin()
        await main()

    try:
        uvloop.run(begin())
    except (SettingsError, AccessUndeclared, PoolTooLarge, SchemaBehind, ServiceKeyError, UnusableAddress, WatchwordError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        sys.exit(1)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        print(f"cannot start: Postgres refuses the settings: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"cannot start: a dependency does not answer: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        telemetry.end()
