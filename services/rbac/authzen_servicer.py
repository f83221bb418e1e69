"""OpenID AuthZEN Authorization API 1.0: its evaluation endpoints, answered by the check.

An action is a permission `type.verb`, or a verb of the resource's type. Properties are what conditions see as `context.subject`, `context.resource`
and `context.action`, beside the members of `context` itself. The decision is true for ALLOW alone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from services.chassis.call import Call
from services.chassis.tenancy import TenantId
from services.chassis.validation import Validator
from services.rbac.checker import Checker, View
from services.rbac.decisions import Decision, Question
from services.rbac.messages import MAX_CONTEXT, question
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import authzen_pb2, permission_pb2, rbac_pb2

AT_ONCE = 10  # evaluations in one turn of the event loop: each takes up to 1.5 ms
_TYPES = {
    "user": rbac_pb2.SUBJECT_TYPE_USER,
    "group": rbac_pb2.SUBJECT_TYPE_GROUP,
    "client": rbac_pb2.SUBJECT_TYPE_CLIENT,
    "*": rbac_pb2.SUBJECT_TYPE_ANY,
}
_STOPS: Mapping[str, Callable[[bool], bool]] = {
    "": lambda _allowed: False,
    "execute_all": lambda _allowed: False,
    "deny_on_first_deny": lambda allowed: not allowed,
    "permit_on_first_permit": lambda allowed: allowed,
}


class AuthZenServicer:
    """watchword.rbac.v1.AuthZenService."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._validator = Validator()

    async def Evaluate(self, request: authzen_pb2.EvaluateRequest, call: Call) -> authzen_pb2.EvaluateResponse:
        asked = self._question(request)
        decision, _ = await self._checker.check(call.caller.tenant_id, asked)
        return _response(decision)

    async def EvaluateMany(self, request: authzen_pb2.EvaluateManyRequest, call: Call) -> authzen_pb2.EvaluateManyResponse:
        defaults = authzen_pb2.EvaluateRequest(**_members(request))
        if not request.evaluations:
            one = await self.Evaluate(defaults, call)
            return authzen_pb2.EvaluateManyResponse(decision=one.decision, context=one.context)
        stops = _STOPS.get(request.options.evaluations_semantic)
        if stops is None:
            raise InvalidRequest.of("options.evaluations_semantic", f"must be one of {', '.join(name for name in _STOPS if name)}")
        asked = [self._ask(one) async for one in _each(request.evaluations, defaults)]
        view = await self._view(call.caller.tenant_id, [one for one in asked if isinstance(one, Question)])
        answers: list[authzen_pb2.EvaluateResponse] = []
        for each in asked:
            answers.append(_response(view.decide(each)) if isinstance(each, Question) else _failure(each))
            if stops(answers[-1].decision):
                break
        return authzen_pb2.EvaluateManyResponse(evaluations=answers)

    async def _view(self, tenant_id: TenantId, asked: list[Question]) -> View:
        return await self._checker.view(tenant_id, (one.subject for one in asked), (one.resource for one in asked))

    def _ask(self, request: authzen_pb2.EvaluateRequest) -> Question | InvalidRequest:
        try:
            return self._question(request)
        except InvalidRequest as error:
            return error

    def _question(self, request: authzen_pb2.EvaluateRequest) -> Question:
        """Return what an evaluation asks. Raises InvalidRequest, in the words of CheckPermission."""
        self._validator.check(request)
        for field in ("subject", "action", "resource"):
            if not request.HasField(field):
                raise InvalidRequest.of(field, "is required")
        kind = _TYPES.get(request.subject.type)
        if kind is None:
            raise InvalidRequest.of("subject.type", f"must be one of {', '.join(_TYPES)}")
        action, resource = request.action.name, request.resource
        check = permission_pb2.CheckPermissionRequest(
            subject=rbac_pb2.Subject(type=kind, id=request.subject.id),
            permission=action if "." in action else f"{resource.type}.{action}",
            resource=f"{resource.type}/{resource.id}" if resource.id else "",
        )
        check.context.CopyFrom(request.context)
        for name, entity in (("subject", request.subject), ("resource", request.resource), ("action", request.action)):
            if entity.HasField("properties"):
                check.context.fields[name].struct_value.CopyFrom(entity.properties)
        if check.context.ByteSize() > MAX_CONTEXT:
            raise InvalidRequest.of("context", f"must, with all properties, be at most {MAX_CONTEXT} bytes")
        self._validator.check(check)
        return question(check)


async def _each(
    evaluations: Sequence[authzen_pb2.EvaluateRequest], defaults: authzen_pb2.EvaluateRequest
) -> AsyncIterator[authzen_pb2.EvaluateRequest]:
    """Yield evaluations with what they leave to the defaults. A large context is read once for each, so others have their turns meanwhile."""
    for number, one in enumerate(evaluations, 1):
        yield _with_defaults(one, defaults)
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)


def _members(request: Any) -> dict[str, Any]:
    """Return the members of an evaluation that are set."""
    return {name: getattr(request, name) for name in ("subject", "action", "resource", "context") if request.HasField(name)}


def _with_defaults(one: authzen_pb2.EvaluateRequest, defaults: authzen_pb2.EvaluateRequest) -> authzen_pb2.EvaluateRequest:
    return authzen_pb2.EvaluateRequest(**(_members(defaults) | _members(one)))


def _response(decision: Decision) -> authzen_pb2.EvaluateResponse:
    response = authzen_pb2.EvaluateResponse(decision=decision.is_allowed)
    told: dict[str, Any] = {"reason": decision.reason.name}
    if decision.missing:
        told["missing_context"] = list(decision.missing)
    if decision.step_up is not None:
        told |= {"acr_values": decision.step_up.acr} if decision.step_up.acr else {}
        told |= {"max_age": decision.step_up.max_age.total_seconds()} if decision.step_up.max_age is not None else {}
    response.context.update(told)
    return response


def _failure(error: InvalidRequest) -> authzen_pb2.EvaluateResponse:
    """Return, for one of many, that it could not be asked: no."""
    response = authzen_pb2.EvaluateResponse(decision=False)
    words = "; ".join(f"{one.field} {one.description}" for one in error.violations) or error.text
    response.context.update({"error": {"status": 400, "message": words[:500]}})
    return response
