"""Sealing the audit log, and looking whether it is what was sealed.

Events are sealed after they are committed: a chain that grew in the transactions themselves would make all changes of a tenant wait for one
another. The queue of what is to be sealed is filled in those transactions, so no event misses its seal.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.clock import Clock
from services.chassis.tenancy import TenantId
from services.identity.audit_chain import Breach, Head, Reason, Seal, SealedEvent, examine, link, microseconds
from watchword.errors import DependencyUnavailable, InvalidRequest

if TYPE_CHECKING:
    from services.identity.store.audit_seals import AuditSealStore

SEAL_EVERY = 0.5  # seconds
BATCH = 500  # events in one transaction, and in one answer
ROUNDS = 20  # batches of one tenant before others have their turn
MAX_SEQUENCE = 2**63 - 1  # what Postgres can count to
BEFORE_ALL = TenantId(UUID(int=0))  # no tenant has this id


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    breach    the first one, None if there is none
    count     links that were looked at and found sound
    head      the last of these
    next      where the next part begins; 0 at the end of the chain
    unsealed  events that are not in the chain yet
    """

    breach: Breach | None
    count: int
    head: Head
    next: int
    unsealed: int


class AuditSeals:
    """The chains of all tenants."""

    def __init__(self, store: "AuditSealStore", key: bytes, clock: Clock) -> None:
        self._store = store
        self._key = key
        self._clock = clock

    async def seal_due(self) -> int:
        """Seal what is committed and not sealed yet; return how much that was. Any number of instances may: one at a time has a tenant.

        A tenant whose events cannot be sealed, for somebody has laid hands on its chain, holds up no other; then raises what was the matter.
        """
        total, failures = 0, list[Exception]()
        async for tenant_id in self._waiting():
            try:
                total += await self._seal_tenant(tenant_id)
            except DependencyUnavailable:
                raise
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]
        return total

    async def _waiting(self) -> AsyncIterator[TenantId]:
        found = await self._store.find_waiting(BEFORE_ALL)
        while found is not None:
            yield found
            found = await self._store.find_waiting(found)

    async def _seal_tenant(self, tenant_id: TenantId) -> int:
        total = 0
        for _ in range(ROUNDS):
            count = await self._store.seal(tenant_id, self._links, limit=BATCH)
            total += count
            if count < BATCH:
                break
        return total

    def _links(self, head: Head, events: list[SealedEvent]) -> list[Seal]:
        seals, now = list[Seal](), microseconds(self._clock.now())
        for event in events:
            seals.append(link(self._key, head, event, now))
            head = seals[-1].head
        return seals

    async def verify(self, tenant_id: TenantId, *, start: int, expected: Head | None) -> Verification:
        """Look through the part of a tenant's chain that begins at `start`: the beginning, or the `next` of an earlier answer.

        expected  a head that was told earlier, which must be in the chain
        Raises    InvalidRequest
        """
        start = _placed("start_sequence", start)
        head = await self._store.find_head(tenant_id, start - 1) if start > 1 else Head()
        if head is None:
            return Verification(Breach(start - 1, Reason.MISSING), 0, Head(), 0, 0)
        seals = await self._store.list_seals(tenant_id, start, limit=BATCH)
        last, breach = examine(self._key, head, seals)
        unsealed, astray = await self._store.count_unsealed(tenant_id, newest=BATCH)
        is_end = len(seals) < BATCH
        if breach is None and expected is not None:
            breach = await self._cut(tenant_id, expected)
        if breach is None and is_end and astray:
            breach = Breach(last.sequence + 1, Reason.MISSING)
        return Verification(breach, last.sequence - head.sequence, last, 0 if breach or is_end else last.sequence + 1, unsealed)

    async def _cut(self, tenant_id: TenantId, expected: Head) -> Breach | None:
        if expected == Head():
            return None  # the head of a log that was empty
        sequence = _placed("expected_head.sequence", expected.sequence)
        if await self._store.find_head(tenant_id, sequence) == Head(sequence, expected.hash):
            return None
        end = await self._store.find_head(tenant_id)
        return Breach(min(sequence, end.sequence + 1 if end else 1), Reason.TRUNCATED)


def _placed(field: str, sequence: int) -> int:
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise InvalidRequest.of(field, "must not be negative")
    return max(sequence, 1)
