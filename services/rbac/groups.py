"""Groups: named sets of users, clients and other groups. Who joins a group holds what the group holds, and what the groups above it hold."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.pages import PageRequest
from services.chassis.postgres import new_id
from services.chassis.tenancy import TenantId
from services.rbac.authority import administered, patterns_of, require_authority
from services.rbac.graph import require_additions
from services.rbac.holdings import Holding
from services.rbac.model import Edge, Effect, Group, Subject, SubjectType
from services.rbac.policy import PolicyEffect
from watchword.errors import AlreadyExists, EtagMismatch, InvalidRequest

if TYPE_CHECKING:
    from services.rbac.store.changing import TenantChange
    from services.rbac.store.listing import RbacStore

FIRST = (0, UUID(int=0))


class Groups:
    """Shows groups and who is in them, and says how they are made and changed."""

    def __init__(self, store: "RbacStore", clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def creating(self, call: Call, name: str, description: str) -> PolicyEffect[Group]:
        """Return the making of a group. It raises AlreadyExists."""
        now = self._clock.now()
        group = Group(new_id(), name, description, version=1, create_time=now, update_time=now)

        async def effect(change: "TenantChange") -> Group:
            if not await change.insert_group(group):
                raise AlreadyExists("a group of this name already exists")
            change.audit(AuditEvent("group_created", "group", str(group.id), details={"name": name}))
            return group

        return effect

    async def get(self, tenant_id: TenantId, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return await self._store.get_group(tenant_id, group_id)

    async def list_page(self, tenant_id: TenantId, page: PageRequest) -> list[Group]:
        """Return a page of groups, and one more, by name."""
        return await self._store.list_groups(tenant_id, page.after[0] if page.after else "", page.size + 1)

    def updating(self, call: Call, group_id: UUID, name: str | None, description: str | None, *, etag: str) -> PolicyEffect[Group]:
        """Return the changing of a group's name and description, where they are not None. It raises NotFound, EtagMismatch, AlreadyExists."""
        now = self._clock.now()

        async def effect(change: "TenantChange") -> Group:
            old = _matching(await change.get_group(group_id), etag)
            new = replace(old, name=old.name if name is None else name, description=old.description if description is None else description)
            if new == old:
                return old
            if new.name != old.name and await change.is_group_named(new.name):
                raise AlreadyExists("a group of this name already exists")
            new = replace(new, version=old.version + 1, update_time=now)
            await change.update_group(new)
            facts = {"name": new.name, "old_name": old.name if old.name != new.name else ""}
            change.audit(AuditEvent("group_updated", "group", str(group_id), details={key: text for key, text in facts.items() if text}))
            return new

        return effect

    def deleting(self, call: Call, group_id: UUID, etag: str) -> PolicyEffect[None]:
        """Return the deleting of a group with its memberships and bindings.

        It raises  NotFound, EtagMismatch, LastAdministrator, PermissionDenied if that lifts a denial of what the caller does not hold
        """
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            group = _matching(await change.get_group(group_id), etag)
            await _require_lifting(change, call, group_id, now)
            async with administered(change, now):
                bindings, members = await change.delete_group(group_id)
            facts = {"name": group.name, "bindings_removed": str(bindings), "members_removed": str(members)}
            change.audit(AuditEvent("group_deleted", "group", str(group_id), details=facts))

        return effect

    def adding(self, call: Call, group_id: UUID, member: Subject) -> PolicyEffect[None]:
        """Return the putting of a subject into a group; one that is in it stays there.

        It raises  InvalidRequest for anybody, LastAdministrator, PermissionDenied if the group holds what the caller does not, Cycle, DepthExceeded,
                   NotFound for the group, or a group as member
        """
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            group = await change.get_group(group_id)
            if member.type is SubjectType.ANY:
                raise InvalidRequest.of("member.type", "must be a user, client or group: bind a role to anybody instead")
            if member.type is SubjectType.GROUP:
                await _require_place(change, group, await change.get_group(member.id))
            held = await _held(change, group_id, now)
            await require_authority(change, call.caller, patterns_of(held), now)
            async with administered(change, now) if patterns_of(held, Effect.DENY) else nullcontext():
                added = await change.insert_member(group_id, member)
            if added:
                change.audit(AuditEvent("group_member_added", "group", str(group_id), details=_facts(group, member)))

        return effect

    def removing(self, call: Call, group_id: UUID, member: Subject) -> PolicyEffect[None]:
        """Return the taking of a subject out of a group; one that is not in it stays out.

        It raises  NotFound for the group, LastAdministrator, PermissionDenied if that lifts a denial of what the caller does not hold
        """
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            group = await change.get_group(group_id)
            await _require_lifting(change, call, group_id, now)
            async with administered(change, now):
                removed = await change.delete_member(group_id, member)
            if removed:
                change.audit(AuditEvent("group_member_removed", "group", str(group_id), details=_facts(group, member)))

        return effect

    async def list_members_page(self, tenant_id: TenantId, group_id: UUID, page: PageRequest) -> list[Subject]:
        """Return a page of a group's direct members, and one more. Raises NotFound."""
        await self._store.get_group(tenant_id, group_id)
        after = (int(page.after[0]), UUID(page.after[1])) if page.after else FIRST
        return await self._store.list_members(tenant_id, group_id, after, page.size + 1)


async def _require_place(change: "TenantChange", group: Group, member: Group) -> None:
    added = [Edge(member.name, group.name)]
    require_additions(added, await change.groups_above([group.id]), await change.group_heights([member.id]))


async def _held(change: "TenantChange", group_id: UUID, now: datetime) -> list[Holding]:
    """Return what a group holds, by itself and by the groups above it."""
    group = Subject(SubjectType.GROUP, group_id)
    return list((await change.holdings_of(group))[group].anywhere(now))


async def _require_lifting(change: "TenantChange", call: Call, group_id: UUID, now: datetime) -> None:
    """Return if the caller may lift from a member what is denied to a group."""
    await require_authority(change, call.caller, patterns_of(await _held(change, group_id, now), Effect.DENY), now)


def _matching(group: Group, etag: str) -> Group:
    if etag and etag != group.etag:
        raise EtagMismatch
    return group


def _facts(group: Group, member: Subject) -> dict[str, str]:
    return {"name": group.name, "member_type": member.type.name.lower(), "member": str(member.id)}
