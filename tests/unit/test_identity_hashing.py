"""The hash pool: what cannot be done in time is refused before it costs anything, and what waits is done only while somebody waits for it.

What is hashed is hashed in another process, so the work of these tests is what can be sent to one, and leaves its traces in files.
"""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from services.identity import hash_process, hashing
from services.identity.hash_process import NICE
from services.identity.hash_queue import HashQueue
from services.identity.hashing import AT_FIRST, MARGIN, HashPool, usable_cores
from services.identity.passwords import Passwords
from tests.conftest import eventually
from tests.hold import Hold, wait_for
from watchword.errors import LoginCapacityExceeded, PasswordRejected, Violation

PEPPER = bytes(range(32))
NOTHING = partial(int)


@pytest.fixture(autouse=True)
def _as_good_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else the machine does is not what most of these tests are about: an idle task may get nothing for seconds."""
    monkeypatch.setattr(hashing, "AT_FIRST", {False: "normal", True: "normal"})


def note(path: Path, text: str = "x") -> None:
    """Work that leaves a trace."""
    with path.open("a") as file:
        file.write(text)


def burn(seconds: float) -> None:
    """Work that takes so much CPU."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def reject() -> None:
    """Work that refuses."""
    raise PasswordRejected(violations=[Violation("password", "is too easy to guess")])


@asynccontextmanager
async def busy(pool: HashPool, count: int, tmp_path: Path) -> AsyncIterator[Hold]:
    """Have `count` pieces of work in the pool that end when they are released, at the latest on leaving."""
    hold = Hold(tmp_path / f"hold-{uuid4()}")
    running = [asyncio.create_task(pool.run(partial(wait_for, hold.path), remaining=1e6)) for _ in range(count)]
    await asyncio.sleep(0)
    try:
        yield hold
    finally:
        hold.release()
        await asyncio.gather(*running, return_exceptions=True)
        hold.close()


async def test_a_full_pool_refuses_at_once(tmp_path: Path) -> None:
    """Whoever would wait in vain hears so before any work is done, and when to come back."""
    done = tmp_path / "done"
    async with HashPool.open(workers=1, first_guess=0.5) as pool:
        async with busy(pool, 4, tmp_path):
            with pytest.raises(LoginCapacityExceeded) as refusal:
                await pool.run(partial(note, done), remaining=2.0)
            assert pool.finished == 0

        assert not done.exists()
        assert pool.refused == 1
        assert refusal.value.retry_after is not None
        assert refusal.value.retry_after.total_seconds() == 2.0
        assert pool.finished == 4
        await pool.run(partial(note, done), remaining=2.0)
        assert done.read_text() == "x"


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
            assert await place.run(partial(int, 7)) == 7


async def test_a_place_is_given_back_once_by_whoever_fails() -> None:
    """A login that is refused for another cause must not hold the queue up, nor make it look shorter than it is."""
    async with HashPool.open(workers=1, first_guess=0.01) as pool:
        with pytest.raises(ZeroDivisionError), pool.admitted(remaining=10):
            raise ZeroDivisionError
        with pytest.raises(PasswordRejected), pool.admitted(remaining=10) as place:
            await place.run(reject)
        await pool.run(NOTHING, remaining=10)

        assert pool.present == 0


async def test_more_processes_make_a_shorter_queue(tmp_path: Path) -> None:
    """Two processes take the second at once."""
    async with HashPool.open(workers=2, first_guess=1.0) as pool, busy(pool, 1, tmp_path):
        assert pool.wait == 0
        async with busy(pool, 2, tmp_path):
            assert pool.wait == 1.0  # the third runs next: a process is free after one hash


async def test_whose_turn_does_not_come_in_time_hears_it_while_he_still_listens(tmp_path: Path) -> None:
    """The queue may turn out slower than it looked: then he is told when there is just no time left for a hash, and not when all is over."""
    done = tmp_path / "done"
    async with HashPool.open(workers=1, first_guess=0.001) as pool:
        await pool.run(partial(burn, 0.4), remaining=100)
        pool.average = 0.001
        async with busy(pool, 1, tmp_path) as hold:
            began = time.monotonic()
            with pytest.raises(LoginCapacityExceeded):
                await pool.run(partial(note, done), remaining=1.0)
            assert 0.4 < time.monotonic() - began < 1.0
            hold.release()

        assert not done.exists()
        assert pool.refused == 1


