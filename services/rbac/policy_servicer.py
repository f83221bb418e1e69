"""The RPCs of PolicyService: many changes at once, tried or made. Each needs what its own RPC needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from google.protobuf.descriptor import MethodDescriptor

from services.chassis.access import rule_of
from services.chassis.call import Call, Caller
from services.chassis.consistency import ConsistencyTokens
from services.rbac.binding_servicer import RoleBindingServicer
from services.rbac.group_servicer import GroupServicer
from services.rbac.messages import wire_impact
from services.rbac.policy import Policy, PolicyEffect, at
from services.rbac.resource_servicer import ResourceServicer
from services.rbac.role_servicer import RoleServicer
from watchword.errors import (
    AlreadyExists,
    EtagMismatch,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
)
from watchword.rbac.v1 import policy_pb2, rbac_pb2

if TYPE_CHECKING:
    from services.rbac.store.changing import TenantChange

PLACED = (AlreadyExists, EtagMismatch, InvalidRequest, NotFound, PermissionDenied, PreconditionFailed)
_NOT_OF_ONE = ("request_id", "tenant_id", "validate_only")
_METHODS: Mapping[str, tuple[str, str]] = {
    "create_role": ("RoleService", "CreateRole"),
    "update_role": ("RoleService", "UpdateRole"),
    "delete_role": ("RoleService", "DeleteRole"),
    "create_role_binding": ("RoleBindingService", "CreateRoleBinding"),
    "update_role_binding": ("RoleBindingService", "UpdateRoleBinding"),
    "delete_role_binding": ("RoleBindingService", "DeleteRoleBinding"),
    "create_group": ("GroupService", "CreateGroup"),
    "update_group": ("GroupService", "UpdateGroup"),
    "delete_group": ("GroupService", "DeleteGroup"),
    "add_group_member": ("GroupService", "AddGroupMember"),
    "remove_group_member": ("GroupService", "RemoveGroupMember"),
    "set_resource_parent": ("ResourceService", "SetResourceParent"),
}


class Decider(Protocol):
    """Says whether a caller holds a permission of the suite, now."""

    async def allows(self, caller: Caller, permission: str) -> bool:
        """Return whether `caller` holds `permission` tenant-wide. Raises DependencyUnavailable."""


class PolicyServicer:
    """watchword.rbac.v1.PolicyService."""

    def __init__(
        self,
        policy: Policy,
        decider: Decider,
        consistency: ConsistencyTokens,
        *,
        roles: RoleServicer,
        bindings: RoleBindingServicer,
        groups: GroupServicer,
        resources: ResourceServicer,
        importing: Any,
    ) -> None:
        self._policy = policy
        self._decider = decider
        self._consistency = consistency
        self._bindings = bindings
        self.ImportPolicy = importing.ImportPolicy
        self._effects: Mapping[str, Callable[[Any, Call], PolicyEffect[Any]]] = {
            "create_role": roles.creating,
            "update_role": roles.updating,
            "delete_role": roles.deleting,
            "create_role_binding": bindings.creating,
            "update_role_binding": bindings.updating,
            "delete_role_binding": bindings.deleting,
            "create_group": groups.creating,
            "update_group": groups.updating,
            "delete_group": groups.deleting,
            "add_group_member": groups.adding,
            "remove_group_member": groups.removing,
            "set_resource_parent": resources.placing,
        }

    async def SimulateChange(self, request: policy_pb2.SimulateChangeRequest, call: Call) -> policy_pb2.SimulateChangeResponse:
        done = await self._policy.simulate(call, await self._asked(request.changes, call))
        token = self._consistency.write(call.caller.tenant_id, done.revision)
        return policy_pb2.SimulateChangeResponse(impact=wire_impact(done.impact), consistency_token=token)

    async def ApplyChanges(self, request: policy_pb2.ApplyChangesRequest, call: Call) -> policy_pb2.ApplyChangesResponse:
        tenant_id = call.caller.tenant_id
        unchanged_since = self._consistency.read(request.unchanged_since, tenant_id, "unchanged_since") if request.unchanged_since else None
        done = await self._policy.apply(call, await self._asked(request.changes, call), unchanged_since=unchanged_since)
        ids = ("" if one is None else str(one) for one in done.item)
        return policy_pb2.ApplyChangesResponse(ids=ids, consistency_token=self._consistency.write(tenant_id, done.revision))

    async def _asked(self, changes: Sequence[policy_pb2.PolicyChange], call: Call) -> list[PolicyEffect[UUID | None]]:
        """Return what is asked for. Raises InvalidRequest that names a change by its place, PermissionDenied."""
        kinds = [change.WhichOneof("change") for change in changes]
        for index, kind in enumerate(kinds):
            if kind is None:
                raise InvalidRequest.of(f"changes[{index}]", "must say what to change")
        for permission in sorted({_permission(kind) for kind in kinds if kind is not None}):
            if not await self._may(call.caller, permission):
                raise PermissionDenied(f"these changes need the permission {permission}")
        await self._bindings.learn(condition for change in changes for condition in _conditions(change))
        return [self._effect(getattr(change, kind), kind, f"changes[{index}].{kind}", call) for index, change, kind in _numbered(changes, kinds)]

    async def _may(self, caller: Caller, permission: str) -> bool:
        return not (caller.is_bounded and permission not in caller.scopes) and await self._decider.allows(caller, permission)

    def _effect(self, request: Any, kind: str, place: str, call: Call) -> PolicyEffect[UUID | None]:
        for field in _NOT_OF_ONE:
            if field in request.DESCRIPTOR.fields_by_name and getattr(request, field):
                raise InvalidRequest.of(f"{place}.{field}", "must be unset: it is for all changes together")
        try:
            return _named(self._effects[kind](request, call), place)
        except InvalidRequest as error:
            raise at(error, place) from None


def _conditions(change: policy_pb2.PolicyChange) -> tuple[str, str]:
    return change.create_role_binding.condition, change.update_role_binding.role_binding.condition


def _numbered(changes: Sequence[policy_pb2.PolicyChange], kinds: Sequence[str | None]) -> Iterator[tuple[int, policy_pb2.PolicyChange, str]]:
    for index, (change, kind) in enumerate(zip(changes, kinds, strict=True)):
        assert kind is not None
        yield index, change, kind


def _named(effect: PolicyEffect[Any], place: str) -> PolicyEffect[UUID | None]:
    """Return an effect that answers with the id of what it made, and whose refusals say which change of the list they mean."""

    async def named(change: "TenantChange") -> UUID | None:
        try:
            made = await effect(change)
        except PLACED as error:
            raise at(error, place) from None
        return getattr(made, "id", None)

    return named


def _permission(kind: str) -> str:
    service, method = _METHODS[kind]
    found: MethodDescriptor = rbac_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    return rule_of(found).permission
