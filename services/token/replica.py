"""What a token instance holds in memory: every live revocation, and the ring of keys."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.token import notices
from services.token.keys import KeyRing
from services.token.revocations import Revocation
from services.token.revoked import Revoked

if TYPE_CHECKING:
    from services.token.store.revocations import RevocationStore

Follower = Callable[[Revocation], None]

PAGE = 10_000  # revocations taken in at once by an instance that has just started
SMALL_PAGE = 1_000  # a few milliseconds, by one that has calls
REST = 3.0  # times what a small page took of the processor, for the calls that have come meanwhile


class TokenReplica:
    """Keeps memory true to Postgres and to what other instances tell."""

    def __init__(self, store: "RevocationStore", memory: Revoked, ring: KeyRing) -> None:
        self._store = store
        self._memory = memory
        self._ring = ring
        self._was_loaded = False

    async def load(self) -> None:
        """Read all live revocations and keys. Memory only grows, so what it holds already may stay.

        The first time it takes the quickest way to a lease. After that there are calls, which Postgres answers meanwhile and which must not wait for
        it: it works in small pieces, and rests after each.
        """
        async for plain, whole in self._store.list_live(page=SMALL_PAGE if self._was_loaded else PAGE):
            began = time.thread_time()  # not the clock's: where others have the processor, a rest would grow with what they take
            self._memory.add_plain(plain)
            for revocation in whole:
                self._memory.add(revocation)
            if self._was_loaded:
                await asyncio.sleep(REST * (time.thread_time() - began))
        await self._ring.load()
        self._was_loaded = True

    def apply(self, change: str) -> None:
        """Apply what an instance told. Raises ValueError for what no instance wrote."""
        notice = notices.decode(change)
        if isinstance(notice, Revocation):
            self._memory.add(notice)
        elif isinstance(notice, notices.SessionsNotice):
            self._memory.add_sessions(notice.tenant_id, notice.ids, revision=notice.revision, expire_time=notice.expire_time)
        else:
            self._ring.apply(notice)
