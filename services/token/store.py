"""Every statement of token."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.postgres import Change, Connection, Database, Row, bump
from services.chassis.tenancy import TenantId
from services.token.claims import SubjectKind
from services.token.keys import KeyPair, KeyState, StoredKey, UnusableKey
from services.token.revocations import Revocation, RevokedKind
from services.token.sessions import Ended, Outcome, Redemption, RefreshRecord, Session

T = TypeVar("T")


class TokenStore:
    """Keys, sessions, refresh tokens and revocations in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _LIST_KEYS = "SELECT kid, algorithm, state, public_pem, sealed_private, create_time FROM signing_key ORDER BY create_time, kid"

    async def list_keys(self) -> list[StoredKey]:
        """Return all keys, oldest first."""
        return [_key(row) for row in await self._database.fetch(self._LIST_KEYS)]

    _LOCK_KEYS = "SELECT pg_advisory_xact_lock(hashtext('watchword/token/signing_key'))"
    _RETIRE_ACTIVE = "UPDATE signing_key SET state = 'RETIRING', state_time = $1 WHERE state = 'ACTIVE'"
    _INSERT_KEY = """
        INSERT INTO signing_key (kid, algorithm, state, public_pem, sealed_private, create_time, state_time)
        VALUES ($1, $2, 'ACTIVE', $3, $4, $5, $5)
    """

    async def ensure_active_key(self, given: KeyPair | None, make: Callable[[], KeyPair], seal: Callable[[KeyPair], bytes], now: datetime) -> None:
        """Make the given key the active one if it is new, or make one if there is none. Raises UnusableKey if its kid names another key."""
        async with self._database.transaction() as connection:
            await connection.execute(self._LOCK_KEYS)
            stored = [_key(row) for row in await connection.fetch(self._LIST_KEYS)]
            if given is not None:
                twin = next((key for key in stored if key.kid == given.kid), None)
                if twin is not None and twin.public_pem != given.public_pem:
                    raise UnusableKey(f"JWT_KEY_ID {given.kid} already names another key; give the new key a new JWT_KEY_ID")
                if twin is not None:
                    return
            elif any(key.state is KeyState.ACTIVE for key in stored):
                return
            pair = make()
            await connection.execute(self._RETIRE_ACTIVE, now)
            await connection.execute(self._INSERT_KEY, pair.kid, pair.algorithm, pair.public_pem, seal(pair), now)

    _LIST_REVOCATIONS = """
        SELECT tenant_id, kind, key, revision, expire_time, spared_revision, spared_session_id, is_disabled
        FROM revocation
        WHERE tenant_id = ANY($1::uuid[]) AND key = ANY($2::uuid[])
    """

    async def list_revocations(self, tenant_ids: Sequence[UUID], keys: Sequence[UUID]) -> list[Revocation]:
        """Return what is revoked under any of `keys`."""
        return [_revocation(row) for row in await self._database.fetch(self._LIST_REVOCATIONS, tenant_ids, keys)]

    _FIND_REVISION = "SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1"

    async def find_revision(self, tenant_id: UUID) -> int:
        """Return the tenant's present revision."""
        row = await self._database.fetch_row(self._FIND_REVISION, tenant_id)
        return row["revision"] if row else 0

    # The first revocation of a token or session stands. Of subjects and clients the later revision wins, and the revision that spares nobody
    # is kept beside the one that spares a session. When another session is spared, what was revoked for the former one's sake stays revoked.
    _INSERT_REVOCATION = """
        INSERT INTO revocation AS r
            (tenant_id, key, kind, revision, spared_revision, spared_session_id, is_disabled, revoke_time, expire_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (tenant_id, key, kind) DO UPDATE SET
            revision = greatest(
                r.revision, excluded.revision,
                CASE WHEN excluded.spared_revision > 0 AND excluded.spared_session_id IS DISTINCT FROM r.spared_session_id
                     THEN r.spared_revision ELSE 0 END),
            spared_revision = greatest(r.spared_revision, excluded.spared_revision),
            spared_session_id = CASE WHEN excluded.spared_revision > 0 THEN excluded.spared_session_id ELSE r.spared_session_id END,
            is_disabled = excluded.is_disabled,
            expire_time = greatest(r.expire_time, excluded.expire_time)
    """
    _END_SESSION = "UPDATE session SET end_time = $3, end_cause = $4 WHERE tenant_id = $1 AND id = $2 AND end_time IS NULL"
    _END_SUBJECTS_SESSIONS = """
        UPDATE session SET end_time = $3, end_cause = $4
        WHERE tenant_id = $1 AND subject = $2 AND end_time IS NULL AND id IS DISTINCT FROM $5
    """
    _END_CLIENTS_SESSIONS = "UPDATE session SET end_time = $3, end_cause = $4 WHERE tenant_id = $1 AND client_id = $2 AND end_time IS NULL"

    async def insert_revocation(self, call: Call, revocation: Revocation, *, cause: str, now: datetime, event: AuditEvent) -> int:
        """Revoke, end the sessions concerned, and return the tenant's revision of the change. Its `revision` fields are set here."""

        async def effect(change: Change) -> int:
            await self._line_up(change.connection, revocation.tenant_id, [revocation.key])
            await self._end_sessions(change.connection, revocation, cause, now)
            revision = await bump(change.connection, TenantId(revocation.tenant_id))
            await self._insert_revocation(change.connection, revocation, revision, now)
            change.audit(event)
            return revision

        return await self._database.change(call, int, effect)

    _LINE_UP = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"

    async def _line_up(self, connection: Connection, tenant_id: UUID, keys: Sequence[UUID]) -> None:
        """Make the opening of a session and the revocation of its subject or client wait for one another.

        Whichever comes second then sees the first: a revocation ends the session, or the session is born ended. Every change takes these locks
        first, in order of their names; then sessions; then the tenant's revision. So none waits in a circle.
        """
        for name in sorted(f"{tenant_id}/{key}" for key in keys):
            await connection.execute(self._LINE_UP, name)

    async def _insert_revocation(self, connection: Connection, revocation: Revocation, revision: int, now: datetime) -> None:
        spares = revocation.spared_session_id is not None
        await connection.execute(
            self._INSERT_REVOCATION,
            revocation.tenant_id,
            revocation.key,
            revocation.kind.value,
            0 if spares else revision,
            revision if spares else 0,
            revocation.spared_session_id,
            revocation.is_disabled,
            now,
            revocation.expire_time,
        )

    async def _end_sessions(self, connection: Connection, revocation: Revocation, cause: str, now: datetime) -> None:
        about = (revocation.tenant_id, revocation.key, now, cause)
        if revocation.kind is RevokedKind.SESSION:
            await connection.execute(self._END_SESSION, *about)
        elif revocation.kind is RevokedKind.SUBJECT:
            await connection.execute(self._END_SUBJECTS_SESSIONS, *about, revocation.spared_session_id)
        elif revocation.kind is RevokedKind.CLIENT:
            await connection.execute(self._END_CLIENTS_SESSIONS, *about)

    _INSERT_SESSION = """
        INSERT INTO session (id, tenant_id, subject, client_id, kind, scopes, audience, acr, auth_time, address, user_agent,
                             create_time, last_used_time, expire_time, end_time, end_cause)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13, $14, $15)
    """
    _IS_REVOKED = """
        SELECT EXISTS (SELECT 1 FROM revocation
                       WHERE tenant_id = $1 AND key = ANY($2::uuid[]) AND kind IN ('subject', 'client') AND greatest(revision, spared_revision) > $3)
    """
    _INSERT_REFRESH = "INSERT INTO refresh_token (digest, session_id, issue_time, expire_time) VALUES ($1, $2, $3, $4)"

    async def insert_session(
        self, call: Call, session: Session, refresh: RefreshRecord, *, revision: int, result: T, kind: type[T], event: AuditEvent
    ) -> T:
        """Open a session with its first refresh token; return `result`, or that of the first call with this request_id.

        revision  at which the subject was found good: a session of one that was revoked since is born ended
        """
        owners = [owner for owner in (session.subject, session.client_id) if owner is not None]

        async def effect(change: Change) -> T:
            await self._line_up(change.connection, session.tenant_id, owners)
            is_revoked = await change.connection.fetchval(self._IS_REVOKED, session.tenant_id, owners, revision)
            await change.connection.execute(
                self._INSERT_SESSION,
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
                session.expire_time,
                session.create_time if is_revoked else None,
                "revoked" if is_revoked else None,
            )
            await self._insert_refresh(change.connection, session.id, refresh)
            change.audit(event)
            return result

        return await self._database.change(call, kind, effect)

    async def _insert_refresh(self, connection: Connection, session_id: UUID, refresh: RefreshRecord) -> None:
        await connection.execute(self._INSERT_REFRESH, refresh.digest, session_id, refresh.issue_time, refresh.expire_time)

    # One statement decides who redeems: of many at once, exactly one finds used_time NULL. A foreign client finds nothing, and burns nothing.
    _REDEEM = """
        UPDATE refresh_token AS r SET used_time = $2
        FROM session AS s
        WHERE r.digest = $1 AND r.used_time IS NULL AND r.expire_time > $2
          AND s.id = r.session_id AND s.end_time IS NULL AND s.expire_time > $2 AND s.client_id IS NOT DISTINCT FROM $3
        RETURNING s.id, s.tenant_id, s.subject, s.client_id, s.kind, s.scopes, s.audience, s.acr, s.auth_time, s.address, s.user_agent,
                  s.create_time, s.expire_time
    """
    _FIND_USED = """
        SELECT s.id, s.tenant_id, s.subject FROM refresh_token r JOIN session s ON s.id = r.session_id
        WHERE r.digest = $1 AND r.used_time IS NOT NULL AND s.end_time IS NULL AND s.client_id IS NOT DISTINCT FROM $2
        FOR UPDATE OF s
    """
    _TOUCH_SESSION = "UPDATE session SET last_used_time = $2 WHERE id = $1"

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
                session = _session(row)
                refresh, redemption = succeed(session)
                await self._insert_refresh(change.connection, session.id, refresh)
                await change.connection.execute(self._TOUCH_SESSION, session.id, now)
                change.audit(AuditEvent("refresh_token_redeemed", "session", str(session.id), tenant_id=TenantId(session.tenant_id)))
                return Outcome(redemption=redemption)
            used = await change.connection.fetchrow(self._FIND_USED, digest, client_id)
            if used is None:
                return Outcome()
            ended = Ended(session_id=used["id"], tenant_id=used["tenant_id"], subject=used["subject"])
            revocation, event = end(ended)
            revision = await bump(change.connection, TenantId(ended.tenant_id))
            await self._insert_revocation(change.connection, revocation, revision, now)
            await self._end_sessions(change.connection, revocation, "refresh_token_reused", now)
            change.audit(event)
            return Outcome(ended=ended)

        return await self._database.change(call, Outcome, effect)

    _FIND_SESSION = """
        SELECT s.id, s.tenant_id, s.subject, s.client_id, s.kind, s.scopes, s.audience, s.acr, s.auth_time, s.address, s.user_agent,
               s.create_time, s.expire_time, r.issue_time AS refresh_issue_time, r.expire_time AS refresh_expire_time
        FROM refresh_token r JOIN session s ON s.id = r.session_id
        WHERE r.digest = $1 AND r.used_time IS NULL AND r.expire_time > $2 AND s.end_time IS NULL AND s.expire_time > $2
    """

    _FIND_FAMILY = """
        SELECT s.id, s.tenant_id, s.subject, s.client_id, s.kind, s.scopes, s.audience, s.acr, s.auth_time, s.address, s.user_agent,
               s.create_time, s.expire_time
        FROM refresh_token r JOIN session s ON s.id = r.session_id
        WHERE r.digest = $1 AND s.end_time IS NULL
    """

    async def find_family(self, digest: bytes) -> Session | None:
        """Return the live session that a refresh token was ever handed out in, used or not."""
        row = await self._database.fetch_row(self._FIND_FAMILY, digest)
        return None if row is None else _session(row)

    async def find_session_by_refresh(self, digest: bytes, now: datetime) -> tuple[Session, RefreshRecord] | None:
        """Return the live session of an unused refresh token, and the token's record."""
        row = await self._database.fetch_row(self._FIND_SESSION, digest, now)
        if row is None:
            return None
        return _session(row), RefreshRecord(digest, row["refresh_issue_time"], row["refresh_expire_time"])

    # The condition stands outside too: a row that was renewed while the sweep waited for it is judged anew only there.
    SWEEP = (
        """
        DELETE FROM revocation WHERE expire_time < $1 AND (tenant_id, key, kind) IN
            (SELECT tenant_id, key, kind FROM revocation WHERE expire_time < $1 LIMIT 10000)
        """,
        "DELETE FROM session WHERE expire_time < $1 AND id IN (SELECT id FROM session WHERE expire_time < $1 LIMIT 1000)",
    )

    async def sweep(self, now: datetime) -> None:
        """Delete what has expired, and requests older than a day."""
        for statement in self.SWEEP:
            await self._database.execute(statement, now)
        await self._database.forget_requests()

    async def ping(self) -> None:
        """Return if Postgres answers."""
        await self._database.ping()


def _key(row: Row) -> StoredKey:
    return StoredKey(row["kid"], row["algorithm"], KeyState(row["state"]), row["public_pem"], row["sealed_private"], row["create_time"])


def _revocation(row: Row) -> Revocation:
    return Revocation(
        tenant_id=row["tenant_id"],
        kind=RevokedKind(row["kind"]),
        key=row["key"],
        revision=row["revision"],
        expire_time=row["expire_time"],
        spared_revision=row["spared_revision"],
        spared_session_id=row["spared_session_id"],
        is_disabled=row["is_disabled"],
    )


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
        expire_time=row["expire_time"],
    )
