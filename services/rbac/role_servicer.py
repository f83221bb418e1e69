"""The RPCs of RoleService: protobuf in, a change or a read of roles, protobuf out."""

from uuid import UUID

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager, PageRequest
from services.rbac.messages import identifiers, named, wire_impact, wire_role
from services.rbac.model import Role, Written
from services.rbac.policy import Policy, PolicyEffect
from services.rbac.roles import RolePatch, Roles
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import rbac_pb2

MAX_PAGE_BYTES = 1024 * 1024  # of the text of roles: a full page of the largest would be a hundred times what a client takes
_PATCHABLE = ("name", "description", "permissions", "parent_role_ids")


class RoleServicer:
    """watchword.rbac.v1.RoleService."""

    def __init__(self, roles: Roles, policy: Policy, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._roles = roles
        self._policy = policy
        self._consistency = consistency
        self._pager = pager

    def creating(self, request: rbac_pb2.CreateRoleRequest, call: Call) -> PolicyEffect[Role]:
        """Return the change that is asked for."""
        patch = RolePatch(request.name, request.description, tuple(request.permissions), identifiers(request.parent_role_ids))
        return self._roles.creating(call, patch)

    def updating(self, request: rbac_pb2.UpdateRoleRequest, call: Call) -> PolicyEffect[Role]:
        """Return the change that is asked for. Raises InvalidRequest."""
        return self._roles.updating(call, UUID(request.role_id), _patch(request), request.etag)

    def deleting(self, request: rbac_pb2.DeleteRoleRequest, call: Call) -> PolicyEffect[None]:
        """Return the change that is asked for."""
        return self._roles.deleting(call, UUID(request.role_id), request.etag)

    async def CreateRole(self, request: rbac_pb2.CreateRoleRequest, call: Call) -> rbac_pb2.CreateRoleResponse:
        tenant_id, effect = call.caller.tenant_id, self.creating(request, call)
        done = await self._policy.run(call, tenant_id, Written[Role], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.CreateRoleResponse(role=wire_role(done.item), consistency_token=token, impact=wire_impact(done.impact))

    async def GetRole(self, request: rbac_pb2.GetRoleRequest, call: Call) -> rbac_pb2.GetRoleResponse:
        return rbac_pb2.GetRoleResponse(role=wire_role(await self._roles.get(call.caller.tenant_id, UUID(request.role_id))))

    async def ListRoles(self, request: rbac_pb2.ListRolesRequest, call: Call) -> rbac_pb2.ListRolesResponse:
        tenant_id, query = call.caller.tenant_id, ("ListRoles",)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        roles = await self._roles.list_page(tenant_id, page)
        fitting = PageRequest(page.after, min(page.size, _fitting(roles)))
        listed = self._pager.page(roles, fitting, key=lambda role: (role.name,), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListRolesResponse(roles=map(wire_role, listed.items), next_page_token=listed.next_token)

    async def UpdateRole(self, request: rbac_pb2.UpdateRoleRequest, call: Call) -> rbac_pb2.UpdateRoleResponse:
        tenant_id, effect = call.caller.tenant_id, self.updating(request, call)
        done = await self._policy.run(call, tenant_id, Written[Role], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.UpdateRoleResponse(role=wire_role(done.item), consistency_token=token, impact=wire_impact(done.impact))

    async def DeleteRole(self, request: rbac_pb2.DeleteRoleRequest, call: Call) -> rbac_pb2.DeleteRoleResponse:
        tenant_id, effect = call.caller.tenant_id, self.deleting(request, call)
        done = await self._policy.run(call, tenant_id, Written[None], effect, validate_only=request.validate_only)
        return rbac_pb2.DeleteRoleResponse(consistency_token=self._consistency.write(tenant_id, done.revision), impact=wire_impact(done.impact))


def _patch(request: rbac_pb2.UpdateRoleRequest) -> RolePatch:
    update = request.role
    paths = named(request.update_mask, update, _PATCHABLE, "role")
    if "name" in paths and not update.name:
        raise InvalidRequest.of("role.name", "must not be empty")
    return RolePatch(
        name=update.name if "name" in paths else None,
        description=update.description if "description" in paths else None,
        permissions=tuple(update.permissions) if "permissions" in paths else None,
        parent_ids=identifiers(update.parent_role_ids) if "parent_role_ids" in paths else None,
    )


def _fitting(roles: list[Role]) -> int:
    """Return how many of `roles` fit into one answer; one always does."""
    total = 0
    for count, role in enumerate(roles):
        total += len(role.description) * 4 + sum(len(pattern) + 2 for pattern in role.permissions) + 38 * len(role.parent_ids) + 256
        if total > MAX_PAGE_BYTES:
            return max(1, count)
    return max(1, len(roles))
