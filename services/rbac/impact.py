"""What a change does to what subjects may do: who gains and who loses what.

Two states are compared, that before the change and that after it. A right is a pattern at a place. Somebody gains a right if a binding gives it to
him after the change on terms that no binding covered before, be it there, above, or tenant-wide; or if a denial of it is lifted, in whole or on some
condition. Losses are the gains of the way back. What is gained with something wider is not told beside it.

Subjects that hold the same before and the same after are measured once. What it takes is bounded by a patience: when that is over, what was found so
far is told, as of fewer than were affected.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, takewhile
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from services.rbac.holdings import TENANT, of_snapshot, places_of, reached
from services.rbac.model import ANYBODY, FOR_EVER, Effect, Subject, Terms
from services.rbac.nodes import RoleFacts, Snapshot
from services.rbac.patterns import EVERYTHING, common, covering, overlap

LISTED = 100  # subjects that an impact names, and rights of each
PATIENCE = 1.0  # seconds of computing


class Right(NamedTuple):
    """A pattern at a place, or in the whole tenant if that is empty."""

    pattern: str
    resource: str


class Unit(NamedTuple):
    """A role held at a place on terms, by whatever binding."""

    role_id: UUID
    resource: str
    terms: Terms


# Whoever is denied something may have been allowed it by a binding of his own: for anybody, a denial is judged as if everything was allowed.
_ALLOWED_ALL = Unit(UUID(int=0), TENANT, FOR_EVER)


class Patience:
    """How long a measurement may take; it ends before if nobody waits any more."""

    def __init__(self, seconds: float = PATIENCE) -> None:
        self._end = monotonic() + seconds
        self.was_lost = False

    def lose(self) -> None:
        """End it, from whatever thread."""
        self._end = 0.0

    @property
    def lasts(self) -> bool:
        """Whether to go on; that it did not last is remembered."""
        self.was_lost = self.was_lost or monotonic() >= self._end
        return not self.was_lost


class Side:
    """One of the states that are compared."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._parts = of_snapshot(snapshot)
        self._snapshot = snapshot
        self._patterns: dict[UUID, frozenset[str]] = {_ALLOWED_ALL.role_id: frozenset((EVERYTHING,))}
        self._ordered: dict[UUID, list[str]] = {}
        self._above: dict[str, frozenset[str]] = {}

    def units(self, subject: Subject) -> frozenset[Unit]:
        """Return what a subject holds, directly, by groups, or because anybody does."""
        holders = reached(self._parts, subject)
        return frozenset(Unit(bound.role_id, bound.resource, bound.terms) for holder in holders for bound in holder.bindings)

    def patterns(self, role_id: UUID) -> frozenset[str]:
        """Return the patterns of a role and all above it; none of one that does not exist."""
        if role_id not in self._patterns:
            self._patterns[role_id] = frozenset().union(*(role.patterns for role in self._lineage(role_id)))
        return self._patterns[role_id]

    def ordered(self, role_id: UUID) -> list[str]:
        """Return the patterns of a role and all above it, in order."""
        if role_id not in self._ordered:
            self._ordered[role_id] = sorted(self.patterns(role_id))
        return self._ordered[role_id]

    def _lineage(self, role_id: UUID) -> Iterator[RoleFacts]:
        seen, level = {role_id}, [role_id]
        while level:
            roles = [self._snapshot.roles[one] for one in level if one in self._snapshot.roles]
            yield from roles
            level = list({parent for role in roles for parent in role.parents} - seen)
            seen.update(level)

    def above(self, resource: str) -> frozenset[str]:
        """Return the whole tenant, `resource`, and all it lies below."""
        if resource not in self._above:
            self._above[resource] = frozenset(places_of(lambda name: self._snapshot.places.get(name, ""), resource))
        return self._above[resource]


