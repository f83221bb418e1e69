"""Sessions and their refresh tokens in Postgres."""

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import Change, Database, Row, Sweep, bump
from services.chassis.tenancy import TenantId
from services.token.revocations import Revocation
from services.token.sessions import Ended, Outcome, Redemption, RefreshRecord, Session
from services.token.store.revocations import end_sessions, insert_revocation, line_up
from watchword.errors import TokenInvalid
from watchword.tokens import SubjectKind

T = TypeVar("T")
LAST = UUID(int=2**128 - 1)


class SessionStore:
    """Reads and writes sessions and refresh tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    COLUMNS = (
        "s.id, s.tenant_id, s.subject, s.client_id, s.kind, s.scopes, s.audience, s.acr, s.auth_time, s.address, s.user_agent,"
        " s.create_time, s.last_used_time, s.expire_time"
    )
    _OPEN = """
        WITH judged AS (
            SELECT EXISTS (SELECT 1 FROM revocation
                           WHERE tenant_id = $2 AND key = ANY($18::uuid[]) AND kind IN ('subject', 'client', 'tenant')
                             AND (greatest(revision, spared_revision) > $19 OR issued_before > $12)) AS is_revoked
        ), opened AS (
            INSERT INTO session (id, tenant_id, subject, client_id, kind, scopes, audience, acr, auth_time, address, user_agent,
                                 create_time, last_used_time, expire_time, end_time, end_cause)
            SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                   CASE WHEN is_revoked THEN $12 END, CASE WHEN is_revoked THEN 'revoked' END FROM judged
        )
        INSERT INTO refresh_token (digest, session_id, issue_time, expire_time) VALUES ($15, $1, $16, $17)
    """

    async def insert_session(
        self, call: Call, session: Session, refresh: RefreshRecord, *, revision: int, result: T, kind: type[T], event: AuditEvent
    ) -> T:
        """Open a session with its first refresh token; return `result`, or that of the first call with this request_id.

        revision  at which the subject was found good: a session of one that was revoked since is born ended
        """
        keys = [key for key in (session.subject, session.client_id, session.tenant_id) if key is not None]  # that may be revoked

        async def effect(change: Change) -> T:
            await line_up(change.connection, session.tenant_id, keys, shared=session.tenant_id)
            await change.connection.execute(  # a statement of its own, which sees what the locks waited for
                self._OPEN,
                session.id,
                session.tenant_id,
                session.subject,
                session.client_id,
                session.kind.value,
                list(session.scopes),
                session.audience,
                session.acr,
                session.auth_time,
                session.address,
                session.user_agent,
                session.create_time,
                session.last_used_time,
                session.expire_time,
                refresh.digest,
                refresh.issue_time,
                refresh.expire_time,
                keys,
                revision,
            )
            crashpoint("session.after_insert")
            change.audit(event)
            return result

        return await self._database.change(call, kind, effect)

    # One statement decides who redeems: of many at once, exactly one finds used_time NULL. A foreign client finds nothing, and burns nothing.
    _REDEEM = f"""
        UPDATE refresh_token AS r SET used_time = $2
        FROM session AS s
        WHERE r.digest = $1 AND r.used_time IS NULL AND r.expire_time > $2
          AND s.id = r.session_id AND s.end_time IS NULL AND s.expire_time > $2 AND s.client_id IS NOT DISTINCT FROM $3
        RETURNING {COLUMNS}
    """  # noqa: S608
    _FIND_USED = """
        SELECT s.id, s.tenant_id, s.subject FROM refresh_token r JOIN session s ON s.id = r.session_id
        WHERE r.digest = $1 AND r.used_time IS NOT NULL AND s.end_time IS NULL AND s.client_id IS NOT DISTINCT FROM $2
        FOR UPDATE OF s
    """
    _SUCCEED = """
        WITH touched AS (UPDATE session SET last_used_time = $2 WHERE id = $1 AND end_time IS NULL RETURNING id)
        INSERT INTO refresh_token (digest, session_id, issue_time, expire_time) SELECT $3, id, $4, $5 FROM touched
    """

    async def redeem(
        self,
        call: Call,
        digest: bytes,
        client_id: UUID | None,
        *,
        now: datetime,
        succeed: Callable[[Session], tuple[RefreshRecord, Redemption]],
        end: Callable[[Ended], tuple[Revocation, AuditEvent]],
    ) -> Outcome:
        """Redeem a refresh token once, or end its session if it was redeemed before."""

        async def effect(change: Change) -> Outcome:
            row = await change.connection.fetchrow(self._REDEEM, digest, now, client_id)
            if row is not None:
                crashpoint("refresh.after_use")
                session = _session(row)
                refresh, redemption = succeed(session)
                times = refresh.issue_time, refresh.expire_time
                if await change.connection.execute(self._SUCCEED, session.id, now, refresh.digest, *times) != "INSERT 0 1":
                    raise TokenInvalid  # the session ended in this very moment; a revocation by time would not know of this token
                change.audit(AuditEvent("refresh_token_redeemed", "session", str(session.id), tenant_id=TenantId(session.tenant_id)))
                return Outcome(redemption=redemption)
            used = await change.connection.fetchrow(self._FIND_USED, digest, client_id)
            if used is None:
                return Outcome()
            ended = Ended(session_id=used["id"], tenant_id=used["tenant_id"], subject=used["subject"])
            revocation, event = end(ended)
            await end_sessions(change.connection, revocation, "refresh_token_reused", now)
            revision = await bump(change.connection, TenantId(ended.tenant_id))
            await insert_revocation(change, revocation, revision, now)
            change.audit(event)
            return Outcome(ended=ended)

        return await self._database.change(call, Outcome, effect)

    _FIND_SESSION = f"""
        SELECT {COLUMNS}, r.issue_time AS refresh_issue_time, r.expire_time AS refresh_expire_time
        FROM refresh_token r JOIN session s ON s.id = r.session_id
        WHERE r.digest = $1 AND r.used_time IS NULL AND r.expire_time > $2 AND s.end_time IS NULL AND s.expire_time > $2
    """  # noqa: S608

    async def find_session_by_refresh(self, digest: bytes, now: datetime) -> tuple[Session, RefreshRecord] | None:
        """Return the live session of an unused refresh token, and the token's record."""
        row = await self._database.fetch_row(self._FIND_SESSION, digest, now)
        if row is None:
            return None
        return _session(row), RefreshRecord(digest, row["refresh_issue_time"], row["refresh_expire_time"])

    _FIND_FAMILY = f"""
        SELECT {COLUMNS} FROM refresh_token r JOIN session s ON s.id = r.session_id WHERE r.digest = $1 AND s.end_time IS NULL
    """  # noqa: S608

    async def find_family(self, digest: bytes) -> Session | None:
        """Return the live session that a refresh token was ever handed out in, used or not."""
        row = await self._database.fetch_row(self._FIND_FAMILY, digest)
        return None if row is None else _session(row)

    _FIND = f"SELECT {COLUMNS} FROM session AS s WHERE s.tenant_id = $1 AND s.id = $2"  # noqa: S608

    async def find(self, tenant_id: UUID, session_id: UUID) -> Session | None:
        """Return a session, ended or not."""
        row = await self._database.fetch_row(self._FIND, tenant_id, session_id)
        return None if row is None else _session(row)

    _IS_LIVE = "SELECT EXISTS (SELECT 1 FROM session WHERE id = $1 AND end_time IS NULL AND expire_time > $2) AS is_live"

    async def is_live(self, session_id: UUID, now: datetime) -> bool:
        """Whether a session goes on."""
        row = await self._database.fetch_row(self._IS_LIVE, session_id, now)
        return row is not None and bool(row["is_live"])

    # A session lives while its newest refresh token does, or its last access token may. Ids begin with the time, so the latest come first.
    _LIST_LIVE = f"""
        SELECT {COLUMNS} FROM session AS s
        WHERE s.tenant_id = $1 AND s.subject = $2 AND s.id < $3 AND s.end_time IS NULL AND s.expire_time > $4
          AND (s.last_used_time > $5
               OR EXISTS (SELECT 1 FROM refresh_token r WHERE r.session_id = s.id AND r.used_time IS NULL AND r.expire_time > $4))
        ORDER BY s.id DESC LIMIT $6
    """  # noqa: S608

    async def list_live(
        self, tenant_id: UUID, subject: UUID, *, before: UUID | None, now: datetime, used_since: datetime, limit: int
    ) -> list[Session]:
        """Return a subject's live sessions, latest first.

        before      only those that were opened before this one
        used_since  when a session was last used, if an access token of it can still be good
        """
        return [_session(row) for row in await self._database.fetch(self._LIST_LIVE, tenant_id, subject, before or LAST, now, used_since, limit)]

    async def note_exchange(self, call: Call, event: AuditEvent, *, result: T, kind: type[T]) -> T:
        """Write down that a token was exchanged; return `result`, or that of the first call with this request_id."""

        async def effect(change: Change) -> T:
            change.audit(event)
            return result

        return await self._database.change(call, kind, effect)

    SWEEP = Sweep("session", "expire_time", batch=100)  # each takes its refresh tokens along, of which there may be hundreds

    async def sweep(self) -> None:
        """Delete what has expired."""
        await self._database.sweep(self.SWEEP)


def _session(row: Row) -> Session:
    return Session(
        id=row["id"],
        tenant_id=row["tenant_id"],
        subject=row["subject"],
        client_id=row["client_id"],
        kind=SubjectKind(row["kind"]),
        scopes=tuple(row["scopes"]),
        audience=row["audience"],
        acr=row["acr"],
        auth_time=row["auth_time"],
        address=row["address"],
        user_agent=row["user_agent"],
        create_time=row["create_time"],
        last_used_time=row["last_used_time"],
        expire_time=row["expire_time"],
    )
