"""Revocations in Postgres: the record that every instance's memory is made from."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.postgres import Change, Connection, Database, Row, bump
from services.chassis.tenancy import TenantId
from services.token.notices import encode
from services.token.revocations import Revocation, RevokedKind

PAGE = 10_000  # rows of a snapshot fetched at once


class RevocationStore:
    """Reads and writes revocations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    COLUMNS = "tenant_id, kind, key, revision, expire_time, spared_revision, spared_session_id, is_disabled, issued_before"
    _FIND = f"SELECT {COLUMNS} FROM revocation WHERE tenant_id = ANY($1::uuid[]) AND key = ANY($2::uuid[])"  # noqa: S608

    async def find(self, tenant_ids: Sequence[UUID], keys: Sequence[UUID]) -> list[Revocation]:
        """Return what is revoked under any of `keys`."""
        return [_revocation(row) for row in await self._database.fetch(self._FIND, tenant_ids, keys)]

    _LIST_LIVE = f"SELECT {COLUMNS} FROM revocation WHERE expire_time > $1"  # noqa: S608

    async def list_live(self, now: datetime) -> AsyncIterator[list[Revocation]]:
        """Yield all revocations that still matter, in pages of one snapshot."""
        async for rows in self._database.pages(self._LIST_LIVE, now, size=PAGE):
            yield [_revocation(row) for row in rows]

    _FIND_REVISION = "SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1"

    async def find_revision(self, tenant_id: UUID) -> int:
        """Return the tenant's present revision."""
        row = await self._database.fetch_row(self._FIND_REVISION, tenant_id)
        return row["revision"] if row else 0

    async def insert(self, call: Call, revocation: Revocation, *, cause: str, now: datetime, event: AuditEvent) -> int:
        """Revoke, end the sessions concerned, tell all instances, and return the tenant's revision of the change, which is set here."""

        async def effect(change: Change) -> int:
            await line_up(change.connection, revocation.tenant_id, [revocation.key])
            await end_sessions(change.connection, revocation, cause, now)
            revision = await bump(change.connection, TenantId(revocation.tenant_id))
            await insert_revocation(change, revocation, revision, now)
            change.audit(event)
            return revision

        return await self._database.change(call, int, effect)

    # The condition stands outside too: a row that was renewed while the sweep waited for it is judged anew only there.
    SWEEP = """
        DELETE FROM revocation WHERE expire_time < $1 AND (tenant_id, key, kind) IN
            (SELECT tenant_id, key, kind FROM revocation WHERE expire_time < $1 LIMIT 10000)
    """

    async def sweep(self, now: datetime) -> None:
        """Delete what has expired."""
        await self._database.execute(self.SWEEP, now)


_LINE_UP = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"


async def line_up(connection: Connection, tenant_id: UUID, keys: Sequence[UUID]) -> None:
    """Make the opening of a session and the revocation of its subject, client or tenant wait for one another.

    Whichever comes second then sees the first: a revocation ends the session, or the session is born ended. Every change takes these locks
    first, in order of their names; then sessions; then the tenant's revision. So none waits in a circle.
    """
    for name in sorted(f"{tenant_id}/{key}" for key in keys):
        await connection.execute(_LINE_UP, name)


# The first revocation of a token or session stands. Of subjects, clients and tenants the later revision wins, and the revision that spares nobody
# is kept beside the one that spares a session. When another session is spared, what was revoked for the former one's sake stays revoked.
# So a row only ever comes to refuse more, and instances may hear of its states in any order.
_INSERT = f"""
    INSERT INTO revocation AS r
        (tenant_id, key, kind, revision, spared_revision, spared_session_id, is_disabled, revoke_time, expire_time, issued_before)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
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


async def insert_revocation(change: Change, revocation: Revocation, revision: int, now: datetime) -> None:
    """Write a revocation of the tenant's `revision`, and tell all instances of the row as it then is."""
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
    )
    change.tell(encode(_revocation(row)))


_END_SESSION = "UPDATE session SET end_time = $3, end_cause = $4 WHERE tenant_id = $1 AND id = $2 AND end_time IS NULL"
_END_SUBJECTS_SESSIONS = """
    UPDATE session SET end_time = $3, end_cause = $4
    WHERE tenant_id = $1 AND subject = $2 AND end_time IS NULL AND id IS DISTINCT FROM $5 AND create_time < coalesce($6, 'infinity'::timestamptz)
"""
_END_CLIENTS_SESSIONS = """
    UPDATE session SET end_time = $3, end_cause = $4
    WHERE tenant_id = $1 AND client_id = $2 AND end_time IS NULL AND create_time < coalesce($5, 'infinity'::timestamptz)
"""
_END_TENANTS_SESSIONS = """
    UPDATE session SET end_time = $2, end_cause = $3
    WHERE tenant_id = $1 AND end_time IS NULL AND create_time < coalesce($4, 'infinity'::timestamptz)
"""


async def end_sessions(connection: Connection, revocation: Revocation, cause: str, now: datetime) -> None:
    """End the sessions that a revocation concerns. With `issued_before`, those that were opened before it."""
    about = (revocation.tenant_id, revocation.key, now, cause)
    if revocation.kind is RevokedKind.SESSION:
        await connection.execute(_END_SESSION, *about)
    elif revocation.kind is RevokedKind.SUBJECT:
        await connection.execute(_END_SUBJECTS_SESSIONS, *about, revocation.spared_session_id, revocation.issued_before)
    elif revocation.kind is RevokedKind.CLIENT:
        await connection.execute(_END_CLIENTS_SESSIONS, *about, revocation.issued_before)
    elif revocation.kind is RevokedKind.TENANT:
        await connection.execute(_END_TENANTS_SESSIONS, revocation.tenant_id, now, cause, revocation.issued_before)


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
