"""What the edge service tells Prometheus: the health of the whole, as `/health/detailed` and `/health/ready` see it, and how full Redis is."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from gateway.health import WholeHealth
from services.chassis.metrics import Family, Sample, Source, gauge
from services.chassis.redis import Redis, RedisDown


def told(health: WholeHealth, redis: Redis) -> Source:
    """Ask anew each time that Prometheus asks."""

    async def source() -> list[Family]:
        found = [
            Sample(good, {"of": name}) for report in (await health.dependencies(), await health.contexts()) for name, good in report.checks.items()
        ]
        healthy = Family("watchword_gateway_healthy", "gauge", "Whether a store answers, or a context has an instance that serves.", found)
        return [healthy, *[family async for family in _fullness(redis)]]

    return source


async def _fullness(redis: Redis) -> AsyncIterator[Family]:
    """Nothing while Redis does not answer, and of a cluster, which has no one memory."""
    try:
        memory, keys = await redis.call("INFO", "memory"), await redis.call("DBSIZE")
    except RedisDown:
        return
    for family in _sizes(memory, keys):
        yield family


def _sizes(memory: Any, keys: Any) -> Iterator[Family]:
    if isinstance(memory, dict) and "used_memory" in memory:
        yield gauge("watchword_gateway_redis_memory_bytes", "Memory that Redis uses.", memory["used_memory"])
        yield gauge("watchword_gateway_redis_memory_max_bytes", "Memory that Redis may use; 0: no limit is set.", memory.get("maxmemory", 0))
    if isinstance(keys, int):
        yield gauge("watchword_gateway_redis_keys", "Keys in Redis: rate limits, failed logins, leases.", keys)
