"""Compares this host's clock with Postgres's, the one that all instances share.

By a clock that is fast or slow tokens expire at the wrong time, and so do role bindings. An instance with such a clock says that it is not ready, and
signs nothing, until its clock is right again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from services.chassis.clock import Clock
from watchword.errors import DependencyUnavailable, WatchwordError

if TYPE_CHECKING:
    from services.chassis.postgres import Database

COMPARE_EVERY = 10.0  # seconds
TOLERATED = 2.0  # seconds, of the five that a token's times have as leeway

log = structlog.get_logger()


class Skew:
    """How far this host's clock is from Postgres's, as far as that is known."""

    def __init__(self, database: "Database", clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.seconds = 0.0  # ahead of Postgres's by at least so much; below zero if behind

    @property
    def is_tolerable(self) -> bool:
        """Whether this clock may be gone by."""
        return abs(self.seconds) <= TOLERATED

    def require(self) -> None:
        """Return if this clock may be gone by. Raises DependencyUnavailable."""
        if not self.is_tolerable:
            raise DependencyUnavailable("this instance's clock is wrong; try again")

    async def measure(self) -> float:
        """Compare; return the earlier of both clocks, in seconds since 1970. A slow reply never makes a clock look wrong."""
        before = self._clock.seconds()
        theirs = (await self._database.clock()).timestamp()
        after = self._clock.seconds()
        self.seconds = before - theirs if before > theirs else min(0.0, after - theirs)
        if not self.is_tolerable:
            log.error("clock_skewed", seconds=round(self.seconds, 1))
        return min(before, theirs)


@asynccontextmanager
async def compared(database: "Database", clock: Clock) -> AsyncIterator[Skew]:
    """Compare every few seconds while inside, and once before."""
    skew = Skew(database, clock)

    async def compare() -> None:
        while True:
            await asyncio.sleep(COMPARE_EVERY)
            with contextlib.suppress(WatchwordError, OSError):  # what was found last stands
                await skew.measure()

    await skew.measure()
    task = asyncio.create_task(compare(), name="skew")
    try:
        yield skew
    finally:
        task.cancel()
