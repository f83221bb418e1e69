"""The end of tasks that run in the background."""

import asyncio
from collections.abc import Sequence

AGAIN_EVERY = 0.05  # seconds


async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: before Python 3.12 `asyncio.wait_for`, which redis-py uses, can lose a cancellation."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=AGAIN_EVERY)
