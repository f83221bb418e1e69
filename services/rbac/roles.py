"""Roles: named sets of permission patterns, with parents. Nobody makes a role say more than he may do himself."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.pages import PageRequest
from services.chassis.postgres import new_id
from services.chassis.tenancy import TenantId
from services.rbac.authority import administered, require_authority
from services.rbac.graph import require_hierarchy
from services.rbac.model import RESERVED_PREFIX, Edge, Role
from services.rbac.patterns import Patterns
from services.rbac.policy import PolicyEffect
from watchword.errors import AlreadyExists, EtagMismatch, InvalidRequest, PreconditionFailed

if TYPE_CHECKING:
    from services.rbac.store.changing import TenantChange
    from services.rbac.store.listing import RbacStore

LISTED = 200  # names in one audit detail


@dataclass(frozen=True, slots=True)
class RolePatch:
    """New values of a role; None leaves what is there."""

    name: str | None = None
    description: str | None = None
    permissions: tuple[str, ...] | None = None
    parent_ids: tuple[UUID, ...] | None = None


class Roles:
    """Shows roles, and says how they are made and changed."""

    def __init__(self, store: "RbacStore", clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def creating(self, call: Call, patch: RolePatch) -> PolicyEffect[Role]:
        """Return the making of a role. It raises InvalidRequest, AlreadyExists, NotFound for a parent, DepthExceeded, PermissionDenied."""
        now = self._clock.now()
        blank = Role(new_id(), "", "", (), (), system=False, version=1, create_time=now, update_time=now)
        role = _patched(blank, patch)

        async def effect(change: "TenantChange") -> Role:
            await _require_free_name(change, role.name)
            await _require_place(change, role, role.name)
            await require_authority(change, call.caller, await _patterns(change, role), now)
            await change.insert_role(role)
            change.audit(AuditEvent("role_created", "role", str(role.id), details=await _difference(change, blank, role)))
            return role

        return effect

    async def get(self, tenant_id: TenantId, role_id: UUID) -> Role:
        """Return a role. Raises NotFound."""
        return await self._store.get_role(tenant_id, role_id)

    async def list_page(self, tenant_id: TenantId, page: PageRequest) -> list[Role]:
        """Return a page of roles, and one more, by name."""
        return await self._store.list_roles(tenant_id, page.after[0] if page.after else "", page.size + 1)

    def updating(self, call: Call, role_id: UUID, patch: RolePatch, etag: str) -> PolicyEffect[Role]:
        """Return the changing of a role. It raises NotFound for it or a parent, EtagMismatch, PreconditionFailed for a system role, InvalidRequest,
        AlreadyExists, Cycle, DepthExceeded, LastAdministrator, and PermissionDenied for what the caller does not hold and the change hands out: what
        the role did not say before or, if it is denied to anybody, what it says no longer."""
        now = self._clock.now()

        async def effect(change: "TenantChange") -> Role:
            old = _changeable(await change.get_role(role_id), etag)
            new = _patched(old, patch)
            if new == old:
                change.take_away()
                return old
            if new.name != old.name:
                await _require_free_name(change, new.name)
            if new.parent_ids != old.parent_ids:
                await _require_place(change, new, old.name)
            said, says = await change.patterns_of_roles([role_id]), await _patterns(change, new)
            is_denied = await change.is_denied_anywhere(role_id)
            lifted = Patterns(says).lacking(said) if is_denied else []
            await require_authority(change, call.caller, [*Patterns(said).lacking(says), *lifted], now)
            new = replace(new, version=old.version + 1, update_time=now)
            async with administered(change, now) if is_denied else nullcontext():
                await change.update_role(new)
            change.audit(AuditEvent("role_updated", "role", str(role_id), details=await _difference(change, old, new)))
            return new

        return effect

    def deleting(self, call: Call, role_id: UUID, etag: str) -> PolicyEffect[None]:
        """Return the deleting of a role with its bindings. It raises NotFound, EtagMismatch, PreconditionFailed for a system role and for a parent of
        others, PermissionDenied if that lifts a denial of what the caller does not hold."""
        now = self._clock.now()

        async def effect(change: "TenantChange") -> None:
            role = _changeable(await change.get_role(role_id), etag)
            if await change.has_children(role_id):
                raise PreconditionFailed("other roles have this one as a parent")
            if await change.is_denied_anywhere(role_id):
                await require_authority(change, call.caller, await change.patterns_of_roles([role_id]), now)
            bindings = await change.delete_role(role_id)
            facts = {"name": role.name, "permissions": listed(role.permissions), "bindings_removed": str(bindings)}
            change.audit(AuditEvent("role_deleted", "role", str(role_id), details=facts))

        return effect


def _patched(role: Role, patch: RolePatch) -> Role:
    return replace(
        role,
        name=role.name if patch.name is None else patch.name,
        description=role.description if patch.description is None else patch.description,
        permissions=role.permissions if patch.permissions is None else tuple(sorted(set(patch.permissions))),
        parent_ids=role.parent_ids if patch.parent_ids is None else tuple(sorted(set(patch.parent_ids))),
    )


def _changeable(role: Role, etag: str) -> Role:
    if role.system:
        raise PreconditionFailed("a role of the suite itself is neither changed nor deleted")
    if etag and etag != role.etag:
        raise EtagMismatch
    return role


async def _require_free_name(change: "TenantChange", name: str) -> None:
    if name.startswith(RESERVED_PREFIX):
        raise InvalidRequest.of("name", f"must not begin with {RESERVED_PREFIX}, which is for the suite's own roles")
    if await change.find_role_named(name) is not None:
        raise AlreadyExists("a role of this name already exists")


async def _require_place(change: "TenantChange", role: Role, name: str) -> None:
    parents = await change.name_roles(role.parent_ids)
    edges = await change.role_lineage(role.parent_ids, role.id)
    require_hierarchy([*edges, *(Edge(name, parent) for parent in parents)], name)


async def _patterns(change: "TenantChange", role: Role) -> list[str]:
    return [*role.permissions, *await change.patterns_of_roles(role.parent_ids)]


async def _difference(change: "TenantChange", old: Role, new: Role) -> dict[str, str]:
    """Return what an auditor wants to know of a change."""
    facts = {
        "name": new.name,
        "old_name": old.name if old.name != new.name else "",
        "permissions_added": listed(set(new.permissions) - set(old.permissions)),
        "permissions_removed": listed(set(old.permissions) - set(new.permissions)),
        "parents_added": listed(await change.name_roles(list(set(new.parent_ids) - set(old.parent_ids)))),
        "parents_removed": listed(await change.name_roles(list(set(old.parent_ids) - set(new.parent_ids)))),
    }
    return {name: text for name, text in facts.items() if text}


def listed(names: Iterable[str]) -> str:
    """Return `names` sorted, in one line, the first LISTED of them."""
    found = sorted(names)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more
