"""What a live revocation costs: memory of an instance, and the time that it takes to start with them all."""

import asyncpg

from bench.figures import Bench, Figure, at_most
from bench.machine import MIB, resident_bytes
from bench.slices import Spread
from bench.stack import lease_state
from services.chassis.tenancy import DEFAULT_TENANT

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
            resident[wanted], peak = resident_bytes(instance.pid), resident_bytes(instance.pid, peak=True)
            seconds, leases = instance.start_seconds, await lease_state(database)
        bench.say(f"{wanted:>9,} live revocations: {resident[wanted] / MIB:.0f} MiB, ready after {seconds:.1f} s")
        notes = (f"at its most {peak / MIB:.0f} MiB", leases)
        figures += [
            _one(f"memory.{wanted}", f"Resident set of a token instance, {wanted:,} live revocations", "MiB", resident[wanted] / MIB, 150, notes),
            _one(f"start.{wanted}", f"Start until SERVING, {wanted:,} live revocations", "s", seconds, 10),
        ]
    each = (resident[present] - resident[0]) / present
    return [*figures, Figure("memory.each", "Memory of one live revocation", "bytes", Spread.of([each]))]


def _one(name: str, title: str, unit: str, value: float, bound: float, notes: tuple[str, ...] = ()) -> Figure:
    return Figure(name, title, unit, Spread.of([value]), None, at_most(bound), notes)


async def _insert(database: str, count: int) -> None:
    if count:
        connection = await asyncpg.connect(database)
        try:
            await connection.execute(INSERT_REVOCATIONS, DEFAULT_TENANT, count, timeout=120)
            await connection.execute("ANALYZE token.revocation")
        finally:
            await connection.close()
