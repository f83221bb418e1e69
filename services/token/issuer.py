"""Writes access tokens: RFC 9068, of at most 4 KiB, because larger ones are refused at random by HTTP/2 peers' header limits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from services.token import claims as claims_module
from services.token.claims import Claims, SubjectKind
from services.token.keys import KeyRing
from watchword.errors import PreconditionFailed

MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Grant:
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


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A signed token and what it says."""

    text: str
    claims: Claims
    expires_in: int


class Issuer:
    """Makes access tokens."""

    def __init__(self, keys: KeyRing, *, issuer: str, audience: str, ttl: timedelta) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._ttl = ttl

    def issue(self, grant: Grant, now: datetime) -> AccessToken:
        """Return a token for `grant`. Roles that do not fit are left out: they are for display, CheckPermission decides.

        Raises PreconditionFailed if it is too large without any role.
        """
        issued = int(now.timestamp())
        ttl = int(self._ttl.total_seconds())
        claims = Claims(
            iss=self._issuer,
            sub=grant.subject,
            aud=(grant.audience or self._audience,),
            exp=issued + ttl,
            iat=issued,
            jti=uuid4(),
            tenant_id=grant.tenant_id,
            kind=grant.kind,
            rev=grant.revision,
            client_id=grant.client_id,
            sid=grant.session_id,
            scope=grant.scopes,
            roles=grant.roles,
            auth_time=int(grant.auth_time.timestamp()),
            acr=grant.acr,
        )
        for roles in _fewer(grant.roles):
            claims = replace(claims, roles=roles)
            text = self._keys.signing.sign(claims_module.render(claims))
            if len(text) <= MAX_TOKEN_BYTES:
                return AccessToken(text, claims, ttl)
        raise PreconditionFailed("the scopes do not fit into a token")

    @property
    def default_audience(self) -> str:
        """The audience of tokens that name none."""
        return self._audience


def _fewer(roles: Sequence[str]) -> list[tuple[str, ...]]:
    """Return `roles`, then half of them, and so on down to none."""
    steps = [tuple(roles)]
    while steps[-1]:
        steps.append(steps[-1][: len(steps[-1]) // 2])
    return steps