async def test_those_who_wait_are_told_as_soon_as_hashes_are_seen_to_be_slower(tmp_path: Path) -> None:
    """Nobody waits for seconds for what cannot be any more; and who has the patience for it keeps his place."""
    done = tmp_path / "done"
    async with HashPool.open(workers=1) as pool:
        await pool.run(NOTHING, remaining=1e6)
        first, second = Hold(tmp_path / "first"), Hold(tmp_path / "second")
        pool.average = 1.0
        for hold in (first, second):
            following = asyncio.create_task(pool.run(partial(wait_for, hold.path), remaining=1e6))
        brief = asyncio.create_task(pool.run(partial(note, done), remaining=1000))
        patient = asyncio.create_task(pool.run(partial(note, done, "patient"), remaining=1e6))
        await asyncio.sleep(0)
        pool.average = 900.0  # seconds
        first.release()

        with pytest.raises(LoginCapacityExceeded):
            await asyncio.wait_for(brief, 10)
        assert pool.present == 2
        second.release()
        await following
        await patient
        for hold in (first, second):
            hold.close()

    assert done.read_text() == "patient"


async def test_a_hash_that_takes_long_counts_before_it_has_ended(tmp_path: Path) -> None:
    """Whoever comes while one is stuck must not believe the queue to be as fast as ever; nor need those wait on who came before."""
    async with HashPool.open(workers=1, first_guess=0.001) as pool, busy(pool, 1, tmp_path):
        following, last = (asyncio.create_task(pool.run(NOTHING, remaining=100)) for _ in range(2))
        await asyncio.sleep(0)
        with pool.admitted(remaining=100):
            pass
        pool._hashing.update(dict.fromkeys(pool._hashing, time.monotonic() - 120))

        with pytest.raises(LoginCapacityExceeded), pool.admitted(remaining=100):
            pass
        with pytest.raises(LoginCapacityExceeded):
            await asyncio.wait_for(last, 10)
        assert not following.done()


async def test_a_turn_that_is_given_to_who_just_went_is_the_next_ones(tmp_path: Path) -> None:
    """Or the pool would be smaller from then on."""
    queue = HashQueue(1, LoginCapacityExceeded)
    await queue.turn(until=time.monotonic() + 100, cost=0)
    going, staying = (asyncio.create_task(queue.turn(until=time.monotonic() + 100, cost=0)) for _ in range(2))
    await asyncio.sleep(0)
    queue.leave()
    going.cancel()

    await asyncio.wait_for(staying, 10)
    assert going.cancelled()
    queue.leave()
    await asyncio.wait_for(queue.turn(until=time.monotonic() + 100, cost=0), 10)


async def test_while_others_wait_a_turn_is_judged_by_how_long_hashes_take_here(tmp_path: Path) -> None:
    """Where other work slows the hashes down, one that begins a moment before its deadline ends after it: for nobody, and in another's stead."""
    done = tmp_path / "done"
    async with HashPool.open(workers=1) as pool:
        await pool.run(NOTHING, remaining=10)
        async with busy(pool, 1, tmp_path) as hold:
            brief = asyncio.create_task(pool.run(partial(note, done), remaining=20))
            patient = asyncio.create_task(pool.run(partial(note, done, "patient"), remaining=1000))
            await asyncio.sleep(0)
            pool.average = 60.0  # seconds
            hold.release()
            with pytest.raises(LoginCapacityExceeded):
                await brief
            await patient

        assert done.read_text() == "patient"


async def test_a_wait_is_given_some_slack(tmp_path: Path) -> None:
    """Under a flood the queue is always as long as it may be: if hashes turn out a little slower, its end must not be hashed too late."""
    async with HashPool.open(workers=1, first_guess=1.0) as pool, busy(pool, 10, tmp_path):
        pool.average = 1.0
        with pytest.raises(LoginCapacityExceeded), pool.admitted(remaining=11.5):
            pass
        with pool.admitted(remaining=12.5):
            pass


async def test_work_whose_caller_has_gone_is_not_done(tmp_path: Path) -> None:
    """A cancelled call leaves its place in the queue."""
    done = tmp_path / "done"
    async with HashPool.open(workers=1, first_guess=0.01) as pool:
        async with busy(pool, 1, tmp_path):
            second = asyncio.create_task(pool.run(partial(note, done), remaining=10))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
        await pool.run(NOTHING, remaining=10)

        assert not done.exists()
        assert pool.present == 0


