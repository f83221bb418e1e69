"""The hash pool: password hashes in processes of their own, fewer than there are cores, admitted only if they will be done in time.

A hash takes a quarter of a second of a core. Work that would end after its caller has gone only makes the next one late, so it is refused at once,
before it costs anything. Hashes have a small share of the cores. In a flood of logins they are idle tasks, and have what is left: a flood must not
slow the answers that need no hash. An idle one that gets nothing for too long is given up for one with a small share (decision 20).

A place in the queue is taken before anything else is done for a login, and is judged again and again: when it is taken, by the queue before it;
when another hash has ended, or somebody comes while hashes take long, by how long they take now; and when its turn comes, by the time that is left.
Where nobody else waits, a hash is judged by its CPU time and not by how long the last ones took: a machine that was slow for a while would else
refuse everybody for ever, and never see that it is fast again.
"""

import asyncio
import contextlib
import os
import pickle
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TypeVar

import structlog

from services.identity.hash_queue import HashQueue
from services.identity.hasher import Done, Hasher, HasherLost, Priority
from watchword.errors import LoginCapacityExceeded

T = TypeVar("T")

LOADED = ("services.identity.passwords",)  # by every process before it takes its priority
MARGIN = 0.05  # seconds of the deadline left for what follows the hash
SLACK = 0.1  # of the wait: the hashes before it may take longer than the last ones took
MAX_PRESENT = 1000  # however patient the callers are
WEIGHT = 0.1  # of the newest hash in the moving averages
FLOOD, EBB = 2.0, 10.0  # seconds of queue that make a flood, and after which it is over if none of them was seen again
AT_FIRST: dict[bool, Priority] = {False: "low", True: "idle"}  # the priority of a hash, by whether there is a flood
AT_LAST: Priority = "low"  # of the process that takes over from one that was given up
STARVED, TIMES_ITS_COST = 2.0, 8  # seconds after which a process without an answer is given up for the next, or as many times its CPU if that is more
HANG = 120.0  # seconds after which any other is believed stuck
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU in a period, and the period

log = structlog.get_logger()


