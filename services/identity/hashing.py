"""The hash pool: password hashes off the event loop, on fewer threads than there are cores, admitted only if they will be done in time.

A hash takes a quarter of a second of a core. Work that would end after its caller has gone only makes the next one late, so it is refused at once,
before it costs anything. The threads run at low priority: a flood of logins must not slow the answers that need no hash (decision 19).

A place in the queue is taken before anything else is done for a login, and is judged twice: when it is taken, by the queue before it, and when its
turn comes, by the time that is left. Where nobody else waits, a hash is judged by its CPU time and not by how long the last ones took: a machine that
was slow for a while would else refuse everybody for ever, and never see that it is fast again.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from watchword.errors import LoginCapacityExceeded

T = TypeVar("T")

NICE = 10  # of the hash threads, where the system lets threads have their own
MARGIN = 0.05  # seconds of the deadline left for what follows the hash
SLACK = 0.1  # of the wait: the hashes before it may take longer than the last ones took
MAX_PRESENT = 1000  # however patient the callers are
WEIGHT = 0.1  # of the newest hash in the moving averages
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU in a period, and the period


class HashPool:
    """Runs hashes. `finished` and `refused` count them, for the metrics."""

    def __init__(self, executor: ThreadPoolExecutor, workers: int, *, first_guess: float) -> None:
        self._executor = executor
        self.workers = workers
        self.average = first_guess  # seconds that a hash takes, whatever else the machine does
        self._cpu = 0.0  # seconds of CPU that it costs
        self.present = 0
        self.finished = 0
        self.refused = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, *, workers: int = 0, first_guess: float = 0.25) -> AsyncIterator["HashPool"]:
        """Start the threads.

        workers      how many; 0: one fewer than there are cores, at least one
        first_guess  seconds, until a hash was measured
        """
        count = workers or max(1, usable_cores() - 1)
        executor = ThreadPoolExecutor(count, thread_name_prefix="hash", initializer=_step_back)
        try:
            yield cls(executor, count, first_guess=first_guess)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    @property
    def wait(self) -> float:
        """Seconds that new work would wait for its turn."""
        return max(0, self.present - self.workers + 1) / self.workers * self.average

    @contextmanager
    def admitted(self, *, remaining: float) -> Iterator["Place"]:
        """Hold a place in the queue while inside. Raises LoginCapacityExceeded at once if its work would not be done within `remaining` seconds."""
        wait = self.wait
        if self.present >= MAX_PRESENT or MARGIN + (wait * (1 + SLACK) + self.average if wait else self._cpu) > remaining:
            raise self.refusal()
        self.present += 1
        place = Place(self, time.monotonic() + remaining)
        try:
            yield place
        finally:
            place.leave()

    async def run(self, work: Callable[[], T], *, remaining: float) -> T:
        """Take a place and return what `work` returns. Raises LoginCapacityExceeded."""
        with self.admitted(remaining=remaining) as place:
            return await place.run(work)

    def refusal(self) -> LoginCapacityExceeded:
        """Count a refusal and return it."""
        self.refused += 1
        return LoginCapacityExceeded(retry_after=timedelta(seconds=max(1.0, self.wait)))

    async def submit(self, work: Callable[[], T], gone: Callable[[], None]) -> T:
        """Return what `work` returns, on a thread of the pool; `gone` is called in this one when that thread is free of it."""
        loop = asyncio.get_running_loop()
        future = self._executor.submit(self._measured, work)
        future.add_done_callback(lambda _: _tell(loop, gone))
        return await asyncio.wrap_future(future)

    def is_too_late(self, deadline: float) -> bool:
        """Whether a hash that began now would end after `deadline`; while others wait, it takes as long as the last ones took."""
        return time.monotonic() + (self.average if self.present > self.workers else self._cpu) > deadline

    def _measured(self, work: Callable[[], T]) -> T:
        began, before = time.perf_counter(), time.thread_time()
        result = work()
        seconds, cpu = time.perf_counter() - began, time.thread_time() - before
        self.average += (WEIGHT if self.finished else 1) * (seconds - self.average)
        self._cpu += (WEIGHT if self.finished else 1) * (cpu - self._cpu)
        self.finished += 1
        return result


class Place:
    """A place in the queue, for one piece of work."""

    def __init__(self, pool: HashPool, deadline: float) -> None:
        self._pool = pool
        self._deadline = deadline
        self._is_used = False

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns. Raises LoginCapacityExceeded without beginning it if it would end too late once its turn has come."""
        assert not self._is_used
        self._is_used = True
        return await self._pool.submit(lambda: self._in_time(work), self._give_back)

    def leave(self) -> None:
        """Give the place back, unless its work does when it ends: the caller may go earlier."""
        if not self._is_used:
            self._is_used = True
            self._give_back()

    def _in_time(self, work: Callable[[], T]) -> T:
        if self._pool.is_too_late(self._deadline):
            raise self._pool.refusal()
        return work()

    def _give_back(self) -> None:
        self._pool.present -= 1


def usable_cores() -> int:
    """Return how many cores this process may keep busy: those that it may run on, and no more than its container is given."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = QUOTA.read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))  # "max" is no number, and no limit
    return cores


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop may be gone when the process ends
        loop.call_soon_threadsafe(callback)


def _step_back() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
