"""How an instance of token reads its memory: at once while nobody is served, and later so that calls need not wait for it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast
from uuid import uuid4

from services.token.replica import PAGE, SMALL_PAGE, TokenReplica
from services.token.revocations import Revocation
from services.token.revoked import Plain, Revoked

ROWS = 10_000


@dataclass
class Store:
    """Has ROWS revocations; notes the size of each page, and how many turns others had before it."""

    turns: list[int] = field(default_factory=lambda: [0])
    pages: list[tuple[int, int]] = field(default_factory=list)

    async def list_live(self, *, page: int) -> AsyncIterator[tuple[list[Plain], list[Revocation]]]:
        tenant = uuid4()
        for _ in range(0, ROWS, page):
            self.pages.append((page, self.turns[0]))
            yield [(tenant, "token", uuid4().bytes, 0, 2**31, False) for _ in range(page)], []


class Ring:
    """Has nothing to read."""

    async def load(self) -> None:
        pass


async def others(turns: list[int]) -> None:
    while True:
        turns[0] += 1
        await asyncio.sleep(0)


async def test_memory_that_is_read_anew_leaves_turns_to_the_calls_between_its_pages() -> None:
    """Of a hundred thousand revocations in one go, checks waited for more than a second each time that Redis came back."""
    store, memory = Store(), Revoked()
    replica = TokenReplica(cast(Any, store), memory, cast(Any, Ring()))
    calls = asyncio.create_task(others(store.turns))
    try:
        await replica.load()
        first, store.pages = store.pages, []
        await replica.load()
    finally:
        calls.cancel()

    assert [page for page, _ in first] == [PAGE] * (ROWS // PAGE)
    assert [page for page, _ in store.pages] == [SMALL_PAGE] * (ROWS // SMALL_PAGE)
    turns = [turn for _, turn in store.pages]
    assert all(later > earlier for earlier, later in pairwise(turns))
    assert memory.count == 2 * ROWS
