"""How many WatchRevocations streams one instance holds, and what they cost while nothing happens but checkpoints."""

import asyncio
import time

from bench.figures import Bench, Figure, at_least
from bench.machine import MIB, cpu_nanoseconds, resident_bytes
from bench.slices import Spread


async def subscribers(bench: Bench) -> list[Figure]:
    """Add idle subscribers to one instance, and watch."""
    stack, figures = bench.stack, list[Figure]()
    authorization = f"Bearer {stack.signer.client_token('tokens.verify')}"
    async with (
        stack.token(await stack.new_database(), redis=6, core=stack.cores.measured) as instance,
        stack.worker("bench.streams", instance.address, authorization) as crowd,
    ):
        nobody = resident_bytes(instance.pid)
        for count in bench.extent.subscribers:
            opened = await crowd.ask(count=count)
            began, before = time.monotonic(), cpu_nanoseconds(instance.pid)
            await asyncio.sleep(1.5 if bench.extent.quick else 5.0)
            share = (cpu_nanoseconds(instance.pid) - before) / 1e9 / (time.monotonic() - began)
            after = await crowd.ask(count=count)
            resident = resident_bytes(instance.pid)
            rate = (after["messages"] - opened["messages"]) / (time.monotonic() - began)
            bench.say(f"{after['alive']:,} of {count:,} subscribers: {share:.1%} of a core, {resident / MIB:.0f} MiB, {rate:,.0f} messages/s")
            notes = (f"opened in {opened['seconds']:.1f} s", f"{rate:,.0f} messages a second in all")
            title = f"{count:,} idle WatchRevocations streams on one instance"
            figures += [
                Figure(f"subscribers.{count}.held", f"{title}: held", "streams", Spread.of([after["alive"]]), None, at_least(count), notes),
                Figure(f"subscribers.{count}.cpu", f"{title}: CPU", "% of a core", Spread.of([share * 100])),
                Figure(f"subscribers.{count}.memory", f"{title}: resident set", "MiB", Spread.of([resident / MIB])),
                Figure(f"subscribers.{count}.each", f"{title}: memory of one", "KiB", Spread.of([(resident - nobody) / count / 1024])),
            ]
    return figures
