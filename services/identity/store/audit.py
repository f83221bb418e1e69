"""The audit log as it is read. Writing it is the chassis's part, in the transaction of what it tells of."""

from uuid import UUID

import msgspec

from services.chassis.postgres import Database, Row
from services.chassis.tenancy import TenantId
from services.identity.audit_log import AuditFilter, AuditRecord


class AuditStore:
    """Reads the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _LIST = """
        SELECT id, event_time, context, type, outcome, actor_type, actor_id, target_type, target_id, address, request_id, details
        FROM suite.audit_event
        WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id < $2)
          AND ($3 = '' OR type = $3) AND ($4 = '' OR actor_id = $4) AND ($5 = '' OR target_id = $5) AND ($6 = '' OR outcome = $6)
          AND ($7::timestamptz IS NULL OR event_time >= $7) AND ($8::timestamptz IS NULL OR event_time < $8)
        ORDER BY id DESC LIMIT $9
    """

    async def list(self, tenant_id: TenantId, wanted: AuditFilter, *, before: UUID | None, limit: int) -> list[AuditRecord]:
        """Return events, newest first."""
        rows = await self._database.fetch(
            self._LIST,
            tenant_id,
            before,
            wanted.type,
            wanted.actor_id,
            wanted.target_id,
            wanted.outcome,
            wanted.start_time,
            wanted.end_time,
            limit,
        )
        return [_record(row) for row in rows]


def _record(row: Row) -> AuditRecord:
    facts = {**dict(row), "details": msgspec.json.decode(row["details"], type=dict[str, str])}
    return AuditRecord(**facts)
