"""Rounds: a write is asked for, something dies at a named point, and the same request is sent again to who is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.chaos.durable_deeds import Deed
from tests.chaos.durable_stack import AGAIN, Instance, answered, outcome
from tests.chaos.durable_town import Town
from watchword.errors import WatchwordError

KILLED = -9
TRIES = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A deed, and where something dies while it is done."""

    point: str
    deed: Deed

    def __str__(self) -> str:
        return f"{type(self.deed).__name__} at {self.point}"


@dataclass
class Tally:
    """What rounds have shown."""

    rounds: int = 0
    acknowledged: int = 0  # answered although something died
    whole: int = 0  # had their effect before they were repeated
    broken: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count another's rounds as well."""
        self.rounds += other.rounds
        self.acknowledged += other.acknowledged
        self.whole += other.whole
        self.broken += other.broken

    def __str__(self) -> str:
        return f"{self.rounds} rounds, {self.whole} with their effect when it died, {len(self.broken)} violations"


async def kill_instances(cases: Sequence[Case], *, without: tuple[str, ...] = (), meanwhile: Callable[[], Awaitable[None]] | None = None) -> Tally:
    """Let an instance die in each case, all at once; then repeat each call at standing instances. No two cases share the one that dies.

    meanwhile  what else happens once they are dead
    """
    suite = cases[0].deed.suite
    armed = await asyncio.gather(*(suite.start(case.deed.service, without=without) for case in cases))
    async with ending(armed):
        await asyncio.gather(*(case.deed.prepare() for case in cases))
        await asyncio.gather(*(one.arm(case.point) for one, case in zip(armed, cases, strict=True)))
        firsts = await asyncio.gather(*(fatally(partial(case.deed.do, one), one) for one, case in zip(armed, cases, strict=True)))
        passed_by = [case for one, case in zip(armed, cases, strict=True) if not one.ended.done() or one.ended.result() != KILLED]
    tally = Tally(broken=[f"{case}: was never passed" for case in passed_by])
    if meanwhile is not None:
        await meanwhile()
    for judged in await asyncio.gather(*(_judge(case, first) for case, first in zip(cases, firsts, strict=True))):
        tally.add(judged)
    return tally


async def kill_backends(cases: Sequence[Case], *, without: tuple[str, ...] = ()) -> Tally:
    """Let the Postgres backend of the session die in each case, one after the other. Postgres then throws everybody out, and recovers."""
    suite = cases[0].deed.suite
    armed = {service: await suite.start(service, without=without) for service in {case.deed.service for case in cases}}
    tally = Tally()
    async with ending(armed.values()):
        for case in cases:
            one = armed[case.deed.service]
            await answered(case.deed.prepare)
            await one.arm(case.point, backend=True)
            first = await outcome(case.deed.do(one))
            for _ in range(TRIES):
                if await one.was_hit() or not isinstance(first, AGAIN):
                    break
                first = await outcome(case.deed.do(one))
            if not await one.was_hit():
                tally.broken.append(f"{case}: was never passed")
            tally.add(await _judge(case, first))
    return tally


@asynccontextmanager
async def ending(instances: Collection[Instance]) -> AsyncIterator[None]:
    """Whatever happens inside, nobody of these lives on."""
    try:
        yield
    finally:
        for one in instances:
            one.kill()
            await one.channel.close()


async def fatally(doing: Callable[[], Awaitable[Any]], one: Instance) -> Any:
    """Ask an instance until it has died of it, and return what it said last. A busy one may refuse a call before it comes to the point."""
    for _ in range(TRIES):
        said = await outcome(doing())
        await asyncio.wait({one.ended}, timeout=3)
        if one.ended.done() or not isinstance(said, AGAIN):
            break
    return said


async def _judge(case: Case, first: Any) -> Tally:
    """Say what is broken: of what is left, of what a repeat is told, and of what was promised with it."""
    deed, broken = case.deed, list[str]()
    left = await deed.left()
    is_acknowledged = not isinstance(first, WatchwordError)
    if left not in ((0, 0, 0), (1, 1, 1)):
        broken.append(f"left effect, audit row, result: {left}")
    if is_acknowledged and left[0] == 0:
        broken.append("acknowledged without effect")
    if is_acknowledged and not deed.is_over_once_checked:
        broken += await deed.check(first)
    try:
        second = await answered(lambda: deed.do(deed.suite.of(deed.service)[0]))
        third = await answered(lambda: deed.do(deed.suite.of(deed.service)[-1]))
    except (WatchwordError, TimeoutError) as failure:
        return Tally(1, is_acknowledged, left[0] > 0, [f"{case}: {fault}" for fault in (*broken, f"the repeat: {failure!r}")])
    if third != second or (is_acknowledged and second != first):
        broken.append("repeats are answered differently")
    if (after := await deed.left()) != (1, 1, 1):
        broken.append(f"after the repeats effect, audit row, result: {after}")
    if not is_acknowledged or deed.is_over_once_checked:
        broken += await deed.check(second)
    return Tally(1, is_acknowledged, left[0] > 0, [f"{case}: {fault}" for fault in broken])


def spread(points: Sequence[str], deeds: Sequence[type[Deed]], town: Town, *, rounds: int) -> list[Case]:
    """Return so many cases, with points and deeds by turns, so that each meets each."""
    pairs = [(point, deed) for point in points for deed in deeds]
    return [Case(point, deed(town)) for point, deed in (pairs[number % len(pairs)] for number in range(rounds))]
