"""Who may call: rules read from the descriptors, closed by default.

An RPC without an `access` option stops start-up, and so does one whose rule nobody could ever pass here. Alternatives add up: one that holds is
enough. A person's session may use every permission its account has; a client's token, and one that somebody acts with for a person, only those that
are among its scopes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from services.chassis.call import ANONYMOUS, Caller
from services.chassis.service_identity import ServiceIdentity, is_service_token
from watchword.errors import CredentialsMissing, InsufficientScope, PermissionDenied, TokenInvalid
from watchword.options.v1 import access_pb2


class LimitClass(StrEnum):
    """The budget that a call is taken from."""

    NONE = "none"
    READ = "read"
    WRITE = "write"
    CREDENTIAL = "credential"
    CHECK = "check"


_LIMITS = {
    access_pb2.LIMIT_CLASS_NONE: LimitClass.NONE,
    access_pb2.LIMIT_CLASS_READ: LimitClass.READ,
    access_pb2.LIMIT_CLASS_WRITE: LimitClass.WRITE,
    access_pb2.LIMIT_CLASS_CREDENTIAL: LimitClass.CREDENTIAL,
    access_pb2.LIMIT_CLASS_CHECK: LimitClass.CHECK,
}


class AccessUndeclared(Exception):
    """An RPC does not say who may call it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call one RPC."""

    public: bool
    authenticated: bool
    permission: str
    scope: str
    peers: frozenset[str]
    limit: LimitClass
    mutates: bool


class Authenticator(Protocol):
    """Turns a bearer access token into a caller. One that can often tell without waiting has a method `recall` too, which then returns the caller."""

    async def authenticate(self, token: str) -> Caller:
        """Return whom `token` speaks for. Raises TokenInvalid, DependencyUnavailable."""


class Decider(Protocol):
    """Says whether a caller holds a permission of the suite, now."""

    async def allows(self, caller: Caller, permission: str) -> bool:
        """Return whether `caller` holds `permission` tenant-wide. Raises DependencyUnavailable."""


def rule_of(method: MethodDescriptor) -> Rule:
    """Return the rule that `method` declares. Raises AccessUndeclared."""
    options = method.GetOptions()
    declared = options.Extensions[access_pb2.access] if options.HasExtension(access_pb2.access) else None
    if declared is None or not (declared.public or declared.authenticated or declared.permission or declared.scope or declared.peers):
        raise AccessUndeclared(f"{method.full_name} does not say who may call it: give it an option (watchword.options.v1.access)")
    fallback = LimitClass.WRITE if declared.mutates else LimitClass.READ
    return Rule(
        public=declared.public,
        authenticated=declared.authenticated,
        permission=declared.permission,
        scope=declared.scope,
        peers=frozenset(declared.peers),
        limit=_LIMITS.get(declared.limit_class, fallback),
        mutates=declared.mutates,
    )


def rules_of(service: ServiceDescriptor) -> Mapping[str, Rule]:
    """Return the rules of a service by method name. Raises AccessUndeclared."""
    return {method.name: rule_of(method) for method in service.methods}


class Gate:
    """Lets a call in, or raises why not."""

    def __init__(self, identity: ServiceIdentity, authenticator: Authenticator, decider: Decider | None) -> None:
        self._identity = identity
        self._authenticator = authenticator
        self._recall: Callable[[str], Caller | None] | None = getattr(authenticator, "recall", None)
        self._decider = decider

    def accept(self, method: str, rule: Rule) -> None:
        """Refuse to start with a rule that this service cannot decide."""
        if rule.permission and self._decider is None:
            raise AccessUndeclared(f"{method} asks for the permission {rule.permission}, which this service cannot decide")

    @staticmethod
    def claims_peer(authorization: str) -> bool:
        """Whether a call claims to come from a service of the suite; believe it only after `identify`."""
        return is_service_token(authorization.partition(" ")[2])

    async def identify(self, rule: Rule, authorization: str) -> Caller:
        """Return who calls. A public RPC asks nobody. Raises CredentialsMissing, TokenInvalid."""
        if rule.public:
            return ANONYMOUS
        token = bearer(authorization)
        if is_service_token(token):
            return self._identity.verify(token)
        return await self._authenticator.authenticate(token)

    def recall(self, rule: Rule, authorization: str) -> Caller | None:
        """Return who calls, if it can be told without waiting that he may. None leaves it to `identify` and `admit`."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        if is_service_token(token):
            caller = self._identity.recall(token)
            return caller if caller is not None and caller.id in rule.peers else None
        if self._recall is None:
            return None
        try:
            caller = self._recall(token)
        except TokenInvalid:
            return None
        return caller if caller is not None and (rule.authenticated or (rule.scope != "" and rule.scope in caller.scopes)) else None

    async def admit(self, rule: Rule, caller: Caller) -> None:
        """Return if `caller` may call. Raises PermissionDenied, InsufficientScope."""
        if rule.public:
            return
        if caller.is_peer:
            if caller.id in rule.peers:
                return
            raise PermissionDenied
        if rule.authenticated or (rule.scope and rule.scope in caller.scopes):
            return
        if rule.permission and self._decider is not None and await self._permits(caller, rule.permission):
            return
        raise InsufficientScope if rule.scope and not rule.permission else PermissionDenied

    async def _permits(self, caller: Caller, permission: str) -> bool:
        if caller.is_bounded and permission not in caller.scopes:
            return False
        assert self._decider is not None
        return await self._decider.allows(caller, permission)


def bearer(authorization: str) -> str:
    """Return the token of an `authorization: Bearer` value (RFC 6750). Raises CredentialsMissing, TokenInvalid."""
    if not authorization:
        raise CredentialsMissing
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token or " " in token or "," in token:
        raise TokenInvalid
    return token
