"""What is asked of PermissionService, and what it answers: subjects and decisions."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from watchword.errors import BY_REASON, InvalidRequest, PermissionDenied, Unavailable
from watchword.rbac.v1 import permission_pb2, rbac_pb2


class SubjectType(IntEnum):
    """What a subject is; numbered as in the contract."""

    USER = 1
    GROUP = 2
    CLIENT = 3
    ANYBODY = 4


_TYPES = {"user": SubjectType.USER, "group": SubjectType.GROUP, "client": SubjectType.CLIENT}


@dataclass(frozen=True, slots=True)
class Subject:
    """Somebody who may hold a role. `id` is a UUID as text; empty for ANYBODY."""

    type: SubjectType
    id: str = ""

    @classmethod
    def parse(cls, text: str) -> "Subject":
        """Return the subject that `user:ID`, `client:ID`, `group:ID` or `*` names. Raises InvalidRequest."""
        if text == "*":
            return ANYBODY
        kind, colon, name = text.partition(":")
        if kind not in _TYPES or not colon or not name:
            raise InvalidRequest.of("subject", "must be user:ID, client:ID, group:ID or *")
        return cls(_TYPES[kind], name)

    def __str__(self) -> str:
        return "*" if self.type is SubjectType.ANYBODY else f"{self.type.name.lower()}:{self.id}"

    @property
    def wire(self) -> rbac_pb2.Subject:
        """The subject for the wire."""
        return rbac_pb2.Subject(type=rbac_pb2.SubjectType.ValueType(self.type), id=self.id)


ANYBODY = Subject(SubjectType.ANYBODY)  # every user and client of the tenant


class Outcome(StrEnum):
    """The answers."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    CONDITIONAL = "CONDITIONAL"
    STEP_UP_REQUIRED = "STEP_UP_REQUIRED"


class Reason(StrEnum):
    """Why a decision is what it is. UNKNOWN: a later release's reason."""

    UNKNOWN = "UNKNOWN"
    GRANTED = "GRANTED"
    NO_ROLE = "NO_ROLE"
    NO_PERMISSION = "NO_PERMISSION"
    DENIED = "DENIED"
    CONDITION_NOT_MET = "CONDITION_NOT_MET"
    CONTEXT_MISSING = "CONTEXT_MISSING"
    LOGIN_TOO_WEAK = "LOGIN_TOO_WEAK"


_OUTCOMES = {permission_pb2.Decision.Value(outcome.value): outcome for outcome in Outcome}
_REASONS = {permission_pb2.DecisionReason.Value(reason.value): reason for reason in list(Reason)[1:]}


@dataclass(frozen=True, slots=True)
class StepUp:
    """The weakest login that would do: of class `acr` at least, unless that is empty; at most `max_age` ago, unless that is None."""

    acr: str = ""
    max_age: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a check. It is true only if the subject may.

    consistency_token   the state that the answer comes from
    expire_time         when the grant behind an ALLOW ends by itself; None if it does not
    missing_context     with CONDITIONAL: members of the context that conditions ask for
    step_up             with STEP_UP_REQUIRED: the weakest login that would do
    depends_on_context  another context, or another time, may give another answer
    """

    outcome: Outcome
    reason: Reason
    consistency_token: str = ""
    expire_time: datetime | None = None
    missing_context: tuple[str, ...] = ()
    step_up: StepUp | None = None
    depends_on_context: bool = False

    @property
    def allowed(self) -> bool:
        """Whether the subject may, as things are."""
        return self.outcome is Outcome.ALLOW

    def __bool__(self) -> bool:
        """So that `if await client.check(...)` never lets anybody pass by being an object."""
        return self.allowed


class StepUpRequired(PermissionDenied):
    """The caller may, after a stronger or fresher login. `metadata` says which: `acr`, and `max_age` in seconds."""

    message = "this needs a stronger or fresher login"


def step_up_required(needed: StepUp) -> StepUpRequired:
    """Return the failure of a login that was too weak."""
    age = {} if needed.max_age is None else {"max_age": f"{needed.max_age.total_seconds():.0f}"}
    return StepUpRequired(metadata={**({"acr": needed.acr} if needed.acr else {}), **age})


def decision_from(answer: permission_pb2.CheckPermissionResponse) -> Decision:
    """Return what an answer says. Raises what the question failed by; Unavailable for an answer that only a later release understands."""
    if answer.HasField("error"):
        raise BY_REASON.get(answer.error.reason, InvalidRequest)(answer.error.message or None)
    outcome = _OUTCOMES.get(answer.decision)
    if outcome is None:
        raise Unavailable("the answer is not understood")
    return Decision(
        outcome,
        _REASONS.get(answer.reason, Reason.UNKNOWN),
        answer.consistency_token,
        instant_from(answer.expire_time) if answer.HasField("expire_time") else None,
        tuple(answer.missing_context),
        step_up_from(answer.step_up) if answer.HasField("step_up") else None,
        answer.depends_on_context,
    )


def step_up_from(wire: rbac_pb2.StepUp) -> StepUp:
    """Return the login that is needed."""
    return StepUp(wire.acr, age_from(wire.max_age) if wire.HasField("max_age") else None)


def instant_from(wire: Timestamp) -> datetime:
    """Return an instant."""
    return wire.ToDatetime(UTC)


def age_from(wire: Duration) -> timedelta:
    """Return a length of time."""
    return wire.ToTimedelta()
