"""CheckPermission beside the bare echo, and BatchCheckPermissions, on a policy of some thousands: warm, many subjects warm, and cold."""

from contextlib import AsyncExitStack
from dataclasses import replace

from bench.deciding import MEMORY, SMALL_MEMORY, asking, asking_the_forgetful, deciders, stated
from bench.figures import Bench, Figure, Target, at_least, at_most, beside, circumstances
from bench.floor import echo_of
from bench.policies import Shape
from bench.seeding import seeded
from bench.slices import Sample, Side, Spread, interleaved, service_authorization
from watchword.rbac.v1 import permission_pb2

MODEST = 20_000  # bindings
MANY = 1_500  # subjects that are asked about in turn, each at another document
BATCH, BATCHES = 1_000, 4
BATCHES_AT_ONCE = 4
NEW_BATCHES = 8  # a slice


async def check(bench: Bench) -> list[Figure]:
    """Measure single checks: one question again and again, many in turn, and those that memory does not know."""
    samples = await _check_samples(bench)
    echo = samples["echo"]

    def figure(name: str, title: str, target: Target | None = None) -> Figure:
        costs = [sample.cost for sample in samples[name]]
        floor = beside("echo", costs, [sample.cost for sample in echo])
        return Figure(f"check.{name}", title, "µs/call", Spread.of(costs), floor, target, circumstances(samples[name], echo))

    bare, goal = Spread.of([sample.cost for sample in echo]), at_most(1.25, of_ratio=True)
    return [
        Figure("floor.check", "bare grpc.aio echo of CheckPermission's messages", "µs/call", bare, notes=circumstances(echo)),
        figure("warm", "CheckPermission, one question repeated, asked by a client", goal),
        figure("warm.service", "CheckPermission, one question repeated, asked by a service", goal),
        figure("many", f"CheckPermission, {MANY:,} subjects in turn, each at another document, asked by a client", goal),
        figure("cold", "CheckPermission, of what memory does not know: one statement each, asked by a client"),
    ]


async def _check_samples(bench: Bench) -> dict[str, list[Sample]]:
    stack, shape, core = bench.stack, Shape(MODEST), bench.stack.cores.measured
    database, questions = await seeded(bench, MODEST), [shape.question(user) for user in range(MANY)]
    async with AsyncExitStack() as running:
        large, small = await running.enter_async_context(deciders(stack, database, MEMORY, SMALL_MEMORY, core=core))
        worker = await running.enter_async_context(stack.worker("bench.load"))
        many = asking(bench, worker, large, "CheckPermission", "check", questions)
        await replace(many, cold=None, per_slice=MANY)(-1)  # from now on memory knows
        one = replace(many, variety=1)
        service = asking(bench, worker, large, "CheckPermission", "check.service", [stated(shape.question(0))])
        sides: dict[str, Side] = {
            "echo": await running.enter_async_context(echo_of(stack, one)),
            "warm": one,
            "warm.service": replace(service, authorization=service_authorization(stack.keys, "identity", "rbac")),
            "many": many,
            "cold": asking_the_forgetful(bench, many, small, questions),
        }
        return await interleaved(sides, bench.extent.rounds, bench.say)


async def checks(bench: Bench) -> list[Figure]:
    """Measure batches of a thousand questions about subjects and resources that memory knows."""
    stack, shape = bench.stack, Shape(MODEST)
    async with AsyncExitStack() as running:
        [instance] = await running.enter_async_context(deciders(stack, await seeded(bench, MODEST), MEMORY, core=stack.cores.measured))
        worker = await running.enter_async_context(stack.worker("bench.load"))
        # Batches share subjects, each in an order of its own.
        batches = [shape.batch((number * 250 + user * 7) % shape.askable for user in range(BATCH)) for number in range(BATCHES)]
        distinct = asking(bench, worker, instance, "BatchCheckPermissions", "checks", batches)
        distinct = replace(distinct, units=BATCH, concurrency=BATCHES_AT_ONCE)
        await replace(distinct, cold=None, per_slice=BATCHES, concurrency=1)(-1)  # from now on memory knows
        fresh = asking(bench, worker, instance, "BatchCheckPermissions", "checks.new", _new_questions(bench, shape))
        fresh = replace(fresh, units=BATCH, concurrency=BATCHES_AT_ONCE, per_slice=NEW_BATCHES)
        sides: dict[str, Side] = {"distinct": distinct, "repeated": replace(distinct, variety=1), "new": fresh}
        samples = await interleaved(sides, bench.extent.rounds, bench.say)
    titles = {
        "distinct": f"{BATCHES} batches in turn, each of {BATCH:,} other subjects at other documents",
        "repeated": f"one batch of {BATCH:,} subjects repeated",
        "new": "subjects and documents that memory knows, in questions that were never asked",
    }
    return [
        Figure(
            f"checks.{name}",
            f"BatchCheckPermissions of {BATCH:,}, warm: {titles[name]}",
            "decisions/CPU s",
            Spread.of([sample.rate for sample in measured]),
            None,
            None if name == "new" else at_least(200_000),
            circumstances(measured),
        )
        for name, measured in samples.items()
    ]


def _new_questions(bench: Bench, shape: Shape) -> list[permission_pb2.BatchCheckPermissionsRequest]:
    """Return batches, enough for each slice, in which nobody is asked about at the same document twice, nor where he was in the other batches."""
    return [shape.batch(range(BATCH), turn) for turn in range(1, NEW_BATCHES * (bench.extent.rounds + 1) + 1)]
