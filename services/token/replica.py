"""What a token instance holds in memory: every live revocation, and the ring of keys."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from services.token import notices
from services.token.keys import KeyRing
from services.token.revocations import Revocation
from services.token.revoked import Revoked

if TYPE_CHECKING:
    from services.token.store.revocations import RevocationStore

Follower = Callable[[Revocation], None]


class TokenReplica:
    """Keeps memory true to Postgres and to what other instances tell."""

    def __init__(self, store: "RevocationStore", memory: Revoked, ring: KeyRing) -> None:
        self._store = store
        self._memory = memory
        self._ring = ring

    async def load(self) -> None:
        """Read all live revocations and keys. Memory only grows, so what it holds already may stay."""
        async for plain, whole in self._store.list_live():
            self._memory.add_plain(plain)
            for revocation in whole:
                self._memory.add(revocation)
        await self._ring.load()

    def apply(self, change: str) -> None:
        """Apply what an instance told. Raises ValueError for what no instance wrote."""
        notice = notices.decode(change)
        if isinstance(notice, Revocation):
            self._memory.add(notice)
        elif isinstance(notice, notices.SessionsNotice):
            self._memory.add_sessions(notice.tenant_id, notice.ids, revision=notice.revision, expire_time=notice.expire_time)
        else:
            self._ring.apply(notice)
