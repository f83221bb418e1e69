"""Facts of the domain as protobuf messages."""

from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from services.identity.accounts import Account, AccountState, OAuthClient, Tenant
from services.identity.audit_chain import Reason
from services.identity.audit_log import AuditRecord
from services.identity.audit_seals import Verification
from services.identity.grants import OpenSession, Tokens
from watchword.identity.v1 import audit_pb2, authentication_pb2, oauth_pb2, tenant_pb2, user_pb2

STATES = {authentication_pb2.ACTIVE: AccountState.ACTIVE, authentication_pb2.DISABLED: AccountState.DISABLED}
BREACHES = {
    Reason.CHANGED: audit_pb2.AUDIT_LOG_BREACH_CHANGED,
    Reason.MISSING: audit_pb2.AUDIT_LOG_BREACH_MISSING,
    Reason.REORDERED: audit_pb2.AUDIT_LOG_BREACH_REORDERED,
    Reason.TRUNCATED: audit_pb2.AUDIT_LOG_BREACH_TRUNCATED,
}
_NUMBERS = {state: number for number, state in STATES.items()}


def user(account: Account, now: datetime) -> authentication_pb2.User:
    """Return an account as its owner and administrators see it; a pause that is over is not shown."""
    locked_until = account.locked_until if account.locked_until and account.locked_until > now else None
    return authentication_pb2.User(
        id=str(account.id),
        tenant_id=str(account.tenant_id),
        email=account.email,
        email_verified=account.email_verified,
        username=account.username,
        display_name=account.display_name,
        state=_NUMBERS[account.state],
        etag=account.etag,
        create_time=timestamp(account.create_time),
        update_time=timestamp(account.update_time),
        last_login_time=timestamp(account.last_login_time),
        locked_until_time=timestamp(locked_until),
    )


def user_session(session: OpenSession, current: UUID | None) -> user_pb2.UserSession:
    """Return a session as administrators see it. `current` is the one that they ask in."""
    return user_pb2.UserSession(
        session_id=str(session.id),
        user_id=str(session.subject),
        client_id=str(session.client_id) if session.client_id else "",
        scopes=session.scopes,
        acr=session.acr,
        address=session.address,
        user_agent=session.user_agent,
        create_time=timestamp(session.create_time),
        last_used_time=timestamp(session.last_used_time),
        expire_time=timestamp(session.expire_time),
        current=session.id == current,
    )


def session_tokens(tokens: Tokens) -> authentication_pb2.SessionTokens:
    """Return tokens as their owner gets them."""
    return authentication_pb2.SessionTokens(
        access_token=tokens.access_token,
        token_type=tokens.token_type,
        expires_in=tokens.expires_in,
        refresh_token=tokens.refresh_token,
        scope=tokens.scope,
        session_id=tokens.session_id,
    )


def oauth_client(client: OAuthClient) -> oauth_pb2.OAuthClient:
    """Return a client as administrators see it."""
    return oauth_pb2.OAuthClient(
        client_id=str(client.id),
        tenant_id=str(client.tenant_id),
        display_name=client.display_name,
        scopes=client.scopes,
        create_time=timestamp(client.create_time),
        update_time=timestamp(client.update_time),
    )


def tenant(found: Tenant) -> tenant_pb2.Tenant:
    """Return a tenant as operators see it."""
    return tenant_pb2.Tenant(id=str(found.id), name=found.name, display_name=found.display_name, create_time=timestamp(found.create_time))


def audit_event(record: AuditRecord) -> audit_pb2.AuditEvent:
    """Return an event as auditors see it."""
    return audit_pb2.AuditEvent(
        id=str(record.id),
        event_time=timestamp(record.event_time),
        context=record.context,
        type=record.type,
        outcome=record.outcome,
        actor_type=record.actor_type,
        actor_id=record.actor_id,
        target_type=record.target_type,
        target_id=record.target_id,
        address=record.address,
        request_id=record.request_id,
        details=record.details,
    )


def verification(found: Verification) -> audit_pb2.VerifyAuditLogResponse:
    """Return what was found in a part of the audit log's chain."""
    return audit_pb2.VerifyAuditLogResponse(
        state=audit_pb2.AUDIT_LOG_STATE_BROKEN if found.breach else audit_pb2.AUDIT_LOG_STATE_INTACT,
        breach=BREACHES[found.breach.reason] if found.breach else audit_pb2.AUDIT_LOG_BREACH_UNSPECIFIED,
        broken_sequence=found.breach.sequence if found.breach else 0,
        verified_count=found.count,
        head=audit_pb2.AuditLogHead(sequence=found.head.sequence, hash=found.head.hash.hex()),
        unsealed_count=found.unsealed,
        next_sequence=found.next,
    )


def timestamp(instant: datetime | None) -> Timestamp | None:
    """Return an instant on the wire, None for none."""
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp
