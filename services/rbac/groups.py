"""Groups: named sets of users, clients and other groups. Who joins a group holds what the group holds, and what the groups above it hold."""

from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.pages import PageRequest
from services.chassis.postgres import new_id
from services.chassis.tenancy import TenantId
from services.rbac.authority import administered, patterns_of, require_authority
from services.rbac.graph import require_hierarchy
from services.rbac.model import Edge, Group, Subject, SubjectType, Written
from watchword.errors import AlreadyExists

if TYPE_CHECKING:
    from services.rbac.store import RbacStore, TenantChange

FIRST = (0, UUID(int=0))


class Groups:
    """Makes groups, and says who is in them."""

    def __init__(self, store: "RbacStore", clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, call: Call, name: str, description: str) -> Written[Group]:
        """Create a group. Raises AlreadyExists."""
        group = Group(new_id(), name, description, self._clock.now())

        async def effect(change: "TenantChange") -> Group:
            if not await change.insert_group(group):
                raise AlreadyExists("a group of this name already exists")
            change.audit(AuditEvent("group_created", "group", str(group.id), details={"name": name}))
            return group

        return await self._store.change(call, call.caller.tenant_id, Written[Group], effect)

    async def get(self, tenant_id: TenantId, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return await self._store.get_group(tenant_id, group_id)

    async def list_page(self, tenant_id: TenantId, page: PageRequest) -> list[Group]:
        """Return a page of groups, and one more, by name."""
        return await self._store.list_groups(tenant_id, page.after[0] if page.after else "", page.size + 1)

    async def delete(self, call: Call, group_id: UUID) -> Written[None]:
        """Delete a group with its memberships and bindings. Raises NotFound, LastAdministrator."""
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            group = await change.get_group(group_id)
            async with administered(change, now):
                bindings, members = await change.delete_group(group_id)
            facts = {"name": group.name, "bindings_removed": str(bindings), "members_removed": str(members)}
            change.audit(AuditEvent("group_deleted", "group", str(group_id), details=facts))

        return await self._store.change(call, call.caller.tenant_id, Written[None], effect)

    async def add_member(self, call: Call, group_id: UUID, member: Subject) -> Written[None]:
        """Put a subject into a group; one that is in it stays there.

        Raises  NotFound for the group or a group as member, Cycle, DepthExceeded, PermissionDenied if the group holds what the caller does not
        """
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            group = await change.get_group(group_id)
            if member.type is SubjectType.GROUP:
                await _require_place(change, group, await change.get_group(member.id))
            held = (await change.holdings_of(Subject(SubjectType.GROUP, group_id), now)).anywhere(now)
            await require_authority(change, call.caller, patterns_of(held), now)
            if await change.insert_member(group_id, member):
                change.audit(AuditEvent("group_member_added", "group", str(group_id), details=_facts(group, member)))

        return await self._store.change(call, call.caller.tenant_id, Written[None], effect)

    async def remove_member(self, call: Call, group_id: UUID, member: Subject) -> Written[None]:
        """Take a subject out of a group; one that is not in it stays out. Raises NotFound for the group, LastAdministrator."""
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            group = await change.get_group(group_id)
            async with administered(change, now):
                removed = await change.delete_member(group_id, member)
            if removed:
                change.audit(AuditEvent("group_member_removed", "group", str(group_id), details=_facts(group, member)))

        return await self._store.change(call, call.caller.tenant_id, Written[None], effect)

    async def list_members_page(self, tenant_id: TenantId, group_id: UUID, page: PageRequest) -> list[Subject]:
        """Return a page of a group's direct members, and one more. Raises NotFound."""
        await self._store.get_group(tenant_id, group_id)
        after = (int(page.after[0]), UUID(page.after[1])) if page.after else FIRST
        return await self._store.list_members(tenant_id, group_id, after, page.size + 1)


async def _require_place(change: "TenantChange", group: Group, member: Group) -> None:
    edges = await change.group_lineage(group.id, member.id)
    require_hierarchy([*edges, Edge(member.name, group.name)], member.name)


def _facts(group: Group, member: Subject) -> dict[str, str]:
    return {"name": group.name, "member_type": member.type.name.lower(), "member": str(member.id)}
