"""ExplainPermission: protobuf in, an explanation, protobuf out."""

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.rbac.explainer import Explainer, Step
from services.rbac.messages import question, revision_of, wire_binding, wire_decision, wire_role, wire_subject
from watchword.rbac.v1 import permission_pb2


class ExplainServicer:
    """Serves ExplainPermission."""

    def __init__(self, explainer: Explainer, consistency: ConsistencyTokens) -> None:
        self._explainer = explainer
        self._consistency = consistency

    async def ExplainPermission(self, request: permission_pb2.ExplainPermissionRequest, call: Call) -> permission_pb2.ExplainPermissionResponse:
        tenant_id = call.caller.tenant_id
        at_least = revision_of(request.consistency, self._consistency, tenant_id)
        found = await self._explainer.explain(tenant_id, question(request), at_least=at_least)
        decision = wire_decision(found.decision, self._consistency.write(tenant_id, found.revision))
        return permission_pb2.ExplainPermissionResponse(decision=decision, chain=map(_step, found.chain), missing=found.missing)


def _step(step: Step) -> permission_pb2.ExplanationStep:
    if step.subject is not None:
        return permission_pb2.ExplanationStep(subject=wire_subject(step.subject), text=step.text)
    if step.binding is not None:
        return permission_pb2.ExplanationStep(role_binding=wire_binding(step.binding), text=step.text)
    if step.role is not None:
        return permission_pb2.ExplanationStep(role=wire_role(step.role), text=step.text)
    return permission_pb2.ExplanationStep(permission=step.permission, text=step.text)
