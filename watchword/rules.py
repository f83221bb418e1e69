"""When a token is refused: the rules, once, for the suite's own instances and for other people's processes.

What a token says is judged by issuer, audience and time; what was said about it afterwards, by revocations. Needs the standard library only, and does
no I/O: who calls brings the clock and what is revoked. Source: RFC 7519, RFC 8725, RFC 9068.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

from watchword.tokens import Claims, SubjectKind

LEEWAY = 5  # seconds that two hosts' clocks may differ
EVERYWHERE = UUID(int=0)  # the tenant of what concerns all tenants: keys


class Verdict(StrEnum):
    """What a token is; the names of TokenStatus in token.proto."""

    VALID = "VALID"
    EXPIRED = "EXPIRED"
    NOT_YET_VALID = "NOT_YET_VALID"
    REVOKED = "REVOKED"
    MALFORMED = "MALFORMED"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    WRONG_ISSUER = "WRONG_ISSUER"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    INSUFFICIENT_SCOPE = "INSUFFICIENT_SCOPE"
    SUBJECT_DISABLED = "SUBJECT_DISABLED"


class RevokedKind(StrEnum):
    """What a revocation names."""

    TOKEN = "token"  # noqa: S105
    SESSION = "session"
    SUBJECT = "subject"
    CLIENT = "client"
    TENANT = "tenant"
    KEY = "key"


# Python 3.11 looks members up slowly, and every verification needs these.
VALID = Verdict.VALID
_TOKEN, _SESSION, _SUBJECT, _CLIENT, _TENANT, _KEY = RevokedKind
_IS_CLIENT = SubjectKind.CLIENT

OUTRIGHT = frozenset({RevokedKind.TOKEN, RevokedKind.SESSION, RevokedKind.KEY})
Name = tuple[RevokedKind, UUID, int]  # kind, tenant, and the number of the key's UUID: an object of it would cost more than to look it up


def judge(claims: Claims, *, issuer: str, audience: str, now: float) -> Verdict:
    """Return what an authentic token is, revocations and scopes apart. `now` is in seconds since 1970."""
    if claims.iss != issuer:
        return Verdict.WRONG_ISSUER
    if claims.aud != (audience,):  # RFC 8725 section 3.9: a token for several is for none
        return Verdict.WRONG_AUDIENCE
    if claims.exp + LEEWAY < now:
        return Verdict.EXPIRED
    if claims.iat - LEEWAY > now:
        return Verdict.NOT_YET_VALID
    return VALID


def lifetime(claims: Claims) -> tuple[float, float]:
    """Return between which seconds since 1970 `judge` finds nothing wrong with a token's times."""
    return claims.iat - LEEWAY, claims.exp + LEEWAY


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revocation. Of subjects, clients and tenants only tokens with a smaller `rev`, or issued before a time, are refused.

    spared_revision, spared_session_id  spare one session of a subject: its tokens are good whatever their `rev`
    expire_time                         when no token can be concerned any more
    """

    tenant_id: UUID
    kind: RevokedKind
    key: UUID
    revision: int
    expire_time: datetime
    spared_revision: int = 0
    spared_session_id: UUID | None = None
    is_disabled: bool = False
    issued_before: datetime | None = None

    @property
    def is_plain(self) -> bool:
        """Whether `revision` says all."""
        return self.spared_revision == 0 and self.issued_before is None

    def refuses(self, claims: Claims) -> bool:
        """Whether a token with these claims, which is named by this revocation's kind and key, is refused."""
        if self.kind in OUTRIGHT:
            return True
        if claims.rev < self.revision or (claims.rev < self.spared_revision and not self._spares(claims.sid)):
            return True
        return self.issued_before is not None and claims.iat < self.issued_before.timestamp()

    def _spares(self, session_id: str | None) -> bool:
        return session_id is not None and self.spared_session_id is not None and session_id == str(self.spared_session_id)


def names_of(claims: Claims, kid: str) -> list[Name]:
    """Return everything that a token can be revoked as."""
    tenant, subject = claims.tenant_id, number_of(claims.sub)
    names = [
        (_TOKEN, tenant, number_of(claims.jti)),
        (_SUBJECT, tenant, subject),
        (_TENANT, tenant, tenant.int),
        (_KEY, EVERYWHERE, id_of_key(kid).int),
    ]
    if claims.sid is not None:
        names.append((_SESSION, tenant, number_of(claims.sid)))
    if claims.client_id is not None:
        names.append((_CLIENT, tenant, claims.client_id.int))
    if claims.kind is _IS_CLIENT:
        names.append((_CLIENT, tenant, subject))
    if claims.parents:
        names.extend((_TOKEN, tenant, parent.int) for parent in claims.parents)
    for actor in claims.actors:
        names += ((_SUBJECT, tenant, actor.int), (_CLIENT, tenant, actor.int))
    return names


def number_of(uuid: str) -> int:
    """Return the number of a UUID, which is written in its one spelling."""
    return int(uuid.replace("-", ""), 16)


@lru_cache(maxsize=256)
def id_of_key(kid: str) -> UUID:
    """Return the id that a key is revoked under."""
    return UUID(bytes=hashlib.sha256(kid.encode()).digest()[:16])
