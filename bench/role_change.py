"""What checks wait for while a role is changed that half of all users hold: asked at a fixed rate, before the changes and during them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import asyncpg
import grpc

from bench.deciding import MEMORY, asking, deciders
from bench.figures import Bench, Beside, Figure, Target, at, at_most
from bench.policies import STAFF, Shape
from bench.seeding import administrator, seeded
from bench.slices import Sample, Spread
from bench.stack import Instance, Stack
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.rbac.v1 import rbac_pb2, rbac_pb2_grpc

RATE = 300  # checks a second: a tenth of what a core can do
WATCHED = 1_000  # holders of the role who are asked about in turn
EVERY = 0.25  # seconds between changes
AT_MOST = 100.0  # milliseconds


async def role_change(bench: Bench) -> list[Figure]:
    """Measure."""
    stack, shape = bench.stack, Shape(bench.extent.policies[-1])
    questions = [shape.question(user) for user in range(shape.askable) if shape.is_staff(user)][:WATCHED]
    async with AsyncExitStack() as running:
        [instance] = await running.enter_async_context(deciders(stack, await seeded(bench, shape.bindings), MEMORY, core=stack.cores.measured))
        worker = await running.enter_async_context(stack.worker("bench.load"))
        load = asking(bench, worker, instance, "CheckPermission", "role-change", questions)
        await replace(load, cold=None, per_slice=len(questions))(-1)  # from now on memory knows
        load = replace(load, cold=None, rate=RATE, seconds=bench.extent.role_seconds, concurrency=2 * RATE)
        before = await load(0)
        changes = await running.enter_async_context(_changes(stack, instance, await seeded(bench, shape.bindings)))
        during, took = await _meanwhile(load(0), changes)
    return _figures(shape, before, during, took)


@asynccontextmanager
async def _changes(stack: Stack, instance: Instance, database: str) -> "AsyncIterator[Callable[[int], Awaitable[float]]]":
    """Yield what changes the role to another state for each number, and returns the milliseconds that its caller waited."""
    role_id, metadata = await _id_of(database, STAFF), administrator(stack)
    async with grpc.aio.insecure_channel(instance.address) as channel:
        stub: rbac_pb2_grpc.RoleServiceAsyncStub = rbac_pb2_grpc.RoleServiceStub(channel)

        async def change(number: int) -> float:
            update = rbac_pb2.RoleUpdate(permissions=["canteen.enter", f"canteen.eat-{number}"])
            began = time.monotonic()
            await stub.UpdateRole(rbac_pb2.UpdateRoleRequest(role_id=role_id, role=update), metadata=metadata, timeout=10)
            return (time.monotonic() - began) * 1000

        yield change


async def _meanwhile(load: Awaitable[Sample], change: "Callable[[int], Awaitable[float]]") -> tuple[Sample, list[float]]:
    """Make one change after another while `load` runs; return its sample, and how long the changes took."""
    running, took = asyncio.ensure_future(load), list[float]()
    while not running.done():
        took.append(await change(len(took)))
        await asyncio.wait([running], timeout=EVERY)
    return await running, took


async def _id_of(database: str, role: str) -> str:
    connection = await asyncpg.connect(database)
    try:
        return str(await connection.fetchval("SELECT id FROM rbac.role WHERE tenant_id = $1 AND name = $2", DEFAULT_TENANT, role))
    finally:
        await connection.close()


def _figures(shape: Shape, before: Sample, during: Sample, took: Sequence[float]) -> list[Figure]:
    title = f"CheckPermission of {WATCHED:,} holders, {RATE} a second, while a role of {shape.staff:,} holders is changed"
    notes = (
        f"{len(took)} changes, UpdateRole p50 {at(took, 0.5):.0f} ms, p99 {at(took, 0.99):.0f} ms",
        f"{during.units:,} all as expected, the longest {during.longest / 1000:.1f} ms; {before.longest / 1000:.1f} ms before",
    )

    def figure(word: str, own: float, other: float, target: Target | None) -> Figure:
        floor = Beside("before", Spread.of([other / 1000]), Spread.of([own / other]))
        return Figure(f"role-change.{word}", f"{title}, {word}", "ms", Spread.of([own / 1000]), floor, target, notes)

    return [figure("p50", during.p50, before.p50, None), figure("p99", during.p99, before.p99, at_most(AT_MOST))]
