"""A flood of logins, ten times as many as can be hashed: what it does to those who only verify, and to those who log in.

It is measured twice. Apart: identity has a core, and the rest of the suite shares the other with the load: each service with cores of its own.
Shared: all of them share all cores, and the load would like to have them all; there the hash threads' low priority decides who gets less.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from os import sched_getaffinity
from statistics import median

from bench.counters import total
from bench.figures import Bench, Beside, Figure, Target, at_least, at_most
from bench.lanes import Lane, Timed, instance
from bench.load import write_requests
from bench.login import COST, hashing, rate, raw_hashes
from bench.machine import MIB, keep_on, resident_bytes
from bench.people import people
from bench.questions import verify_requests
from bench.slices import WARM_UP_SECONDS, Spread
from bench.suite import Suite
from bench.workers import Answer

TIMES = 10  # the capacity
ACCOUNTS = 12  # one account's logins under way at once are counted as guesses until they succeed
PATIENCE = 5.0  # seconds: the deadline of each login
SHARE = 0.5  # of the idle maximum: the rate at which verifications are timed
CALLERS = 16
SERVED, REFUSED = "SESSION", "RESOURCE_EXHAUSTED LOGIN_CAPACITY_EXCEEDED RetryInfo"
HASHES, LOGINS = "watchword_identity_hashes_total", "watchword_identity_logins_total"


@dataclass(frozen=True, slots=True)
class Verifying:
    """How verifications went: as many as can be, and at half the idle maximum."""

    most: list[Timed]
    paced: list[Timed]

    @property
    def rates(self) -> list[float]:
        """Answers a second."""
        return [one.rate for one in self.most]

    def times(self, percentile: str) -> list[float]:
        """Milliseconds, by slice."""
        return [getattr(one, percentile) / 1000 for one in self.paced]


@dataclass(frozen=True, slots=True)
class Flooded:
    """What became of the logins. Counts are identity's own, in the time that the flood lasted."""

    told: Answer
    asked: float  # a second
    seconds: float
    served: float
    hashed: float
    resident: list[int]
    verifying: Verifying


@dataclass(frozen=True, slots=True)
class Scene:
    """Who takes part."""

    bench: Bench
    suite: Suite
    verify: Lane
    logins: Lane

    @property
    def identity(self) -> str:
        """Where identity's metrics are."""
        return instance(self.suite.one("identity")).metrics or ""


async def flood(bench: Bench) -> list[Figure]:
    """Flood it twice, apart and shared."""
    suite, figures = await bench.suites.get(), list[Figure]()
    async with hashing(bench) as worker, _scene(bench, suite) as scene:
        suite.arrange("identity")
        raw = [await raw_hashes(worker, 4 if bench.extent.quick else 12)]
        arrangements: dict[str, Callable[[], None]] = {"apart": lambda: suite.arrange("identity"), "shared": lambda: _share(scene)}
        for name, arrange in arrangements.items():
            arrange()
            idle = Verifying([], [])
            await scene.verify.closed(WARM_UP_SECONDS)
            for number in range(1 if bench.extent.quick else 3):
                await _verify(scene, idle, number, median(idle.rates) if idle.rates else None)
            flooded = await _flooded(scene, rate(raw[0]), median(idle.rates))
            verified = f"{median(flooded.verifying.rates):.0f} of {median(idle.rates):.0f} verifications/s"
            bench.say(f"{name}: {verified}; {flooded.served / flooded.seconds:.2f} logins/s")
            figures += _figures(name, rate(raw[0]), idle, flooded)
    return figures


@asynccontextmanager
async def _scene(bench: Bench, suite: Suite) -> AsyncIterator[Scene]:
    home, access = bench.stack.home, f"Bearer {bench.stack.signer.client_token('tokens.verify')}"
    logins, tokens = home / "flood.logins", verify_requests(home, bench.stack.signer.user_token())
    write_requests(logins, [person.login for person in await people(suite, ACCOUNTS)])
    async with AsyncExitStack() as running:
        asking = await running.enter_async_context(bench.stack.worker("bench.pace"))
        storming = await running.enter_async_context(bench.stack.worker("bench.pace"))
        counted = tuple(one for one in (instance(suite.one("token")).metrics,) if one)
        verify = Lane(asking, suite.endpoints.grpc, "VerifyToken", tokens.wire, "VALID", lambda: access, counted=counted)
        yield Scene(bench, suite, verify, Lane(storming, suite.endpoints.grpc, "Login", logins, SERVED))


def _share(scene: Scene) -> None:
    scene.suite.share()
    for worker in (scene.verify.worker, scene.logins.worker):
        keep_on(worker.pid, sched_getaffinity(0))


