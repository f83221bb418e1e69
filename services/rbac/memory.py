"""What an instance remembers of policies. Every entry bears the revision of the state it came from, and is believed only under the same one.

Keys are tuples, never joined strings, so no two questions share one (CVE-2026-33729). Only whole, successful loads are kept: a load that failed, was
cancelled or timed out never gets here. What is used least goes first.
"""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar
from uuid import UUID

from services.rbac.holdings import Holdings, Revision

V = TypeVar("V")

# The revision decides. This is for a database that was restored from a backup, whose counter comes by old numbers again.
TTL = timedelta(minutes=5)
MAX_WEIGHT = 200_000  # holdings, patterns and places; about 40 MB

SubjectKey = tuple[UUID, int, UUID]  # tenant, subject type, subject
PlaceKey = tuple[UUID, str]  # tenant, resource


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """A remembered value."""

    value: V
    policy: Revision
    load_time: datetime
    weight: int


class Shelf(Generic[V]):
    """Entries of one kind, of bounded weight."""

    def __init__(self, max_weight: int = MAX_WEIGHT) -> None:
        self._entries: OrderedDict[object, Entry[V]] = OrderedDict()
        self._max_weight = max_weight
        self.weight = 0

    def find(self, key: SubjectKey | PlaceKey, now: datetime) -> Entry[V] | None:
        """Return the entry of `key`, unless it is old. Whether it is true is for its `policy` to say."""
        entry = self._entries.get(key)
        if entry is None or abs(now - entry.load_time) > TTL:
            return None
        self._entries.move_to_end(key)
        return entry

    def keep(self, key: SubjectKey | PlaceKey, entry: Entry[V]) -> None:
        """Remember `entry`, and forget what no longer fits."""
        self._drop(self._entries.pop(key, None))
        if entry.weight > self._max_weight:
            return
        self._entries[key] = entry
        self.weight += entry.weight
        while self.weight > self._max_weight:
            self._drop(self._entries.popitem(last=False)[1])

    def _drop(self, entry: Entry[V] | None) -> None:
        self.weight -= 0 if entry is None else entry.weight

    def __len__(self) -> int:
        return len(self._entries)


class Memory:
    """What subjects hold, and where resources lie."""

    def __init__(self) -> None:
        self.holdings: Shelf[Holdings] = Shelf()
        self.places: Shelf[tuple[str, ...]] = Shelf()