class HashPool:
    """Runs hashes. `finished`, `refused`, `given_up` (processes) and `cpu` (seconds) are counted for the metrics."""

    def __init__(self, workers: int, *, first_guess: float) -> None:
        self.workers = workers
        self.average = first_guess  # seconds that a hash takes, whatever else the machine does
        self._cost = 0.0  # seconds of CPU that it takes
        self.present = 0
        self.finished = 0
        self.refused = 0
        self.given_up = 0
        self.cpu = 0.0
        self._flood_until = 0.0
        self._queue = HashQueue(workers, self.refusal)
        self._is_closed = False
        self._hashers: set[Hasher] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._at_first, self._at_last = AT_FIRST, AT_LAST
        self._free: defaultdict[Priority, list[Hasher]] = defaultdict(list)
        self._hashing: dict[asyncio.Future[Done], float] = {}  # since when

    @classmethod
    @asynccontextmanager
    async def open(cls, *, workers: int = 0, first_guess: float = 0.25) -> AsyncIterator["HashPool"]:
        """Hash while inside; one process is started at once, others when there is work for them, and kept.

        workers      how many; 0: one fewer than there are cores, at least one
        first_guess  seconds, until a hash was measured
        """
        pool = cls(workers or max(1, usable_cores() - 1), first_guess=first_guess)
        try:
            with contextlib.suppress(HasherLost):  # who hashes first will hear of it
                async with pool._hasher(AT_FIRST[False]):
                    pass
            yield pool
        finally:
            await pool._end()

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that were started and have not ended."""
        return [hasher.pid for hasher in self._hashers]

    @property
    def resident(self) -> int:
        """Bytes of memory that they hold, shared pages counted each time."""
        return sum(hasher.resident for hasher in self._hashers)

    @property
    def wait(self) -> float:
        """Seconds that new work would wait for its turn."""
        return self._ahead * self.average

    @property
    def _ahead(self) -> float:
        """How many hashes one after another come before new work."""
        return max(0, self.present - self.workers + 1) / self.workers

    @property
    def _pace(self) -> float:
        """Seconds that a hash takes now: as long as the last ones, or as half of what those under way have taken: one slow one is no measure."""
        return max(self.average, (time.monotonic() - median(self._hashing.values())) / 2) if self._hashing else self.average

    @contextmanager
    def admitted(self, *, remaining: float) -> Iterator["Place"]:
        """Hold a place in the queue while inside. Raises LoginCapacityExceeded at once if its work would not be done within `remaining` seconds."""
        self.require_room(remaining=remaining)
        self.present += 1
        place = Place(self, time.monotonic() + remaining)
        try:
            yield place
        finally:
            place.leave()

    def require_room(self, *, remaining: float) -> None:
        """Raise LoginCapacityExceeded if new work would not be done within `remaining` seconds."""
        if self.wait >= FLOOD:
            self._flood_until = time.monotonic() + EBB
        pace = self._pace
        if pace > self.average:
            self._queue.weed(pace)
        needed = (self._ahead * (1 + SLACK) + 1) * pace if self._ahead else self._cost
        if self.present >= MAX_PRESENT or MARGIN + needed > remaining:
            raise self.refusal()

    async def run(self, work: Callable[[], T], *, remaining: float) -> T:
        """Take a place and return what `work` returns. Raises LoginCapacityExceeded."""
        with self.admitted(remaining=remaining) as place:
            return await place.run(work)

    def refusal(self) -> LoginCapacityExceeded:
        """Count a refusal and return it."""
        self.refused += 1
        return LoginCapacityExceeded(retry_after=timedelta(seconds=max(1.0, self._ahead * self._pace)))

    async def submit(self, work: Callable[[], T], place: "Place") -> T:
        """Return what `work` returns in a process of the pool, once it has its turn; `place` is given back when nothing of it is left there.

        A caller who goes while it waits takes it along; what has begun is ended for nobody, for a process cannot be told to stop in between.
        """
        try:
            pickled = pickle.dumps(work)
            await self._queue.turn(until=place.deadline - MARGIN, cost=self._cost)
        except BaseException:
            place.give_back()
            raise
        if self._is_closed:
            self._queue.leave()
            place.give_back()
            raise asyncio.CancelledError
        place.has_begun = True
        hashing = asyncio.ensure_future(self._done(pickled, place.deadline))
        self._hashing[hashing] = time.monotonic()

        def over(hashing: "asyncio.Future[Done]") -> None:
            del self._hashing[hashing]
            self._queue.weed(self._pace)
            self._queue.leave()
            place.give_back()
            if not hashing.cancelled():
                hashing.exception()  # is told to the caller, who may have gone

        hashing.add_done_callback(over)
        returned: T = (await asyncio.shield(hashing)).result()
        return returned

    async def _done(self, work: bytes, deadline: float) -> Done:
        """Have it done by a process that nobody else asks, and by another one if that is lost."""
        began = time.monotonic()
        for priority in (self._at_first[began < self._flood_until], self._at_last):
            if self.is_too_late(deadline):
                break
            try:
                async with self._hasher(priority) as hasher:
                    done = await hasher.do(work, self._patience(priority))
            except HasherLost as error:
                self.given_up += 1
                log.warning("hash process given up", priority=priority, error=str(error))
                continue
            self._count(done, time.monotonic() - began)
            return done
        raise self.refusal()

    @asynccontextmanager
    async def _hasher(self, priority: Priority) -> AsyncIterator[Hasher]:
        """Have a process to oneself while inside; one that is lost is not used again. Raises HasherLost."""
        free = self._free[priority]
        while free and free[-1].is_lost:
            self.given_up += 1
            self._drop(free.pop())
        if free:
            hasher = free.pop()
        else:
            self._make_room()
            self._hashers.add(hasher := Hasher())
        try:
            if not hasher.is_loaded:
                await hasher.load(LOADED, priority)
            yield hasher
        except BaseException:
            self._drop(hasher)
            raise
        free.append(hasher)

    def _make_room(self) -> None:
        """End what waits at another priority, if there are as many as may work at once: a flood must not double them."""
        for free in self._free.values():
            while free and len(self._hashers) >= self.workers:
                self._drop(free.pop())

    def _patience(self, priority: Priority) -> float:
        """Seconds that a process may take."""
        return max(STARVED, TIMES_ITS_COST * self._cost) if priority == self._at_first[True] else HANG

    def is_too_late(self, deadline: float) -> bool:
        """Whether a hash that began now would end after `deadline`; while others wait, it takes as long as the last ones took."""
        return time.monotonic() + (self.average if self.present > self.workers else self._cost) > deadline

    def _count(self, done: Done, seconds: float) -> None:
        self.cpu += done.cpu
        if not done.returned:
            return  # it was refused before it was hashed, and says nothing of what a hash takes
        self.average += (WEIGHT if self.finished else 1) * (seconds - self.average)
        self._cost += (WEIGHT if self.finished else 1) * (done.cpu - self._cost)
        self.finished += 1

    def _drop(self, hasher: Hasher) -> None:
        """End a process; nobody waits for that but the pool when it is closed."""
        self._hashers.discard(hasher)
        ending = asyncio.ensure_future(hasher.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self) -> None:
        self._is_closed = True
        for hashing in self._hashing:
            hashing.cancel()
        await asyncio.gather(*self._hashing, return_exceptions=True)
        for hasher in list(self._hashers):
            self._drop(hasher)
        await asyncio.gather(*self._ending, return_exceptions=True)


class Place:
    """A place in the queue, for one piece of work.

    deadline   of time.monotonic
    has_begun  whether the work may have been looked at
    """

    def __init__(self, pool: HashPool, deadline: float) -> None:
        self._pool = pool
        self.deadline = deadline
        self.has_begun = False
        self._is_used = False

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns. Raises LoginCapacityExceeded without beginning it if it would end too late once its turn has come."""
        assert not self._is_used
        self._is_used = True
        return await self._pool.submit(work, self)

    def leave(self) -> None:
        """Give the place back, unless its work does when it ends: the caller may go earlier."""
        if not self._is_used:
            self._is_used = True
            self.give_back()

    def give_back(self) -> None:
        """Have the queue shorter by one."""
        self._pool.present -= 1


def usable_cores() -> int:
    """Return how many cores this process may keep busy: those that it may run on, and no more than its container is given."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = QUOTA.read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))  # "max" is no number, and no limit
    return cores
