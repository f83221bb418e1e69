"""Tending: a service deletes what has expired by itself, one work after another."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from services.chassis.ending import end
from watchword.errors import WatchwordError

log = structlog.get_logger()
Work = Callable[[], Awaitable[object]]


@asynccontextmanager
async def tended(works: Sequence[tuple[str, Work]], *, every: float) -> AsyncIterator[None]:
    """Do all of `works` (name, what to do) in turn, `every` so many seconds while inside. One that fails is logged, and holds up no other."""

    async def tend() -> None:
        while True:
            await asyncio.sleep(every)
            for name, work in works:
                await _attempt(name, work)

    task = asyncio.create_task(tend(), name="tend")
    try:
        yield
    finally:
        await end([task])


async def _attempt(name: str, work: Work) -> None:
    try:
        await work()
    except WatchwordError as error:
        log.warning("tending_failed", work=name, reason=error.reason)
    except Exception:  # a defect must not end the tending
        log.exception("tending_failed", work=name)
