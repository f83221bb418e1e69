"""Every failure of the suite, once: raised by the domain, carried over the wire as a google.rpc.Status, raised again at the caller.

One class per `ErrorReason` of errors/v1/reason.proto. A message may be shown to a stranger: it names no id, no statement, and never which half
of a credential was wrong. Needs nothing but the standard library, so that domain code may import it; `watchword.status` does the encoding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical codes of google.rpc.Code that the suite uses."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field: its path as in the JSON form, and words on how to mend it."""

    field: str
    description: str


class WatchwordError(Exception):
    """A failure with a canonical code, a machine-readable reason and a message fit for strangers."""

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    message: ClassVar[str] = "internal error"

    def __init__(
        self,
        message: str | None = None,
        *,
        violations: Sequence[Violation] = (),
        retry_after: timedelta | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.text = message or self.message
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        super().__init__(self.text)


class Internal(WatchwordError):
    """A defect of ours."""


class InvalidRequest(WatchwordError):
    """The request is malformed; `violations` name the fields."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"
    message = "the request is not valid"

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidRequest":
        """Return the failure of one field."""
        return cls(violations=[Violation(field, description)])


class PageTokenInvalid(InvalidRequest):
    """The page token is not one of ours for this query."""

    reason = "PAGE_TOKEN_INVALID"
    message = "the page token is not valid for this query"


class PasswordRejected(InvalidRequest):
    """The new password is too weak; `violations` say why."""

    reason = "PASSWORD_REJECTED"
    message = "the password is not acceptable"


class CodeInvalid(InvalidRequest):
    """The one-time code is unknown, used or expired."""

    reason = "CODE_INVALID"
    message = "the code is not valid"


class Unauthenticated(WatchwordError):
    """The caller is not known."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_INVALID"
    message = "the credential is not valid"


class CredentialsMissing(Unauthenticated):
    """The call carries no bearer token."""

    reason = "CREDENTIALS_MISSING"
    message = "a bearer token is required"


class InvalidCredentials(Unauthenticated):
    """The credential proves nothing; deliberately one answer for every cause."""

    reason = "INVALID_CREDENTIALS"
    message = "the credentials are not valid"


class TokenInvalid(Unauthenticated):
    """The bearer token is not valid here; deliberately one answer for every cause."""

    message = "the token is not valid"


class RefreshTokenReused(Unauthenticated):
    """The refresh token was used before; its session is over."""

    reason = "REFRESH_TOKEN_REUSED"
    message = "the refresh token was already used; log in again"


class PermissionDenied(WatchwordError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"
    message = "the caller may not do this"


class InsufficientScope(PermissionDenied):
    """The access token lacks the scope."""

    reason = "INSUFFICIENT_SCOPE"
    message = "the token lacks the scope that this call needs"


class NotFound(WatchwordError):
    """No such thing in the caller's tenant."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"
    message = "not found"


class AlreadyExists(WatchwordError):
    """The name is taken."""

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"
    message = "already exists"


class PreconditionFailed(WatchwordError):
    """The thing is not in a state that allows this."""

    code = Code.FAILED_PRECONDITION
    reason = "PRECONDITION_FAILED"
    message = "not possible in this state"


class PasswordChangeRequired(PreconditionFailed):
    """The password is one-time; told only to those who proved it."""

    reason = "PASSWORD_CHANGE_REQUIRED"
    message = "this password is one-time: log in with new_password to replace it"


class EmailNotVerified(PreconditionFailed):
    """The e-mail address is not verified; told only to those who proved the password."""

    reason = "EMAIL_NOT_VERIFIED"
    message = "the e-mail address is not verified yet"


class Cycle(PreconditionFailed):
    """The graph would hold a cycle, which the message names."""

    reason = "CYCLE"
    message = "this would make a cycle"


class DepthExceeded(PreconditionFailed):
    """Roles, groups or resources are nested too deep."""

    reason = "DEPTH_EXCEEDED"
    message = "nested too deep"


class LastAdministrator(PreconditionFailed):
    """The last administrator cannot be removed."""

    reason = "LAST_ADMINISTRATOR"
    message = "the last administrator cannot be removed"


class Aborted(WatchwordError):
    """Somebody else was faster."""

    code = Code.ABORTED
    reason = "ETAG_MISMATCH"
    message = "it was changed in between; read it again"


class EtagMismatch(Aborted):
    """The etag is not the current one."""


class IdempotencyConflict(Aborted):
    """The request_id was used before with another request."""

    reason = "IDEMPOTENCY_CONFLICT"
    message = "this request_id was used with another request"


class ResourceExhausted(WatchwordError):
    """Too much was asked for; `retry_after` says when to come back."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"
    message = "too many requests; try again later"


class RateLimited(ResourceExhausted):
    """Too many calls."""


class LoginCapacityExceeded(ResourceExhausted):
    """No password hashing capacity within the deadline."""

    reason = "LOGIN_CAPACITY_EXCEEDED"
    message = "too many logins at once; try again later"


class RequestTooLarge(ResourceExhausted):
    """The request is larger than the server takes."""

    reason = "REQUEST_TOO_LARGE"
    message = "the request is too large"


class Unavailable(WatchwordError):
    """Something needed does not answer; the call may be tried again."""

    code = Code.UNAVAILABLE
    reason = "DEPENDENCY_UNAVAILABLE"
    message = "temporarily unavailable; try again"


class DependencyUnavailable(Unavailable):
    """A database or a peer does not answer."""


class RevisionUnavailable(Unavailable):
    """This server cannot yet see what the consistency token asks for."""

    reason = "REVISION_UNAVAILABLE"
    message = "that revision is not visible here yet; try again"


class FanoutPending(Unavailable):
    """The change is durable, but not every instance is known to have applied it."""

    reason = "FANOUT_PENDING"
    message = "stored, but not yet confirmed everywhere; repeat with the same request_id"


class ShuttingDown(Unavailable):
    """The server is shutting down."""

    reason = "SHUTTING_DOWN"
    message = "shutting down; try again"


class DeadlineExceeded(WatchwordError):
    """The caller's deadline passed."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    message = "the deadline passed"


class Unimplemented(WatchwordError):
    """No such RPC."""

    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"
    message = "no such method"


def _leaves(cls: type[WatchwordError]) -> list[type[WatchwordError]]:
    found = []
    for sub in cls.__subclasses__():
        found.append(sub)
        found.extend(_leaves(sub))
    return found


# Later (more special) classes win, so that each reason decodes to the leaf that raised it.
BY_REASON: Mapping[str, type[WatchwordError]] = {cls.reason: cls for cls in _leaves(WatchwordError)}
