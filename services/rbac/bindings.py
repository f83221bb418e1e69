"""Role bindings: who holds which role, where, until when. Nobody binds what he may not do himself; the last administrator stays."""

from dataclasses import dataclass
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
from services.rbac.model import RESERVED_PREFIX, Role, RoleBinding, Subject, SubjectType, Written
from watchword.errors import AlreadyExists, InvalidRequest, NotFound

if TYPE_CHECKING:
    from services.rbac.store import RbacStore, TenantChange

FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be bound: a role by id or by name."""

    subject: Subject
    role_id: UUID | None
    role_name: str
    resource: str
    expire_time: datetime | None


class Bindings:
    """Gives roles and takes them."""

    def __init__(self, store: "RbacStore", clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, call: Call, tenant_id: TenantId, order: Order) -> Written[RoleBinding]:
        """Give a role. Raises InvalidRequest, NotFound for the role or group, AlreadyExists, PermissionDenied."""
        now = self._clock.now()
        if order.expire_time is not None and order.expire_time <= now:
            raise InvalidRequest.of("expire_time", "must lie in the future")

        async def effect(change: "TenantChange") -> RoleBinding:
            role = await _ordered_role(change, order, is_peer=call.caller.is_peer)
            if order.subject.type is SubjectType.GROUP:
                await change.get_group(order.subject.id)
            await require_authority(change, call.caller, await change.patterns_of_roles([role.id]), now)
            binding = RoleBinding(new_id(), order.subject, role.id, order.resource, order.expire_time, now)
            if not await change.insert_binding(binding):
                raise AlreadyExists("the subject holds this role there already, until the same time")
            change.audit(AuditEvent("role_bound", "role_binding", str(binding.id), details=_facts(binding, role)))
            return binding

        return await self._store.change(call, tenant_id, Written[RoleBinding], effect)

    async def get(self, tenant_id: TenantId, binding_id: UUID) -> RoleBinding:
        """Return a binding. Raises NotFound."""
        return await self._store.get_binding(tenant_id, binding_id)

    async def list_page(self, tenant_id: TenantId, page: PageRequest, *, role_id: UUID | None, subject_id: UUID | None) -> list[RoleBinding]:
        """Return a page of bindings, and one more, oldest first."""
        after = UUID(page.after[0]) if page.after else FIRST
        return await self._store.list_bindings(tenant_id, after, page.size + 1, role_id=role_id, subject_id=subject_id)

    async def delete(self, call: Call, binding_id: UUID) -> Written[None]:
        """Take a role. Raises NotFound, LastAdministrator."""
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            binding = await change.get_binding(binding_id)
            role = await change.get_role(binding.role_id)
            async with administered(change, now):
                await change.delete_binding(binding_id)
            change.audit(AuditEvent("role_unbound", "role_binding", str(binding_id), details=_facts(binding, role)))

        return await self._store.change(call, call.caller.tenant_id, Written[None], effect)

    async def delete_subject(self, call: Call, tenant_id: TenantId, subject: Subject) -> Written[None]:
        """Take all bindings and memberships from a user or client; one that has none is no error. Raises InvalidRequest, LastAdministrator."""
        if subject.type is SubjectType.GROUP:
            raise InvalidRequest.of("subject.type", "must be a user or client: groups are deleted by DeleteGroup")
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            async with administered(change, now):
                bindings, memberships = await change.delete_holdings(subject)
            if bindings or memberships:
                facts = {"bindings_removed": str(bindings), "memberships_removed": str(memberships)}
                change.audit(AuditEvent("subject_removed", subject.type.name.lower(), str(subject.id), details=facts))

        return await self._store.change(call, tenant_id, Written[None], effect)


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


def _facts(binding: RoleBinding, role: Role) -> dict[str, str]:
    facts = {
        "role": role.name,
        "subject_type": binding.subject.type.name.lower(),
        "subject": str(binding.subject.id),
        "resource": binding.resource,
        "expire_time": "" if binding.expire_time is None else binding.expire_time.isoformat(),
    }
    return {name: text for name, text in facts.items() if text}
