"""The permission check: subject → groups → bindings → roles with their parents → scope.

Right the moment a change's transaction commits, on every instance:

* A change locks its tenant's row of `policy`, takes the tenant's next revision and writes it there, all in its own transaction. So whoever sees
  revision N there sees all changes up to N, and who sees none of them sees a smaller number: number and effects become visible together.
* A load is one statement, thus one snapshot: what it returns is exactly the state of the number it returns beside it. A fill that raced a change
  bears the old number, whenever it is stored.
* Every instance is told a new number before the change is acknowledged (services.chassis.coherence). So while its lease lives an instance knows the
  number, and believes what it remembers under the same one. Without a lease a check begins by reading the number from Postgres.
* So an answer is the state of an instant after the check began, and no change that was acknowledged before is missing from it.

Cost: warm, none but memory, and without a lease one indexed read of one row; cold, one statement that loads and reads the number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from services.chassis.clock import Clock
from services.chassis.tenancy import TenantId
from services.rbac.holdings import NOTHING, Holding, Holdings, Revision, Snapshot, State
from services.rbac.memory import Entry, Memory
from services.rbac.model import Subject
from services.rbac.patterns import covering
from services.rbac.revisions import Revisions
from watchword.errors import RevisionUnavailable

if TYPE_CHECKING:
    from services.rbac.store import RbacStore

TENANT = ""  # the resource that stands for the whole tenant
TENANT_WIDE = (TENANT,)


class Reason(IntEnum):
    """Why a decision is what it is; numbered as in the contract."""

    GRANTED = 1
    NO_ROLE = 2
    NO_PERMISSION = 3


@dataclass(frozen=True, slots=True)
class Question:
    """May `subject` do `permission` at `resource`, or in the whole tenant if that is empty?"""

    subject: Subject
    permission: str
    resource: str = TENANT


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. `expire_time` is when the last of the granting bindings ends, None if one never does."""

    reason: Reason
    expire_time: datetime | None = None

    @property
    def is_allowed(self) -> bool:
        """Whether the subject may."""
        return self.reason is Reason.GRANTED


@dataclass(frozen=True, slots=True)
class Grant:
    """One pattern that a subject holds by one bound role at one place, until the last of its bindings there ends."""

    permission: str
    role_name: str
    holding: Holding


class View:
    """One state of one tenant, as far as it was asked for."""

    def __init__(self, revision: Revision, holdings: Mapping[Subject, Holdings], places: Mapping[str, Sequence[str]], now: datetime) -> None:
        self.revision = revision
        self._holdings = holdings
        self._places = places
        self._now = now

    def decide(self, question: Question) -> Decision:
        """Answer a question about a subject and resource that the view was made for."""
        held = self.held(question.subject, question.resource)
        wanted = covering(question.permission)
        ends = [holding.expire_time for holding in held if holding.role.patterns.grants(wanted)]
        if ends:
            return Decision(Reason.GRANTED, last_end(ends))
        return Decision(Reason.NO_PERMISSION if held else Reason.NO_ROLE)

    def held(self, subject: Subject, resource: str) -> list[Holding]:
        """Return what `subject` holds at `resource`, above it, and tenant-wide."""
        where = TENANT_WIDE if resource == TENANT else (TENANT, *self._places[resource])
        return list(self._holdings.get(subject, NOTHING).at(where, self._now))

    def held_anywhere(self, subject: Subject) -> list[Holding]:
        """Return what `subject` holds, wherever it is."""
        return list(self._holdings.get(subject, NOTHING).anywhere(self._now))

    def grants(self, subject: Subject, resource: str) -> list[Grant]:
        """Return the grants of `subject` at `resource`, by permission, then by role and place."""
        latest: dict[tuple[str, str], Holding] = {}
        for holding in self.held(subject, resource):
            key = (str(holding.role.id), holding.resource)
            known = latest.get(key)
            if known is None or last_end([known.expire_time, holding.expire_time]) == holding.expire_time:
                latest[key] = holding
        found = [Grant(pattern, holding.role.name, holding) for holding in latest.values() for pattern in holding.role.patterns.texts]
        return sorted(found, key=grant_key)


def grant_key(grant: Grant) -> tuple[str, str, str]:
    """Return what orders grants, and no two of one list share."""
    return grant.permission, str(grant.holding.role.id), grant.holding.resource


def last_end(ends: Iterable[datetime | None]) -> datetime | None:
    """Return the latest of `ends`, where None is never."""
    known = []
    for end in ends:
        if end is None:
            return None
        known.append(end)
    return max(known)


class Lease(Protocol):
    """Says whether memory may be believed at this instant."""

    @property
    def is_current(self) -> bool:
        """Whether every acknowledged change is in memory."""


class Checker:
    """Decides."""

    def __init__(self, store: "RbacStore", revisions: Revisions, lease: Lease, clock: Clock) -> None:
        self._store = store
        self._revisions = revisions
        self._lease = lease
        self._clock = clock
        self._memory = Memory()

    async def check(self, tenant_id: TenantId, question: Question, *, at_least: int = 0) -> tuple[Decision, Revision]:
        """Answer one question. Raises RevisionUnavailable, DependencyUnavailable."""
        view = await self.view(tenant_id, [question.subject], [question.resource], at_least=at_least)
        return view.decide(question), view.revision

    async def view(self, tenant_id: TenantId, subjects: Iterable[Subject], resources: Iterable[str], *, at_least: int = 0) -> View:
        """Return one state of what `subjects` hold and where `resources` lie, no older than this call and revision `at_least`."""
        asked, places = list(dict.fromkeys(subjects)), [name for name in dict.fromkeys(resources) if name != TENANT]
        view = await self._recall(tenant_id, asked, places, at_least) or await self._load(tenant_id, asked, places)
        if view.revision < at_least:
            raise RevisionUnavailable
        return view

    async def _recall(self, tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str], at_least: int) -> View | None:
        """Return the view from memory, if all of it is there, of the present state, and that is known to be no older than revision `at_least`."""
        now = self._clock.now()
        held = {subject: self._memory.holdings.find((tenant_id, subject.type, subject.id), now) for subject in subjects}
        places = {name: self._memory.places.find((tenant_id, name), now) for name in resources}
        entries = (*held.values(), *places.values())
        if not all(entries):
            return None
        state = self._revisions.find(tenant_id) if self._lease.is_current else await self._store.read_state(tenant_id)
        if state is None or state.revision < at_least or any(entry.policy != state.policy for entry in entries if entry):
            return None
        holdings = {subject: entry.value for subject, entry in held.items() if entry}
        return View(state.revision, holdings, {name: entry.value for name, entry in places.items() if entry}, self._clock.now())

    async def _load(self, tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str]) -> View:
        began, generation = self._clock.now(), self._revisions.generation
        snapshot = await self._store.load(tenant_id, subjects, resources, began)
        self._revisions.learn(tenant_id, State(snapshot.revision, snapshot.policy), generation=generation)
        self._remember(tenant_id, snapshot, began)
        return View(snapshot.revision, snapshot.holdings, snapshot.places, self._clock.now())

    def _remember(self, tenant_id: TenantId, snapshot: Snapshot, began: datetime) -> None:
        for subject, holdings in snapshot.holdings.items():
            entry = Entry(holdings, snapshot.policy, began, holdings.weight)
            self._memory.holdings.keep((tenant_id, subject.type, subject.id), entry)
        for name, place in snapshot.places.items():
            self._memory.places.keep((tenant_id, name), Entry(tuple(place), snapshot.policy, began, 2 + len(place)))