async def _verify(scene: Scene, found: Verifying, number: int, most: float | None) -> None:
    """Add one slice of each kind."""
    seconds = 1.0 if scene.bench.extent.quick else 3.0
    found.most.append(await scene.verify.closed(seconds, callers=CALLERS))
    found.paced.append(await scene.verify.paced((most or found.most[-1].rate) * SHARE, seconds, seed=number))


async def _flooded(scene: Scene, capacity: float, most: float) -> Flooded:
    """Flood, and verify meanwhile."""
    seconds, asked = (6.0 if scene.bench.extent.quick else 30.0), capacity * TIMES
    pid, resident, verifying = scene.suite.one("identity").pid or 0, list[int](), Verifying([], [])
    resident.append(resident_bytes(pid))
    hashed, served = await total(scene.identity, HASHES), await total(scene.identity, LOGINS, outcome="SUCCEEDED")
    began = time.monotonic()
    storm = asyncio.ensure_future(scene.logins.worker.ask(**scene.logins.job(rate=asked, seconds=seconds, seed=1) | {"limit": PATIENCE}))
    until_end = asyncio.ensure_future(_counted(scene, began + seconds))
    while time.monotonic() < began + seconds * 0.6:
        await _verify(scene, verifying, len(verifying.most) + 100, most)
        resident.append(resident_bytes(pid))
    hashes, sessions = await until_end
    lasted = time.monotonic() - began
    told = (await storm)["told"]
    resident.append(resident_bytes(pid))
    return Flooded(told, asked, lasted, sessions - served, hashes - hashed, resident, verifying)


async def _counted(scene: Scene, moment: float) -> tuple[float, float]:
    """Return how many were hashed and served until `moment`."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))
    return await total(scene.identity, HASHES), await total(scene.identity, LOGINS, outcome="SUCCEEDED")


def _figures(name: str, ceiling: float, idle: Verifying, flooded: Flooded) -> list[Figure]:
    where = "identity on a core of its own" if name == "apart" else "all cores shared by all, and by the load"
    flooding = f"{flooded.asked:.0f} logins/s for {flooded.seconds:.0f} s, {where}"
    told = flooded.told
    others = sum(one["count"] for outcome, one in told.items() if outcome not in (SERVED, REFUSED))
    refused, sessions = told.get(REFUSED, {"count": 0, "p50": 0.0, "p99": 0.0}), told.get(SERVED, {"count": 0, "p99": 0.0})
    is_apart = name == "apart"

    def figure(what: str, title: str, unit: str, figures: list[float], against: Beside | None, target: Target | None, *notes: str) -> Figure:
        return Figure(f"flood.{name}.{what}", f"{title}, under {flooding}", unit, Spread.of(figures), against, target, notes)

    served = flooded.served / flooded.seconds
    counts = f"{sessions['count']} got a session in all, {flooded.hashed:.0f} hashes meanwhile"
    grown = (max(flooded.resident) - flooded.resident[0]) / MIB
    return [
        figure(
            "verify",
            "VerifyToken through Envoy",
            "/s",
            flooded.verifying.rates,
            _over("idle", flooded.verifying.rates, idle.rates),
            at_least(0.7, of_ratio=True),
        ),
        figure(
            "verify.p50",
            f"VerifyToken at {SHARE:.0%} of the idle maximum, p50",
            "ms",
            flooded.verifying.times("p50"),
            _over("idle", flooded.verifying.times("p50"), idle.times("p50")),
            None,
        ),
        figure(
            "verify.p99",
            f"VerifyToken at {SHARE:.0%} of the idle maximum, p99",
            "ms",
            flooded.verifying.times("p99"),
            _over("idle", flooded.verifying.times("p99"), idle.times("p99")),
            at_most(3, of_ratio=True),
        ),
        figure(
            "served",
            "Logins that got a session",
            "/s",
            [served],
            _over(f"bcrypt alone at cost {COST}", [served], [ceiling]),
            at_least(0.9, of_ratio=True) if is_apart else None,
            counts,
        ),
        figure(
            "refused.p99",
            "Refusals with reason and RetryInfo, p99",
            "ms",
            [refused["p99"] / 1000],
            None,
            at_most(20),
            f"{refused['count']} refused, p50 {refused['p50'] / 1000:.1f} ms",
        ),
        figure(
            "others",
            "Logins that ended otherwise",
            "calls",
            [others],
            None,
            at_most(0),
            *(f"{one['count']} {outcome}" for outcome, one in told.items() if outcome not in (SERVED, REFUSED)),
        ),
        figure("memory", "What identity's resident set grew by", "MiB", [grown], None, at_most(8)),
    ]


def _over(title: str, own: list[float], other: list[float]) -> Beside:
    """Compare by medians: the slices of the two are not of the same rounds."""
    floor = median(other)
    return Beside(title, Spread.of(other), Spread.of([one / floor for one in own]))
