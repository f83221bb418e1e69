"""Sessions: a family of refresh tokens, each good once.

A refresh token is 256 random bits of which only the SHA-256 digest is kept. Redeeming it is one conditional UPDATE together with its successor, so
of many at once one succeeds. A second use means that a thief or the owner holds a copy: the session ends, and with it its access tokens. Only a
repeat of the same request, by its request_id, gets the first answer again: a lost reply costs nobody a login. That answer does not grow with time:
its refresh token is good once however often it was handed out, its access token expires when it did, and once the session is over there is none.
Source: RFC 9700 section 4.14.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.pages import PageRequest
from services.chassis.postgres import new_id
from services.chassis.sealing import digest
from services.chassis.tenancy import TenantId
from services.token.issuer import Draft, Grant, Issuer
from services.token.revocations import Revocation, RevokedKind
from watchword.errors import InvalidRequest, NotFound, RefreshTokenReused, TokenInvalid
from watchword.tokens import SubjectKind

if TYPE_CHECKING:
    from services.token.store.sessions import SessionStore

PREFIX = "wwrt_"  # lets secret scanners find a leaked one
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Session:
    """A login that lives on through its refresh tokens."""

    id: UUID
    tenant_id: UUID
    subject: UUID
    client_id: UUID | None
    kind: SubjectKind
    scopes: tuple[str, ...]
    audience: str
    acr: str
    auth_time: datetime
    address: str
    user_agent: str
    create_time: datetime
    last_used_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class RefreshRecord:
    """What is kept of a refresh token."""

    digest: bytes
    issue_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login or refresh hands out. Holds secrets: kept only sealed, under a request_id."""

    access_token: str
    expires_in: int
    refresh_token: str
    scopes: tuple[str, ...]
    session_id: UUID | None


@dataclass(frozen=True, slots=True)
class Redemption:
    """A redeemed refresh token: its successors, and whom they speak for."""

    tokens: Tokens
    subject: UUID
    tenant_id: UUID
    client_id: UUID | None
    is_client: bool
    roles: tuple[str, ...]
    acr: str
    auth_time: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that was ended because one of its refresh tokens was used twice."""

    session_id: UUID
    tenant_id: UUID
    subject: UUID


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a refresh token: redeemed, its session ended, or neither for one that is not known."""

    redemption: Redemption | None = None
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class Login:
    """What a session is opened with."""

    subject: UUID
    tenant_id: UUID
    kind: SubjectKind
    client_id: UUID | None
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    audience: str
    acr: str
    auth_time: datetime
    revision: int
    address: str
    user_agent: str


