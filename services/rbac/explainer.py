"""Why a subject may do something, or why not: the shortest chain from the subject to the permission, or what is missing.

The decision is that of the check, from one state. The chain is walked over the same state: subject, groups, the binding that decides, its role, the
parents of it down to the one whose own pattern covers the permission.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.clock import Clock
from services.chassis.tenancy import TenantId
from services.rbac.conditions import Truth
from services.rbac.decisions import Decision, Judge, Outcome, Question, Reason
from services.rbac.holdings import AUTHENTICATED, TENANT, Holding, in_snapshot, places_of
from services.rbac.memory import Places
from services.rbac.model import ANYBODY, Effect, Role, RoleBinding, Subject, SubjectType
from services.rbac.nodes import Bound, Revision, Snapshot
from services.rbac.patterns import covering
from watchword.errors import RevisionUnavailable

if TYPE_CHECKING:
    from services.rbac.store.listing import RbacStore
    from services.rbac.store.naming import NameStore

MOST_MISSING = 20


@dataclass(frozen=True, slots=True)
class Chain:
    """The way to a permission: who, by which binding, by which roles, by which pattern."""

    subjects: tuple[Subject, ...]
    bound: Bound
    roles: tuple[UUID, ...]
    pattern: str

    @property
    def length(self) -> int:
        """How many steps it takes."""
        return len(self.subjects) + len(self.roles)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an explanation: one of the four, and the same in words."""

    text: str
    subject: Subject | None = None
    binding: RoleBinding | None = None
    role: Role | None = None
    permission: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, the chain behind it, and for a denial what is missing, the nearest first."""

    decision: Decision
    revision: Revision
    chain: tuple[Step, ...]
    missing: tuple[str, ...]


class Explainer:
    """Explains."""

    def __init__(self, store: "RbacStore", names: "NameStore", judge: Judge, clock: Clock) -> None:
        self._store = store
        self._names = names
        self._judge = judge
        self._clock = clock

    async def explain(self, tenant_id: TenantId, question: Question, *, at_least: int = 0) -> Explanation:
        """Explain the answer to a question. Raises RevisionUnavailable, DependencyUnavailable."""
        resources = [] if question.resource == TENANT else [question.resource]
        snapshot = await self._store.load(tenant_id, [question.subject], resources)
        if snapshot.state.revision < at_least:
            raise RevisionUnavailable
        places = places_of(snapshot.places.__getitem__, question.resource)
        holdings, now = in_snapshot(snapshot, [question.subject])[question.subject], self._clock.now()
        judge = self._judge.of_one_call()
        decision = judge.decide(holdings.at(places, now), question, now)
        chains = sorted(_chains(snapshot, question), key=lambda chain: chain.length)
        deciding = next((chain for chain in chains if chain.bound.resource in places and _decides(chain.bound, decision, question, judge, now)), None)
        steps = () if deciding is None else tuple(await self._steps(tenant_id, deciding, question))
        missing: tuple[str, ...] = ()
        if decision.outcome is Outcome.DENY:
            missing = tuple(
                await self._missing(tenant_id, question, decision, chains, judge=judge, held=list(holdings.at(places, now)), places=places)
            )
        return Explanation(decision, snapshot.state.revision, steps, missing)

    async def _steps(self, tenant_id: TenantId, chain: Chain, question: Question) -> list[Step]:
        groups = await self._names.group_names(tenant_id, [one.id for one in chain.subjects if one.type is SubjectType.GROUP])
        roles = await self._names.roles(tenant_id, chain.roles)
        binding = (await self._names.bindings(tenant_id, [chain.bound.id])).get(chain.bound.id)
        steps = [Step(_who(one, groups), subject=one) for one in chain.subjects]
        if binding is not None:
            steps.append(Step(_binding_in_words(binding, roles), binding=binding))
        for index, role_id in enumerate(chain.roles):
            if role_id in roles:
                steps.append(Step(f"{'with its parent role' if index else 'role'} {roles[role_id].name}", role=roles[role_id]))
        verb = "denies" if chain.bound.terms.effect is Effect.DENY else "grants"
        return [*steps, Step(f"{verb} {question.permission} by {chain.pattern}", permission=chain.pattern)]

    async def _missing(
        self,
        tenant_id: TenantId,
        question: Question,
        decision: Decision,
        chains: Sequence[Chain],
        *,
        judge: Judge,
        held: Sequence[Holding],
        places: Places,
    ) -> list[str]:
        """Return in words what stands in the way, the nearest first."""
        now, who, where = self._clock.now(), "the subject", question.resource or "the whole tenant"
        if decision.reason is Reason.DENIED:
            return [f"a binding denies {question.permission} at {where}: whatever else grants it, that binding must go"]
        words = [_unmet(chain.bound, question, judge, now) for chain in chains if chain.bound.resource in places]
        elsewhere = {chain.bound.resource for chain in chains if chain.bound.resource not in places and chain.bound.terms.effect is Effect.ALLOW}
        words += [f"{who} is granted {question.permission} at {place}, which {where} does not lie below" for place in sorted(elsewhere)]
        for binding in await self._names.expired(tenant_id, question.subject.type, question.subject.id):
            words.append(f"a binding of role {binding.role_id} at {binding.resource or 'the whole tenant'} expired at {_instant(binding)}")
        for holding in held:
            if not holding.role.patterns.grants(covering(question.permission)):
                words.append(f"role {holding.role.name}, held at {holding.resource or 'the whole tenant'}, does not grant {question.permission}")
        for role in await self._names.granting(tenant_id, question.permission):
            words.append(f"role {role.name} would grant it")
        told = list(dict.fromkeys(word for word in words if word))[:MOST_MISSING]
        return told or [f"no role of this tenant grants {question.permission}"]


def _decides(bound: Bound, decision: Decision, question: Question, judge: Judge, now: datetime) -> bool:
    """Whether a binding is one of those that made the decision what it is."""
    terms = bound.terms
    if terms.expire_time is not None and terms.expire_time <= now:
        return False
    finding = judge.finding(terms, question, now)
    truth = Truth.HOLDS if finding is None else finding.truth
    if decision.reason is Reason.DENIED:
        return terms.effect is Effect.DENY and truth in (Truth.HOLDS, Truth.FAILED)
    if decision.reason is Reason.CONTEXT_MISSING:
        return truth is Truth.MISSING
    if terms.effect is Effect.DENY or truth is not Truth.HOLDS:
        return False
    is_enough = judge.is_login_enough(terms, question.login, now)
    return is_enough if decision.reason is Reason.GRANTED else decision.reason is Reason.LOGIN_TOO_WEAK and not is_enough


def _unmet(bound: Bound, question: Question, judge: Judge, now: datetime) -> str:
    finding = judge.finding(bound.terms, question, now)
    if bound.terms.effect is Effect.DENY or finding is None or finding.truth is Truth.HOLDS:
        return ""
    return f"the condition `{bound.terms.condition}` {'cannot be evaluated' if finding.truth is Truth.FAILED else 'does not hold'}"


def _chains(snapshot: Snapshot, question: Question) -> Iterator[Chain]:
    """Yield the shortest chain of each binding, wherever it is, whose role covers the permission."""
    wanted = covering(question.permission)
    for way in _ways(snapshot, question.subject):
        for bound in snapshot.holders[way[-1]].bindings:
            found = _way_to_pattern(snapshot, bound.role_id, wanted)
            if found is not None:
                yield Chain(way, bound, *found)


def _ways(snapshot: Snapshot, subject: Subject) -> Iterator[tuple[Subject, ...]]:
    """Yield the shortest way to each holder above a subject, nearest first."""
    level: list[tuple[Subject, ...]] = [(subject,)]
    if subject.type in AUTHENTICATED:
        level.append((subject, ANYBODY))
    seen = {way[-1] for way in level}
    while level:
        yield from level
        following = []
        for way in level:
            for group in (Subject(SubjectType.GROUP, group_id) for group_id in snapshot.holders[way[-1]].groups):
                if group not in seen:
                    seen.add(group)
                    following.append((*way, group))
        level = following


def _way_to_pattern(snapshot: Snapshot, role_id: UUID, wanted: frozenset[str]) -> tuple[tuple[UUID, ...], str] | None:
    """Return the shortest way from a role to one whose own pattern is among `wanted`, and the pattern."""
    level: list[tuple[UUID, ...]] = [(role_id,)]
    seen = {role_id}
    while level:
        for way in level:
            covers = snapshot.roles[way[-1]].patterns & wanted
            if covers:
                return way, max(covers, key=lambda pattern: (-pattern.count("*"), pattern))
        following = {parent: (*way, parent) for way in level for parent in snapshot.roles[way[-1]].parents if parent not in seen}
        seen |= following.keys()
        level = list(following.values())
    return None


def _who(subject: Subject, groups: dict[UUID, str]) -> str:
    if subject == ANYBODY:
        return "anybody who is authenticated"
    if subject.type is SubjectType.GROUP:
        return f"group {groups.get(subject.id, str(subject.id))}"
    return f"{subject.type.name.lower()} {subject.id}"


def _binding_in_words(binding: RoleBinding, roles: dict[UUID, Role]) -> str:
    terms = binding.terms
    role = roles[binding.role_id].name if binding.role_id in roles else str(binding.role_id)
    words = [f"{'is denied' if terms.effect is Effect.DENY else 'holds'} role {role} at {binding.resource or 'the whole tenant'}"]
    if terms.condition:
        words.append(f"if `{terms.condition}`")
    if terms.acr or terms.max_age is not None:
        words.append(f"for a login {terms.acr or 'of any class'}" + ("" if terms.max_age is None else f" at most {terms.max_age} old"))
    if terms.expire_time is not None:
        words.append(f"until {_instant(binding)}")
    return ", ".join(words)


def _instant(binding: RoleBinding) -> str:
    end = binding.terms.expire_time
    return "" if end is None else f"{end:%Y-%m-%dT%H:%M:%SZ}"
