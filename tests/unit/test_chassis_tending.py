"""What is done in the background goes on, whatever happens to it."""

import asyncio

from services.chassis.tending import tended
from watchword.errors import DependencyUnavailable


async def test_a_work_that_fails_ends_nothing_and_holds_up_no_other() -> None:
    """Neither an error of the suite, nor one that nobody thought of."""
    failures, later = [DependencyUnavailable(), RuntimeError("an error of a driver")], 0
    is_over = asyncio.Event()

    async def failing() -> None:
        if failures:
            raise failures.pop(0)

    async def following() -> None:
        nonlocal later
        later += 1
        if later == 3:
            is_over.set()

    async with tended([("failing", failing), ("following", following)], every=0.001):
        await asyncio.wait_for(is_over.wait(), 5)

    assert not failures


async def test_works_have_their_turns_in_order() -> None:
    """One at a time: so they take one connection to Postgres, however many they are."""
    done, is_over = list[str](), asyncio.Event()

    async def first() -> None:
        done.append("begun")
        await asyncio.sleep(0)
        done.append("ended")

    async def second() -> None:
        done.append("second")
        is_over.set()

    async with tended([("first", first), ("second", second)], every=0.001):
        await asyncio.wait_for(is_over.wait(), 5)

    assert done[:3] == ["begun", "ended", "second"]
