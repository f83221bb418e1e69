"""The relay: work that no caller waits for, done by whichever instance looks first."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from services.chassis.ending import end
from watchword.errors import WatchwordError

LOOK_EVERY = 1.0  # seconds

log = structlog.get_logger()
Work = Callable[[], Awaitable[object]]


@asynccontextmanager
async def relayed(works: Sequence[tuple[str, float, Work]]) -> AsyncIterator[None]:
    """Do each of `works` again and again while inside: (name, seconds between two times, what to do)."""
    tasks = [asyncio.create_task(_repeat(name, every, work), name=name) for name, every, work in works]
    try:
        yield
    finally:
        await end(tasks)


async def _repeat(name: str, every: float, work: Work) -> None:
    while True:
        try:
            await work()
        except WatchwordError as error:
            log.warning("relay_failed", work=name, cause=error.reason)
        except Exception:  # a defect must not end the relay: the next item may be sound
            log.exception("relay_failed", work=name)
        await asyncio.sleep(every)
