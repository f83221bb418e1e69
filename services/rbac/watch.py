"""Watching a tenant's policy: what each change touched, in order, without a gap, and how far that is all there is.

The record is Postgres's table of changes; notices only say that it is worth a look. A watcher stands at a revision of the policy. Whether nothing
happened since is known without asking Postgres while the lease lives and the tenant's head is known; else by a read. Of those who stand at the same
place, one reads for all who come while it does.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.chassis.coherence import now
from services.chassis.tenancy import TenantId
from services.rbac.checker import Lease
from services.rbac.model import Subject
from services.rbac.revisions import Revisions

if TYPE_CHECKING:
    from services.rbac.store.watching import Changes, ChangeStore, PolicyChanged

CHECKPOINT_EVERY = 0.8  # seconds
LATEST = 2**62  # no revision is later


@dataclass(frozen=True, slots=True)
class Told:
    """A change was made: whose permissions it touched, None for more than can be named."""

    revision: int
    subjects: tuple[Subject, ...] | None


@dataclass(frozen=True, slots=True)
class Complete:
    """Everything that was acknowledged before the instant `at` (seconds, this host's clock) has been told; it leads to `revision`."""

    revision: int
    at: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Something may not have been told. Goes on from `revision`."""

    revision: int


Event = Told | Complete | Lost


@dataclass(frozen=True, slots=True)
class Reading:
    """What Postgres told, when it was asked (seconds, this host's clock), and in which generation of memory."""

    found: "Changes"
    asked_at: float
    generation: int


class Watching:
    """Follows policies."""

    def __init__(self, store: "ChangeStore", revisions: Revisions, lease: Lease) -> None:
        self._store = store
        self._revisions = revisions
        self._lease = lease
        self._readings: dict[tuple[TenantId, int], asyncio.Task[Reading]] = {}

    async def follow(self, tenant_id: TenantId, since: int | None) -> AsyncIterator[Event]:
        """Yield what happens from revision `since` on, for ever; None begins now. Raises DependencyUnavailable."""
        if since is None:
            reading = await self._read(tenant_id, LATEST)
            position = reading.found.policy
            yield Complete(position, reading.asked_at)
        else:
            position = since
        told_at, is_known = (now(), True) if since is None else (float("-inf"), False)
        while True:
            async for event in self._catch_up(tenant_id, position, is_known=is_known):
                position = event.revision
                if not isinstance(event, Complete) or now() - told_at >= CHECKPOINT_EVERY:
                    yield event
                    told_at = now() if isinstance(event, Complete) else told_at
            is_known = True
            await self._revisions.changed(tenant_id, position, max(0.0, told_at + CHECKPOINT_EVERY - now()))

    async def _catch_up(self, tenant_id: TenantId, position: int, *, is_known: bool) -> AsyncIterator[Event]:
        """Yield what happened since `position`, and then that it is complete. A position that Postgres did not tell us is not known to be one."""
        asked_at = now()
        if is_known and self._is_nothing_new(tenant_id, position):
            yield Complete(position, asked_at)
            return
        while True:
            reading = await self._read(tenant_id, position)
            found = reading.found
            if not _is_unbroken(position, found.policy, found.changes):
                position = found.policy
                yield Lost(position)
                continue
            for change in found.changes:
                position = change.revision
                yield Told(position, change.subjects)
            if position == found.policy:
                self._revisions.begin(tenant_id, position, reading.generation)
                yield Complete(position, reading.asked_at)
                return

    async def _read(self, tenant_id: TenantId, position: int) -> Reading:
        """Return what happened since `position`, by a read that is under way or else a new one. Whoever gives up does not end it for the others."""
        key = tenant_id, position
        task = self._readings.get(key)
        if task is None:
            task = self._readings[key] = asyncio.create_task(self._list(tenant_id, position), name="watch-read")
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)

    async def _list(self, tenant_id: TenantId, position: int) -> Reading:
        asked_at, generation = now(), self._revisions.generation
        return Reading(await self._store.list_since(tenant_id, position), asked_at, generation)

    def _done(self, key: tuple[TenantId, int], task: "asyncio.Task[Reading]") -> None:
        del self._readings[key]
        if not task.cancelled():
            task.exception()  # those who wait raise it, if any still do

    def _is_nothing_new(self, tenant_id: TenantId, position: int) -> bool:
        head = self._revisions.head(tenant_id)
        return self._lease.is_current and head is not None and head <= position


def _is_unbroken(position: int, policy: int, changes: "tuple[PolicyChanged, ...]") -> bool:
    """Whether `changes` lead from `position` towards `policy` without a gap. They are kept for a day; and a restored database is behind."""
    if position > policy or (not changes and position < policy):
        return False
    steps = (position, *(change.revision for change in changes))
    return all(change.previous == step for change, step in zip(changes, steps, strict=False))
