"""The RPCs of rbac: protobuf in, a call of the domain, protobuf out."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager, PageRequest
from services.chassis.tenancy import TenantId
from services.chassis.validation import MAX_VIOLATIONS
from services.rbac.authority import NAMED, Deed
from services.rbac.bindings import Bindings, Order
from services.rbac.checker import Checker, Decision, Grant, Question, grant_key
from services.rbac.groups import Groups
from services.rbac.model import Group, Role, RoleBinding, Subject, SubjectType
from services.rbac.resources import Resources
from services.rbac.roles import RolePatch, Roles
from watchword.common.v1 import consistency_pb2
from watchword.errors import InvalidRequest, Violation
from watchword.rbac.v1 import permission_pb2, rbac_pb2

MAX_PAGE_BYTES = 1024 * 1024  # of the text of roles: a full page of the largest would be a hundred times what a client takes
_PATCHABLE = ("name", "description", "permissions", "parent_role_ids")


class RoleServicer:
    """watchword.rbac.v1.RoleService."""

    def __init__(self, roles: Roles, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._roles = roles
        self._consistency = consistency
        self._pager = pager

    async def CreateRole(self, request: rbac_pb2.CreateRoleRequest, call: Call) -> rbac_pb2.CreateRoleResponse:
        patch = RolePatch(request.name, request.description, tuple(request.permissions), _ids(request.parent_role_ids))
        done = await self._roles.create(call, patch)
        return rbac_pb2.CreateRoleResponse(role=_role(done.item), consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def GetRole(self, request: rbac_pb2.GetRoleRequest, call: Call) -> rbac_pb2.GetRoleResponse:
        return rbac_pb2.GetRoleResponse(role=_role(await self._roles.get(call.caller.tenant_id, UUID(request.role_id))))

    async def ListRoles(self, request: rbac_pb2.ListRolesRequest, call: Call) -> rbac_pb2.ListRolesResponse:
        tenant_id, query = call.caller.tenant_id, ("ListRoles",)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        roles = await self._roles.list_page(tenant_id, page)
        fitting = PageRequest(page.after, min(page.size, _fitting(roles)))
        listed = self._pager.page(roles, fitting, key=lambda role: (role.name,), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListRolesResponse(roles=map(_role, listed.items), next_page_token=listed.next_token)

    async def UpdateRole(self, request: rbac_pb2.UpdateRoleRequest, call: Call) -> rbac_pb2.UpdateRoleResponse:
        done = await self._roles.update(call, UUID(request.role_id), _patch(request.role, request.update_mask), request.etag)
        return rbac_pb2.UpdateRoleResponse(role=_role(done.item), consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def DeleteRole(self, request: rbac_pb2.DeleteRoleRequest, call: Call) -> rbac_pb2.DeleteRoleResponse:
        done = await self._roles.delete(call, UUID(request.role_id), request.etag)
        return rbac_pb2.DeleteRoleResponse(consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))


class RoleBindingServicer:
    """watchword.rbac.v1.RoleBindingService."""

    def __init__(self, bindings: Bindings, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._bindings = bindings
        self._consistency = consistency
        self._pager = pager

    async def CreateRoleBinding(self, request: rbac_pb2.CreateRoleBindingRequest, call: Call) -> rbac_pb2.CreateRoleBindingResponse:
        tenant_id = _tenant(request.tenant_id, call)
        if bool(request.role_id) == bool(request.role_name):
            raise InvalidRequest.of("role_id", "exactly one of role_id and role_name must be set")
        expire_time = request.expire_time.ToDatetime(UTC) if request.HasField("expire_time") else None
        order = Order(_subject(request.subject), _id(request.role_id), request.role_name, request.resource, expire_time)
        done = await self._bindings.create(call, tenant_id, order)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.CreateRoleBindingResponse(role_binding=_binding(done.item), consistency_token=token)

    async def GetRoleBinding(self, request: rbac_pb2.GetRoleBindingRequest, call: Call) -> rbac_pb2.GetRoleBindingResponse:
        binding = await self._bindings.get(call.caller.tenant_id, UUID(request.role_binding_id))
        return rbac_pb2.GetRoleBindingResponse(role_binding=_binding(binding))

    async def ListRoleBindings(self, request: rbac_pb2.ListRoleBindingsRequest, call: Call) -> rbac_pb2.ListRoleBindingsResponse:
        tenant_id, query = call.caller.tenant_id, ("ListRoleBindings", request.role_id, request.subject_id)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        bindings = await self._bindings.list_page(tenant_id, page, role_id=_id(request.role_id), subject_id=_id(request.subject_id))
        listed = self._pager.page(bindings, page, key=lambda binding: (str(binding.id),), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListRoleBindingsResponse(role_bindings=map(_binding, listed.items), next_page_token=listed.next_token)

    async def DeleteRoleBinding(self, request: rbac_pb2.DeleteRoleBindingRequest, call: Call) -> rbac_pb2.DeleteRoleBindingResponse:
        done = await self._bindings.delete(call, UUID(request.role_binding_id))
        return rbac_pb2.DeleteRoleBindingResponse(consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def DeleteSubject(self, request: rbac_pb2.DeleteSubjectRequest, call: Call) -> rbac_pb2.DeleteSubjectResponse:
        tenant_id = _tenant(request.tenant_id, call)
        done = await self._bindings.delete_subject(call, tenant_id, _subject(request.subject))
        return rbac_pb2.DeleteSubjectResponse(consistency_token=self._consistency.write(tenant_id, done.revision))


class GroupServicer:
    """watchword.rbac.v1.GroupService."""

    def __init__(self, groups: Groups, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._groups = groups
        self._consistency = consistency
        self._pager = pager

    async def CreateGroup(self, request: rbac_pb2.CreateGroupRequest, call: Call) -> rbac_pb2.CreateGroupResponse:
        done = await self._groups.create(call, request.name, request.description)
        return rbac_pb2.CreateGroupResponse(group=_group(done.item), consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def GetGroup(self, request: rbac_pb2.GetGroupRequest, call: Call) -> rbac_pb2.GetGroupResponse:
        return rbac_pb2.GetGroupResponse(group=_group(await self._groups.get(call.caller.tenant_id, UUID(request.group_id))))

    async def ListGroups(self, request: rbac_pb2.ListGroupsRequest, call: Call) -> rbac_pb2.ListGroupsResponse:
        tenant_id, query = call.caller.tenant_id, ("ListGroups",)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        groups = await self._groups.list_page(tenant_id, page)
        listed = self._pager.page(groups, page, key=lambda group: (group.name,), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListGroupsResponse(groups=map(_group, listed.items), next_page_token=listed.next_token)

    async def DeleteGroup(self, request: rbac_pb2.DeleteGroupRequest, call: Call) -> rbac_pb2.DeleteGroupResponse:
        done = await self._groups.delete(call, UUID(request.group_id))
        return rbac_pb2.DeleteGroupResponse(consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def AddGroupMember(self, request: rbac_pb2.AddGroupMemberRequest, call: Call) -> rbac_pb2.AddGroupMemberResponse:
        done = await self._groups.add_member(call, UUID(request.group_id), _subject(request.member))
        return rbac_pb2.AddGroupMemberResponse(consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def RemoveGroupMember(self, request: rbac_pb2.RemoveGroupMemberRequest, call: Call) -> rbac_pb2.RemoveGroupMemberResponse:
        done = await self._groups.remove_member(call, UUID(request.group_id), _subject(request.member))
        return rbac_pb2.RemoveGroupMemberResponse(consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def ListGroupMembers(self, request: rbac_pb2.ListGroupMembersRequest, call: Call) -> rbac_pb2.ListGroupMembersResponse:
        tenant_id, query = call.caller.tenant_id, ("ListGroupMembers", request.group_id)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        members = await self._groups.list_members_page(tenant_id, UUID(request.group_id), page)
        listed = self._pager.page(members, page, key=lambda member: (str(int(member.type)), str(member.id)), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListGroupMembersResponse(members=map(_wire_subject, listed.items), next_page_token=listed.next_token)


class ResourceServicer:
    """watchword.rbac.v1.ResourceService."""

    def __init__(self, resources: Resources, consistency: ConsistencyTokens) -> None:
        self._resources = resources
        self._consistency = consistency

    async def SetResourceParent(self, request: rbac_pb2.SetResourceParentRequest, call: Call) -> rbac_pb2.SetResourceParentResponse:
        done = await self._resources.set_parent(call, request.resource, request.parent)
        return rbac_pb2.SetResourceParentResponse(consistency_token=self._consistency.write(call.caller.tenant_id, done.revision))

    async def GetResource(self, request: rbac_pb2.GetResourceRequest, call: Call) -> rbac_pb2.GetResourceResponse:
        parent = await self._resources.find_parent(call.caller.tenant_id, request.resource)
        return rbac_pb2.GetResourceResponse(resource=request.resource, parent=parent)


class PermissionServicer:
    """watchword.rbac.v1.PermissionService."""

    def __init__(self, checker: Checker, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._checker = checker
        self._consistency = consistency
        self._pager = pager

    async def CheckPermission(self, request: permission_pb2.CheckPermissionRequest, call: Call) -> permission_pb2.CheckPermissionResponse:
        tenant_id = _tenant(request.tenant_id, call)
        at_least = self._revision(request.consistency, tenant_id)
        decision, revision = await self._checker.check(tenant_id, _question(request), at_least=at_least)
        return _decision(decision, self._consistency.write(tenant_id, revision))

    async def BatchCheckPermissions(
        self, request: permission_pb2.BatchCheckPermissionsRequest, call: Call
    ) -> permission_pb2.BatchCheckPermissionsResponse:
        tenant_id = _tenant(request.tenant_id, call)
        _require_one_state(request)
        at_least = self._revision(request.consistency, tenant_id)
        questions = [_question(one) for one in request.requests]
        subjects, resources = {question.subject for question in questions}, {question.resource for question in questions}
        view = await self._checker.view(tenant_id, subjects, resources, at_least=at_least)
        token = self._consistency.write(tenant_id, view.revision)
        return permission_pb2.BatchCheckPermissionsResponse(responses=[_decision(view.decide(question), token) for question in questions])

    async def CheckAuthority(self, request: permission_pb2.CheckAuthorityRequest, call: Call) -> permission_pb2.CheckAuthorityResponse:
        target = _subject(request.target) if request.HasField("target") else None
        deed = Deed(_subject(request.actor), target, frozenset(request.permissions))
        lacking = deed.lacking(await self._checker.view(_tenant(request.tenant_id, call), deed.subjects, []))
        decision = permission_pb2.DENY if lacking else permission_pb2.ALLOW
        return permission_pb2.CheckAuthorityResponse(decision=decision, missing_permissions=lacking[:NAMED])

    async def ListSubjectPermissions(
        self, request: permission_pb2.ListSubjectPermissionsRequest, call: Call
    ) -> permission_pb2.ListSubjectPermissionsResponse:
        tenant_id, subject = _tenant(request.tenant_id, call), _subject(request.subject)
        query = ("ListSubjectPermissions", str(int(subject.type)), str(subject.id), request.resource)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        view = await self._checker.view(tenant_id, [subject], [request.resource])
        grants = [grant for grant in view.grants(subject, request.resource) if page.after is None or grant_key(grant) > page.after]
        listed = self._pager.page(grants, page, key=grant_key, tenant_id=tenant_id, query=query)
        return permission_pb2.ListSubjectPermissionsResponse(
            grants=map(_grant, listed.items),
            consistency_token=self._consistency.write(tenant_id, view.revision),
            next_page_token=listed.next_token,
            role_names=sorted({holding.role.name for holding in view.held(subject, request.resource)}),
        )

    def _revision(self, consistency: consistency_pb2.Consistency, tenant_id: TenantId) -> int:
        """Return the revision that is asked for at least. All other demands are what the default gives: the newest committed state."""
        token = consistency.at_least_as_fresh
        return self._consistency.read(token, tenant_id) if consistency.HasField("at_least_as_fresh") else 0


def _tenant(stated: str, call: Call) -> TenantId:
    """Services of the suite state the tenant; all others have one, and may at most repeat it."""
    if call.caller.is_peer:
        if not stated:
            raise InvalidRequest.of("tenant_id", "is required from a service of the suite")
        return TenantId(UUID(stated))
    if stated and stated != str(call.caller.tenant_id):
        raise InvalidRequest.of("tenant_id", "must be empty: only services of the suite state a tenant")
    return call.caller.tenant_id


def _require_one_state(batch: permission_pb2.BatchCheckPermissionsRequest) -> None:
    violations = list(islice(_other_states(batch), MAX_VIOLATIONS))
    if violations:
        raise InvalidRequest(violations=violations)


def _other_states(batch: permission_pb2.BatchCheckPermissionsRequest) -> Iterator[Violation]:
    for index, one in enumerate(batch.requests):
        if one.HasField("consistency"):
            yield Violation(f"requests[{index}].consistency", "must be unset: the batch's holds for all")
        if one.tenant_id and one.tenant_id != batch.tenant_id:
            yield Violation(f"requests[{index}].tenant_id", "must be empty: the batch's holds for all")


def _patch(update: rbac_pb2.RoleUpdate, mask: FieldMask) -> RolePatch:
    """Return the new values that `mask` names; without a mask, those that are not empty."""
    unknown = sorted(set(mask.paths) - set(_PATCHABLE))
    if unknown:
        raise InvalidRequest.of("update_mask", f"may name {', '.join(_PATCHABLE)}, and nothing else")
    paths = set(mask.paths) or {path for path in _PATCHABLE if getattr(update, path)}
    if not paths:
        raise InvalidRequest.of("role", "says nothing to change")
    if "name" in paths and not update.name:
        raise InvalidRequest.of("role.name", "must not be empty")
    return RolePatch(
        name=update.name if "name" in paths else None,
        description=update.description if "description" in paths else None,
        permissions=tuple(update.permissions) if "permissions" in paths else None,
        parent_ids=_ids(update.parent_role_ids) if "parent_role_ids" in paths else None,
    )


def _fitting(roles: list[Role]) -> int:
    """Return how many of `roles` fit into one answer; one always does."""
    total = 0
    for count, role in enumerate(roles):
        total += len(role.description) * 4 + sum(len(pattern) + 2 for pattern in role.permissions) + 38 * len(role.parent_ids) + 256
        if total > MAX_PAGE_BYTES:
            return max(1, count)
    return max(1, len(roles))


def _id(text: str) -> UUID | None:
    return UUID(text) if text else None


def _ids(texts: Iterable[str]) -> tuple[UUID, ...]:
    return tuple(map(UUID, texts))


def _subject(subject: rbac_pb2.Subject) -> Subject:
    return Subject(SubjectType(subject.type), UUID(subject.id))


def _wire_subject(subject: Subject) -> rbac_pb2.Subject:
    return rbac_pb2.Subject(type=rbac_pb2.SubjectType.ValueType(subject.type), id=str(subject.id))


def _question(request: permission_pb2.CheckPermissionRequest) -> Question:
    return Question(_subject(request.subject), request.permission, request.resource)


def _timestamp(instant: datetime | None) -> Timestamp | None:
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def _decision(decision: Decision, token: str) -> permission_pb2.CheckPermissionResponse:
    return permission_pb2.CheckPermissionResponse(
        decision=permission_pb2.ALLOW if decision.is_allowed else permission_pb2.DENY,
        reason=permission_pb2.DecisionReason.ValueType(decision.reason),
        consistency_token=token,
        expire_time=_timestamp(decision.expire_time),
    )


def _grant(grant: Grant) -> permission_pb2.Grant:
    return permission_pb2.Grant(
        permission=grant.permission,
        role_id=str(grant.holding.role.id),
        role_name=grant.role_name,
        resource=grant.holding.resource,
        expire_time=_timestamp(grant.holding.expire_time),
    )


def _role(role: Role) -> rbac_pb2.Role:
    return rbac_pb2.Role(
        id=str(role.id),
        name=role.name,
        description=role.description,
        permissions=role.permissions,
        parent_role_ids=map(str, role.parent_ids),
        system=role.system,
        etag=role.etag,
        create_time=_timestamp(role.create_time),
        update_time=_timestamp(role.update_time),
    )


def _binding(binding: RoleBinding) -> rbac_pb2.RoleBinding:
    return rbac_pb2.RoleBinding(
        id=str(binding.id),
        subject=_wire_subject(binding.subject),
        role_id=str(binding.role_id),
        resource=binding.resource,
        expire_time=_timestamp(binding.expire_time),
        create_time=_timestamp(binding.create_time),
    )


def _group(group: Group) -> rbac_pb2.Group:
    return rbac_pb2.Group(id=str(group.id), name=group.name, description=group.description, create_time=_timestamp(group.create_time))
