"""Coherent memory: an instance answers from memory exactly while every acknowledged change is in it.

Postgres is the record. An instance loads a snapshot, follows the log of changes, and holds a lease that it renews several times a second, each
time saying how far it has applied the log. A writer answers only once every lease holder has applied the change or has certainly stopped believing
its memory. So reads do no I/O, and yet none that began after a change was acknowledged is answered from before it.

Safety needs no clocks that agree. The holder believes its memory until LEASE - MARGIN after it sent the renewal, by its own monotonic clock; a
writer takes a lease away only after it has seen it unchanged for LEASE by its own. The writer's half is in fanout.py, Redis's in lease_log.py,
Postgres's in outbox.py. The protocol and its model: docs/decisions/0008, tests/model.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import uuid4

import structlog

from services.chassis.ending import end
from services.chassis.lease_log import AT_ONCE, LOG_LENGTH, Entry, Grant, LeaseLog, Standing
from services.chassis.outbox import Mode, Outbox
from services.chassis.postgres import Posted
from services.chassis.redis import RedisDown
from watchword.errors import WatchwordError

LEASE = 1.0  # seconds
MARGIN = 0.1  # seconds of the lease that its holder does without, for clocks that run at different speeds
RENEW_EVERY = 0.2  # seconds
RETRY_EVERY = 0.05  # seconds
GIVE_UP_AFTER = 0.5  # seconds without Redis, before a lease that is over is given up; while one lives they have passed when it ends
MOST_LEFT_OVER = LOG_LENGTH // 5  # changes that each instance that joins puts into the log
REGISTER_EVERY = 1.0  # seconds
# How long an instance that Postgres has not heard of goes on believing its memory. It bounds how long a dead one can matter to writers without Redis.
REGISTERED_FOR = 300.0  # seconds

log = structlog.get_logger()

# Counts time asleep too, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on a clock of this host that never jumps."""
    return time.clock_gettime(_CLOCK)


class Replica(Protocol):
    """What an instance holds in memory."""

    async def load(self) -> None:
        """Replace all of it by a snapshot of Postgres, taken after this call began. Raises DependencyUnavailable."""

    def apply(self, change: str) -> None:
        """Apply a change. Changes come twice, late and in any order; the outcome is the same. Raises ValueError if it cannot be read."""


class Lapsed(Exception):
    """The lease is lost: memory must be loaded anew before it is believed again."""


class Sightings:
    """What this process has seen of the log: the epoch and since when, each lease's turn and since when, and how far all holders have applied it."""

    def __init__(self) -> None:
        self.epoch = ""
        self.epoch_since = float("inf")
        self.floor = 0
        self._turns: dict[str, tuple[str, float]] = {}

    def see(self, standing: Standing) -> None:
        """Note a reply; call it when it is received."""
        seen_at = now()
        if standing.epoch != self.epoch:
            self.epoch, self.epoch_since, self._turns = standing.epoch, seen_at, {}
        self.floor = min((lease.applied for lease in standing.leases.values()), default=standing.seq)
        known = self._turns
        self._turns = {
            name: known[name] if name in known and known[name][0] == lease.turn else (lease.turn, seen_at) for name, lease in standing.leases.items()
        }

    def overdue(self) -> list[tuple[str, str]]:
        """Return instance and turn of leases whose holders have certainly stopped believing their memory."""
        limit = now() - LEASE
        return [(name, turn) for name, (turn, since) in self._turns.items() if since < limit]


