"""The audit log of a tenant, for those who may read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.call import Call
from services.chassis.pages import Page, Pager

if TYPE_CHECKING:
    from services.identity.store.audit import AuditStore


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which events are wanted; empty text and None mean any."""

    type: str = ""
    actor_id: str = ""
    target_id: str = ""
    outcome: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None

    @property
    def query(self) -> tuple[str, ...]:
        """What a page token of this list is good for."""
        times = (str(time or "") for time in (self.start_time, self.end_time))
        return ("audit-events", self.type, self.actor_id, self.target_id, self.outcome, *times)


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One event as it was written."""

    id: UUID
    event_time: datetime
    context: str
    type: str
    outcome: str
    actor_type: str
    actor_id: str
    target_type: str
    target_id: str
    address: str
    request_id: str
    details: Mapping[str, str]


class AuditLog:
    """Lists events."""

    def __init__(self, store: "AuditStore", pager: Pager) -> None:
        self._store = store
        self._pager = pager

    async def list(self, call: Call, wanted: AuditFilter, *, page_size: int, page_token: str) -> Page[AuditRecord]:
        """Return a page of the caller's tenant, newest first. Raises InvalidRequest, PageTokenInvalid."""
        tenant_id, query = call.caller.tenant_id, wanted.query
        page = self._pager.read(page_size=page_size, page_token=page_token, tenant_id=tenant_id, query=query)
        before = UUID(page.after[0]) if page.after else None
        rows = await self._store.list(tenant_id, wanted, before=before, limit=page.size + 1)
        return self._pager.page(rows, page, key=lambda record: (str(record.id),), tenant_id=tenant_id, query=query)
