"""The hash pool: password hashes off the event loop, on fewer threads than there are cores, admitted only if they will be done in time.

A hash takes a quarter of a second of a core. Work that would end after its caller has gone only makes the next one late, so it is refused at once,
before it costs anything. The threads run at low priority: a flood of logins must not slow the answers that need no hash.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeVar

from watchword.errors import LoginCapacityExceeded

T = TypeVar("T")

NICE = 10  # of the hash threads, where the system lets threads have their own
MARGIN = 0.05  # seconds of the deadline left for what follows the hash
MAX_WAITING = 1000  # however patient the callers are
WEIGHT = 0.1  # of the newest hash in the moving average


class HashPool:
    """Runs hashes. `finished` counts them, for the metrics."""

    def __init__(self, executor: ThreadPoolExecutor, workers: int, *, first_guess: float) -> None:
        self._executor = executor
        self._workers = workers
        self._average = first_guess
        self._present = 0
        self.finished = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, *, workers: int | None = None, first_guess: float = 0.25) -> AsyncIterator["HashPool"]:
        """Start the threads: one fewer than there are cores, at least one. `first_guess` is in seconds, until a hash was measured."""
        count = workers or max(1, len(os.sched_getaffinity(0)) - 1)
        executor = ThreadPoolExecutor(count, thread_name_prefix="hash", initializer=_step_back)
        try:
            yield cls(executor, count, first_guess=first_guess)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    @property
    def wait(self) -> float:
        """Seconds that new work would wait for its turn."""
        return self._present / self._workers * self._average

    async def run(self, work: Callable[[], T], *, remaining: float) -> T:
        """Return what `work` returns. Raises LoginCapacityExceeded at once if it would not be done within `remaining` seconds."""
        wait = self.wait
        if self._present >= MAX_WAITING or wait + self._average + MARGIN > remaining:
            raise LoginCapacityExceeded(retry_after=timedelta(seconds=max(1.0, wait)))
        self._present += 1
        loop = asyncio.get_running_loop()
        future = self._executor.submit(self._measured, work)
        future.add_done_callback(lambda done: _tell(loop, self._left, done))
        return await asyncio.wrap_future(future)

    def _measured(self, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self._average += WEIGHT * (time.perf_counter() - started - self._average)
            self.finished += 1

    def _left(self, _done: "Future[T]") -> None:
        self._present -= 1


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[["Future[T]"], None], done: "Future[T]") -> None:
    with contextlib.suppress(RuntimeError):  # the loop may be gone when the process ends
        loop.call_soon_threadsafe(callback, done)


def _step_back() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
