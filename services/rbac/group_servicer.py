"""The RPCs of GroupService: protobuf in, a change or a read of groups, protobuf out."""

from uuid import UUID

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager
from services.rbac.groups import Groups
from services.rbac.messages import named, subject, wire_group, wire_impact, wire_subject
from services.rbac.model import Group, Written
from services.rbac.policy import Policy, PolicyEffect
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import rbac_pb2

_PATCHABLE = ("name", "description")


class GroupServicer:
    """watchword.rbac.v1.GroupService."""

    def __init__(self, groups: Groups, policy: Policy, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._groups = groups
        self._policy = policy
        self._consistency = consistency
        self._pager = pager

    def creating(self, request: rbac_pb2.CreateGroupRequest, call: Call) -> PolicyEffect[Group]:
        """Return the change that is asked for."""
        return self._groups.creating(call, request.name, request.description)

    def updating(self, request: rbac_pb2.UpdateGroupRequest, call: Call) -> PolicyEffect[Group]:
        """Return the change that is asked for. Raises InvalidRequest."""
        update = request.group
        paths = named(request.update_mask, update, _PATCHABLE, "group")
        if "name" in paths and not update.name:
            raise InvalidRequest.of("group.name", "must not be empty")
        name, description = (getattr(update, path) if path in paths else None for path in _PATCHABLE)
        return self._groups.updating(call, UUID(request.group_id), name, description, etag=request.etag)

    def deleting(self, request: rbac_pb2.DeleteGroupRequest, call: Call) -> PolicyEffect[None]:
        """Return the change that is asked for."""
        return self._groups.deleting(call, UUID(request.group_id), request.etag)

    def adding(self, request: rbac_pb2.AddGroupMemberRequest, call: Call) -> PolicyEffect[None]:
        """Return the change that is asked for. Raises InvalidRequest."""
        return self._groups.adding(call, UUID(request.group_id), subject(request.member, "member"))

    def removing(self, request: rbac_pb2.RemoveGroupMemberRequest, call: Call) -> PolicyEffect[None]:
        """Return the change that is asked for. Raises InvalidRequest."""
        return self._groups.removing(call, UUID(request.group_id), subject(request.member, "member"))

    async def CreateGroup(self, request: rbac_pb2.CreateGroupRequest, call: Call) -> rbac_pb2.CreateGroupResponse:
        tenant_id, effect = call.caller.tenant_id, self.creating(request, call)
        done = await self._policy.run(call, tenant_id, Written[Group], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.CreateGroupResponse(group=wire_group(done.item), consistency_token=token, impact=wire_impact(done.impact))

    async def GetGroup(self, request: rbac_pb2.GetGroupRequest, call: Call) -> rbac_pb2.GetGroupResponse:
        return rbac_pb2.GetGroupResponse(group=wire_group(await self._groups.get(call.caller.tenant_id, UUID(request.group_id))))

    async def ListGroups(self, request: rbac_pb2.ListGroupsRequest, call: Call) -> rbac_pb2.ListGroupsResponse:
        tenant_id, query = call.caller.tenant_id, ("ListGroups",)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        groups = await self._groups.list_page(tenant_id, page)
        listed = self._pager.page(groups, page, key=lambda group: (group.name,), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListGroupsResponse(groups=map(wire_group, listed.items), next_page_token=listed.next_token)

    async def UpdateGroup(self, request: rbac_pb2.UpdateGroupRequest, call: Call) -> rbac_pb2.UpdateGroupResponse:
        tenant_id, effect = call.caller.tenant_id, self.updating(request, call)
        done = await self._policy.run(call, tenant_id, Written[Group], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.UpdateGroupResponse(group=wire_group(done.item), consistency_token=token, impact=wire_impact(done.impact))

    async def DeleteGroup(self, request: rbac_pb2.DeleteGroupRequest, call: Call) -> rbac_pb2.DeleteGroupResponse:
        tenant_id, effect = call.caller.tenant_id, self.deleting(request, call)
        done = await self._policy.run(call, tenant_id, Written[None], effect, validate_only=request.validate_only)
        return rbac_pb2.DeleteGroupResponse(consistency_token=self._consistency.write(tenant_id, done.revision), impact=wire_impact(done.impact))

    async def AddGroupMember(self, request: rbac_pb2.AddGroupMemberRequest, call: Call) -> rbac_pb2.AddGroupMemberResponse:
        tenant_id, effect = call.caller.tenant_id, self.adding(request, call)
        done = await self._policy.run(call, tenant_id, Written[None], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.AddGroupMemberResponse(consistency_token=token, impact=wire_impact(done.impact))

    async def RemoveGroupMember(self, request: rbac_pb2.RemoveGroupMemberRequest, call: Call) -> rbac_pb2.RemoveGroupMemberResponse:
        tenant_id, effect = call.caller.tenant_id, self.removing(request, call)
        done = await self._policy.run(call, tenant_id, Written[None], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.RemoveGroupMemberResponse(consistency_token=token, impact=wire_impact(done.impact))

    async def ListGroupMembers(self, request: rbac_pb2.ListGroupMembersRequest, call: Call) -> rbac_pb2.ListGroupMembersResponse:
        tenant_id, query = call.caller.tenant_id, ("ListGroupMembers", request.group_id)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        members = await self._groups.list_members_page(tenant_id, UUID(request.group_id), page)
        listed = self._pager.page(members, page, key=lambda member: (str(int(member.type)), str(member.id)), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListGroupMembersResponse(members=map(wire_subject, listed.items), next_page_token=listed.next_token)
