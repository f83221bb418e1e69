"""Guards that stand before your handlers: a good token first, then what the handler requires.

`watchword.guards.asgi.TokenGuard` is ASGI middleware, `watchword.guards.grpc.TokenGuard` an interceptor for grpc.aio servers. Both verify the bearer
token and make `principal()` known to what runs inside. What a handler requires is said by a `Requirement`; await one inside a guarded request to
enforce it: with FastAPI, `Depends(require("invoices.pay"))`.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from watchword.decisions import step_up_required
from watchword.errors import CredentialsMissing, InsufficientScope, PermissionDenied, TokenInvalid
from watchword.permissions import Permissions, is_bounded
from watchword.principal import Principal

__all__ = ["Admission", "Requirement", "authenticated", "bearer", "principal", "public", "require", "require_scope"]

ResourceOf = Callable[[Any], str]
ContextOf = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Admission:
    """Who is inside a guarded request. `request` is what `resource` callables are given: the ASGI scope, or the gRPC request message."""

    principal: Principal
    permissions: Permissions
    request: Any


_admission: ContextVar[Admission | None] = ContextVar("watchword_admission", default=None)


def admitted() -> Admission:
    """Return who is inside. Raises CredentialsMissing outside of a guarded request: nothing unguarded passes by mistake."""
    admission = _admission.get()
    if admission is None:
        raise CredentialsMissing
    return admission


def enter(admission: Admission | None) -> None:
    """Make `admission` known to what runs from here on in this task."""
    _admission.set(admission)


def principal() -> Principal:
    """Return whom the present request's token speaks for. Raises CredentialsMissing where there is none."""
    return admitted().principal


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a handler requires of its caller.

    scopes      that the token must carry, all of them
    permission  that CheckPermission must allow; of tokens that their scopes bound it must be a scope too
    resource    returns from the request what the permission is asked for, as `type/id`
    context     returns from the request what conditions of bindings may look at
    is_public   no token is asked for at all
    """

    scopes: tuple[str, ...] = ()
    permission: str = ""
    resource: ResourceOf | None = None
    context: ContextOf | None = None
    is_public: bool = False

    async def __call__(self) -> Principal:
        """Enforce it in the present request, and return who calls. Raises CredentialsMissing, and as `enforce`."""
        admission = admitted()
        await self.enforce(admission)
        return admission.principal

    async def enforce(self, admission: Admission) -> None:
        """Return if who is inside has what is required. Raises InsufficientScope, PermissionDenied, StepUpRequired, Unavailable."""
        caller = admission.principal
        missing = [scope for scope in self.scopes if scope not in caller.scopes]
        if self.permission and is_bounded(caller) and self.permission not in caller.scopes:
            missing.append(self.permission)
        if missing:
            raise InsufficientScope(metadata={"scope": " ".join(missing)})
        if self.permission:
            resource = self.resource(admission.request) if self.resource else ""
            context = self.context(admission.request) if self.context else None
            decision = await admission.permissions.decide(caller, self.permission, resource, context=context)
            if decision.step_up is not None:
                raise step_up_required(decision.step_up)
            if not decision.allowed:
                raise PermissionDenied


def require(permission: str, *, resource: ResourceOf | None = None, context: ContextOf | None = None, scopes: tuple[str, ...] = ()) -> Requirement:
    """Require that CheckPermission allows the caller `permission`, at this moment."""
    return Requirement(scopes=scopes, permission=permission, resource=resource, context=context)


def require_scope(*scopes: str) -> Requirement:
    """Require that the token carries these scopes; nobody is asked."""
    return Requirement(scopes=scopes)


authenticated = Requirement()  # a good token, and no more
public = Requirement(is_public=True)


def bearer(values: list[str]) -> str:
    """Return the token of the `authorization` values of a request (RFC 6750 section 2.1). Raises CredentialsMissing, TokenInvalid."""
    if len(values) > 1:  # two readers could each take another one
        raise TokenInvalid("a request carries one authorization, not several")
    if not values or not values[0]:
        raise CredentialsMissing
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        raise CredentialsMissing
    if not token or not token.isascii() or " " in token or "," in token:
        raise TokenInvalid
    return token
