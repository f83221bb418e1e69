"""What is revoked: a token, a session, or all that a subject or client held up to a revision.

A subject's revocation carries the tenant's revision at which it happened. A token carries the revision at which its subject was last found good.
A smaller one is refused, so a login that overlaps a revocation cannot slip through, and no clock decides. Every question is put to Postgres, the
record: what a transaction committed, every instance refuses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from services.token.claims import Claims, SubjectKind

if TYPE_CHECKING:
    from services.token.store import TokenStore


class RevokedKind(StrEnum):
    """What a revocation names."""

    TOKEN = "token"  # noqa: S105
    SESSION = "session"
    SUBJECT = "subject"
    CLIENT = "client"


class Standing(StrEnum):
    """Where a token stands."""

    GOOD = "good"
    REVOKED = "revoked"
    SUBJECT_DISABLED = "subject_disabled"


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revocation. Of subjects and clients only tokens with a smaller `rev` are refused; `spared_revision` spares one session."""

    tenant_id: UUID
    kind: RevokedKind
    key: UUID
    revision: int
    expire_time: datetime
    spared_revision: int = 0
    spared_session_id: UUID | None = None
    is_disabled: bool = False

    def refuses(self, claims: Claims) -> bool:
        """Whether a token with these claims is refused."""
        if self.kind is RevokedKind.TOKEN:
            return self.key == claims.jti
        if self.kind is RevokedKind.SESSION:
            return self.key == claims.sid
        if self.key not in (claims.sub, claims.client_id):
            return False
        return claims.rev < self.revision or (claims.rev < self.spared_revision and claims.sid != self.spared_session_id)


def keys_of(claims: Claims) -> list[UUID]:
    """Return every key under which a token may be revoked."""
    return [key for key in (claims.jti, claims.sid, claims.sub, claims.client_id) if key is not None]


class Revocations:
    """Says where tokens stand, by asking Postgres."""

    def __init__(self, store: "TokenStore") -> None:
        self._store = store

    async def standing(self, claims: Claims) -> Standing:
        """Return where one token stands."""
        return (await self.standings([claims]))[0]

    async def standings(self, all_claims: Sequence[Claims]) -> list[Standing]:
        """Return where tokens stand, in order, by one read."""
        tenants = list({claims.tenant_id for claims in all_claims})
        keys = list({key for claims in all_claims for key in keys_of(claims)})
        found: dict[tuple[UUID, UUID], list[Revocation]] = {}
        for revocation in await self._store.list_revocations(tenants, keys):
            found.setdefault((revocation.tenant_id, revocation.key), []).append(revocation)
        return [_standing(claims, found) for claims in all_claims]


def _standing(claims: Claims, found: Mapping[tuple[UUID, UUID], list[Revocation]]) -> Standing:
    hits = [hit for key in keys_of(claims) for hit in found.get((claims.tenant_id, key), ()) if hit.refuses(claims)]
    if any(hit.is_disabled and claims.kind is SubjectKind.USER for hit in hits):
        return Standing.SUBJECT_DISABLED
    return Standing.REVOKED if hits else Standing.GOOD
