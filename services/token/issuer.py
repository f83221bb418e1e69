"""Writes access tokens: RFC 9068, of at most 4 KiB, because larger ones are refused at random by HTTP/2 peers' header limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import uuid_utils

from services.chassis.skew import Skew
from services.token.keys import KeyRing, SigningKey
from watchword.errors import PreconditionFailed
from watchword.tokens import LOGIN_CLIENT, Claims, SubjectKind, encode_segment

MAX_TOKEN_BYTES = 4096
_ENCODER = msgspec.json.Encoder()


class Grant(NamedTuple):
    """What a token is to say, but for times and ids."""

    subject: UUID
    tenant_id: UUID
    kind: SubjectKind
    client_id: UUID | None
    session_id: UUID | None
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    audience: str
    acr: str
    auth_time: datetime
    revision: int
    not_after: datetime | None = None  # the token is not good beyond this, if it is given


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A signed token and what it says."""

    text: str
    claims: Claims
    expires_in: int


class Draft(NamedTuple):
    """A token before it is signed.

    text  what is signed
    """

    key: SigningKey
    text: str
    claims: Claims
    expires_in: int

    def signed(self, signature: bytes) -> AccessToken:
        """Return the token."""
        return AccessToken(f"{self.text}.{encode_segment(signature)}", self.claims, self.expires_in)

    @property
    def size(self) -> int:
        """How long the token will be, in bytes."""
        return len(self.text) + 1 + self.key.signature_size


class Issuer:
    """Makes access tokens."""

    def __init__(self, keys: KeyRing, skew: Skew, *, issuer: str, audience: str, ttl: timedelta) -> None:
        self._keys = keys
        self._skew = skew
        self._issuer = issuer
        self._audience = audience
        self._ttl = ttl

    def issue(self, grant: Grant, now: datetime) -> AccessToken:
        """Return a token for `grant`. Raises as `draft` does."""
        return _signed(self.draft(grant, now))

    def draft(self, grant: Grant, now: datetime) -> Draft:
        """Return what is to be signed for `grant`. Roles that do not fit are left out: they are for display, CheckPermission decides.

        Raises  PreconditionFailed if it is too large without any role; DependencyUnavailable
        """
        issued = int(now.timestamp())
        claims = Claims(
            iss=self._issuer,
            sub=str(grant.subject),
            aud=(grant.audience or self._audience,),
            exp=self._expiry(now, grant.not_after),
            iat=issued,
            jti=str(uuid_utils.uuid4()),
            tenant_id=grant.tenant_id,
            kind=grant.kind,
            rev=grant.revision,
            client_id=grant.client_id,
            sid=None if grant.session_id is None else str(grant.session_id),
            scope=grant.scopes,
            roles=grant.roles,
            auth_time=int(grant.auth_time.timestamp()),
            acr=grant.acr,
        )
        return self._drafted(claims, now)

    def reissue(self, claims: Claims, now: datetime) -> AccessToken:
        """Return a token that says `claims` under an id of its own: good no longer than a new one would be, nor than `claims` are.

        Raises PreconditionFailed if it is too large without any role.
        """
        expiry = min(claims.exp, self._expiry(now, None))
        return _signed(self._drafted(claims._replace(jti=str(uuid_utils.uuid4()), exp=expiry), now))

    def _expiry(self, now: datetime, not_after: datetime | None) -> int:
        expiry = now + self._ttl
        return int((expiry if not_after is None else min(expiry, not_after)).timestamp())

    def _drafted(self, claims: Claims, now: datetime) -> Draft:
        self._skew.require()
        key, expires_in = self._keys.signing, claims.exp - int(now.timestamp())
        for roles in _fewer(claims.roles):
            fitting = claims if roles is claims.roles else claims._replace(roles=roles)
            draft = Draft(key, key.signing_input(render(fitting)), fitting, expires_in)
            if draft.size <= MAX_TOKEN_BYTES:
                return draft
        raise PreconditionFailed("the scopes do not fit into a token")

    @property
    def default_audience(self) -> str:
        """The audience of tokens that name none."""
        return self._audience


def _signed(draft: Draft) -> AccessToken:
    return draft.signed(draft.key.sign(draft.text))


def _fewer(roles: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield `roles`, then half of them, and so on down to none."""
    while roles:
        yield roles
        roles = roles[: len(roles) // 2]
    yield ()


def render(claims: Claims) -> bytes:
    """Return the payload that `watchword.tokens.parse` reads. Claims that hold nothing are left out."""
    members: dict[str, Any] = {
        "iss": claims.iss,
        "sub": claims.sub,
        "aud": claims.aud[0] if len(claims.aud) == 1 else list(claims.aud),
        "exp": claims.exp,
        "iat": claims.iat,
        "jti": claims.jti,
        "client_id": str(claims.client_id) if claims.client_id else LOGIN_CLIENT,
        "tenant_id": str(claims.tenant_id),
        "sub_type": claims.kind.value,
        "rev": claims.rev,
        "auth_time": claims.auth_time,
    }
    if claims.sid:
        members["sid"] = claims.sid
    if claims.scope:
        members["scope"] = " ".join(claims.scope)
    if claims.roles:
        members["roles"] = claims.roles
    if claims.acr:
        members["acr"] = claims.acr
    if claims.actors:
        members["act"] = _act(claims.actors)
    if claims.parents:
        members["parents"] = [str(parent) for parent in claims.parents]
    return _ENCODER.encode(members)


def _act(actors: tuple[UUID, ...]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for actor in reversed(actors):
        nested = {"sub": str(actor), **({"act": nested} if nested else {})}
    return nested
