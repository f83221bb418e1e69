"""Turns: of many who would read the same at once, one reads, and the others look at what he brought.

After every loss of memory all who ask about one subject miss it together; a thousand equal reads would leave no connection for anybody else.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PATIENCE = 0.25  # seconds: who reads may find nothing that can be kept, or Postgres slow, and then it is better to read oneself


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0  # who is at it, or waits


class Turns:
    """Who reads what."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}

    def __len__(self) -> int:
        """How many different things are being read."""
        return len(self._turns)

    @asynccontextmanager
    async def taken(self, key: Hashable) -> AsyncIterator[bool]:
        """Be alone with `key` while inside, or weary of waiting. Yields whether somebody was at it before."""
        turn = self._turns.setdefault(key, _Turn())
        turn.count += 1
        has_waited, is_mine = turn.lock.locked(), False
        try:
            try:
                async with asyncio.timeout(PATIENCE):
                    is_mine = await turn.lock.acquire()
            except TimeoutError:
                pass
            yield has_waited
        finally:
            if is_mine:
                turn.lock.release()
            turn.count -= 1
            if not turn.count:
                del self._turns[key]
