"""What rbac speaks of, from protobuf and into it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.call import Caller
from services.chassis.consistency import ConsistencyTokens
from services.chassis.tenancy import TenantId
from services.rbac.decisions import NO_CONTEXT, Decision, Question
from services.rbac.impact import Difference, Impact
from services.rbac.levels import UNKNOWN_LOGIN, Login, StepUp
from services.rbac.model import ANYBODY, Effect, Group, Role, RoleBinding, Subject, SubjectType, Terms
from watchword.common.v1 import consistency_pb2
from watchword.errors import InvalidRequest, Violation
from watchword.rbac.v1 import permission_pb2, rbac_pb2

MAX_CONTEXT = 8 * 1024  # bytes of a context


def tenant_of(stated: str, caller: Caller) -> TenantId:
    """Services of the suite state the tenant; all others have one, and may at most repeat it. Raises InvalidRequest."""
    if caller.is_peer:
        if not stated:
            raise InvalidRequest.of("tenant_id", "is required from a service of the suite")
        return TenantId(UUID(stated))
    if stated and stated != str(caller.tenant_id):
        raise InvalidRequest.of("tenant_id", "must be empty: only services of the suite state a tenant")
    return caller.tenant_id


def revision_of(consistency: consistency_pb2.Consistency, tokens: ConsistencyTokens, tenant_id: TenantId) -> int:
    """Return the revision that is asked for at least. All other demands are what the default gives: the newest committed state."""
    return tokens.read(consistency.at_least_as_fresh, tenant_id) if consistency.HasField("at_least_as_fresh") else 0


def identifier(text: str) -> UUID | None:
    """Return a UUID, or None for an empty text."""
    return UUID(text) if text else None


def identifiers(texts: Iterable[str]) -> tuple[UUID, ...]:
    """Return UUIDs."""
    return tuple(map(UUID, texts))


def subject(wire: rbac_pb2.Subject, field: str = "subject") -> Subject:
    """Return a subject. Raises InvalidRequest unless exactly those have ids that are somebody."""
    if wire.type == rbac_pb2.SUBJECT_TYPE_ANY:
        if wire.id:
            raise InvalidRequest.of(f"{field}.id", "must be empty for SUBJECT_TYPE_ANY")
        return ANYBODY
    if not wire.id:
        raise InvalidRequest.of(f"{field}.id", "is required")
    return Subject(SubjectType(wire.type), UUID(wire.id))


def wire_subject(subject: Subject) -> rbac_pb2.Subject:
    """Return a subject for the wire."""
    name = "" if subject == ANYBODY else str(subject.id)
    return rbac_pb2.Subject(type=rbac_pb2.SubjectType.ValueType(subject.type), id=name)


def question(request: Any) -> Question:
    """Return what CheckPermission, ExplainPermission and LookupResources ask; a lookup leaves the resource open. Raises InvalidRequest."""
    return Question(
        subject(request.subject),
        request.permission,
        getattr(request, "resource", ""),
        context_of(request.context) if request.HasField("context") else NO_CONTEXT,
        login_of(request) if request.acr or request.HasField("auth_time") else UNKNOWN_LOGIN,
    )


def context_of(wire: Struct) -> Mapping[str, object]:
    """Return a context as plain values. Raises InvalidRequest if it is too large."""
    if wire.ByteSize() > MAX_CONTEXT:
        raise InvalidRequest.of("context", f"must be at most {MAX_CONTEXT} bytes")
    try:
        return MessageToDict(wire)
    except ValueError:  # NaN, infinity, or a value of no kind
        raise InvalidRequest.of("context", "must hold what JSON can say") from None


def login_of(request: Any) -> Login:
    """Return the login that a question tells of."""
    return Login(request.acr, request.auth_time.ToDatetime(UTC) if request.HasField("auth_time") else None)


def timestamp(instant: datetime | None) -> Timestamp | None:
    """Return an instant for the wire."""
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def duration(age: timedelta | None) -> Duration | None:
    """Return a length of time for the wire."""
    if age is None:
        return None
    wire = Duration()
    wire.FromTimedelta(age)
    return wire


def step_up(terms: Terms | StepUp) -> rbac_pb2.StepUp | None:
    """Return the login that is needed, for the wire; None if any will do."""
    if not terms.acr and terms.max_age is None:
        return None
    return rbac_pb2.StepUp(acr=terms.acr, max_age=duration(terms.max_age))


def needed_login(wire: rbac_pb2.StepUp, field: str = "step_up") -> tuple[str, timedelta | None]:
    """Return `acr` and `max_age`. Raises InvalidRequest if the age is no positive number of seconds."""
    if not wire.HasField("max_age"):
        return wire.acr, None
    if wire.max_age.seconds <= 0 or wire.max_age.nanos:
        raise InvalidRequest.of(f"{field}.max_age", "must be a positive number of whole seconds")
    return wire.acr, timedelta(seconds=wire.max_age.seconds)


def terms(request: rbac_pb2.CreateRoleBindingRequest) -> Terms:
    """Return on what terms a new binding is to hold. Raises InvalidRequest."""
    acr, max_age = needed_login(request.step_up)
    return Terms(
        expire_time=request.expire_time.ToDatetime(UTC) if request.HasField("expire_time") else None,
        effect=Effect(request.effect or Effect.ALLOW),
        condition=request.condition,
        acr=acr,
        max_age=max_age,
    )


def wire_decision(decision: Decision, token: str) -> permission_pb2.CheckPermissionResponse:
    """Return a decision for the wire."""
    wire = permission_pb2.CheckPermissionResponse(
        decision=permission_pb2.Decision.ValueType(decision.outcome),
        reason=permission_pb2.DecisionReason.ValueType(decision.reason),
        consistency_token=token,
        expire_time=timestamp(decision.expire_time),
    )
    if decision.depends_on_context:
        wire.depends_on_context = True
        wire.missing_context.extend(decision.missing)
    if decision.step_up is not None:
        wire.step_up.CopyFrom(step_up(decision.step_up) or rbac_pb2.StepUp())
    return wire


def wire_failure(error: InvalidRequest) -> permission_pb2.CheckPermissionResponse:
    """Return, for one question of a batch, why it could not be asked."""
    message = "; ".join(map(_in_words, error.violations)) or str(error)
    return permission_pb2.CheckPermissionResponse(error=permission_pb2.QuestionError(reason=error.reason, message=message[:500]))


def _in_words(violation: Violation) -> str:
    return f"{violation.field} {violation.description}"


def wire_role(role: Role) -> rbac_pb2.Role:
    """Return a role for the wire."""
    return rbac_pb2.Role(
        id=str(role.id),
        name=role.name,
        description=role.description,
        permissions=role.permissions,
        parent_role_ids=map(str, role.parent_ids),
        system=role.system,
        etag=role.etag,
        create_time=timestamp(role.create_time),
        update_time=timestamp(role.update_time),
    )


def wire_binding(binding: RoleBinding) -> rbac_pb2.RoleBinding:
    """Return a binding for the wire."""
    return rbac_pb2.RoleBinding(
        id=str(binding.id),
        subject=wire_subject(binding.subject),
        role_id=str(binding.role_id),
        resource=binding.resource,
        expire_time=timestamp(binding.terms.expire_time),
        create_time=timestamp(binding.create_time),
        effect=rbac_pb2.BindingEffect.ValueType(binding.terms.effect),
        condition=binding.terms.condition,
        step_up=step_up(binding.terms),
        etag=binding.etag,
        update_time=timestamp(binding.update_time),
    )


def wire_group(group: Group) -> rbac_pb2.Group:
    """Return a group for the wire."""
    return rbac_pb2.Group(
        id=str(group.id),
        name=group.name,
        description=group.description,
        create_time=timestamp(group.create_time),
        etag=group.etag,
        update_time=timestamp(group.update_time),
    )


def wire_impact(impact: Impact | None) -> rbac_pb2.Impact | None:
    """Return an impact for the wire."""
    if impact is None:
        return None
    return rbac_pb2.Impact(
        subject_count=impact.subject_count,
        gaining_count=impact.gaining_count,
        losing_count=impact.losing_count,
        gains=map(_difference, impact.gains),
        losses=map(_difference, impact.losses),
        truncated=impact.is_truncated,
    )


def _difference(one: Difference) -> rbac_pb2.SubjectImpact:
    return rbac_pb2.SubjectImpact(subject=wire_subject(one.subject), permissions=one.patterns, resource=one.resource)


def named(mask: FieldMask, update: Any, patchable: Sequence[str], field: str) -> frozenset[str]:
    """Return which of `patchable` an update changes: those that `mask` names or, without one, those that are not empty. Raises InvalidRequest."""
    if set(mask.paths) - set(patchable):
        raise InvalidRequest.of("update_mask", f"may name {', '.join(patchable)}, and nothing else")
    paths = frozenset(mask.paths) or frozenset(path for path in patchable if _is_set(update, path))
    if not paths:
        raise InvalidRequest.of(field, "says nothing to change")
    return paths


def _is_set(update: Any, path: str) -> bool:
    return bool(update.HasField(path) if update.DESCRIPTOR.fields_by_name[path].has_presence else getattr(update, path))
