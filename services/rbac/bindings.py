"""Role bindings: who holds which role, where, until when. Nobody binds what he may not do himself; the last administrator stays."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.pages import PageRequest
from services.chassis.postgres import new_id
from services.chassis.tenancy import TenantId
from services.rbac.authority import administered, require_authority
from services.rbac.conditions import Conditions
from services.rbac.levels import Levels
from services.rbac.model import RESERVED_PREFIX, Effect, Role, RoleBinding, Subject, SubjectType, Terms
from services.rbac.policy import PolicyEffect, at
from watchword.errors import AlreadyExists, EtagMismatch, InvalidRequest, NotFound

if TYPE_CHECKING:
    from services.rbac.store.changing import TenantChange
    from services.rbac.store.listing import RbacStore

FIRST = UUID(int=0)
Placed = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be bound: a role by id or by name."""

    subject: Subject
    role_id: UUID | None
    role_name: str
    resource: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class TermsPatch:
    """New terms of a binding, of those that are `named`: expire_time, condition, step_up."""

    named: frozenset[str]
    terms: Terms

    def of(self, old: Terms) -> Terms:
        """Return `old` with the new values."""
        new = self.terms
        changed = replace(old, expire_time=new.expire_time) if "expire_time" in self.named else old
        changed = replace(changed, condition=new.condition) if "condition" in self.named else changed
        return replace(changed, acr=new.acr, max_age=new.max_age) if "step_up" in self.named else changed


class Bindings:
    """Shows bindings, and says how roles are given and taken."""

    def __init__(self, store: "RbacStore", clock: Clock, conditions: Conditions, levels: Levels) -> None:
        self._store = store
        self._clock = clock
        self._conditions = conditions
        self._levels = levels

    def creating(self, call: Call, order: Order) -> PolicyEffect[RoleBinding]:
        """Return the giving of a role; see `creating_many`."""
        effect = self._creating(call, [order], is_list=False)

        async def first(change: "TenantChange") -> RoleBinding:
            return (await effect(change))[0]

        return first

    def creating_many(self, call: Call, orders: Sequence[Order]) -> PolicyEffect[list[RoleBinding]]:
        """Return the giving of roles, all or none. It raises NotFound for a role or group, AlreadyExists, PermissionDenied, LastAdministrator.

        Raises  InvalidRequest for terms that cannot be
        """
        return self._creating(call, orders, is_list=True)

    def _creating(self, call: Call, orders: Sequence[Order], *, is_list: bool) -> PolicyEffect[list[RoleBinding]]:
        now, placed = self._clock.now(), _placed if is_list else _unplaced
        for number, order in enumerate(orders):
            with placed(number):
                self._require_terms(order.terms, now)

        async def effect(change: "TenantChange") -> list[RoleBinding]:
            roles = await _ordered_roles(change, orders, placed, is_peer=call.caller.is_peer)
            await _require_groups(change, orders, placed)
            allowed = {role.id for role, order in zip(roles, orders, strict=True) if order.terms.effect is Effect.ALLOW}
            await require_authority(change, call.caller, await change.patterns_of_roles(list(allowed)), now)
            bindings = [
                RoleBinding(new_id(), order.subject, role.id, order.resource, order.terms, version=1, create_time=now, update_time=now)
                for role, order in zip(roles, orders, strict=True)
            ]
            is_denying = any(order.terms.effect is Effect.DENY for order in orders)
            async with administered(change, now) if is_denying else nullcontext():
                made = await change.insert_bindings(bindings)
            for number, (binding, role) in enumerate(zip(bindings, roles, strict=True)):
                if binding.id not in made:
                    with placed(number):
                        raise AlreadyExists("the subject holds this role there already, on the same terms and until the same time")
                change.audit(AuditEvent("role_bound", "role_binding", str(binding.id), details=_facts(binding, role)))
            return bindings

        return effect

    def updating(self, call: Call, binding_id: UUID, patch: TermsPatch, etag: str) -> PolicyEffect[RoleBinding]:
        """Return the changing of a binding's terms. It raises InvalidRequest, NotFound, EtagMismatch, AlreadyExists, LastAdministrator, and
        PermissionDenied for what the caller does not hold, if by the new terms a grant may hold more often, or a denial less."""
        now = self._clock.now()

        async def effect(change: "TenantChange") -> RoleBinding:
            old = _matching(await change.get_binding(binding_id), etag)
            terms = patch.of(old.terms)
            if terms == old.terms:
                change.take_away()
                return old
            self._require_terms(terms, now)
            if not (old.terms.covers(terms) if terms.effect is Effect.ALLOW else terms.covers(old.terms)):
                await require_authority(change, call.caller, await change.patterns_of_roles([old.role_id]), now)
            new = replace(old, terms=terms, version=old.version + 1, update_time=now)
            async with administered(change, now):
                if not await change.update_binding(new):
                    raise AlreadyExists("the subject holds this role there already, on the same terms and until the same time")
            change.audit(AuditEvent("role_binding_updated", "role_binding", str(binding_id), details=_facts(new, await change.get_role(new.role_id))))
            return new

        return effect

    def _require_terms(self, terms: Terms, now: datetime) -> None:
        if terms.expire_time is not None and terms.expire_time <= now:
            raise InvalidRequest.of("expire_time", "must lie in the future")
        if terms.acr and not self._levels.knows(terms.acr):
            raise InvalidRequest.of("step_up.acr", f"must be one of {', '.join(self._levels.names)}")
        if terms.effect is Effect.DENY and (terms.acr or terms.max_age is not None):
            raise InvalidRequest.of("step_up", "must be unset for a binding that denies")
        if terms.condition:
            try:
                self._conditions.check(terms.condition)
            except ValueError as error:
                raise InvalidRequest.of("condition", str(error)) from None

    async def get(self, tenant_id: TenantId, binding_id: UUID) -> RoleBinding:
        """Return a binding. Raises NotFound."""
        return await self._store.get_binding(tenant_id, binding_id)

    async def list_page(self, tenant_id: TenantId, page: PageRequest, *, role_id: UUID | None, subject_id: UUID | None) -> list[RoleBinding]:
        """Return a page of bindings, and one more, oldest first."""
        after = UUID(page.after[0]) if page.after else FIRST
        return await self._store.list_bindings(tenant_id, after, page.size + 1, role_id=role_id, subject_id=subject_id)

    def deleting(self, call: Call, binding_id: UUID, etag: str) -> PolicyEffect[None]:
        """Return the taking of a role, or the lifting of a denial.

        It raises  NotFound, EtagMismatch, LastAdministrator, PermissionDenied to lift a denial of what the caller does not hold
        """
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            binding = _matching(await change.get_binding(binding_id), etag)
            role = await change.get_role(binding.role_id)
            if binding.terms.effect is Effect.DENY:
                await require_authority(change, call.caller, await change.patterns_of_roles([role.id]), now)
            async with administered(change, now):
                await change.delete_binding(binding)
            change.audit(AuditEvent("role_unbound", "role_binding", str(binding_id), details=_facts(binding, role)))

        return effect

    def deleting_subject(self, subject: Subject) -> PolicyEffect[None]:
        """Return the taking of all bindings and memberships from a user or client; one that has none is no error. It raises LastAdministrator.

        Raises  InvalidRequest for a group, and for anybody
        """
        if subject.type not in (SubjectType.USER, SubjectType.CLIENT):
            raise InvalidRequest.of("subject.type", "must be a user or client: groups are deleted by DeleteGroup")
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            async with administered(change, now):
                bindings, memberships = await change.delete_holdings(subject)
            if bindings or memberships:
                facts = {"bindings_removed": str(bindings), "memberships_removed": str(memberships)}
                change.audit(AuditEvent("subject_removed", subject.type.name.lower(), str(subject.id), details=facts))

        return effect


