"""What coherent memory costs: an instance's own traffic with Redis, and what a verification costs where there is no lease and Postgres is asked."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from redis.asyncio import Redis

from bench.counters import believing
from bench.figures import Bench, Figure, beside, circumstances
from bench.floor import echoing
from bench.slices import Side, Spread, interleaved
from bench.stack import HOST, lease_state
from services.up.ports import reserve_any


async def direct(bench: Bench) -> list[Figure]:
    """Measure one instance of token with a lease and one whose Redis does not exist, asked about the same token over and over."""
    stack, extent, core = bench.stack, bench.extent, bench.stack.cores.measured
    with_lease, without = await stack.new_database(), await stack.new_database()
    nowhere = reserve_any()
    nowhere.release()
    async with AsyncExitStack() as running:
        leased = await running.enter_async_context(stack.token(with_lease, redis=1, core=core))
        lonely = await running.enter_async_context(stack.token(without, core=core, REDIS_URL=f"redis://{HOST}:{nowhere.port}/0"))
        worker = await running.enter_async_context(stack.worker("bench.load"))
        echo = await running.enter_async_context(echoing(stack, leased, worker, extent.seconds))
        await believing(leased.metrics or "")
        traffic = await _traffic(stack.redis_urls[1], 1.0 if extent.quick else 5.0)  # nobody else is there
        sides: dict[str, Side] = {"leased": replace(echo, instance=leased), "direct": replace(echo, instance=lonely)}
        samples = await interleaved(sides, extent.rounds, bench.say)
        states = f"with a lease: {await lease_state(with_lease)}; without: {await lease_state(without)}"
    costs, floor = ([sample.cost for sample in samples[name]] for name in ("direct", "leased"))
    title = "VerifyToken of an instance without a lease: Postgres is asked, once for all who ask at the same time"
    notes = (*circumstances(samples["direct"], samples["leased"]), states)
    return [
        Figure("direct.verify", title, "µs/call", Spread.of(costs), beside("with a lease", costs, floor), None, notes),
        Figure("lease.traffic", "What an idle instance asks of Redis to keep its lease and follow the log", "calls/s", Spread.of([traffic])),
    ]


async def _traffic(url: str, seconds: float) -> float:
    """Return the commands a second that Redis gets."""
    redis = Redis.from_url(url)
    try:
        before = int((await redis.info("stats"))["total_commands_processed"])
        await asyncio.sleep(seconds)
        return (int((await redis.info("stats"))["total_commands_processed"]) - before - 1) / seconds
    finally:
        await redis.aclose()
