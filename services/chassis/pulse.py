"""Whether Postgres answers at all, asked while a change waits for it.

A statement may be slow for good reasons, so its own time says little. But a Postgres that does not answer the simplest question on another connection
hangs, and whoever waits for it is better served by a quick refusal.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from watchword.errors import DependencyUnavailable

ASK_EVERY = 0.25  # seconds
SILENCE = 0.6  # seconds without an answer


class Pulse:
    """Asks as long as somebody waits. `is_silent` puts the question, and says whether there was no answer within so many seconds."""

    def __init__(self, is_silent: Callable[[float], Awaitable[bool]]) -> None:
        self._is_silent = is_silent
        self._waiting: set[asyncio.Timeout] = set()
        self._asking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def felt(self) -> AsyncIterator[None]:
        """Wait for Postgres inside. Raises DependencyUnavailable if it is found to hang."""
        patience = asyncio.timeout(None)
        try:
            async with patience:
                self._waiting.add(patience)
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._ask(), name="pulse")
                try:
                    yield
                finally:
                    self._waiting.discard(patience)
        except TimeoutError:
            if patience.expired():
                raise DependencyUnavailable from None
            raise

    async def _ask(self) -> None:
        while self._waiting:
            await asyncio.sleep(ASK_EVERY)
            waited = set(self._waiting)
            if waited and await self._is_silent(SILENCE):
                for patience in waited & self._waiting:
                    patience.reschedule(asyncio.get_running_loop().time())
