"""The chain of the audit log: every event of a tenant has a number and a keyed hash over itself, its number and the hash before.

Whoever changes, removes or moves what is in the chain would have to compute hashes anew, and lacks the key. Whoever cuts the end off leaves a
chain that is sound in itself: that is found by a head that was kept elsewhere. Source: Schneier and Kelsey, Secure Audit Logs, 1999.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.chassis.sealing import digest

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # Postgres's own


class Reason(StrEnum):
    """How a chain is broken.

    CHANGED    the event or its seal is not what was sealed
    MISSING    an event or a seal is gone
    REORDERED  what stands here was sealed at another place
    TRUNCATED  a head that was kept is not in the chain
    """

    CHANGED = "changed"
    MISSING = "missing"
    REORDERED = "reordered"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class SealedEvent:
    """Every column of an event, exactly as Postgres keeps it: `details` its text of the JSON, `event_time` in its microseconds."""

    id: UUID
    tenant_id: UUID
    event_time: int
    context: str
    type: str
    outcome: str
    actor_type: str
    actor_id: str
    target_type: str
    target_id: str
    address: str
    request_id: str
    details: str


@dataclass(frozen=True, slots=True)
class Head:
    """The last link of a chain, or of a part of it. An empty chain has number 0 and no hash."""

    sequence: int = 0
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Seal:
    """One link. `event` is None if it is gone; `seal_time` is in Postgres's microseconds."""

    sequence: int
    hash: bytes
    seal_time: int
    event: SealedEvent | None

    @property
    def head(self) -> Head:
        """This link as the end of what comes before."""
        return Head(self.sequence, self.hash)


@dataclass(frozen=True, slots=True)
class Breach:
    """Where a chain is broken first, and how."""

    sequence: int
    reason: Reason


def microseconds(instant: datetime) -> int:
    """Return an instant as Postgres keeps it."""
    return (instant - EPOCH) // timedelta(microseconds=1)


def link(key: bytes, head: Head, event: SealedEvent, seal_time: int) -> Seal:
    """Return the link of `event` after `head`."""
    sequence = head.sequence + 1
    return Seal(sequence, _hash(key, head.hash, sequence, event, seal_time), seal_time, event)


def examine(key: bytes, head: Head, seals: Sequence[Seal]) -> tuple[Head, Breach | None]:
    """Return the last sound link of those that follow `head`, and the first breach."""
    for seal in seals:
        reason = _flaw(key, head, seal, seals)
        if reason is not None:
            return head, Breach(head.sequence + 1, reason)
        head = seal.head
    return head, None


def _flaw(key: bytes, head: Head, seal: Seal, seals: Sequence[Seal]) -> Reason | None:
    if seal.sequence != head.sequence + 1 or seal.event is None:
        return Reason.MISSING
    if link(key, head, seal.event, seal.seal_time).hash == seal.hash:
        return None
    return Reason.REORDERED if any(_moved(key, head, seal, seals)) else Reason.CHANGED


def _moved(key: bytes, head: Head, seal: Seal, seals: Sequence[Seal]) -> Iterator[bool]:
    """Tell of each event whether it is the one that belongs here: with the seal that it has now, or with the one that stands here."""
    for other in seals:
        if other.event is not None:
            yield link(key, head, other.event, other.seal_time).hash == other.hash
            yield link(key, head, other.event, seal.seal_time).hash == seal.hash


def _hash(key: bytes, previous: bytes, sequence: int, event: SealedEvent, seal_time: int) -> bytes:
    where = (event.target_type, event.target_id, event.address, event.request_id, event.details)
    texts = (event.context, event.type, event.outcome, event.actor_type, event.actor_id, *where)
    return digest(
        key,
        previous,
        _number(sequence),
        _number(seal_time),
        event.id.bytes,
        event.tenant_id.bytes,
        _number(event.event_time),
        *(text.encode() for text in texts),
    )


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)