async def test_a_deadline_shorter_than_a_hash_is_refused_by_an_empty_pool() -> None:
    """It would be hashed for nobody."""
    async with HashPool.open(workers=1) as pool:
        await pool.run(partial(Passwords, PEPPER, scheme="bcrypt", cost=10), remaining=100)
        began = time.thread_time()
        Passwords(PEPPER, scheme="bcrypt", cost=10)
        cost = time.thread_time() - began

        with pytest.raises(LoginCapacityExceeded):
            await pool.run(NOTHING, remaining=MARGIN + cost / 2)
        await pool.run(NOTHING, remaining=100)


async def test_a_pool_that_was_slow_once_does_not_refuse_for_ever() -> None:
    """A machine that slept for a minute in the middle of a hash: whoever comes next shows that it is awake."""
    async with HashPool.open(workers=1) as pool:
        await pool.run(NOTHING, remaining=10)
        pool.average = 60.0

        for _ in range(100):
            await pool.run(NOTHING, remaining=2.0)

        assert pool.average < 1


async def test_the_first_hash_replaces_the_guess() -> None:
    async with HashPool.open(workers=1, first_guess=60.0) as pool:
        await pool.run(NOTHING, remaining=100)

        assert pool.average < 30


async def test_the_loop_goes_on_while_hashes_run() -> None:
    """Calls that need no hash must not wait for those that do."""
    async with HashPool.open(workers=1) as pool:
        hashing = asyncio.create_task(pool.run(partial(Passwords, PEPPER, scheme="bcrypt", cost=10), remaining=10))
        turns = 0
        while not hashing.done():
            await asyncio.sleep(0)
            turns += 1

        assert turns > 10


async def test_in_a_flood_hashes_take_what_everything_else_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loops share their cores with them, and a core that only hashes counts as free. A few logins at once have a share."""
    monkeypatch.setattr(hashing, "AT_FIRST", AT_FIRST)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    shared, left = f"{os.SCHED_OTHER}/{min(19, nice + NICE['low'])}", f"{os.SCHED_IDLE}/{nice}"
    async with HashPool.open(workers=1) as pool:

        async def seen() -> str:
            return await pool.run(schedule, remaining=100)

        assert await seen() == shared
        async with busy(pool, 3, tmp_path):
            pool.average = 1.0
            late = asyncio.create_task(seen())  # three seconds of queue are before it
            await becomes(lambda: pool.present == 4)
        assert await late == left
        assert await seen() == left
        monkeypatch.setattr(time, "monotonic", partial(later, time.monotonic, hashing.EBB))
        assert await seen() == shared
        assert len(pool.pids) == 1
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


async def test_where_nothing_is_idle_hashes_are_as_nice_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may not let a process become an idle task."""
    told: list[int] = []
    monkeypatch.delattr(os, "SCHED_IDLE")
    monkeypatch.setattr(os, "nice", told.append)

    hash_process.step_back("idle")

    assert told == [NICE["idle"]]


