"""The permission check: subject → groups → bindings → roles with their parents → place.

Right the moment a change's transaction commits, on every instance:

* A change locks its tenant's row of `policy`, takes the tenant's next revision and writes it there, all in its own transaction. So whoever sees
  revision N there sees all changes up to N, and who sees none of them sees a smaller number: number and effects become visible together.
* A load is one statement, thus one snapshot: what it returns is exactly the state of the number it returns beside it. A fill that raced a change is
  used for its own answer, and not remembered.
* Every instance is told of a change, and of what it touched, before it is acknowledged (services.chassis.coherence). So while its lease lives an
  instance knows the tenant's head, and memory is the state at that head. Without a lease a check begins by reading the number from Postgres.
* So an answer is the state of an instant after the check began, and no change that was acknowledged before is missing from it.

Cost: warm, none but memory, and without a lease one indexed read of one row; cold, one statement that loads and reads the number, and one for all who
ask the same at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from services.chassis.clock import Clock
from services.chassis.tenancy import TenantId
from services.rbac.decisions import Decision, Judge, Question, last_end
from services.rbac.holdings import TENANT, Holding, Holdings, in_snapshot, places_of
from services.rbac.memory import Memory, Places, Standing, Tenant
from services.rbac.model import Effect, Subject
from services.rbac.nodes import Revision, Snapshot
from services.rbac.revisions import Revisions
from services.rbac.turns import Turns
from watchword.errors import RevisionUnavailable

if TYPE_CHECKING:
    from services.rbac.store.listing import RbacStore

TENANT_WIDE: Places = (TENANT,)
MAX_ANSWERS = 32  # remembered of one subject


@dataclass(frozen=True, slots=True)
class Grant:
    """One pattern that a subject holds by one bound role at one place, on the terms of one binding."""

    permission: str
    role_name: str
    holding: Holding


class View:
    """One state of one tenant, as far as it was asked for."""

    def __init__(self, revision: Revision, holdings: Mapping[Subject, Holdings], places: Mapping[str, Places], judge: Judge, now: datetime) -> None:
        self.revision = revision
        self._holdings = holdings
        self._places = places
        self._judge = judge
        self._sparing: Judge | None = None  # for what may have conditions
        self.now = now

    def decide(self, question: Question) -> Decision:
        """Answer a question about a subject and resource that the view was made for."""
        holdings, above = self._holdings[question.subject], self.above(question.resource)
        if not holdings.is_timeless:
            self._sparing = self._sparing or self._judge.of_one_call()
            return self._sparing.decide(holdings.at(above, self.now), question, self.now)
        key = (question.permission, above)
        decision = holdings.answers.get(key)
        if decision is None:
            decision = self._judge.decide(holdings.at(above, self.now), question, self.now)
            if len(holdings.answers) >= MAX_ANSWERS:
                holdings.answers.clear()
            holdings.answers[key] = decision
        return decision

    def is_lasting(self, question: Question) -> bool:
        """Whether the answer stays the same as long as the policy does."""
        return self._holdings[question.subject].is_timeless

    def above(self, resource: str) -> Places:
        """Return the whole tenant, `resource`, and all it lies below."""
        return TENANT_WIDE if resource == TENANT else self._places[resource]

    def held(self, subject: Subject, resource: str) -> list[Holding]:
        """Return what `subject` holds at `resource`, above it, and tenant-wide."""
        return list(self._holdings[subject].at(self.above(resource), self.now))

    def held_anywhere(self, subject: Subject) -> list[Holding]:
        """Return what `subject` holds, wherever it is."""
        return list(self._holdings[subject].anywhere(self.now))

    def grants(self, subject: Subject, resource: str) -> list[Grant]:
        """Return the grants and denials of `subject` at `resource`, by permission, then by role, place and terms.

        Of bindings that differ in nothing but their end, the one that ends last is listed.
        """
        latest: dict[tuple[object, ...], Holding] = {}
        for holding in self.held(subject, resource):
            key = _terms_key(holding)
            known = latest.get(key)
            if known is None or last_end([known.terms.expire_time, holding.terms.expire_time]) == holding.terms.expire_time:
                latest[key] = holding
        found = [Grant(pattern, holding.role.name, holding) for holding in latest.values() for pattern in holding.role.patterns.texts]
        return sorted(found, key=grant_key)


def _terms_key(holding: Holding) -> tuple[str, ...]:
    terms = holding.terms
    age = "" if terms.max_age is None else f"{terms.max_age.total_seconds():.0f}"
    return str(holding.role.id), holding.resource, str(int(terms.effect)), terms.acr, age, terms.condition


def grant_key(grant: Grant) -> tuple[str, ...]:
    """Return what orders grants, and no two of one list share."""
    return grant.permission, *_terms_key(grant.holding)


class Lease(Protocol):
    """Says whether memory may be believed at this instant."""

    @property
    def is_current(self) -> bool:
        """Whether every acknowledged change is in memory."""


class Checker:
    """Decides."""

    def __init__(self, store: "RbacStore", memory: Memory, revisions: Revisions, lease: Lease, *, clock: Clock, judge: Judge) -> None:
        self._store = store
        self._memory = memory
        self._revisions = revisions
        self._lease = lease
        self._clock = clock
        self._judge = judge
        self._turns = Turns()
        self.warm = self.cold = 0  # views made of memory, and of Postgres

    async def check(self, tenant_id: TenantId, question: Question, *, at_least: int = 0) -> tuple[Decision, Revision]:
        """Answer one question. Raises RevisionUnavailable, DependencyUnavailable."""
        view = await self.view(tenant_id, (question.subject,), (question.resource,), at_least=at_least)
        return view.decide(question), view.revision

    async def view(
        self, tenant_id: TenantId, subjects: Iterable[Subject], resources: Iterable[str], *, at_least: int = 0, is_scan: bool = False
    ) -> View:
        """Return one state of what `subjects` hold and where `resources` lie, no older than this call and revision `at_least`.

        is_scan  they are looked through and may never be asked for again: a memory that is nearly full does not learn them
        """
        asked, places = list(dict.fromkeys(subjects)), [name for name in dict.fromkeys(resources) if name != TENANT]
        view = await self._find(tenant_id, asked, places, at_least) or await self._read(tenant_id, asked, places, at_least, is_scan=is_scan)
        if view.revision < at_least:
            raise RevisionUnavailable
        return view

    def standing(self, tenant_id: TenantId) -> Standing | None:
        """Return what stands for the tenant's state at this instant, if the lease lives: a lasting answer of it may be given again."""
        tenant = self._memory.tenant(tenant_id) if self._lease.is_current else None
        return None if tenant is None else tenant.standing(self._clock.seconds())

    def recall(self, tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str], at_least: int = 0) -> View | None:
        """Return the view from memory alone: if all of it is there, no older than revision `at_least`, and the lease lives."""
        if not self._lease.is_current:
            return None
        tenant = self._memory.tenant(tenant_id)
        if tenant is None or tenant.revision < at_least:
            return None
        view = self._compose(tenant_id, tenant, subjects, resources)
        self.warm += view is not None
        return view

    async def _find(self, tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str], at_least: int) -> View | None:
        """Return the view from memory, led by the lease or else by what Postgres says of the tenant's state."""
        if self._lease.is_current:
            return self.recall(tenant_id, subjects, resources, at_least)
        tenant = self._memory.tenant(tenant_id)
        if tenant is None or self._compose(tenant_id, tenant, subjects, resources) is None:
            return None
        state = await self._store.read_state(tenant_id)
        tenant = self._memory.tenant(tenant_id)
        if tenant is None or tenant.head != state.policy or state.revision < at_least:
            return None
        view = self._compose(tenant_id, tenant, subjects, resources)
        self.warm += view is not None
        return view

    def _compose(self, tenant_id: TenantId, tenant: Tenant, subjects: Sequence[Subject], resources: Sequence[str]) -> View | None:
        now, memory = self._clock.now(), self._memory
        holdings: dict[Subject, Holdings] = {}
        for subject in subjects:
            held = memory.holdings(tenant_id, tenant, subject, now)
            if held is None:
                return None
            holdings[subject] = held
        places: dict[str, Places] = {}
        for name in resources:
            above = TENANT_WIDE if name == TENANT else memory.places(tenant_id, tenant, name, now)
            if above is None:
                return None
            places[name] = above
        return View(tenant.revision, holdings, places, self._judge, now)

    async def _read(self, tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str], at_least: int, *, is_scan: bool) -> View:
        """Return the view from Postgres, or from memory if another call has brought it there meanwhile."""
        async with self._turns.taken((tenant_id, tuple(subjects), tuple(resources))) as has_waited:
            view = await self._find(tenant_id, subjects, resources, at_least) if has_waited else None
            return view or await self._load(tenant_id, subjects, resources, is_scan=is_scan)

    async def _load(self, tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str], *, is_scan: bool) -> View:
        self.cold += 1
        began, generation = self._clock.now(), self._memory.generation
        snapshot = await self._store.load(tenant_id, subjects, resources)
        if is_scan and self._memory.is_full:
            return self._seen(snapshot, subjects, resources)
        self._revisions.learn(
            tenant_id,
            snapshot,
            subjects=subjects,
            resources=resources,
            began=began,
            generation=generation,
            is_led=self._lease.is_current,
        )
        tenant = self._memory.tenant(tenant_id)
        if tenant is not None and tenant.head == snapshot.state.policy:  # memory is of the same state, and has compiled what was asked for
            view = self._compose(tenant_id, tenant, subjects, resources)
            if view is not None:
                return view
        return self._seen(snapshot, subjects, resources)

    def _seen(self, snapshot: Snapshot, subjects: Sequence[Subject], resources: Sequence[str]) -> View:
        places = {name: places_of(snapshot.places.__getitem__, name) for name in resources}
        return View(snapshot.state.revision, in_snapshot(snapshot, subjects), places, self._judge, self._clock.now())


def allows(holdings: Iterable[Holding]) -> list[Holding]:
    """Return those of `holdings` that allow."""
    return [holding for holding in holdings if holding.terms.effect is Effect.ALLOW]