async def _ordered_roles(change: "TenantChange", orders: Sequence[Order], placed: Placed, *, is_peer: bool) -> list[Role]:
    """Return the roles to bind."""
    known: dict[UUID | str, Role] = {}
    for number, order in enumerate(orders):
        key = order.role_id or order.role_name
        if key not in known:
            with placed(number):
                known[key] = await _ordered_role(change, order, is_peer=is_peer)
    return [known[order.role_id or order.role_name] for order in orders]


async def _ordered_role(change: "TenantChange", order: Order, *, is_peer: bool) -> Role:
    """Return the role to bind. A service that binds one of the suite's own roles in a new tenant finds it there."""
    if order.role_id is not None:
        return await change.get_role(order.role_id)
    role = await change.find_role_named(order.role_name)
    if role is None and is_peer and order.role_name.startswith(RESERVED_PREFIX):
        await change.ensure_system_roles()
        role = await change.find_role_named(order.role_name)
    if role is None:
        raise NotFound
    return role


async def _require_groups(change: "TenantChange", orders: Sequence[Order], placed: Placed) -> None:
    """Return if all groups that are to hold something exist."""
    seen: set[UUID] = set()
    for number, order in enumerate(orders):
        if order.subject.type is SubjectType.GROUP and order.subject.id not in seen:
            with placed(number):
                await change.get_group(order.subject.id)
            seen.add(order.subject.id)


@contextmanager
def _placed(number: int) -> Iterator[None]:
    """Let refusals say which request of a list they mean."""
    try:
        yield
    except (InvalidRequest, NotFound, AlreadyExists) as error:
        raise at(error, f"requests[{number}]") from None


def _unplaced(number: int) -> AbstractContextManager[None]:
    return nullcontext()


def _matching(binding: RoleBinding, etag: str) -> RoleBinding:
    if etag and etag != binding.etag:
        raise EtagMismatch
    return binding


def _facts(binding: RoleBinding, role: Role) -> dict[str, str]:
    terms = binding.terms
    facts = {
        "role": role.name,
        "subject_type": binding.subject.type.name.lower(),
        "subject": str(binding.subject.id),
        "resource": binding.resource,
        "expire_time": "" if terms.expire_time is None else terms.expire_time.isoformat(),
        "effect": "" if terms.effect is Effect.ALLOW else "deny",
        "condition": terms.condition,
        "acr": terms.acr,
        "max_age": "" if terms.max_age is None else f"{terms.max_age.total_seconds():.0f}",
    }
    return {name: text for name, text in facts.items() if text}