@dataclass(frozen=True, slots=True)
class Difference:
    """What one subject gains or loses at one place."""

    subject: Subject
    resource: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Impact:
    """Who gains and loses what: of at most LISTED subjects each, by place. `is_truncated`: more were affected than were looked at."""

    subject_count: int
    gaining_count: int
    losing_count: int
    gains: tuple[Difference, ...]
    losses: tuple[Difference, ...]
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two states, as far as a change affects `subjects` and moves the resources `moved`."""

    before: Side
    after: Side
    subjects: Sequence[Subject]
    moved: Collection[str]
    is_truncated: bool

    def measure(self, patience: "Patience | None" = None) -> Impact:
        """Return the difference. Cost: what the affected subjects hold, each kind of them once; at most `patience`, by default PATIENCE."""
        gains, losses, patience = _Tally(), _Tally(), patience or Patience()
        known: dict[tuple[object, ...], tuple[_Way, _Way]] = {}
        for subject in self.subjects:
            if not patience.lasts:
                break
            held, holds = self.before.units(subject), self.after.units(subject)
            key = (subject == ANYBODY, held, holds)
            if key not in known:
                there = _Way(self.before, self.after, held, holds, is_anybody=subject == ANYBODY, moved=self.moved, patience=patience)
                back = _Way(self.after, self.before, holds, held, is_anybody=subject == ANYBODY, moved=self.moved, patience=patience)
                known[key] = there, back
            there, back = known[key]
            gains.add(subject, there)
            losses.add(subject, back)
        is_truncated = self.is_truncated or patience.was_lost
        return Impact(len(self.subjects), gains.count, losses.count, tuple(gains.listed), tuple(losses.listed), is_truncated)


class _Tally:
    """Counts those who gain, and lists what the first of them gain."""

    def __init__(self) -> None:
        self.count = 0
        self.listed: list[Difference] = []

    def add(self, subject: Subject, way: "_Way") -> None:
        """Count a subject if it gains anything."""
        if way.found and self.count < LISTED:
            self.listed += _by_place(subject, way.widest)
        self.count += bool(way.found)


def _by_place(subject: Subject, found: Iterable[Right]) -> Iterator[Difference]:
    places: dict[str, list[str]] = {}
    for right in found:
        places.setdefault(right.resource, []).append(right.pattern)
    for resource, patterns in sorted(places.items()):
        yield Difference(subject, resource, tuple(sorted(patterns)))


class _Way:
    """The way from one state to another of those who held `had` and hold `has`: what they gain."""

    def __init__(
        self, old: Side, new: Side, had: frozenset[Unit], has: frozenset[Unit], *, is_anybody: bool, moved: Collection[str], patience: Patience
    ) -> None:
        self._old = old
        self._new = new
        self._had = had
        self._has = has
        self._is_anybody = is_anybody
        self._moved = moved
        self._patience = patience

    @cached_property
    def found(self) -> list[Right]:
        """The first rights that are gained."""
        return list(islice(self._gained(), LISTED))

    @cached_property
    def widest(self) -> list[Right]:
        """Those of them that none of the others covers."""
        return list(self._widest(self.found))

    def _gained(self) -> Iterator[Right]:
        """Yield each right that is gained, once, as long as patience lasts."""
        seen: set[Right] = set()
        for right, had, has in takewhile(lambda _: self._patience.lasts, chain(self._given(), self._lifted())):
            if right not in seen and self._is_gain(right, had, has):
                seen.add(right)
                yield right

    def _widest(self, rights: Collection[Right]) -> Iterator[Right]:
        known = frozenset(rights)
        for right in rights:
            wider = (Right(pattern, place) for pattern in covering(right.pattern) for place in self._new.above(right.resource))
            if not any(one in known and one != right for one in wider):
                yield right

    def _given(self) -> "Iterator[_Candidate]":
        """Yield the rights of what is allowed now, and was not so before."""
        for unit in _ordered(self._has, Effect.ALLOW):
            patterns = self._new.patterns(unit.role_id)
            new = patterns - self._old.patterns(unit.role_id) if unit in self._had else patterns
            places = [unit.resource] if new else []
            places += [name for name in self._moved if unit.resource in self._new.above(name) - self._old.above(name)]
            for place in places:
                for pattern in sorted(new if place == unit.resource else patterns):
                    yield Right(pattern, place), self._had, self._has

    def _lifted(self) -> "Iterator[_Candidate]":
        """Yield the rights that were denied."""
        extra = frozenset((_ALLOWED_ALL,)) if self._is_anybody else frozenset()
        had, has = self._had | extra, self._has | extra
        for unit in _ordered(self._had, Effect.DENY):
            patterns = self._old.patterns(unit.role_id)
            gone = patterns - self._new.patterns(unit.role_id) if unit in self._has else patterns
            left = [name for name in self._moved if unit.resource in self._old.above(name) - self._new.above(name)]
            for allowed in _ordered(has, Effect.ALLOW) if gone or left else ():
                for place, denied in ((unit.resource, gone), *((name, patterns) for name in left)):
                    for pattern in self._overlaps(denied, allowed):
                        if (met := self._meeting(place, allowed)) is not None:
                            yield Right(pattern, met), had, has

    def _meeting(self, place: str, allowed: Unit) -> str | None:
        """Return where a denial at `place` and a grant meet: at the lower of the two places, if that lies below the other."""
        if allowed.resource in self._new.above(place):
            return place
        return allowed.resource if place in self._new.above(allowed.resource) else None

    def _overlaps(self, denied: Collection[str], allowed: Unit) -> Iterator[str]:
        """Yield where patterns of both meet. Most do not, so patience may end between any two that are denied."""
        ordered = self._new.ordered(allowed.role_id)
        for pattern in sorted(denied):
            if not self._patience.lasts:
                return
            for one in ordered:
                if overlap(pattern, one):
                    yield common(pattern, one)

    def _is_gain(self, right: Right, had: frozenset[Unit], has: frozenset[Unit]) -> bool:
        old, new = _standing(self._old, had, right), _standing(self._new, has, right)
        if not old.denials <= new.denials:
            return bool(new.grants)
        return any(not any(known.covers(terms) for known in old.grants) for terms in new.grants)


_Candidate = tuple[Right, frozenset[Unit], frozenset[Unit]]  # what may be gained, by whoever held the one and holds the other


@dataclass(frozen=True, slots=True)
class _Standing:
    """On what terms somebody has a right, and on what terms it is denied to him. One that is denied for ever on no condition, nobody has."""

    grants: Collection[Terms]
    denials: frozenset[Terms]


_NOTHING = _Standing((), frozenset())


def _standing(side: Side, units: Iterable[Unit], right: Right) -> _Standing:
    above, patterns = side.above(right.resource), covering(right.pattern)
    grants, denials = [], set()
    for unit in units:
        if unit.resource in above and not side.patterns(unit.role_id).isdisjoint(patterns):
            if unit.terms.effect is Effect.ALLOW:
                grants.append(unit.terms)
            elif not unit.terms.condition and unit.terms.expire_time is None:
                return _NOTHING
            else:
                denials.add(unit.terms)
    return _Standing(grants, frozenset(denials))


def _ordered(units: Iterable[Unit], effect: Effect) -> list[Unit]:
    """Return the units of one effect, those of wide places first."""
    return sorted((unit for unit in units if unit.terms.effect is effect), key=lambda unit: (unit.resource, unit.role_id))
