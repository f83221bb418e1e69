"""How long to wait for an answer from elsewhere: the time for which this process did not run is not held against whoever answers.

asyncio.timeout ends a wait though its answer has long arrived, if the loop comes to its timers late: because much was to do, or because the machine
stood still. Then a Redis that answers at once counts as down, just when an instance can least do without it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PARTS = 4  # into which a wait is cut: standing still costs no more of it than one
LAST_LOOK = 0.005  # seconds after the last part, in which the loop finds what has arrived and whoever waits for it takes it


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Wait for an answer inside. Raises TimeoutError after `seconds`, of which a standstill counts one part at most, after a last look."""
    loop = asyncio.get_running_loop()
    next_part: asyncio.TimerHandle

    def begin(part: int) -> None:
        nonlocal next_part
        if part < PARTS:
            next_part = loop.call_later(seconds / PARTS, begin, part + 1)
        else:
            next_part = loop.call_later(LAST_LOOK, lambda: waiting.reschedule(loop.time()))  # its turn comes after those of what arrived

    async with asyncio.timeout(None) as waiting:
        begin(0)
        try:
            yield
        finally:
            next_part.cancel()
