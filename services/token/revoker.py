"""Revokes: one token, or all of a session, subject, client or tenant. When a method here returns, every instance refuses."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.tenancy import TenantId
from services.token.revocations import Revocation, RevokedKind
from services.token.sessions import MAX_ACCESS_LIFE, digest_of, is_refresh_token
from services.token.verifier import LEEWAY, Verifier

if TYPE_CHECKING:
    from services.token.store.revocations import RevocationStore
    from services.token.store.sessions import SessionStore


@dataclass(frozen=True, slots=True)
class Target:
    """What RevokeTokens names."""

    tenant_id: UUID
    kind: RevokedKind
    key: UUID
    spared_session_id: UUID | None = None
    is_disabled: bool = False
    issued_before: datetime | None = None
    cause: str = ""


class Revoker:
    """Writes revocations."""

    def __init__(self, store: "RevocationStore", sessions: "SessionStore", verifier: Verifier, clock: Clock) -> None:
        self._store = store
        self._sessions = sessions
        self._verifier = verifier
        self._clock = clock

    async def revoke_token(self, call: Call, token: str, *, client_id: UUID | None) -> tuple[UUID, int]:
        """Revoke an access token, or the session of a refresh token; return tenant and revision.

        A token that is unknown, or that the caller has no say over, changes nothing and answers the same (RFC 7009 section 2.2).
        client_id   for peers: only if the token is this client's
        """
        if is_refresh_token(token):
            return await self._revoke_by_refresh(call, token, client_id)
        claims = await self._verifier.read(token)
        if claims is None or not _has_say(call, claims.tenant_id, UUID(claims.sub), claims.client_id, client_id):
            return await self._nothing(call)
        expire_time = datetime.fromtimestamp(claims.exp + 2 * LEEWAY, tz=UTC)
        if expire_time < self._clock.now():
            return await self._nothing(call)
        revocation = Revocation(claims.tenant_id, RevokedKind.TOKEN, UUID(claims.jti), 0, expire_time)
        return await self._write(call, revocation, cause="revoked", facts={"subject": claims.sub})

    async def _revoke_by_refresh(self, call: Call, token: str, client_id: UUID | None) -> tuple[UUID, int]:
        # A token that was redeemed already, perhaps by a thief, still names its session.
        session = await self._sessions.find_family(digest_of(token))
        if session is None or not _has_say(call, session.tenant_id, session.subject, session.client_id, client_id):
            return await self._nothing(call)
        revocation = Revocation(session.tenant_id, RevokedKind.SESSION, session.id, 0, self._clock.now() + MAX_ACCESS_LIFE)
        return await self._write(call, revocation, cause="revoked", facts={"subject": str(session.subject)})

    async def revoke_tokens(self, call: Call, target: Target) -> tuple[UUID, int]:
        """Revoke all tokens of a session, subject, client or tenant that were issued until now, or before a time; return tenant and revision."""
        revocation = Revocation(
            target.tenant_id,
            target.kind,
            target.key,
            0,
            self._clock.now() + MAX_ACCESS_LIFE,
            spared_session_id=target.spared_session_id,
            is_disabled=target.is_disabled,
            issued_before=target.issued_before,
        )
        return await self._write(call, revocation, cause=target.cause or "revoked", facts={"cause": target.cause} if target.cause else {})

    async def _write(self, call: Call, revocation: Revocation, *, cause: str, facts: dict[str, str]) -> tuple[UUID, int]:
        tenant = TenantId(revocation.tenant_id)
        kind = "token_revoked" if revocation.kind is RevokedKind.TOKEN else "tokens_revoked"
        event = AuditEvent(kind, revocation.kind.value, str(revocation.key), tenant_id=tenant, details=facts)
        revision = await self._store.insert(call, revocation, cause=cause, now=self._clock.now(), event=event)
        return tenant, revision

    async def _nothing(self, call: Call) -> tuple[UUID, int]:
        await self._store.settle(call)  # nothing is left to do, perhaps by a revocation that is still on its way to others
        return call.caller.tenant_id, await self._store.find_revision(call.caller.tenant_id)


def _has_say(call: Call, tenant_id: UUID, subject: UUID, token_client: UUID | None, client_id: UUID | None) -> bool:
    """A peer has, over the client's tokens that it names; others over their own subject's and client's tokens."""
    if call.caller.is_peer:
        return client_id is None or token_client == client_id
    return tenant_id == call.caller.tenant_id and call.caller.uuid in (subject, token_client)
