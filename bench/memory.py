"""What a live revocation costs: memory of an instance, and the time that it takes to start with them all."""

import asyncio
import re
import time
from dataclasses import replace

import asyncpg

from bench.counters import exposition
from bench.figures import Bench, Figure, at_most
from bench.machine import MIB, resident_bytes
from bench.slices import Spread
from bench.workers import BenchError
from services.chassis.tenancy import DEFAULT_TENANT

LOADING = 60.0  # seconds
HELD = re.compile(r"^watchword_lease_current(\{.*\})? 1(\.0)?$", re.MULTILINE)

# Of single tokens: the kind that there is most of. They outlive the run.
INSERT_REVOCATIONS = """
    INSERT INTO token.revocation (tenant_id, key, kind, revision, spared_revision, is_disabled, revoke_time, expire_time)
    SELECT $1, gen_random_uuid(), 'token', number, 0, false, now(), now() + interval '50 minutes' + number * interval '1 millisecond'
    FROM generate_series(1, $2::bigint) AS number
"""


async def memory(bench: Bench) -> list[Figure]:
    """Start an instance on a growing number of live revocations."""
    database, present, resident = await bench.stack.new_database(), 0, {}
    figures: list[Figure] = []
    for wanted in bench.extent.live_revocations:
        await _insert(database, wanted - present)
        present = wanted
        async with bench.stack.token(database, redis=4, core=bench.stack.cores.measured) as instance:
            loading = await _loaded(instance.metrics or "")
            resident[wanted], peak = resident_bytes(instance.pid), resident_bytes(instance.pid, peak=True)
            serving, loaded = instance.start_seconds, instance.start_seconds + loading
        bench.say(f"{wanted:>9,} live revocations: {resident[wanted] / MIB:.0f} MiB, memory answers after {loaded:.1f} s")
        title = f"Start until memory answers, {wanted:,} live revocations"
        figures += [
            _one(f"memory.{wanted}", f"Resident set of a token instance, {wanted:,} live revocations", "MiB", resident[wanted] / MIB),
            _one(f"start.{wanted}", title, "s", loaded, 10, (f"it serves after {serving:.1f} s, and asks Postgres until then",)),
        ]
        figures[-2] = replace(figures[-2], notes=(f"at its most {peak / MIB:.0f} MiB",))
    grown = (resident[present] - resident[0]) / MIB
    return [
        *figures,
        _one("memory.grown", f"What {present:,} live revocations add to it", "MiB", grown, 150),
        Figure("memory.each", "Memory of one live revocation", "bytes", Spread.of([grown * MIB / present])),
    ]


async def _loaded(metrics: str) -> float:
    """Wait until an instance answers from memory; return how many seconds that took. Raises BenchError."""
    began = time.monotonic()
    while time.monotonic() - began < LOADING:
        if HELD.search(await exposition(metrics)):
            return time.monotonic() - began
        await asyncio.sleep(0.1)
    raise BenchError(f"the instance did not load its memory within {LOADING:.0f} s")


def _one(name: str, title: str, unit: str, value: float, bound: float | None = None, notes: tuple[str, ...] = ()) -> Figure:
    return Figure(name, title, unit, Spread.of([value]), None, None if bound is None else at_most(bound), notes)


async def _insert(database: str, count: int) -> None:
    if count:
        connection = await asyncpg.connect(database)
        try:
            await connection.execute(INSERT_REVOCATIONS, DEFAULT_TENANT, count, timeout=120)
            await connection.execute("ANALYZE token.revocation")
        finally:
            await connection.close()
