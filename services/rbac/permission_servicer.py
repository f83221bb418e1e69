"""The RPCs of PermissionService: protobuf in, a question put to the checker, protobuf out."""

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Protocol

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager
from services.chassis.validation import MAX_VIOLATIONS, Validator
from services.rbac.authority import NAMED, Deed
from services.rbac.checker import Checker, Grant, grant_key
from services.rbac.decisions import Question
from services.rbac.messages import question, revision_of, step_up, subject, tenant_of, timestamp, wire_decision, wire_failure
from services.rbac.prompt_servicer import PromptChecks
from watchword.errors import InvalidRequest, Violation
from watchword.rbac.v1 import permission_pb2, rbac_pb2


class Explaining(Protocol):
    """Answers ExplainPermission."""

    async def ExplainPermission(self, request: permission_pb2.ExplainPermissionRequest, call: Call) -> permission_pb2.ExplainPermissionResponse: ...


class LookingUp(Protocol):
    """Answers the lookups."""

    async def LookupResources(self, request: permission_pb2.LookupResourcesRequest, call: Call) -> permission_pb2.LookupResourcesResponse: ...
    async def LookupSubjects(self, request: permission_pb2.LookupSubjectsRequest, call: Call) -> permission_pb2.LookupSubjectsResponse: ...


class Watching(Protocol):
    """Answers WatchPermissions, with messages or what is encoded already."""

    def WatchPermissions(
        self, request: permission_pb2.WatchPermissionsRequest, call: Call
    ) -> AsyncIterator[permission_pb2.WatchPermissionsResponse | bytes]: ...


class PermissionServicer:
    """watchword.rbac.v1.PermissionService."""

    def __init__(
        self,
        checker: Checker,
        consistency: ConsistencyTokens,
        pager: Pager,
        *,
        explaining: Explaining,
        lookups: LookingUp,
        watching: Watching,
        prompt: PromptChecks,
    ) -> None:
        self._checker = checker
        self._consistency = consistency
        self._pager = pager
        self._validator = Validator()
        self.ExplainPermission = explaining.ExplainPermission
        self.LookupResources = lookups.LookupResources
        self.LookupSubjects = lookups.LookupSubjects
        self.WatchPermissions = watching.WatchPermissions
        self.prompts = {"CheckPermission": prompt.check, "BatchCheckPermissions": prompt.check_batch}

    async def CheckPermission(self, request: permission_pb2.CheckPermissionRequest, call: Call) -> permission_pb2.CheckPermissionResponse:
        tenant_id = tenant_of(request.tenant_id, call.caller)
        at_least = revision_of(request.consistency, self._consistency, tenant_id)
        decision, revision = await self._checker.check(tenant_id, question(request), at_least=at_least)
        return wire_decision(decision, self._consistency.write(tenant_id, revision))

    async def BatchCheckPermissions(
        self, request: permission_pb2.BatchCheckPermissionsRequest, call: Call
    ) -> permission_pb2.BatchCheckPermissionsResponse:
        tenant_id = tenant_of(request.tenant_id, call.caller)
        at_least = revision_of(request.consistency, self._consistency, tenant_id)
        asked = [self._ask(one, request.tenant_id) for one in request.requests]
        good = [one for one in asked if isinstance(one, Question)]
        view = await self._checker.view(tenant_id, (one.subject for one in good), (one.resource for one in good), at_least=at_least)
        token = self._consistency.write(tenant_id, view.revision)
        answers = (wire_decision(view.decide(one), token) if isinstance(one, Question) else wire_failure(one) for one in asked)
        return permission_pb2.BatchCheckPermissionsResponse(responses=answers)

    def _ask(self, one: permission_pb2.CheckPermissionRequest, tenant_id: str) -> Question | InvalidRequest:
        """Return one question of a batch, or why it cannot be asked."""
        try:
            self._validator.check(one)
            violations = list(islice(_other_states(one, tenant_id), MAX_VIOLATIONS))
            if violations:
                return InvalidRequest(violations=violations)
            return question(one)
        except InvalidRequest as error:
            return error

    async def CheckAuthority(self, request: permission_pb2.CheckAuthorityRequest, call: Call) -> permission_pb2.CheckAuthorityResponse:
        target = subject(request.target, "target") if request.HasField("target") else None
        deed = Deed(subject(request.actor, "actor"), target, frozenset(request.permissions))
        lacking = deed.lacking(await self._checker.view(tenant_of(request.tenant_id, call.caller), deed.subjects, []))
        decision = permission_pb2.DENY if lacking else permission_pb2.ALLOW
        return permission_pb2.CheckAuthorityResponse(decision=decision, missing_permissions=lacking[:NAMED])

    async def ListSubjectPermissions(
        self, request: permission_pb2.ListSubjectPermissionsRequest, call: Call
    ) -> permission_pb2.ListSubjectPermissionsResponse:
        tenant_id, who = tenant_of(request.tenant_id, call.caller), subject(request.subject)
        query = ("ListSubjectPermissions", str(int(who.type)), str(who.id), request.resource)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        view = await self._checker.view(tenant_id, [who], [request.resource])
        grants = [grant for grant in view.grants(who, request.resource) if page.after is None or grant_key(grant) > page.after]
        listed = self._pager.page(grants, page, key=grant_key, tenant_id=tenant_id, query=query)
        return permission_pb2.ListSubjectPermissionsResponse(
            grants=map(_grant, listed.items),
            consistency_token=self._consistency.write(tenant_id, view.revision),
            next_page_token=listed.next_token,
            role_names=sorted({holding.role.name for holding in view.held(who, request.resource) if holding.terms.is_plain}),
        )


def _other_states(one: permission_pb2.CheckPermissionRequest, tenant_id: str) -> Iterator[Violation]:
    if one.HasField("consistency"):
        yield Violation("consistency", "must be unset: the batch's holds for all")
    if one.tenant_id and one.tenant_id != tenant_id:
        yield Violation("tenant_id", "must be empty: the batch's holds for all")


def _grant(grant: Grant) -> permission_pb2.Grant:
    terms = grant.holding.terms
    return permission_pb2.Grant(
        permission=grant.permission,
        role_id=str(grant.holding.role.id),
        role_name=grant.role_name,
        resource=grant.holding.resource,
        expire_time=timestamp(terms.expire_time),
        condition=terms.condition,
        step_up=step_up(terms),
        effect=rbac_pb2.BindingEffect.ValueType(terms.effect),
    )
