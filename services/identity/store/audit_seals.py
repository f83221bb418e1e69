"""The chains of the audit log in Postgres."""

from collections.abc import Callable
from datetime import datetime, timedelta

from services.chassis.postgres import Connection, Database, Row
from services.chassis.tenancy import TenantId
from services.identity.audit_chain import EPOCH, Head, Seal, SealedEvent

# Times as eight bytes: not every time that Postgres can hold is one that Python can, and who puts such a one there must be found too.
EVENT = """
    e.id, e.tenant_id, timestamptz_send(e.event_time) AS event_time, e.context, e.type, e.outcome, e.actor_type, e.actor_id,
    e.target_type, e.target_id, e.address, e.request_id, e.details
"""
LOCKS = 0x41554449  # "AUDI": the locks of tenants who are being sealed

Linker = Callable[[Head, list[SealedEvent]], list[Seal]]


class AuditSealStore:
    """Seals, and the queue of events without one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _FIND_WAITING = "SELECT tenant_id FROM suite.audit_unsealed WHERE tenant_id > $1 ORDER BY tenant_id LIMIT 1"

    async def find_waiting(self, after: TenantId) -> TenantId | None:
        """Return the next tenant with events to be sealed, in the order of their ids. A long queue costs no more than a short one."""
        row = await self._database.fetch_row(self._FIND_WAITING, after)
        return TenantId(row["tenant_id"]) if row else None

    _LOCK = "SELECT pg_try_advisory_xact_lock($1, hashtext($2::text))"
    # The queue is empty as a rule, and Postgres plans for that when it is long; and a plan that it has kept since the first seals reads all seals for
    # each event. So this is planned anew, OFFSET 0 goes from the queue to the events, and an array is made once.
    _PLAN_ANEW = "SET LOCAL plan_cache_mode = force_custom_plan"
    # An event that has a seal may be in the queue after a restore; it is dropped from there, or it would stop the chain for ever. The queue's rows
    # stay where they are, for only who holds the lock deletes them.
    _TAKE = f"""
        WITH next AS MATERIALIZED (
            SELECT u.ctid AS place, event.* FROM suite.audit_unsealed AS u CROSS JOIN LATERAL (
                SELECT {EVENT} FROM suite.audit_event AS e WHERE e.id = u.event_id AND e.tenant_id = u.tenant_id OFFSET 0
            ) AS event
            WHERE u.tenant_id = $1 ORDER BY u.event_id LIMIT $2
        ), taken AS (
            DELETE FROM suite.audit_unsealed WHERE ctid = ANY(ARRAY(SELECT place FROM next))
        )
        SELECT next.*, EXISTS (SELECT FROM suite.audit_seal AS s WHERE s.event_id = next.id) AS is_sealed FROM next
    """  # noqa: S608
    _INSERT = """
        INSERT INTO suite.audit_seal (tenant_id, sequence, event_id, hash, seal_time)
        SELECT $1, * FROM unnest($2::bigint[], $3::uuid[], $4::bytea[], $5::timestamptz[])
    """

    async def seal(self, tenant_id: TenantId, linked: Linker, *, limit: int) -> int:
        """Put at most `limit` queued events, in order of their ids, behind the tenant's head. Return how many were taken: 0 if another is at it."""
        async with self._database.transaction() as connection:
            if not await connection.fetchval(self._LOCK, LOCKS, str(tenant_id)):
                return 0
            await connection.execute(self._PLAN_ANEW)
            rows = await connection.fetch(self._TAKE, tenant_id, limit)
            events = sorted((_event(row) for row in rows if not row["is_sealed"]), key=lambda event: event.id)
            # Read after the lock is held, in a statement of its own, which sees what the instance before has committed.
            seals = linked(await self._find_head(connection, tenant_id, None) or Head(), events)
            await self._insert(connection, tenant_id, seals)
        return len(rows)

    async def _insert(self, connection: Connection, tenant_id: TenantId, seals: list[Seal]) -> None:
        numbers, hashes, times = [seal.sequence for seal in seals], [seal.hash for seal in seals], [_instant(seal.seal_time) for seal in seals]
        await connection.execute(self._INSERT, tenant_id, numbers, [seal.event.id for seal in seals if seal.event], hashes, times)

    _FIND_HEAD = """
        SELECT sequence, hash FROM suite.audit_seal WHERE tenant_id = $1 AND ($2::bigint IS NULL OR sequence = $2) ORDER BY sequence DESC LIMIT 1
    """

    async def find_head(self, tenant_id: TenantId, sequence: int | None = None) -> Head | None:
        """Return the link of that number, or the last one."""
        async with self._database.connection() as connection:
            return await self._find_head(connection, tenant_id, sequence)

    async def _find_head(self, connection: Connection, tenant_id: TenantId, sequence: int | None) -> Head | None:
        row = await connection.fetchrow(self._FIND_HEAD, tenant_id, sequence)
        return Head(row["sequence"], row["hash"]) if row else None

    _LIST_SEALS = f"""
        SELECT s.sequence, s.hash, timestamptz_send(s.seal_time) AS seal_time, {EVENT}
        FROM suite.audit_seal AS s LEFT JOIN suite.audit_event AS e ON e.id = s.event_id
        WHERE s.tenant_id = $1 AND s.sequence >= $2 ORDER BY s.sequence LIMIT $3
    """  # noqa: S608

    async def list_seals(self, tenant_id: TenantId, start: int, *, limit: int) -> list[Seal]:
        """Return links from number `start` on, with their events, whosever these say they are."""
        return [_seal(row) for row in await self._database.fetch(self._LIST_SEALS, tenant_id, start, limit)]

    # One statement, so one snapshot: an event is in the queue or has its seal at every moment.
    _COUNT_UNSEALED = """
        SELECT
            (SELECT count(*) FROM suite.audit_unsealed WHERE tenant_id = $1) AS unsealed,
            (
                SELECT count(*) FROM (SELECT id FROM suite.audit_event WHERE tenant_id = $1 ORDER BY id DESC LIMIT $2) AS e
                WHERE NOT EXISTS (SELECT FROM suite.audit_unsealed AS u WHERE u.tenant_id = $1 AND u.event_id = e.id)
                    AND NOT EXISTS (SELECT FROM suite.audit_seal AS s WHERE s.event_id = e.id)
            ) + (
                SELECT count(*) FROM (SELECT event_id FROM suite.audit_unsealed WHERE tenant_id = $1 ORDER BY event_id LIMIT $2) AS u
                WHERE NOT EXISTS (SELECT FROM suite.audit_event AS e WHERE e.id = u.event_id AND e.tenant_id = $1)
            ) AS astray
    """

    async def count_unsealed(self, tenant_id: TenantId, *, newest: int) -> tuple[int, int]:
        """Return how many events wait, and how many are astray among the newest: neither sealed nor waiting, or waiting and gone."""
        (row,) = await self._database.fetch(self._COUNT_UNSEALED, tenant_id, newest)
        return row["unsealed"], row["astray"]


def _seal(row: Row) -> Seal:
    return Seal(row["sequence"], row["hash"], _number(row["seal_time"]), _event(row) if row["id"] is not None else None)


def _event(row: Row) -> SealedEvent:
    columns = {name: row[name] for name in SealedEvent.__dataclass_fields__}
    return SealedEvent(**{**columns, "event_time": _number(row["event_time"])})


def _number(sent: bytes) -> int:
    return int.from_bytes(sent, "big", signed=True)


def _instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)
