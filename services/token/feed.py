"""The feed of revocations for those who verify by themselves: one shared record of what happened, and a place in it for each who watches.

Nobody has a queue, so nobody who is slow costs memory: whoever falls behind the record begins anew with a snapshot. Places are those of the log that
all instances follow, so a cursor of one instance is good at every other.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from services.chassis.coherence import Coherence, now
from services.chassis.lease_log import Entry
from services.token import notices
from services.token.revocations import EVERYWHERE, Revocation
from services.token.revoked import Revoked
from watchword.errors import ResourceExhausted

KEPT = 10_000  # changes
MAX_WATCHERS = 5000
ENOUGH = 1000  # revocations told at once
T = TypeVar("T")
Told = Revocation | notices.SessionsNotice | None  # None for what is not about revocations
GATHER = 0.005  # seconds in which changes gather before those who watch are woken


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the log: everything up to change `seq` of `epoch`."""

    epoch: str
    seq: int

    @property
    def cursor(self) -> str:
        """The place as text."""
        return f"{self.epoch}:{self.seq}"

    @classmethod
    def read(cls, cursor: str) -> "Place | None":
        """Return the place that `cursor` names, or None for anything else."""
        epoch, _, seq = cursor.rpartition(":")
        return cls(epoch, int(seq)) if seq.isascii() and seq.isdigit() else None


@dataclass(frozen=True, slots=True)
class Happened:
    """What happened between two places. `at` is when that was everything, by this host's clock; None while that cannot be said."""

    place: Place
    revocations: Sequence[Revocation]
    at: float | None
    is_all: bool


class Feed:
    """Records what this instance applies."""

    def __init__(self, memory: Revoked) -> None:
        self._memory = memory
        self._record: deque[tuple[int, Told]] = deque(maxlen=KEPT)
        self._epoch = ""
        self._woken = asyncio.Event()
        self._pace = asyncio.Lock()
        self._reports: dict[object, frozenset[str]] = {}
        self._admitted = 0

    def follow(self, coherence: Coherence) -> None:
        """Record what is applied from now on."""
        self._coherence = coherence
        self._epoch = coherence.position[0]
        coherence.on_step(self._step)

    @property
    def reports(self) -> Sequence[frozenset[str]]:
        """The keys that each of those who watch has reported."""
        return list(self._reports.values())

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count somebody who watches while inside, who need not have said anything yet. Raises ResourceExhausted."""
        if self._admitted >= MAX_WATCHERS:
            raise ResourceExhausted("too many watch this instance; try again")
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def report(self, watcher: object, key_ids: frozenset[str]) -> None:
        """Note which keys somebody who watches can verify with."""
        self._reports[watcher] = key_ids

    def forget(self, watcher: object) -> None:
        """Forget somebody who watched."""
        self._reports.pop(watcher, None)

    @property
    def watchers(self) -> int:
        """How many watch."""
        return self._admitted

    async def wait(self, seconds: float) -> None:
        """Return when something happened, or after so long."""
        woken = self._woken
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
            await asyncio.sleep(GATHER)
        except TimeoutError:
            return

    def since(self, place: Place, tenants: frozenset[UUID] | None) -> Happened | None:
        """Return what happened first since `place`, as far as it concerns `tenants`; None if the record does not reach back to it."""
        at = now() if self._coherence.is_current else None
        epoch, seq = self._coherence.position
        if place.epoch != epoch or place.epoch != self._epoch or not self._first - 1 <= place.seq <= seq:
            return None
        found: list[Revocation] = []
        for number, told in self._after(place.seq):
            found += _concerning(told, tenants)
            if len(found) >= ENOUGH and number < seq:
                return Happened(Place(epoch, number), found, None, is_all=False)
        return Happened(Place(epoch, seq), found, at, is_all=True)

    async def paced(self, work: Callable[[], T]) -> T:
        """Do a small piece of what those who begin anew need: one piece after the other, whoever they are, and as long a rest after each.

        After Redis was away all begin anew at once, and whoever has calls must not wait for them.
        """
        async with self._pace:
            began = time.thread_time()
            done = work()
            await asyncio.sleep(time.thread_time() - began)
            return done

    def snapshot(self, tenants: frozenset[UUID] | None) -> tuple[Place, Iterator[list[Revocation]]] | None:
        """Return all that is revoked in `tenants` (None: in all), in parts, and the place from which to go on; None while that is not known."""
        if not self._coherence.is_current:
            return None
        return Place(*self._coherence.position), self._memory.of_tenants(None if tenants is None else tenants | {EVERYWHERE})

    @property
    def _first(self) -> int:
        return self._record[0][0] if self._record else self._coherence.position[1] + 1

    def _after(self, seq: int) -> Iterator[tuple[int, Told]]:
        missing = self._coherence.position[1] - seq
        return iter([self._record[-index] for index in range(min(missing, len(self._record)), 0, -1)])

    def _step(self, epoch: str, entry: Entry | None) -> None:
        if epoch != self._epoch or entry is None:
            self._epoch = epoch
            self._record.clear()
        if entry is not None:
            notice = notices.decode(entry.change)
            self._record.append((entry.seq, None if isinstance(notice, notices.KeyNotice) else notice))
        self._woken.set()
        self._woken = asyncio.Event()


def _concerning(told: Told, tenants: frozenset[UUID] | None) -> Iterator[Revocation]:
    if told is None or (tenants is not None and told.tenant_id not in tenants and told.tenant_id != EVERYWHERE):
        return
    yield from told.revocations() if isinstance(told, notices.SessionsNotice) else (told,)
