"""What a subject holds, compiled for questions: which role, where, until when. Nothing here is about time passing or being stale."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NewType
from uuid import UUID

from services.rbac.model import Subject
from services.rbac.patterns import Patterns

Revision = NewType("Revision", int)


@dataclass(frozen=True, slots=True)
class HeldRole:
    """A bound role, with the patterns of itself and of all roles above it."""

    id: UUID
    name: str
    patterns: Patterns


@dataclass(frozen=True, slots=True)
class Holding:
    """A role held at a resource, or in the whole tenant if that is empty, until `expire_time`, or for ever."""

    role: HeldRole
    resource: str
    expire_time: datetime | None

    def counts(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expire_time is None or self.expire_time > now


class Holdings:
    """All that one subject holds, directly or by groups."""

    __slots__ = ("_by_resource", "weight")

    def __init__(self, holdings: Iterable[Holding]) -> None:
        grouped: dict[str, list[Holding]] = {}
        roles: dict[UUID, HeldRole] = {}
        for holding in holdings:
            grouped.setdefault(holding.resource, []).append(holding)
            roles[holding.role.id] = holding.role
        self._by_resource = {resource: tuple(held) for resource, held in grouped.items()}
        # How much memory it takes: in holdings and patterns, at about 200 bytes each.
        self.weight = 4 + sum(map(len, grouped.values())) + sum(len(role.patterns) for role in roles.values())

    def at(self, resources: Iterable[str], now: datetime) -> Iterator[Holding]:
        """Yield what is held at any of `resources` and has not expired."""
        for resource in resources:
            for holding in self._by_resource.get(resource, ()):
                if holding.counts(now):
                    yield holding

    def anywhere(self, now: datetime) -> Iterator[Holding]:
        """Yield all that is held and has not expired."""
        return self.at(self._by_resource, now)


NOTHING = Holdings(())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one statement saw: all of one state.

    revision  the tenant's, of which consistency tokens speak
    policy    the revision at which the tenant's policy last changed; what was loaded stays true while this stays the same
    holdings  by subject
    places    by resource: itself and everything it lies below
    """

    revision: Revision
    policy: Revision
    holdings: Mapping[Subject, Holdings]
    places: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class State:
    """Where a tenant stands: see `Snapshot`."""

    revision: Revision
    policy: Revision
