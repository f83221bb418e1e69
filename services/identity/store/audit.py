"""The audit log as it is read. Writing it is the chassis's part, in the transaction of what it tells of."""

from datetime import datetime
from uuid import UUID

import msgspec

from services.chassis.postgres import Database, Row
from services.chassis.tenancy import TenantId
from services.identity.audit_log import AuditFilter, AuditRecord

AFTER_ALL = UUID(int=2**128 - 1)  # no event has this id
# Seconds by which an event's id may be older than its time. It may be younger by any: after a clock was set back, ids stay ahead until it has caught
# up. So the start of a period bounds the ids, and its end does not.
SLACK = 60.0


class AuditStore:
    """Reads the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _LIST = """
        SELECT id, event_time, context, type, outcome, actor_type, actor_id, target_type, target_id, address, request_id, details
        FROM suite.audit_event
        WHERE tenant_id = $1 AND id < $2 AND id >= $3
          AND ($4 = '' OR type = $4) AND ($5 = '' OR actor_id = $5) AND ($6 = '' OR target_id = $6) AND ($7 = '' OR outcome = $7)
          AND ($8::timestamptz IS NULL OR event_time >= $8) AND ($9::timestamptz IS NULL OR event_time < $9)
        ORDER BY id DESC LIMIT $10
    """

    async def list(self, tenant_id: TenantId, wanted: AuditFilter, *, before: UUID | None, limit: int) -> list[AuditRecord]:
        """Return events, newest first."""
        rows = await self._database.fetch(
            self._LIST,
            tenant_id,
            before or AFTER_ALL,
            _oldest_id(wanted.start_time),
            wanted.type,
            wanted.actor_id,
            wanted.target_id,
            wanted.outcome,
            wanted.start_time,
            wanted.end_time,
            limit,
        )
        return [_record(row) for row in rows]


def _oldest_id(start_time: datetime | None) -> UUID:
    """Return an id that no event since `start_time` is before, so that the search ends there. Source: RFC 9562 §5.7."""
    seconds = 0.0 if start_time is None else max(start_time.timestamp() - SLACK, 0.0)
    return UUID(int=int(seconds * 1000) << 80)


def _record(row: Row) -> AuditRecord:
    facts = {**dict(row), "details": msgspec.json.decode(row["details"], type=dict[str, str])}
    return AuditRecord(**facts)
