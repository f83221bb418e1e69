"""The floors under whatever asks a store: one round trip to Postgres and one to Redis, alone."""

import time
from collections.abc import Awaitable, Callable

import asyncpg
from redis.asyncio import Redis

from bench.figures import Bench, Figure
from bench.pace import percentiles
from bench.slices import Spread


async def round_trips(bench: Bench) -> list[Figure]:
    """Measure SELECT 1 and PING, asked one after another on one connection."""
    times = 300 if bench.extent.quick else 2_000
    postgres, redis = await asyncpg.connect(bench.stack.postgres_url), Redis.from_url(bench.stack.redis_urls[0])

    async def select() -> object:
        return await postgres.fetchval("SELECT 1")

    async def ping() -> object:
        return await redis.ping()

    try:
        return [*await _figures("select1", "SELECT 1 in Postgres", select, times), *await _figures("ping", "PING in Valkey", ping, times)]
    finally:
        await postgres.close()
        await redis.aclose()


async def _figures(name: str, title: str, ask: Callable[[], Awaitable[object]], times: int) -> list[Figure]:
    took = []
    for _ in range(times):
        began = time.perf_counter_ns()
        await ask()
        took.append(time.perf_counter_ns() - began)
    found = percentiles(took[times // 10 :])  # the first ones warm up
    return [Figure(f"floor.{name}.{share}", f"{title}, one at a time, {share}", "ms", Spread.of([value / 1000])) for share, value in found.items()]
