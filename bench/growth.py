"""The same questions put to a small policy and to a large one: what grows with it, and what does not."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from bench.deciding import MEMORY, SMALL_MEMORY, asking, asking_the_forgetful, deciders
from bench.figures import Bench, Figure, Target, at_most, beside, circumstances
from bench.machine import MIB, resident_bytes
from bench.policies import Shape
from bench.seeding import seeded
from bench.slices import Load, Sample, Side, Spread, interleaved
from bench.workers import Worker

SUBJECTS = 100  # of each policy: as many as the smaller one has
TOUCHED = 10_000  # subjects: three times as many as that is for
AT_ONCE, BATCH = 4, 100
PAGE = 100


async def growth(bench: Bench) -> list[Figure]:
    """Measure warm and cold checks on both policies, and what an instance weighs that was asked about more than it may remember."""
    sizes = bench.extent.policies
    async with AsyncExitStack() as running:
        worker = await running.enter_async_context(bench.stack.worker("bench.load"))
        sides: dict[str, Side] = {}
        for size in sizes:
            warm, cold = await running.enter_async_context(_checking(bench, worker, size))
            sides |= {f"check.growth.{size}": warm, f"check.growth.cold.{size}": cold}
        samples = await interleaved(sides, bench.extent.rounds, bench.say)
        resident = await _bounded(bench, worker, sizes[-1])
    goal, figures = at_most(1.2, of_ratio=True), list[Figure]()
    for name, title in (("check.growth", "CheckPermission, warm"), ("check.growth.cold", "CheckPermission, of what memory does not know")):
        figures += _beside_the_smaller(samples, name, title, sizes, goal if name == "check.growth" else None)
    return [*figures, *resident]


async def lookup(bench: Bench) -> list[Figure]:
    """Measure pages of a lookup on both policies."""
    sizes = bench.extent.policies
    async with AsyncExitStack() as running:
        worker = await running.enter_async_context(bench.stack.worker("bench.load"))
        sides: dict[str, Side] = {}
        for size in sizes:
            shape = Shape(size)
            [instance] = await running.enter_async_context(deciders(bench.stack, await seeded(bench, size), MEMORY, core=bench.stack.cores.measured))
            questions = [shape.lookup(user, PAGE) for user in _spread(shape, SUBJECTS)]
            load = asking(bench, worker, instance, "LookupResources", f"lookup.{size}", questions)
            sides[f"lookup.{size}"] = replace(load, expected=f"{PAGE} ALLOW, and more", cold=None, concurrency=AT_ONCE)
        samples = await interleaved(sides, bench.extent.rounds, bench.say)
    return _beside_the_smaller(samples, "lookup", f"LookupResources, a page of {PAGE}", sizes, None)


def _beside_the_smaller(samples: dict[str, list[Sample]], name: str, title: str, sizes: Sequence[int], target: Target | None) -> list[Figure]:
    """Return a figure for each size; those of all but the first stand beside it."""
    costs = {size: [sample.cost for sample in samples[f"{name}.{size}"]] for size in sizes}
    least, *larger = sizes

    def figure(size: int) -> Figure:
        floor = beside(f"{least:,} bindings", costs[size], costs[least]) if size in larger else None
        goal, notes = target if size in larger else None, circumstances(samples[f"{name}.{size}"])
        return Figure(f"{name}.{size}", f"{title}: {Shape(size).words}", "µs/call", Spread.of(costs[size]), floor, goal, notes)

    return [figure(size) for size in sizes]


@asynccontextmanager
async def _checking(bench: Bench, worker: Worker, size: int) -> AsyncIterator[tuple[Load, Load]]:
    """Run two instances on a policy while inside; yields a load that is answered from memory, and one that never is."""
    stack, shape, core, database = bench.stack, Shape(size), bench.stack.cores.measured, await seeded(bench, size)
    async with deciders(stack, database, MEMORY, SMALL_MEMORY, core=core) as (large, small):
        questions = [shape.question(user) for user in _spread(shape, SUBJECTS)]
        warm = asking(bench, worker, large, "CheckPermission", f"growth.{size}", questions)
        await replace(warm, cold=None, per_slice=SUBJECTS)(-1)  # from now on memory knows
        far_more = [shape.question(user) for user in _spread(shape, min(shape.askable, bench.extent.cold_checks * 6))]
        yield warm, asking_the_forgetful(bench, warm, small, far_more)


def _spread(shape: Shape, count: int) -> list[int]:
    """Return so many users from all over the policy."""
    return [user * shape.askable // count for user in range(count)]


async def _bounded(bench: Bench, worker: Worker, size: int) -> list[Figure]:
    """Ask two instances about far more subjects than they may remember; return what the one weighs that may remember more."""
    resident = {memory: await _asked_about_many(bench, worker, size, memory) for memory in (SMALL_MEMORY, MEMORY)}
    title = f"Resident set of an rbac instance that was asked about {_touched(size):,} subjects, with POLICY_MEMORY={MEMORY}"
    weight, allowed = resident[MEMORY] - resident[SMALL_MEMORY], int(MEMORY) - int(SMALL_MEMORY)
    return [
        Figure("memory.policy", title, "MiB", Spread.of([resident[MEMORY] / MIB])),
        Figure(
            "memory.policy.more",
            f"What it weighs more than with POLICY_MEMORY={SMALL_MEMORY}",
            "MiB",
            Spread.of([weight / MIB]),
            None,
            at_most(allowed),
        ),
    ]


async def _asked_about_many(bench: Bench, worker: Worker, size: int, memory: str) -> int:
    stack, shape = bench.stack, Shape(size)
    async with deciders(stack, await seeded(bench, size), memory, core=stack.cores.measured) as [instance]:
        batches = [shape.batch(range(first, first + BATCH)) for first in range(0, _touched(size), BATCH)]
        load = asking(bench, worker, instance, "BatchCheckPermissions", f"bounded.{size}", batches)
        await replace(load, units=BATCH, cold=None, concurrency=1, per_slice=len(batches))(-1)
        resident = resident_bytes(instance.pid)
        bench.say(f"{resident / MIB:.0f} MiB after {len(batches) * BATCH:,} subjects with POLICY_MEMORY={memory}")
        return resident


def _touched(size: int) -> int:
    return min(TOUCHED, Shape(size).askable) // BATCH * BATCH
