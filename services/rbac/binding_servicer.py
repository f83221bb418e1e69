"""The RPCs of RoleBindingService: protobuf in, a change or a read of bindings, protobuf out."""

from collections.abc import Iterable
from datetime import UTC
from uuid import UUID

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager
from services.rbac.bindings import Bindings, Order, TermsPatch
from services.rbac.messages import identifier, named, needed_login, subject, tenant_of, terms, wire_binding, wire_impact
from services.rbac.model import RoleBinding, Terms, Written
from services.rbac.policy import Policy, PolicyEffect, at
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import rbac_pb2

_PATCHABLE = ("expire_time", "condition", "step_up")


class RoleBindingServicer:
    """watchword.rbac.v1.RoleBindingService."""

    def __init__(self, bindings: Bindings, policy: Policy, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._bindings = bindings
        self._policy = policy
        self._consistency = consistency
        self._pager = pager

    async def learn(self, conditions: Iterable[str]) -> None:
        """Make ready what many changes will ask for."""
        await self._bindings.learn(conditions)

    def creating(self, request: rbac_pb2.CreateRoleBindingRequest, call: Call) -> PolicyEffect[RoleBinding]:
        """Return the change that is asked for. Raises InvalidRequest."""
        return self._bindings.creating(call, _order(request))

    def updating(self, request: rbac_pb2.UpdateRoleBindingRequest, call: Call) -> PolicyEffect[RoleBinding]:
        """Return the change that is asked for. Raises InvalidRequest."""
        return self._bindings.updating(call, UUID(request.role_binding_id), _patch(request), request.etag)

    def deleting(self, request: rbac_pb2.DeleteRoleBindingRequest, call: Call) -> PolicyEffect[None]:
        """Return the change that is asked for."""
        return self._bindings.deleting(call, UUID(request.role_binding_id), request.etag)

    async def CreateRoleBinding(self, request: rbac_pb2.CreateRoleBindingRequest, call: Call) -> rbac_pb2.CreateRoleBindingResponse:
        tenant_id, effect = tenant_of(request.tenant_id, call.caller), self.creating(request, call)
        done = await self._policy.run(call, tenant_id, Written[RoleBinding], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.CreateRoleBindingResponse(role_binding=wire_binding(done.item), consistency_token=token, impact=wire_impact(done.impact))

    async def BatchCreateRoleBindings(self, request: rbac_pb2.BatchCreateRoleBindingsRequest, call: Call) -> rbac_pb2.BatchCreateRoleBindingsResponse:
        tenant_id = call.caller.tenant_id
        await self.learn(one.condition for one in request.requests)
        effect = self._bindings.creating_many(call, [_member(one, index) for index, one in enumerate(request.requests)])
        done = await self._policy.run(call, tenant_id, Written[list[RoleBinding]], effect, validate_only=request.validate_only)
        return rbac_pb2.BatchCreateRoleBindingsResponse(
            role_bindings=map(wire_binding, done.item),
            consistency_token=self._consistency.write(tenant_id, done.revision),
            impact=wire_impact(done.impact),
        )

    async def UpdateRoleBinding(self, request: rbac_pb2.UpdateRoleBindingRequest, call: Call) -> rbac_pb2.UpdateRoleBindingResponse:
        tenant_id, effect = call.caller.tenant_id, self.updating(request, call)
        done = await self._policy.run(call, tenant_id, Written[RoleBinding], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.UpdateRoleBindingResponse(role_binding=wire_binding(done.item), consistency_token=token, impact=wire_impact(done.impact))

    async def GetRoleBinding(self, request: rbac_pb2.GetRoleBindingRequest, call: Call) -> rbac_pb2.GetRoleBindingResponse:
        binding = await self._bindings.get(call.caller.tenant_id, UUID(request.role_binding_id))
        return rbac_pb2.GetRoleBindingResponse(role_binding=wire_binding(binding))

    async def ListRoleBindings(self, request: rbac_pb2.ListRoleBindingsRequest, call: Call) -> rbac_pb2.ListRoleBindingsResponse:
        tenant_id, query = call.caller.tenant_id, ("ListRoleBindings", request.role_id, request.subject_id)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        role_id, subject_id = identifier(request.role_id), identifier(request.subject_id)
        bindings = await self._bindings.list_page(tenant_id, page, role_id=role_id, subject_id=subject_id)
        listed = self._pager.page(bindings, page, key=lambda binding: (str(binding.id),), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListRoleBindingsResponse(role_bindings=map(wire_binding, listed.items), next_page_token=listed.next_token)

    async def DeleteRoleBinding(self, request: rbac_pb2.DeleteRoleBindingRequest, call: Call) -> rbac_pb2.DeleteRoleBindingResponse:
        tenant_id, effect = call.caller.tenant_id, self.deleting(request, call)
        done = await self._policy.run(call, tenant_id, Written[None], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        return rbac_pb2.DeleteRoleBindingResponse(consistency_token=token, impact=wire_impact(done.impact))

    async def DeleteSubject(self, request: rbac_pb2.DeleteSubjectRequest, call: Call) -> rbac_pb2.DeleteSubjectResponse:
        tenant_id, effect = tenant_of(request.tenant_id, call.caller), self._bindings.deleting_subject(subject(request.subject))
        done = await self._policy.run(call, tenant_id, Written[None], effect)
        return rbac_pb2.DeleteSubjectResponse(consistency_token=self._consistency.write(tenant_id, done.revision))


def _order(request: rbac_pb2.CreateRoleBindingRequest) -> Order:
    if bool(request.role_id) == bool(request.role_name):
        raise InvalidRequest.of("role_id", "exactly one of role_id and role_name must be set")
    return Order(subject(request.subject), identifier(request.role_id), request.role_name, request.resource, terms(request))


def _member(request: rbac_pb2.CreateRoleBindingRequest, index: int) -> Order:
    """Return one order of a batch. Raises InvalidRequest that names it by its place."""
    place = f"requests[{index}]"
    for field in ("request_id", "tenant_id", "validate_only"):
        if getattr(request, field):
            raise InvalidRequest.of(f"{place}.{field}", "must be unset: the batch's holds for all")
    try:
        return _order(request)
    except InvalidRequest as error:
        raise at(error, place) from None


def _patch(request: rbac_pb2.UpdateRoleBindingRequest) -> TermsPatch:
    update = request.role_binding
    paths = named(request.update_mask, update, _PATCHABLE, "role_binding")
    acr, max_age = needed_login(update.step_up, "role_binding.step_up")
    expire_time = update.expire_time.ToDatetime(UTC) if update.HasField("expire_time") else None
    return TermsPatch(paths, Terms(expire_time=expire_time, condition=update.condition, acr=acr, max_age=max_age))
