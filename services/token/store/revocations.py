"""Revocations in Postgres: the record that every instance's memory is made from."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import Change, Connection, Database, Row, Sweep, bump
from services.chassis.tenancy import TenantId
from services.token.notices import SessionsNotice, encode
from services.token.revocations import Revocation, RevokedKind
from services.token.revoked import Plain
from services.token.sessions import MAX_ACCESS_LIFE

ENDED_AT_ONCE = 10_000  # sessions: a quarter of a second of one statement, which may take five
TOLD_AT_ONCE = 1000  # sessions in one notice, which is then of some 20 KB


class RevocationStore:
    """Reads and writes revocations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    COLUMNS = "tenant_id, kind, key, revision, expire_time, spared_revision, spared_session_id, is_disabled, issued_before"
    _FIND = f"SELECT {COLUMNS} FROM revocation WHERE tenant_id = ANY($1::uuid[]) AND key = ANY($2::uuid[])"  # noqa: S608

    async def find(self, tenant_ids: Sequence[UUID], keys: Sequence[UUID]) -> list[Revocation]:
        """Return what is revoked under any of `keys`."""
        return [_revocation(row) for row in await self._database.fetch(self._FIND, tenant_ids, keys)]

    # A million at once, so that what memory needs of a plain one is all that is made of its row.
    _LIST_LIVE = """
        SELECT tenant_id, kind, uuid_send(key) AS key, revision, floor(extract(epoch FROM expire_time))::bigint + 1 AS expiry, is_disabled
        FROM revocation WHERE expire_time > clock_timestamp() AND spared_revision = 0 AND issued_before IS NULL
    """
    _LIST_LIVE_WHOLE = f"""
        SELECT {COLUMNS} FROM revocation WHERE expire_time > clock_timestamp() AND NOT (spared_revision = 0 AND issued_before IS NULL)
    """  # noqa: S608

    async def list_live(self, *, page: int) -> AsyncIterator[tuple[list[Plain], list[Revocation]]]:
        """Yield all revocations that still matter, `page` at a time. Those of one row are of some state between beginning and end."""
        async for rows in self._database.pages(self._LIST_LIVE, size=page):
            yield [tuple(row) for row in rows], []
        async for rows in self._database.pages(self._LIST_LIVE_WHOLE, size=page):
            yield [], [_revocation(row) for row in rows]

    _FIND_REVISION = "SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1"

    async def find_revision(self, tenant_id: UUID) -> int:
        """Return the tenant's present revision."""
        row = await self._database.fetch_row(self._FIND_REVISION, tenant_id)
        return row["revision"] if row else 0

    async def settle(self, call: Call) -> None:
        """Return when every instance knows all that was revoked before. Raises FanoutPending."""
        await self._database.settle(call)

    async def insert(self, call: Call, revocation: Revocation, *, cause: str, now: datetime, event: AuditEvent) -> int:
        """Revoke, end the sessions concerned, tell all instances, and return the tenant's revision of the change, which is set here."""

        async def effect(change: Change) -> int:
            await line_up(change.connection, revocation.tenant_id, [revocation.key])
            renewed = await end_sessions(change.connection, revocation, cause, now)
            crashpoint("revocation.after_sessions")
            revision = await bump(change.connection, TenantId(revocation.tenant_id))
            written = await insert_revocation(change, revocation, revision, now)
            await _insert_sessions_revocations(change, written, renewed, revision, now)
            if revocation.issued_before is not None:
                change.settle()  # a repeat finds these sessions ended, and tells nobody of them
            change.audit(event)
            return revision

        return await self._database.change(call, int, effect)

    SWEEP = Sweep("revocation", "expire_time")

    async def sweep(self) -> None:
        """Delete what has expired."""
        await self._database.sweep(self.SWEEP)


# In the order of the array.
_LINE_UP = """
    SELECT CASE WHEN name = $2 THEN pg_advisory_xact_lock_shared(hashtextextended(name, 0))::text
                ELSE pg_advisory_xact_lock(hashtextextended(name, 0))::text END
    FROM unnest($1::text[]) AS name
"""


async def line_up(connection: Connection, tenant_id: UUID, keys: Sequence[UUID], *, shared: UUID | None = None) -> None:
    """Make the opening of a session and the revocation of its subject, client or tenant wait for one another.

    Whichever comes second then sees the first: a revocation ends the session, or the session is born ended. Every change takes these locks
    first, in order of their names; then sessions; then the tenant's revision. So none waits in a circle.

    shared  the one of `keys` whose lock is taken together with others who share it: logins of a tenant need not wait for one another
    """
    await connection.execute(_LINE_UP, sorted(f"{tenant_id}/{key}" for key in keys), None if shared is None else f"{tenant_id}/{shared}")


