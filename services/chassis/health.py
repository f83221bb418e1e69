"""grpc.health.v1 fed by probes: `""` and each service name say ready, `live` says alive.

Ready means that this instance can answer correctly, perhaps slowly. Redis alone never decides that, or one blip would empty the fleet; whether Redis
answers this instance has a name of its own, `ready.redis`, for whoever looks. Liveness depends on nothing. Counting the probes that were answered
NOT_SERVING tells the drain that the balancer has seen it.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from services.chassis.patience import patience
from services.chassis.redis import Redis, RedisDown
from watchword.errors import ResourceExhausted

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PROBE_EVERY = 0.25  # seconds
PROBE_TIMEOUT = 1.5  # seconds: more than it takes to say that Postgres hangs, or that the pool is full
# Seconds of failing probes: one that asks in vain, and says so after 0.6, suffices. With a lease, it begins when that is lost:
# who is cut off from both stores is given no call two seconds after he was.
UNREADY_AFTER = 0.8
LIVE = "live"
REDIS = "ready.redis"
REDIS_EVERY = 1.0  # seconds

log = structlog.get_logger()


class Health(HealthServicer):
    """The health servicer, and what the drain wants to know of it."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = ("", *names)
        self._ready = False
        self._draining = False
        self.refusals = 0
        self.last_probe = 0.0

    async def start(self) -> None:
        """Be alive and not ready."""
        await self.set(LIVE, SERVING)
        await self._tell(NOT_SERVING)

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Answer a probe."""
        if request.service not in (LIVE, REDIS):  # nobody balances by these
            self.last_probe = time.monotonic()
            self.refusals += self._draining
        return await super().Check(request, context)

    @property
    def is_ready(self) -> bool:
        """Whether probes are told that this instance can answer."""
        return self._ready and not self._draining

    @property
    def is_draining(self) -> bool:
        """Whether this instance is about to stop."""
        return self._draining

    async def set_ready(self, ready: bool) -> None:
        """Say whether this instance can answer."""
        if ready != self._ready and not self._draining:
            self._ready = ready
            log.info("readiness_changed", ready=ready)
            await self._tell(SERVING if ready else NOT_SERVING)

    async def drain(self) -> None:
        """Say NOT_SERVING for good."""
        self._draining = True
        await self._tell(NOT_SERVING)

    async def set_redis(self, answers: bool) -> None:
        """Say whether Redis answers this instance."""
        await self.set(REDIS, SERVING if answers else NOT_SERVING)

    async def _tell(self, status: Any) -> None:
        for name in self._names:
            await self.set(name, status)


@asynccontextmanager
async def watched(health: Health, probe: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Keep readiness true to `probe` while inside."""
    async with _beside(_watch(health, probe), "health"):
        yield


@asynccontextmanager
async def watched_redis(health: Health, redis: Redis) -> AsyncIterator[None]:
    """Say whether Redis answers while inside."""
    async with _beside(_watch_redis(health, redis), "health-redis"):
        yield


@asynccontextmanager
async def _beside(watch: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(watch, name=name)
    try:
        yield
    finally:
        task.cancel()


async def _watch_redis(health: Health, redis: Redis) -> None:
    while True:
        try:
            await redis.ping()
        except RedisDown:
            await health.set_redis(False)
        else:
            await health.set_redis(True)
        await asyncio.sleep(REDIS_EVERY)


async def _watch(health: Health, probe: Callable[[], Awaitable[None]]) -> None:
    good, failing_since = math.inf, -math.inf
    while True:
        began = time.monotonic()
        try:
            async with patience(PROBE_TIMEOUT):
                await probe()
            failing_since = good
        except ResourceExhausted:
            failing_since = good  # busy is not broken: the fleet must not leave because there is much to do
        except Exception as error:  # any other failure of the probe is the same fact
            log.warning("probe_failed", cause=type(error).__name__)
            failing_since = min(failing_since, began - PROBE_EVERY)  # when it was good last, unless this process stood still since
        await health.set_ready(time.monotonic() - failing_since < UNREADY_AFTER)
        await asyncio.sleep(PROBE_EVERY)
