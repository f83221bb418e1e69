"""The hash pool: what cannot be done in time is refused before it costs anything, and what waits is done only while somebody waits for it."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from services.identity import hashing
from services.identity.hashing import NICE, HashPool, usable_cores
from services.identity.passwords import Passwords
from watchword.errors import LoginCapacityExceeded, PasswordRejected

PEPPER = bytes(range(32))


@asynccontextmanager
async def busy(pool: HashPool, count: int) -> AsyncIterator[threading.Event]:
    """Have `count` pieces of work in the pool that end when the event is set, at the latest on leaving."""
    hold = threading.Event()
    running = [asyncio.create_task(pool.run(hold.wait, remaining=1e6)) for _ in range(count)]
    await asyncio.sleep(0)
    try:
        yield hold
    finally:
        hold.set()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_full_pool_refuses_at_once() -> None:
    """Whoever would wait in vain hears so before any work is done, and when to come back."""
    done: list[int] = []
    async with HashPool.open(workers=1, first_guess=0.5) as pool:
        async with busy(pool, 4):
            with pytest.raises(LoginCapacityExceeded) as refusal:
                await pool.run(lambda: done.append(1), remaining=2.0)
            assert pool.finished == 0

        assert done == []
        assert pool.refused == 1
        assert refusal.value.retry_after is not None
        assert refusal.value.retry_after.total_seconds() == 2.0
        assert pool.finished == 4
        await pool.run(lambda: done.append(1), remaining=2.0)
        assert done == [1]


async def test_a_place_counts_before_there_is_work_for_it() -> None:
    """Thousands that arrive at once must not all find the queue empty, and then fill it together after their reads."""
    async with HashPool.open(workers=1, first_guess=0.5) as pool:
        with ExitStack() as places:
            for _ in range(4):
                places.enter_context(pool.admitted(remaining=10))
            with pytest.raises(LoginCapacityExceeded), pool.admitted(remaining=2.0):
                pass

        assert pool.wait == 0
        with pool.admitted(remaining=2.0) as place:
            assert await place.run(lambda: 7) == 7


async def test_a_place_is_given_back_once_by_whoever_fails() -> None:
    """A login that is refused for another cause must not hold the queue up, nor make it look shorter than it is."""
    async with HashPool.open(workers=1, first_guess=0.01) as pool:
        with pytest.raises(ZeroDivisionError), pool.admitted(remaining=10):
            raise ZeroDivisionError
        with pytest.raises(PasswordRejected), pool.admitted(remaining=10) as place:
            await place.run(_reject)
        await pool.run(lambda: None, remaining=10)

        assert pool.present == 0


def _reject() -> None:
    raise PasswordRejected


async def test_more_threads_make_a_shorter_queue() -> None:
    """Two threads take the second at once."""
    async with HashPool.open(workers=2, first_guess=1.0) as pool, busy(pool, 1):
        assert pool.wait == 0
        async with busy(pool, 2):
            assert pool.wait == 1.0  # the third runs next: a thread is free after one hash


async def test_work_whose_turn_comes_too_late_is_not_begun() -> None:
    """The queue may turn out slower than it looked."""
    done: list[int] = []
    async with HashPool.open(workers=1, first_guess=0.001) as pool:
        async with busy(pool, 1) as hold:
            late = asyncio.create_task(pool.run(lambda: done.append(1), remaining=0.2))
            await asyncio.sleep(0)
            await asyncio.sleep(0.25)  # its deadline has passed
            hold.set()
            with pytest.raises(LoginCapacityExceeded):
                await late

        assert done == []
        assert pool.refused == 1


async def test_while_others_wait_a_turn_is_judged_by_how_long_hashes_take_here() -> None:
    """Where other work slows the hashes down, one that begins a moment before its deadline ends after it: for nobody, and in another's stead."""
    done: list[int] = []
    async with HashPool.open(workers=1) as pool:
        await pool.run(lambda: None, remaining=10)
        async with busy(pool, 1) as hold:
            brief = asyncio.create_task(pool.run(lambda: done.append(1), remaining=20))
            patient = asyncio.create_task(pool.run(lambda: done.append(2), remaining=1000))
            await asyncio.sleep(0)
            pool.average = 60.0  # seconds
            hold.set()
            with pytest.raises(LoginCapacityExceeded):
                await brief
            await patient

        assert done == [2]


async def test_a_wait_is_given_some_slack() -> None:
    """Under a flood the queue is always as long as it may be: if hashes turn out a little slower, its end must not be hashed too late."""
    async with HashPool.open(workers=1, first_guess=1.0) as pool, busy(pool, 10):
        pool.average = 1.0
        with pytest.raises(LoginCapacityExceeded), pool.admitted(remaining=11.5):
            pass
        with pool.admitted(remaining=12.5):
            pass


async def test_work_whose_caller_has_gone_is_not_done() -> None:
    """A cancelled call leaves its place in the queue."""
    done: list[int] = []
    async with HashPool.open(workers=1, first_guess=0.01) as pool:
        async with busy(pool, 1):
            second = asyncio.create_task(pool.run(lambda: done.append(1), remaining=10))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
        await pool.run(lambda: None, remaining=10)

        assert done == []
        assert pool.present == 0


async def test_a_deadline_shorter_than_a_hash_is_refused_by_an_empty_pool() -> None:
    """It would be hashed for nobody."""
    async with HashPool.open(workers=1) as pool:
        await pool.run(lambda: Passwords(PEPPER, scheme="bcrypt", cost=10), remaining=100)
        began = time.thread_time()
        Passwords(PEPPER, scheme="bcrypt", cost=10)
        cost = time.thread_time() - began

        with pytest.raises(LoginCapacityExceeded):
            await pool.run(lambda: None, remaining=cost / 2)
        await pool.run(lambda: None, remaining=100)


async def test_a_pool_that_was_slow_once_does_not_refuse_for_ever() -> None:
    """A machine that slept for a minute in the middle of a hash: whoever comes next shows that it is awake."""
    async with HashPool.open(workers=1) as pool:
        await pool.run(lambda: None, remaining=10)
        pool.average = 60.0

        for _ in range(100):
            await pool.run(lambda: None, remaining=2.0)

        assert pool.average < 1


async def test_the_first_hash_replaces_the_guess() -> None:
    async with HashPool.open(workers=1, first_guess=60.0) as pool:
        await pool.run(lambda: None, remaining=100)

        assert pool.average < 30


async def test_the_loop_goes_on_while_hashes_run() -> None:
    """Calls that need no hash must not wait for those that do."""
    async with HashPool.open(workers=1) as pool:
        hashing = asyncio.create_task(pool.run(lambda: Passwords(PEPPER, scheme="bcrypt", cost=10), remaining=10))
        turns = 0
        while not hashing.done():
            await asyncio.sleep(0)
            turns += 1

        assert turns > 10


async def test_hashes_run_at_low_priority() -> None:
    """The event loop shares its cores with them."""
    async with HashPool.open(workers=1) as pool:
        assert await pool.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), remaining=10) == NICE
    assert os.getpriority(os.PRIO_PROCESS, 0) < NICE


@pytest.mark.parametrize(("said", "usable"), [("150000 100000", 1), ("50000 100000", 1), ("200000 100000", 2), ("max 100000", 8), ("", 8)])
def test_a_container_has_no_more_cores_than_it_is_given(said: str, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads beyond that only make the kernel stop the whole process, event loop and all, for the rest of each period."""
    (tmp_path / "cpu.max").write_text(said)
    monkeypatch.setattr(hashing, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))

    assert usable_cores() == usable