class Sessions:
    """Opens sessions, and carries them on."""

    def __init__(self, store: "SessionStore", issuer: Issuer, clock: Clock, *, ttl: timedelta, idle_ttl: timedelta) -> None:
        self._store = store
        self._issuer = issuer
        self._clock = clock
        self._ttl = ttl
        self._idle_ttl = idle_ttl

    async def open(self, call: Call, login: Login) -> Tokens:
        """Open a session. The same request_id returns the same tokens."""
        now = self._clock.now()
        session = Session(
            id=new_id(),
            tenant_id=login.tenant_id,
            subject=login.subject,
            client_id=login.client_id,
            kind=login.kind,
            scopes=login.scopes,
            audience=login.audience or self._issuer.default_audience,
            acr=login.acr,
            auth_time=login.auth_time,
            address=login.address,
            user_agent=login.user_agent,
            create_time=now,
            last_used_time=now,
            expire_time=now + self._ttl,
        )
        tokens, refresh = self._hand_out(session, roles=login.roles, scopes=login.scopes, revision=login.revision, now=now)
        event = AuditEvent(
            "session_opened",
            "session",
            str(session.id),
            tenant_id=TenantId(login.tenant_id),
            details={"subject": str(login.subject), "acr": login.acr},
        )
        return await self._store.insert_session(call, session, refresh, revision=login.revision, result=tokens, kind=Tokens, event=event)

    def draft(self, login: Login, now: datetime) -> Draft:
        """Return what is to be signed of an access token without a session: client_credentials, RFC 6749 section 4.4.3.

        Raises  PreconditionFailed, DependencyUnavailable
        """
        grant = Grant(
            login.subject,
            login.tenant_id,
            login.kind,
            login.client_id,
            None,
            login.scopes,
            login.roles,
            login.audience,
            login.acr,
            login.auth_time,
            login.revision,
        )
        return self._issuer.draft(grant, now)

    async def redeem(
        self, call: Call, refresh_token: str, *, client_id: UUID | None, roles: Sequence[str], scopes: Sequence[str], revision: int
    ) -> Redemption:
        """Trade a refresh token for its successor. The same request_id returns the same one, as long as the session lives.

        roles, revision  of the subject as it is now; they may differ when a request is repeated
        Raises           TokenInvalid, RefreshTokenReused, InvalidRequest for scopes it never had
        """
        call = asked_for(call, refresh_token, str(client_id), " ".join(scopes))
        now = self._clock.now()

        def succeed(session: Session) -> tuple[RefreshRecord, Redemption]:
            if not set(scopes) <= set(session.scopes):
                raise InvalidRequest.of("scopes", "must be among the scopes that were granted")
            granted = tuple(scopes) or session.scopes
            tokens, record = self._hand_out(session, roles=tuple(roles), scopes=granted, revision=revision, now=now)
            return record, Redemption(
                tokens,
                session.subject,
                session.tenant_id,
                session.client_id,
                session.kind is SubjectKind.CLIENT,
                tuple(roles),
                session.acr,
                session.auth_time,
            )

        def end(ended: Ended) -> tuple[Revocation, AuditEvent]:
            revocation = Revocation(ended.tenant_id, RevokedKind.SESSION, ended.session_id, 0, now + MAX_ACCESS_LIFE)
            facts = {"subject": str(ended.subject)}
            event = AuditEvent(
                "refresh_token_reused", "session", str(ended.session_id), outcome="failure", tenant_id=TenantId(ended.tenant_id), details=facts
            )
            return revocation, event

        outcome = await self._store.redeem(call, digest_of(refresh_token), client_id, now=now, succeed=succeed, end=end)
        if outcome.ended is not None:
            raise RefreshTokenReused
        if outcome.redemption is None or not await self._still_stands(call, outcome.redemption, now):
            raise TokenInvalid
        return outcome.redemption

    async def _still_stands(self, call: Call, redemption: Redemption, now: datetime) -> bool:
        """Whether the session lives: what is answered under a request_id may have been handed out long ago."""
        session_id = redemption.tokens.session_id
        return call.once is None or (session_id is not None and await self._store.is_live(session_id, now))

    async def list_page(self, tenant_id: UUID, subject: UUID, page: PageRequest) -> list[Session]:
        """Return a page of a subject's live sessions, and one more, latest first."""
        now = self._clock.now()
        before = UUID(page.after[0]) if page.after else None
        return await self._store.list_live(tenant_id, subject, before=before, now=now, used_since=now - MAX_ACCESS_LIFE, limit=page.size + 1)

    async def get(self, tenant_id: UUID, session_id: UUID, *, subject: UUID | None) -> Session:
        """Return a session, ended or not. Raises NotFound, also for that of another than `subject`, if one is given."""
        session = await self._store.find(tenant_id, session_id)
        if session is None or subject not in (None, session.subject):
            raise NotFound
        return session

    def _hand_out(
        self, session: Session, *, roles: tuple[str, ...], scopes: tuple[str, ...], revision: int, now: datetime
    ) -> tuple[Tokens, RefreshRecord]:
        grant = Grant(
            session.subject,
            session.tenant_id,
            session.kind,
            session.client_id,
            session.id,
            scopes,
            roles,
            session.audience,
            session.acr,
            session.auth_time,
            revision,
            not_after=session.expire_time,
        )
        access = self._issuer.issue(grant, now)
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        record = RefreshRecord(digest_of(secret), now, min(now + self._idle_ttl, session.expire_time))
        return Tokens(access.text, access.expires_in, secret, scopes, session.id), record


# A revocation outlives every access token it may concern: ACCESS_TOKEN_TTL is at most an hour, and clocks may differ by seconds.
MAX_ACCESS_LIFE = timedelta(hours=1, minutes=1)


def digest_of(refresh_token: str) -> bytes:
    """Return what is kept of a refresh token."""
    return hashlib.sha256(refresh_token.encode()).digest()


def asked_for(call: Call, *parts: str) -> Call:
    """Return the call with its request_id bound to what was asked for, `parts`.

    Roles, revisions and a client's scopes are what identity finds at the moment: a repeat that finds others is the same request still.
    """
    if call.once is None:
        return call
    return replace(call, once=replace(call.once, fingerprint=digest(b"asked for", *(part.encode() for part in parts))))


def without_session(access_token: str, expires_in: int, scopes: tuple[str, ...]) -> Tokens:
    """Return what is handed out when an access token is all there is."""
    return Tokens(access_token, expires_in, "", scopes, None)


def is_refresh_token(token: str) -> bool:
    """Whether a token has the form of ours."""
    return token.startswith(PREFIX)
