"""Every order in which a notice, an answer and a lease can meet: nobody is recalled whose revocation was acknowledged.

An instance of token answers; a guest asks it and remembers; a writer revokes, and says OK as the protocol of decision 8 lets it: once both have
applied the notice, or the guest has lost its lease. The memory is the real one. Without any of its guards some order breaks the promise.
"""

import asyncio
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.chassis.call import Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.known_callers import Asked, KnownCallers, Names
from services.chassis.tenancy import DEFAULT_TENANT
from services.token.notices import encode
from watchword.rules import Revocation, RevokedKind

FUTURE = datetime.now(UTC) + timedelta(days=1)
ANNE = Caller(CallerKind.USER, str(UUID(int=1)), session_id=UUID(int=2), token_id=str(UUID(int=3)), token="anne", expire_time=FUTURE)
ABOUT_ANNE = encode(Revocation(DEFAULT_TENANT, RevokedKind.SUBJECT, UUID(int=1), 1, FUTURE))
ABOUT_BERT = encode(Revocation(DEFAULT_TENANT, RevokedKind.SUBJECT, UUID(int=9), 1, FUTURE))
LOGS = [(ABOUT_ANNE,), (ABOUT_BERT, ABOUT_ANNE), (ABOUT_ANNE, ABOUT_BERT)]
LAPSES, ASKS = 1, 2


@dataclass
class World:
    """The log, how far each has applied it, and what is under way."""

    log: tuple[str, ...]
    memory: KnownCallers
    published: int = 0
    member: int = 0  # applied by the instance of token
    guest: int = 0  # applied by the guest
    floor: int = 0  # what the guest last saw that both had applied
    is_current: bool = True
    lapses: int = 0
    asks: int = 0
    asked: Asked | None = None
    stage: str = "idle"  # of the question: idle, asked, answered
    trail: tuple[str, ...] = field(default=(), compare=False)

    @property
    def unsettled(self) -> int | None:
        return max(0, self.guest - self.floor)

    @property
    def acknowledged(self) -> int:
        return min(self.member, self.guest if self.is_current else self.published)

    @property
    def is_stale(self) -> bool:
        self.memory.trust(self)
        return ABOUT_ANNE in self.log[: self.acknowledged] and self.memory.recall("anne") is not None

    def key(self) -> tuple[object, ...]:
        memory = self.memory
        about = (memory._count, tuple(memory._heard), memory._loads, len(memory))
        state = (self.published, self.member, self.guest, self.floor, self.is_current, self.lapses, self.asks, self.asked, self.stage)
        return (*state, *about)


def steps(world: World) -> Iterator[World]:
    """Yield every state that may come next."""
    for name in ("publish", "member_applies", "guest_applies", "guest_looks", "asks", "is_answered", "is_refused", "keeps", "lapses", "rejoins"):
        after = copy.deepcopy(world)
        after.memory.trust(after)
        if STEPS[name](after):
            after.trail = (*world.trail, name)
            yield after


def publish(world: World) -> bool:
    world.published += 1
    return world.published <= len(world.log)


def member_applies(world: World) -> bool:
    world.member += 1
    return world.member <= world.published


def guest_applies(world: World) -> bool:
    if not world.is_current or world.guest == world.published:
        return False
    world.memory.apply(world.log[world.guest])
    world.guest += 1
    return True


def guest_looks(world: World) -> bool:
    seen, world.floor = world.floor, min(world.member, world.guest)
    return world.floor != seen


def asks(world: World) -> bool:
    if world.stage != "idle" or world.asks == ASKS:
        return False
    world.asked, world.stage, world.asks = world.memory.ask(), "asked", world.asks + 1
    return True


def is_answered(world: World) -> bool:
    ready, world.stage = world.stage == "asked" and ABOUT_ANNE not in world.log[: world.member], "answered"
    return ready


def is_refused(world: World) -> bool:
    ready, world.stage = world.stage == "asked" and ABOUT_ANNE in world.log[: world.member], "idle"
    return ready


def keeps(world: World) -> bool:
    if world.stage != "answered":
        return False
    world.memory.keep(world.asked, ANNE, client_id=None)
    world.stage, world.asked = "idle", None
    return True


def lapses(world: World) -> bool:
    """The writer waits no more. What the guest had is gone only when it loads anew."""
    ready = world.is_current and world.lapses < LAPSES
    world.is_current, world.lapses = False, world.lapses + 1
    return ready


def rejoins(world: World) -> bool:
    if world.is_current:
        return False
    world.guest = world.published
    asyncio.run(world.memory.load())
    world.is_current = True
    return True


STEPS = {step.__name__: step for step in (publish, member_applies, guest_applies, guest_looks, asks, is_answered, is_refused, keeps, lapses, rejoins)}


def explore(memory: type[KnownCallers]) -> tuple[int, tuple[str, ...] | None]:
    """Return how many states there are, and the shortest way to one that breaks the promise."""
    seen: set[object] = set()
    for log in LOGS:
        queue = [World(log, memory(10, Clock()))]
        for world in queue:
            if world.is_stale:
                return len(seen), world.trail
            for after in steps(world):
                key = (log, after.key())
                if key not in seen:
                    seen.add(key)
                    queue.append(after)
    return len(seen), None


class Deaf(KnownCallers):
    """A notice is counted, and forgets nobody."""

    def _forget(self, token: str) -> None:
        """Do nothing."""


class Racing(KnownCallers):
    """What was told while token was asked is not looked at."""

    def keep(self, asked: Asked | None, caller: Caller, *, client_id: UUID | None) -> None:
        super().keep(self.ask(), caller, client_id=client_id)


class Trusting(KnownCallers):
    """Token's instances are taken to have applied whatever was applied here."""

    def ask(self) -> Asked | None:
        return Asked(self._loads, self._count)


class Enduring(KnownCallers):
    """A load forgets nobody."""

    def _forget_all(self) -> None:
        """Do nothing."""


class Timeless(KnownCallers):
    """An answer to a question from before a load is as good as any."""

    def keep(self, asked: Asked | None, caller: Caller, *, client_id: UUID | None) -> None:
        super().keep(None if asked is None else Asked(self._loads, asked.settled), caller, client_id=client_id)


class Presuming(KnownCallers):
    """What was told before the load is taken to be settled."""

    def _may_lack(self, asked: Asked, names: Names) -> bool:
        return super()._may_lack(Asked(asked.load, max(0, asked.settled)), names)


class Unfaithful(KnownCallers):
    """Memory answers with or without a lease."""

    def recall(self, token: str) -> Caller | None:
        known = self._known.get(token)
        return None if known is None else known.caller


def test_in_no_order_is_anybody_recalled_after_the_ok() -> None:
    states, way = explore(KnownCallers)

    assert way is None
    assert states > 2000


@pytest.mark.parametrize("memory", [Deaf, Racing, Trusting, Enduring, Timeless, Presuming, Unfaithful])
def test_without_any_of_its_guards_some_order_breaks_the_promise(memory: type[KnownCallers]) -> None:
    _, way = explore(memory)

    assert way is not None
