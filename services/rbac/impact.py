"""What a change does to what subjects may do: who gains and who loses what.

A grant is a pattern at a place on terms. One that another covers (a wider pattern, at the same place or tenant-wide, on no terms or the same) is
neither gained nor lost with it. A denial takes away what it and a grant have in common.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.rbac.holdings import TENANT, Holding, Holdings
from services.rbac.memory import Places
from services.rbac.model import Effect, Subject
from services.rbac.patterns import covering, overlap

LISTED = 100  # subjects that an impact names, and patterns of each at one place


@dataclass(frozen=True, slots=True)
class Right:
    """A pattern at a place, on terms."""

    pattern: str
    resource: str
    condition: str = ""
    acr: str = ""
    max_age: timedelta | None = None

    def covers(self, other: "Right") -> bool:
        """Whether who holds this one has nothing more by `other`."""
        is_wider = self.pattern in covering(other.pattern) and self.resource in (TENANT, other.resource)
        terms = self.condition, self.acr, self.max_age
        return is_wider and terms in (("", "", None), (other.condition, other.acr, other.max_age))


@dataclass(frozen=True, slots=True)
class Side:
    """The state before a change, or after it: what the subjects that it affects hold, and where the resources lie that it moves."""

    holdings: Mapping[Subject, Holdings]
    places: Mapping[str, Places]


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


def measure(before: Side, after: Side, now: datetime, *, is_truncated: bool) -> Impact:
    """Compare two states."""
    gains, losses = [], []
    for subject in before.holdings:
        old, new = _rights(before, subject, now), _rights(after, subject, now)
        gains += [(subject, right) for right in _missing(new, old)]
        losses += [(subject, right) for right in _missing(old, new)]
    return Impact(
        len(before.holdings),
        len({subject for subject, _ in gains}),
        len({subject for subject, _ in losses}),
        tuple(_listed(gains)),
        tuple(_listed(losses)),
        is_truncated,
    )


@dataclass(frozen=True, slots=True)
class _Rights:
    """What a subject is allowed, and what of that is denied."""

    allowed: frozenset[Right]
    denied: frozenset[Right]

    def allows(self, right: Right) -> bool:
        """Whether all of `right` is allowed, and not all of it denied."""
        return any(one.covers(right) for one in self.allowed) and not any(one.covers(right) for one in self.denied)


def _missing(one: _Rights, other: _Rights) -> Iterator[Right]:
    """Yield what `one` has and `other` has not: what it is allowed, and what the other is denied of it."""
    yield from (right for right in one.allowed if one.allows(right) and not any(known.covers(right) for known in other.allowed))
    yield from (right for right in other.denied if one.allows(right) and not any(known.covers(right) for known in one.denied))


def _rights(side: Side, subject: Subject, now: datetime) -> _Rights:
    held = list(side.holdings[subject].anywhere(now))
    allowed = frozenset(_of(held, Effect.ALLOW, side.places))
    denied = frozenset(_common(right, denial) for right in allowed for denial in _of(held, Effect.DENY, side.places) if _meet(right, denial))
    return _Rights(allowed, denied)


def _of(held: Iterable[Holding], effect: Effect, moved: Mapping[str, Places]) -> Iterator[Right]:
    """Yield the rights of holdings where they are held, and at the moved resources that lie below."""
    for holding in held:
        if holding.terms.effect is effect:
            below = [name for name, above in moved.items() if holding.resource in above and holding.resource not in (TENANT, name)]
            for resource in (holding.resource, *below):
                for pattern in holding.role.patterns.texts:
                    yield Right(pattern, resource, holding.terms.condition, holding.terms.acr, holding.terms.max_age)


def _meet(one: Right, other: Right) -> bool:
    return overlap(one.pattern, other.pattern) and (one.resource == other.resource or TENANT in (one.resource, other.resource))


def _common(right: Right, denial: Right) -> Right:
    """Return what a denial takes of a right."""
    kinds, verbs = zip(*(pattern.partition(".")[::2] for pattern in (right.pattern, denial.pattern)), strict=True)
    pattern = f"{kinds[0] if kinds[1] == '*' else kinds[1]}.{verbs[0] if verbs[1] == '*' else verbs[1]}"
    return Right(pattern, right.resource or denial.resource)


def _listed(found: Iterable[tuple[Subject, Right]]) -> Iterator[Difference]:
    grouped: dict[Subject, dict[str, set[str]]] = {}
    for subject, right in found:
        if subject in grouped or len(grouped) < LISTED:
            grouped.setdefault(subject, {}).setdefault(right.resource, set()).add(right.pattern)
    for subject, places in grouped.items():
        for resource, patterns in sorted(places.items()):
            yield Difference(subject, resource, tuple(sorted(patterns)[:LISTED]))
