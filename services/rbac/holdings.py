"""What a subject holds, compiled for questions: which role, where, on what terms. Nothing here is about time passing or being stale."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.rbac.model import ANYBODY, Subject, SubjectType, Terms
from services.rbac.nodes import Holder, RoleFacts, Snapshot
from services.rbac.patterns import Patterns

if TYPE_CHECKING:
    from services.rbac.decisions import Decision

TENANT = ""  # the resource that stands for the whole tenant
AUTHENTICATED = (SubjectType.USER, SubjectType.CLIENT)


@dataclass(frozen=True, slots=True)
class HeldRole:
    """A bound role, with the patterns of itself and of all roles above it."""

    id: UUID
    name: str
    patterns: Patterns


@dataclass(frozen=True, slots=True)
class Holding:
    """A role held by a binding at a resource, or in the whole tenant if that is empty."""

    binding_id: UUID
    role: HeldRole
    resource: str
    terms: Terms

    def counts(self, now: datetime) -> bool:
        """Whether it has not expired."""
        end = self.terms.expire_time
        return end is None or end > now


def is_timeless(terms: Terms) -> bool:
    """Whether a binding on `terms` says the same at any time, in any context and for any login."""
    return terms.expire_time is None and not terms.condition and not terms.acr and terms.max_age is None


class Holdings:
    """All that one subject holds, directly, by groups, or because anybody does."""

    __slots__ = ("_by_resource", "answers", "is_timeless", "weight")

    def __init__(self, holdings: Iterable[Holding]) -> None:
        grouped: dict[str, list[Holding]] = {}
        roles: dict[UUID, HeldRole] = {}
        for holding in holdings:
            grouped.setdefault(holding.resource, []).append(holding)
            roles[holding.role.id] = holding.role
        self._by_resource = {resource: tuple(held) for resource, held in grouped.items()}
        # Whether the answer to a question is the same at any time, in any context and for any login; and those answers, for those who ask again.
        self.is_timeless = all(is_timeless(holding.terms) for held in self._by_resource.values() for holding in held)
        self.answers: dict[Hashable, Decision] = {}
        # How much memory it takes: in holdings and patterns.
        self.weight = 4 + sum(map(len, grouped.values())) + sum(len(role.patterns) for role in roles.values())

    def at(self, resources: Iterable[str], now: datetime) -> Iterator[Holding]:
        """Yield what is held at any of `resources` and has not expired."""
        by_resource = self._by_resource
        for resource in resources:
            for holding in by_resource.get(resource, ()):
                if holding.counts(now):
                    yield holding

    def anywhere(self, now: datetime) -> Iterator[Holding]:
        """Yield all that is held and has not expired."""
        return self.at(self._by_resource, now)

    @property
    def resources(self) -> list[str]:
        """Where anything is held."""
        return list(self._by_resource)


NOTHING = Holdings(())


class Incomplete(Exception):
    """A part that is needed is not known."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where to look parts up. Each function raises Incomplete for what is not known."""

    holder: Callable[[Subject], Holder]
    role: Callable[[UUID], RoleFacts]


def compile_holdings(parts: Parts, subject: Subject) -> Holdings:
    """Put together what `subject` holds. Raises Incomplete."""
    roles: dict[UUID, HeldRole] = {}
    found = []
    for holder in reached(parts, subject):
        for bound in holder.bindings:
            if bound.role_id not in roles:
                roles[bound.role_id] = _compile_role(parts, bound.role_id)
            found.append(Holding(bound.id, roles[bound.role_id], bound.resource, bound.terms))
    return Holdings(found) if found else NOTHING


def reached(parts: Parts, subject: Subject) -> Iterator[Holder]:
    """Yield the holder of `subject`, those of all groups above it, and anybody's if the subject is somebody who logs in."""
    level = [subject, ANYBODY] if subject.type in AUTHENTICATED else [subject]
    seen = set(level)
    while level:
        following = []
        for one in level:
            holder = parts.holder(one)
            yield holder
            for group in (Subject(SubjectType.GROUP, group_id) for group_id in holder.groups):
                if group not in seen:
                    seen.add(group)
                    following.append(group)
        level = following


def _compile_role(parts: Parts, role_id: UUID) -> HeldRole:
    """Return a role with the patterns of all above it."""
    bound = parts.role(role_id)
    seen, level, patterns = {role_id}, [bound], set(bound.patterns)
    while level:
        above = {parent for role in level for parent in role.parents} - seen
        seen |= above
        level = [parts.role(parent) for parent in above]
        patterns.update(*(role.patterns for role in level))
    return HeldRole(role_id, bound.name, Patterns(patterns))


def of_snapshot(snapshot: Snapshot) -> Parts:
    """Return the parts of a snapshot, in which all that is above what was asked for is known."""
    return Parts(snapshot.holders.__getitem__, snapshot.roles.__getitem__)


def places_of(parents: Callable[[str], str], resource: str) -> tuple[str, ...]:
    """Return the whole tenant, `resource`, and all that it lies below; `parents` raises Incomplete for what is not known."""
    way = [TENANT]
    while resource and resource not in way:
        way.append(resource)
        resource = parents(resource)
    return tuple(way)


def in_snapshot(snapshot: Snapshot, subjects: Sequence[Subject]) -> dict[Subject, Holdings]:
    """Return what each of `subjects` holds."""
    parts = of_snapshot(snapshot)
    return {subject: compile_holdings(parts, subject) for subject in subjects}
