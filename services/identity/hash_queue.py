"""Who is hashed next: first come, first served, and refused as soon as it is seen that the turn will come too late."""

import asyncio
import time
from collections.abc import Callable


class HashQueue:
    """Turns for so many at once. `refusal` makes what those are told whose turn would come too late; times are those of time.monotonic."""

    def __init__(self, at_once: int, refusal: Callable[[], Exception]) -> None:
        self._at_once = at_once
        self._free = at_once  # nobody waits while there are any
        self._refusal = refusal
        self._waiting: dict[asyncio.Future[None], float] = {}  # until when he has to be done, in the order of arrival

    async def turn(self, *, until: float, cost: float) -> None:
        """Return when it is the caller's turn, which he ends with `leave`.

        until   when he has to be done
        cost    seconds that he needs at least
        Raises  what `refusal` makes once they are not left, or `weed` finds that they will not be
        """
        if self._free:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting[waiter] = until
        last = loop.call_later(max(0.0, until - cost - time.monotonic()), self._refuse, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # he went at the moment when his turn came
            raise
        finally:
            last.cancel()
            del self._waiting[waiter]

    def leave(self) -> None:
        """End a turn, and begin that of who waits longest."""
        for waiter in self._waiting:
            if not waiter.done():
                return waiter.set_result(None)
        self._free += 1
        return None

    def weed(self, seconds: float) -> None:
        """Refuse who would not be done in time if everybody before him takes so many seconds; those who are next are judged when their turn comes."""
        now, ahead = time.monotonic(), 0
        for waiter, until in self._waiting.items():
            if waiter.done():
                continue
            if ahead >= self._at_once and now + (ahead // self._at_once + 1) * seconds > until:
                self._refuse(waiter)
            else:
                ahead += 1

    def _refuse(self, waiter: "asyncio.Future[None]") -> None:
        if not waiter.done():
            waiter.set_exception(self._refusal())