async def test_a_hash_that_others_leave_nothing_for_gets_a_small_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy for good, nobody could log in."""
    monkeypatch.setattr(hashing, "STARVED", 0.3)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    async with HashPool.open(workers=1) as pool:
        starved = await pool.run(os.getpid, remaining=100)
        os.kill(starved, signal.SIGSTOP)

        assert await pool.run(partial(os.getpriority, os.PRIO_PROCESS, 0), remaining=100) == min(19, nice + NICE["low"])
        assert starved not in pool.pids
        assert await pool.run(partial(os.getpriority, os.PRIO_PROCESS, 0), remaining=100) == nice
        await becomes(lambda: not is_alive(starved))


async def test_an_exception_of_the_work_is_the_callers() -> None:
    """With all that it says."""
    async with HashPool.open(workers=1) as pool:
        with pytest.raises(PasswordRejected) as refusal:
            await pool.run(reject, remaining=10)

        assert refusal.value.violations == (Violation("password", "is too easy to guess"),)
        assert len(pool.pids) == 1


async def test_a_lost_process_loses_no_hash(tmp_path: Path) -> None:
    """One that waits for work, and one that works: another process takes its place."""
    begun, hold = tmp_path / "begun", Hold(tmp_path / "hold")
    async with HashPool.open(workers=1) as pool:
        first = await pool.run(os.getpid, remaining=10)
        os.kill(first, signal.SIGKILL)
        second = await pool.run(os.getpid, remaining=10)
        working = asyncio.create_task(pool.run(partial(note_and_wait, begun, hold.path), remaining=60))
        await becomes(lambda: begun.exists() and begun.read_text() != "")
        third = int(begun.read_text().rstrip("/"))
        os.kill(third, signal.SIGKILL)
        hold.release()
        fourth = await working

        assert first != second
        assert fourth not in {first, third}
        assert fourth in pool.pids
        assert pool.given_up == 2
    hold.close()


async def test_work_that_kills_its_process_is_refused_after_the_second(tmp_path: Path) -> None:
    """It would kill one after the other."""
    async with HashPool.open(workers=1) as pool:
        with pytest.raises(LoginCapacityExceeded):
            await pool.run(partial(note_and_die, tmp_path / "died"), remaining=60)

        assert (tmp_path / "died").read_text() == "xx"
        assert await pool.run(partial(int, 7), remaining=10) == 7


async def test_a_process_that_says_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that hang must not be fewer for ever."""
    monkeypatch.setattr(hashing, "STARVED", 0.2)
    monkeypatch.setattr(hashing, "HANG", 0.2)
    async with HashPool.open(workers=1) as pool:
        with pytest.raises(LoginCapacityExceeded):
            await pool.run(signal.pause, remaining=60)

        assert pool.pids == []
        assert await pool.run(partial(int, 7), remaining=10) == 7


async def test_without_a_process_to_be_had_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is out of memory, or of files, says so as one that is busy."""

    def none_left(*_: object, **__: object) -> None:
        raise BlockingIOError

    for where, what in ((subprocess, "Popen"), (socket, "socketpair")):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, none_left)
            async with HashPool.open(workers=1) as pool:
                with pytest.raises(LoginCapacityExceeded):
                    await pool.run(NOTHING, remaining=10)

                patch.undo()
                assert await pool.run(partial(int, 7), remaining=10) == 7


async def test_a_process_that_cannot_load_is_one_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so on the service's stderr, and ends."""
    monkeypatch.setattr(hashing, "LOADED", ("no.such.module",))
    async with HashPool.open(workers=1) as pool:
        with pytest.raises(LoginCapacityExceeded):
            await pool.run(NOTHING, remaining=10)

        assert pool.pids == []


async def test_what_cannot_be_sent_takes_no_place() -> None:
    """A mistake in the code of a caller must not make the queue longer for good."""
    async with HashPool.open(workers=1) as pool:
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
            await pool.run(lambda: None, remaining=10)

        assert pool.present == 0
        assert await pool.run(partial(int, 7), remaining=10) == 7


async def test_a_closed_pool_leaves_no_process_behind(tmp_path: Path) -> None:
    """Not even one that is in the middle of a hash, or that would begin with the next; whoever waits hears that it ended."""
    hold = Hold(tmp_path / "hold")
    async with HashPool.open(workers=2) as pool:
        idle = await pool.run(os.getpid, remaining=10)
        waiting = [asyncio.create_task(pool.run(partial(wait_for, hold.path), remaining=100)) for _ in range(5)]
        await becomes(lambda: len(pool.pids) == 2)
        pids = pool.pids
    ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    hold.close()

    assert idle in pids
    assert pool.pids == []
    assert pool.present == 0
    assert not any(is_alive(pid) for pid in pids)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)


async def test_a_refused_password_says_nothing_of_what_a_hash_takes() -> None:
    """It is judged in milliseconds; who comes next would be promised as much."""
    async with HashPool.open(workers=1) as pool:
        await pool.run(partial(Passwords, PEPPER, scheme="bcrypt", cost=10), remaining=100)
        average, cpu = pool.average, pool.cpu

        for _ in range(5):
            with pytest.raises(PasswordRejected):
                await pool.run(reject, remaining=100)

        assert pool.average == average
        assert pool.finished == 1
        assert pool.cpu > cpu


