"""A flood of logins, ten times as many as can be hashed: what it does to those who only verify, and to those who log in.

It is measured twice. Apart: identity has a core, and the rest of the suite shares the other with the load: each service with cores of its own.
Shared: all of them share all cores, and the load would like to have them all; there the hash processes, as idle tasks, get what is left.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from os import sched_getaffinity
from statistics import median

from bench.counters import total
from bench.figures import Bench, Figure
from bench.flood_figures import SERVED, SHARE, Flooded, Verifying, figures_of
from bench.lanes import Lane, instance
from bench.load import write_requests
from bench.login import hashing, rate, raw_hashes
from bench.machine import cpu_nanoseconds, keep_on, resident_bytes
from bench.people import people
from bench.questions import verify_requests
from bench.slices import WARM_UP_SECONDS
from bench.suite import Suite

TIMES = 10  # the capacity
ACCOUNTS = 12  # one account's logins under way at once are counted as guesses until they succeed
PATIENCE = 4.0  # seconds: the deadline of each login
CALLERS = 16
HASHES, LOGINS = "watchword_identity_hashes_total", "watchword_identity_logins_total"
HASH_CPU, HASH_MEMORY = "watchword_identity_hash_cpu_seconds_total", "watchword_identity_hash_memory_bytes"


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
    lengths = {"apart": 3.0, "shared": 3.0} if bench.extent.quick else {"apart": 30.0, "shared": 20.0}
    async with hashing(bench) as worker, _scene(bench, suite) as scene:
        suite.arrange("identity")
        raw = await raw_hashes(worker, 4 if bench.extent.quick else 12)
        arrangements: dict[str, Callable[[], None]] = {"apart": lambda: suite.arrange("identity"), "shared": lambda: _share(scene)}
        for name, arrange in arrangements.items():
            arrange()
            idle = await _idle(scene)
            flooded = await _flooded(scene, rate(raw) * TIMES, median(idle.rates), lengths[name])
            verified = f"{median(flooded.verifying.rates):.0f} of {median(idle.rates):.0f} verifications/s"
            bench.say(f"{name}: {verified}; {flooded.served / flooded.seconds:.2f} logins/s")
            figures += figures_of(name, raw, idle, flooded)
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
        verify = Lane(asking, suite.endpoints.grpc, "VerifyToken", tokens.wire, "VALID", lambda: access, counted=counted, may_fail=True)
        yield Scene(bench, suite, verify, Lane(storming, suite.endpoints.grpc, "Login", logins, SERVED))


def _share(scene: Scene) -> None:
    scene.suite.share()
    for worker in (scene.verify.worker, scene.logins.worker):
        keep_on([worker.pid], sched_getaffinity(0))


async def _most(scene: Scene, found: Verifying) -> None:
    """Add a slice as fast as possible."""
    found.most.append(await scene.verify.closed(_slice(scene), callers=CALLERS))


async def _paced(scene: Scene, found: Verifying, most: float) -> None:
    """Add a slice at a share of `most`."""
    found.paced.append(await scene.verify.paced(most * SHARE, _slice(scene), seed=len(found.paced)))


def _slice(scene: Scene) -> float:
    return 0.6 if scene.bench.extent.quick else 2.5


async def _idle(scene: Scene) -> Verifying:
    """Verify as long as nobody logs in."""
    found = Verifying([], [])
    await scene.verify.closed(WARM_UP_SECONDS)
    for _ in range(1 if scene.bench.extent.quick else 3):
        await _most(scene, found)
    for _ in found.most[:]:
        await _paced(scene, found, median(found.rates))
    return found


async def _flooded(scene: Scene, asked: float, most: float, seconds: float) -> Flooded:
    """Flood, and verify meanwhile: as fast as possible in the first half, at a share of the idle maximum in the second."""
    verifying, before, resident, began = Verifying([], []), await _counts(scene), [await _resident(scene)], time.monotonic()
    job = scene.logins.job(rate=asked, seconds=seconds, seed=1, split=seconds / 2) | {"limit": PATIENCE}
    storm, at_end = asyncio.ensure_future(scene.logins.worker.ask(**job)), asyncio.ensure_future(_counts(scene, at=began + seconds))
    last = _slice(scene) * 1.2  # what begins later than that would not end within its half
    try:
        while time.monotonic() < began + seconds / 2 - last:
            await _most(scene, verifying)
            resident.append(await _resident(scene))
        await asyncio.sleep(max(0.0, began + seconds / 2 - time.monotonic()))
        while time.monotonic() < began + seconds - last:
            await _paced(scene, verifying, most)
            resident.append(await _resident(scene))
        after, lasted = await at_end, time.monotonic() - began
        told = await storm
    finally:
        storm.cancel()
        at_end.cancel()
    resident.append(await _resident(scene))
    served, hashed, spent = (now - earlier for now, earlier in zip(after, before, strict=True))
    return Flooded(told["told"], told["later"], asked, lasted, served, hashed, spent, resident, verifying)


async def _counts(scene: Scene, *, at: float = 0.0) -> tuple[float, float, float]:
    """Return how many logins identity has served, how many passwords it has hashed, and its seconds of CPU, at a moment or now."""
    await asyncio.sleep(max(0.0, at - time.monotonic()))
    cpu = cpu_nanoseconds(scene.suite.one("identity").pid or 0) / 1e9 + await total(scene.identity, HASH_CPU)
    return await total(scene.identity, LOGINS, outcome="SUCCEEDED"), await total(scene.identity, HASHES), cpu


async def _resident(scene: Scene) -> int:
    """Return what identity holds in memory, its hash processes included. Those come and go, so that it says itself what they hold."""
    return resident_bytes(scene.suite.one("identity").pid or 0) + int(await total(scene.identity, HASH_MEMORY))