# The first revocation of a token or session stands. Of subjects, clients and tenants the later revision wins, and the revision that spares nobody
# is kept beside the one that spares a session. When another session is spared, what was revoked for the former one's sake stays revoked.
# So a row only ever comes to refuse more, and instances may hear of its states in any order.
_INSERT = f"""
    INSERT INTO revocation AS r
        (tenant_id, key, kind, revision, spared_revision, spared_session_id, is_disabled, revoke_time, expire_time, issued_before)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8,
            CASE WHEN $3 = 'token' THEN $9::timestamptz ELSE greatest($9::timestamptz, clock_timestamp() + $11::interval) END, $10)
    ON CONFLICT (tenant_id, key, kind) DO UPDATE SET
        revision = greatest(
            r.revision, excluded.revision,
            CASE WHEN excluded.spared_revision > 0 AND excluded.spared_session_id IS DISTINCT FROM r.spared_session_id
                 THEN r.spared_revision ELSE 0 END),
        spared_revision = greatest(r.spared_revision, excluded.spared_revision),
        spared_session_id = CASE WHEN excluded.spared_revision > 0 THEN excluded.spared_session_id ELSE r.spared_session_id END,
        is_disabled = excluded.is_disabled,
        expire_time = greatest(r.expire_time, excluded.expire_time),
        issued_before = greatest(r.issued_before, excluded.issued_before)
    RETURNING {RevocationStore.COLUMNS}
"""  # noqa: S608


async def insert_revocation(change: Change, revocation: Revocation, revision: int, now: datetime) -> Revocation:
    """Write a revocation of the tenant's `revision`, tell all instances of the row as it then is, and return that.

    It outlives every token that it may concern by Postgres's clock, too, if this host's is slow.
    """
    spares, by_time = revocation.spared_session_id is not None, revocation.issued_before is not None
    row = await change.connection.fetchrow(
        _INSERT,
        revocation.tenant_id,
        revocation.key,
        revocation.kind.value,
        0 if spares or by_time else revision,
        revision if spares else 0,
        revocation.spared_session_id,
        revocation.is_disabled,
        now,
        revocation.expire_time,
        revocation.issued_before,
        MAX_ACCESS_LIFE,
    )
    written = _revocation(row)
    change.tell(encode(written))
    return written


# A revocation by time names no revision, and refuses tokens by their own time of issue. What an ended session was refreshed for since that time is
# younger: so the session itself is revoked, outright. All of them by one statement, and in a few notices, for a tenant may have very many.
_INSERT_SESSIONS = """
    INSERT INTO revocation (tenant_id, key, kind, revision, spared_revision, is_disabled, revoke_time, expire_time)
    SELECT $1, id, 'session', $3, 0, false, $4, $5 FROM unnest($2::uuid[]) AS id
    ON CONFLICT (tenant_id, key, kind) DO UPDATE SET expire_time = greatest(revocation.expire_time, excluded.expire_time)
"""


async def _insert_sessions_revocations(change: Change, by_time: Revocation, session_ids: Sequence[UUID], revision: int, now: datetime) -> None:
    """Revoke sessions of one tenant, and tell all instances of them."""
    tenant_id, expire_time = by_time.tenant_id, by_time.expire_time
    if session_ids:
        await change.connection.execute(_INSERT_SESSIONS, tenant_id, session_ids, revision, now, expire_time)
    for at in range(0, len(session_ids), TOLD_AT_ONCE):
        told = session_ids[at : at + TOLD_AT_ONCE]
        change.tell(encode(SessionsNotice.of(tenant_id, told, revision=revision, expire_time=expire_time)))


_END_SESSION = "UPDATE session SET end_time = $3, end_cause = $4 WHERE tenant_id = $1 AND id = $2 AND end_time IS NULL"


def _ending(of: str) -> str:
    """Return a statement that ends sessions with $2 in the column `of` that were opened before $3, at most ENDED_AT_ONCE.

    It returns how many it found, some of which others may have ended just then, and which of those that it ended were used since $4. An array of
    their ids is made once, whatever the plan: one that Postgres made while the table was small, and kept, compared each row with each.
    """
    return f"""
        WITH found AS MATERIALIZED (
            SELECT id FROM session
            WHERE tenant_id = $1 AND {of} = $2 AND end_time IS NULL AND id IS DISTINCT FROM $7
              AND create_time < coalesce($3, 'infinity'::timestamptz)
            LIMIT {ENDED_AT_ONCE}
        ), ended AS (
            UPDATE session SET end_time = $5, end_cause = $6 WHERE id = ANY(ARRAY(SELECT id FROM found)) AND end_time IS NULL
            RETURNING id, last_used_time
        )
        SELECT (SELECT count(*) FROM found) AS found, (SELECT array_agg(id) FROM ended WHERE last_used_time >= $4) AS used
    """  # noqa: S608


_END_SESSIONS = {
    RevokedKind.SUBJECT: _ending("subject"),
    RevokedKind.CLIENT: _ending("client_id"),
    RevokedKind.TENANT: _ending("tenant_id"),
}


async def end_sessions(connection: Connection, revocation: Revocation, cause: str, now: datetime) -> list[UUID]:
    """End the sessions that a revocation concerns. With `issued_before`, those that were opened before it.

    Returns those of them that were refreshed since, so that an access token of theirs may be good still
    """
    if revocation.kind is RevokedKind.SESSION:
        await connection.execute(_END_SESSION, revocation.tenant_id, revocation.key, now, cause)
        return []
    statement = _END_SESSIONS.get(revocation.kind)
    if statement is None:
        return []
    issued_before = revocation.issued_before
    since = max(issued_before, now - MAX_ACCESS_LIFE) if issued_before else None
    about = (revocation.tenant_id, revocation.key, issued_before, since, now, cause, revocation.spared_session_id)
    used: list[UUID] = []
    is_all = False
    while not is_all:
        row = await connection.fetchrow(statement, *about)
        used += row["used"] or ()
        is_all = row["found"] < ENDED_AT_ONCE
    return used


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
        issued_before=row["issued_before"],
    )