async def test_what_was_lost_before_counts_for_those_who_come() -> None:
    """A turn in which a process was given up took as long as it took."""
    async with HashPool.open(workers=1) as pool:
        await pool.run(NOTHING, remaining=10)
        os.kill(pool.pids[0], signal.SIGSTOP)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hashing, "STARVED", 1.0)
            await pool.run(NOTHING, remaining=10)

        assert pool.average >= 0.1  # a tenth of it


async def test_processes_are_no_more_than_may_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that took over in a bad moment must not be kept beside the others."""
    begun, hold = tmp_path / "begun", Hold(tmp_path / "hold")
    async with HashPool.open(workers=3) as pool:
        await pool.run(NOTHING, remaining=100)
        with monkeypatch.context() as patch:
            patch.setattr(hashing, "STARVED", 0.1)
            async with busy(pool, 3, tmp_path):
                await becomes(lambda: pool.given_up == 3)
        assert len(pool.pids) == 3

        working = [asyncio.create_task(pool.run(partial(note_and_wait, begun, hold.path), remaining=100)) for _ in range(3)]
        await becomes(lambda: begun.exists() and begun.read_text().count("/") == 3)
        assert len(pool.pids) == 3
        hold.release()
        await asyncio.gather(*working)
    hold.close()


async def test_what_cannot_be_sent_back_is_said(tmp_path: Path) -> None:
    """A defect in the work is no lost process."""
    async with HashPool.open(workers=1) as pool:
        with pytest.raises(RuntimeError, match="cannot be sent"):
            await pool.run(partial(open, tmp_path / "file", "w"), remaining=10)

        assert pool.given_up == 0


async def test_a_hash_process_goes_first_when_memory_ends() -> None:
    """A lost hash is another login; a lost service is all of them."""
    async with HashPool.open(workers=1) as pool:
        assert await pool.run(partial(read, "/proc/self/oom_score_adj"), remaining=10) == "500\n"
        assert pool.resident > 1e6


async def test_who_is_killed_leaves_no_process_behind() -> None:
    """The pipe ends with the process at its other end, however that ends."""
    pipe = asyncio.subprocess.PIPE
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=pipe, cwd=Path(hashing.__file__).parents[2])
    assert parent.stdout
    child = int(await parent.stdout.readline())
    assert is_alive(child)

    parent.kill()
    await parent.wait()

    await becomes(lambda: not is_alive(child))


async def test_signals_to_the_group_are_for_the_service() -> None:
    """Ctrl-C in a terminal reaches the hash processes, too; the service drains, and hashes while it does."""
    async with HashPool.open(workers=1) as pool:
        pid = await pool.run(os.getpid, remaining=10)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)

        assert await pool.run(os.getpid, remaining=10) == pid


async def test_hash_processes_are_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they need comes with the work."""
    monkeypatch.setenv("SECURITY_SALT", "secret")
    async with HashPool.open(workers=1) as pool:
        assert await pool.run(partial(os.getenv, "SECURITY_SALT"), remaining=10) is None


PARENT = """
import asyncio, os
from services.identity.hashing import HashPool

async def main():
    async with HashPool.open(workers=1) as pool:
        print(await pool.run(os.getpid, remaining=10), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def read(path: str) -> str:
    """Work that reads a file."""
    return Path(path).read_text()


def schedule() -> str:
    """Work that tells how its process is scheduled."""
    return f"{os.sched_getscheduler(0)}/{os.getpriority(os.PRIO_PROCESS, 0)}"


def later(clock: Callable[[], float], seconds: float) -> float:
    """A clock that is ahead."""
    return clock() + seconds


def note_and_wait(path: Path, hold: Path) -> int:
    """Work that leaves its process id, waits, and returns it."""
    note(path, f"{os.getpid()}/")
    wait_for(hold)
    return os.getpid()


def note_and_die(path: Path) -> None:
    """Work that leaves a trace and ends its process."""
    note(path)
    os.kill(os.getpid(), signal.SIGKILL)


async def becomes(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""

    async def ask() -> bool:
        return condition()

    await eventually(ask)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("said", "usable"), [("150000 100000", 1), ("50000 100000", 1), ("200000 100000", 2), ("max 100000", 8), ("", 8)])
def test_a_container_has_no_more_cores_than_it_is_given(said: str, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes beyond that only make the kernel stop the whole process, event loop and all, for the rest of each period."""
    (tmp_path / "cpu.max").write_text(said)
    monkeypatch.setattr(hashing, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))

    assert usable_cores() == usable
