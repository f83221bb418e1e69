"""What is revoked: a token, a session, a key, or all that a subject, a client or a tenant held up to a revision.

A subject's revocation carries the tenant's revision at which it happened. A token carries the revision at which its subject was last found good.
A smaller one is refused, so a login that overlaps a revocation cannot slip through, and no clock decides. While the lease lives, the instance's
memory answers: it holds every revocation that was acknowledged anywhere. Without a lease every question is put to Postgres, the record.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from watchword.rules import EVERYWHERE, Name, Revocation, RevokedKind, id_of_key, names_of
from watchword.tokens import Claims, SubjectKind

if TYPE_CHECKING:
    from services.token.revoked import Revoked
    from services.token.store.revocations import RevocationStore
__all__ = ["EVERYWHERE", "GOOD", "Lease", "Name", "Revocation", "Revocations", "RevokedKind", "Signed", "Standing", "id_of_key", "names_of"]


class Standing(StrEnum):
    """Where a token stands."""

    GOOD = "good"
    REVOKED = "revoked"
    SUBJECT_DISABLED = "subject_disabled"


GOOD = Standing.GOOD  # Python 3.11 looks members up slowly, and every verification needs it


@dataclass(slots=True, eq=False)
class Signed:
    """What a token claims that one of our keys signed, and everything that it can be revoked as.

    good_at  the version of memory in which it was last found good; nothing was revoked since, as long as that is the version
    """

    claims: Claims
    names: Sequence[Name]
    good_at: int = -1


class Lease(Protocol):
    """Says whether memory may be believed at this instant."""

    @property
    def is_current(self) -> bool:
        """Whether every acknowledged change is in memory."""


class Revocations:
    """Says where tokens stand."""

    def __init__(self, store: "RevocationStore", memory: "Revoked", lease: Lease) -> None:
        self._store = store
        self._memory = memory
        self._lease = lease
        self._waiting: list[tuple[Signed, asyncio.Future[Standing]]] = []
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_current(self) -> bool:
        """Whether memory answers now."""
        return self._lease.is_current

    def recall(self, token: Signed) -> Standing | None:
        """Return where a token stands, from memory and without waiting; None without a lease."""
        if not self._lease.is_current:
            return None
        version = self._memory.version
        if token.good_at == version:
            return GOOD
        standing = _standing(token.claims, self._memory.find_all(token.names))
        if standing is GOOD:
            token.good_at = version
        return standing

    async def standings(self, tokens: Sequence[Signed]) -> list[Standing]:
        """Return where tokens stand, in order. Raises DependencyUnavailable."""
        recalled = [standing for token in tokens if (standing := self.recall(token)) is not None]
        if len(recalled) == len(tokens):
            return recalled
        loop = asyncio.get_running_loop()
        asked = [(token, loop.create_future()) for token in tokens]
        self._waiting += asked
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="revocations")
        return list(await asyncio.gather(*(future for _, future in asked)))

    async def _ask(self) -> None:
        """Put all questions that wait to Postgres by one read, and again while there are more: one read at a time, however many ask."""
        while self._waiting:
            asked, self._waiting = [one for one in self._waiting if not one[1].done()], []
            if not asked:
                return  # all have given up
            try:
                found = await self._read([token for token, _ in asked])
            except Exception as error:  # whoever asked is told why
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            for token, future in asked:
                if not future.done():
                    future.set_result(_standing(token.claims, (found[name] for name in token.names if name in found)))

    async def _read(self, tokens: Sequence[Signed]) -> Mapping[Name, Revocation]:
        names = {name for token in tokens for name in token.names}
        rows = await self._store.find(list({tenant for _, tenant, _ in names}), [UUID(int=key) for key in {key for _, _, key in names}])
        return {(row.kind, row.tenant_id, row.key.int): row for row in rows}


def _standing(claims: Claims, found: Iterable[Revocation]) -> Standing:
    standing = GOOD
    for revocation in found:
        if revocation.refuses(claims):
            if revocation.is_disabled and claims.kind is SubjectKind.USER:
                return Standing.SUBJECT_DISABLED
            standing = Standing.REVOKED
    return standing