class Coherence:
    """One instance's membership. `is_current` says at any instant whether memory may answer."""

    def __init__(self, lease_log: LeaseLog, outbox: Outbox, replica: Replica, *, name: str, holds: Callable[[], Sequence[str]] = tuple) -> None:
        self.id = uuid4()
        self.instance = self.id.hex
        self.sightings = Sightings()
        self._log = lease_log
        self._outbox = outbox
        self._replica = replica
        self._name = name
        self._holds = holds
        self._trusted_until = float("-inf")
        self._known_until = float("-inf")
        self._mode = Mode.DIRECT
        self._version = 0
        self._writing = asyncio.Lock()
        self._followers: list[Callable[[str, Entry | None], None]] = []
        self._epoch = ""
        self._applied = 0
        self._turn = ""

    @property
    def is_current(self) -> bool:
        """Whether memory holds every change that was acknowledged before this instant."""
        return now() < self._trusted_until

    async def require(self, ping: Callable[[], Awaitable[None]]) -> None:
        """Raise what `ping` raises if Postgres does not answer, unless memory does by then: a lease may come back while Postgres hangs."""
        if self.is_current:
            return
        try:
            await ping()
        except WatchwordError:
            if not self.is_current:
                raise

    @property
    def position(self) -> tuple[str, int]:
        """The epoch, and the number of the last change of it that is in memory."""
        return self._epoch, self._applied

    def on_step(self, follower: Callable[[str, Entry | None], None]) -> None:
        """Call `follower` with the epoch and each change applied; with None when memory was loaded anew."""
        self._followers.append(follower)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Coherence"]:
        """Be a member while inside. Enter before serving, leave after the last answer."""
        tasks = [asyncio.create_task(self._follow(), name="coherence"), asyncio.create_task(self._stay_registered(), name="registration")]
        try:
            yield self
        finally:
            await end(tasks)
            self._distrust()
            await _quietly(self._leave())
            await _quietly(self._outbox.sign_off(self.id))

    async def _follow(self) -> None:
        """Be a member for ever: join, stay until the lease is lost, and begin anew."""
        while True:
            try:
                await self._join()
                await self._stay()
            except (Lapsed, RedisDown, WatchwordError, ValueError) as error:
                log.debug("coherence_interrupted", cause=type(error).__name__)
            except Exception:  # a defect must not leave this instance in direct mode for ever
                log.exception("coherence_failed")
            was_current = self.is_current
            self._distrust()
            if self._mode is Mode.LEASED:
                log.warning("lease_lost", was_current=was_current)
                await _quietly(self._leave())
                await _quietly(self._register(Mode.DIRECT))
            await asyncio.sleep(RENEW_EVERY)

    async def _join(self) -> None:
        """Load memory so that no change can fall between the snapshot and the log, in this order.

        1. Tell Postgres: a writer that cannot reach Redis then waits for us, or committed before our snapshot.
        2. Note the position in the log. 3. Put into the log what was acknowledged while nobody had a lease, for those who only follow the log.
        4. Load. 5. Apply what came since. 6. Take a lease, and apply what was there then: others write on, and wait for us from there on.
        """
        await self._see(self._log.rehearse())  # first of all: where no lease can be had, nothing is loaded for it, again and again
        await self._register(Mode.LEASED)
        standing = await self._see(self._log.standing())
        await self._publish_leftovers()
        await self._replica.load()
        self._epoch, self._applied = standing.epoch, standing.seq
        self._tell(None)  # not later: who follows us must not be moved past what he was not told
        await self._catch_up(wait=0)
        while await self._renew() is not Grant.BELIEVED:
            before = self._applied
            await self._catch_up(wait=RETRY_EVERY)
            if self._applied == before:
                raise Lapsed  # what is missing is in the log no more
        log.info("lease_taken", position=self._applied)

    async def _publish_leftovers(self) -> None:
        """Raises Lapsed where so many are left that the log could forget what is written while memory is loaded: the relays come first."""
        batches: list[Sequence[Posted]] = []
        async for batch in self._outbox.batches():
            batches.append(batch)
            if sum(map(len, batches)) > MOST_LEFT_OVER:
                raise Lapsed
        for batch in batches:
            await self._see(self._log.publish([posted.payload for posted in batch]))

    async def _stay(self) -> None:
        """Follow the log. Raises Lapsed once the lease is lost, and not before: a Redis that hiccups costs nothing.

        A lease that nobody took away is renewed late, too: so one who stood still has half a second before all that it remembers is given up.
        """
        failing_since = math.inf
        while self._is_known:
            try:
                await self._catch_up(wait=RENEW_EVERY if failing_since == math.inf else 0.0)  # what is left of a lease is for renewing it
                if await self._renew() is Grant.REFUSED:
                    raise Lapsed
                await self._expel_the_dead()
                failing_since = math.inf
            except RedisDown:
                failing_since = min(failing_since, now())
                if now() - failing_since >= GIVE_UP_AFTER and not self.is_current:
                    raise Lapsed from None
                await asyncio.sleep(RETRY_EVERY)
        raise Lapsed  # writers without Redis did not wait for this instance any more

    async def _catch_up(self, *, wait: float) -> None:
        """Apply what the log has, waiting so many seconds for the first of it. Others have their turn after each piece."""
        while len(entries := await self._log.read(self._applied, wait=wait)) == AT_ONCE:
            self._take(entries)
            wait = 0
        self._take(entries)

    def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.seq != self._applied + 1:
                raise Lapsed  # the log lost changes
            self._replica.apply(entry.change)
            self._applied = entry.seq
            self._tell(entry)

    async def _renew(self) -> Grant:
        sent_at = now()
        standing = await self._see(self._log.renew(self.instance, self._epoch, self._applied))
        if standing.grant is not Grant.REFUSED:
            self._turn = standing.leases[self.instance].turn
        if standing.grant is Grant.BELIEVED:
            self._trusted_until = min(sent_at + LEASE - MARGIN, self._known_until)
        return standing.grant

    async def _leave(self) -> None:
        """Give up the lease that was granted last, and no later one: this may reach Redis when this instance is a member again."""
        await self._see(self._log.expel(self._epoch, self.instance, self._turn))

    async def _expel_the_dead(self) -> None:
        for instance, turn in self.sightings.overdue():
            if instance != self.instance:
                await self._see(self._log.expel(self.sightings.epoch, instance, turn))
                log.info("lease_expelled", of=instance)

    async def _see(self, reply: Awaitable[Standing]) -> Standing:
        standing = await reply
        self.sightings.see(standing)
        return standing

    def _tell(self, entry: Entry | None) -> None:
        for follower in self._followers:
            follower(self._epoch, entry)

    def _distrust(self) -> None:
        self._trusted_until = float("-inf")

    @property
    def _is_known(self) -> bool:
        return now() < self._known_until

    async def _register(self, mode: Mode | None = None) -> None:
        """Write this instance's row. One write at a time, and `direct` is written only after memory is believed no more.

        A refresh that ends when the row is already too old extends nothing: what was acknowledged meanwhile is found only by joining anew.
        """
        async with self._writing:
            self._mode = mode or self._mode
            self._version += 1
            began = now()
            await self._outbox.register(self.id, self._name, self._mode, self._version, self._holds())
            if mode or self._is_known:
                self._known_until = began + REGISTERED_FOR

    async def _stay_registered(self) -> None:
        while True:
            await _quietly(self._register())
            await asyncio.sleep(REGISTER_EVERY)


async def _quietly(doing: Awaitable[None]) -> None:
    """What fails here is tried again, or matters to nobody."""
    with contextlib.suppress(RedisDown, WatchwordError, OSError, TimeoutError):
        await doing
