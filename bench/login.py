"""Logins: how many a second, and their CPU, beside what a core can hash if it does nothing else."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median

from bench.figures import Bench, Figure, at_least, beside
from bench.lanes import Lane, Timed, instance, waiting
from bench.load import write_requests
from bench.people import people
from bench.slices import Sample, Spread
from bench.stack import SETTINGS
from bench.suite import SERVICES, Suite
from bench.workers import Worker

COST = int(SETTINGS["BCRYPT_COST"])
ACCOUNTS = 4
CALLERS = 4  # so that the hash process is never without work


async def login(bench: Bench) -> list[Figure]:
    """Measure successful logins through Envoy. The one hash process finds a core for itself, because the rest has little to do."""
    suite = await bench.suites.get()
    suite.share()
    rounds, logins = (1, 8) if bench.extent.quick else (3, 20)
    async with _login_lane(bench, suite) as lane, hashing(bench) as worker:
        raw, made = list[Sample](), list[Timed]()
        await raw_hashes(worker, 1)
        for number in range(rounds):
            raw.append(await raw_hashes(worker, logins // 2))
            made.append(await lane.closed(None, callers=CALLERS, count=logins))
            speeds = f"{made[-1].rate:5.2f} logins/s, bcrypt alone {rate(raw[-1]):5.2f}/s"
            bench.say(f"round {number + 1}/{rounds}  {speeds}, {made[-1].cost() / 1000:.1f} ms CPU a login")
    return [*hash_figures(raw), *_figures(raw, made)]


def hash_figures(raw: list[Sample]) -> list[Figure]:
    """Return the ceiling as figures."""
    rates, costs = [rate(one) for one in raw], [one.cost / 1000 for one in raw]
    return [
        Figure("ceiling.hash", f"bcrypt at cost {COST} alone, on one core", "/s", Spread.of(rates)),
        Figure("ceiling.hash.cpu", f"bcrypt at cost {COST} alone: one comparison", "ms CPU", Spread.of(costs)),
    ]


def _figures(raw: list[Sample], made: list[Timed]) -> list[Figure]:
    rates, costs = [one.rate for one in made], [one.cost() / 1000 for one in made]
    shares = ", ".join(f"{name} {median(one.cost(name) for one in made) / 1000:.1f}" for name in made[0].cpu)
    waits = f"{CALLERS} callers, {waiting(made)}"
    title = f"Logins that succeed, through Envoy, one hash process, bcrypt at cost {COST}"
    return [
        Figure(
            "login.rate",
            title,
            "/s",
            Spread.of(rates),
            beside("bcrypt alone", rates, [rate(one) for one in raw]),
            at_least(0.95, of_ratio=True),
            (waits,),
        ),
        Figure(
            "login.cost",
            f"{title}: CPU of one",
            "ms CPU",
            Spread.of(costs),
            beside("bcrypt alone", costs, [one.cost / 1000 for one in raw]),
            None,
            (f"ms: {shares}",),
        ),
        Figure(
            "login.others",
            f"{title}: CPU of one beside its hash",
            "ms CPU",
            Spread.of([cost - one.cost / 1000 for cost, one in zip(costs, raw, strict=True)]),
        ),
    ]


def rate(sample: Sample) -> float:
    """Return units a second by the clock on the wall: what a core gives when nobody else wants it."""
    return sample.units / sample.seconds


@asynccontextmanager
async def hashing(bench: Bench) -> AsyncIterator[Worker]:
    """Have a worker that hashes on the measured core."""
    async with bench.stack.worker("bench.hashing", measured=True) as worker:
        yield worker


async def raw_hashes(worker: Worker, count: int) -> Sample:
    """Hash and do nothing else."""
    return Sample(**await worker.ask(cost=COST, count=count))


@asynccontextmanager
async def _login_lane(bench: Bench, suite: Suite) -> AsyncIterator[Lane]:
    requests, identity = bench.stack.home / "logins", instance(suite.one("identity"))
    persons = await people(suite, ACCOUNTS)
    write_requests(requests, [persons[number % ACCOUNTS].login for number in range(64)])
    pids = {name: suite.one(name).pid or 0 for name in (*SERVICES[:3], "envoy")}
    async with AsyncExitStack() as running:
        worker = await running.enter_async_context(bench.stack.worker("bench.pace"))
        counted = () if identity.metrics is None else (identity.metrics,)
        yield Lane(worker, suite.endpoints.grpc, "Login", requests, "SESSION", pids=pids, counted=counted)
