"""Redis fails fast, always in the same way, and never gives one caller another's answer."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from services.chassis.redis import FAILURES_TO_OPEN, PROBE_EVERY, Redis, RedisDown, Script
from tests.conftest import Stores, eventually, free_port
from tests.service.chassis.conftest import Configure, hold_the_loop
from tests.service.chassis.fault_proxy import FaultProxy


@pytest.fixture
async def proxy(stores: Stores) -> AsyncIterator[FaultProxy]:
    async with FaultProxy.before("127.0.0.1", urlsplit(stores.redis).port or 0) as standing:
        yield standing


@pytest.fixture
async def behind(configure: Configure, stores: Stores, proxy: FaultProxy) -> AsyncIterator[Redis]:
    """A client of Redis behind the proxy."""
    url = stores.redis.replace(f":{urlsplit(stores.redis).port}/", f":{proxy.port}/")
    async with Redis.open(configure(REDIS_URL=url)) as opened:
        yield opened


async def exhaust(redis: Redis) -> None:
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(RedisDown):
            await redis.call("PING")


async def test_a_script_runs_whether_redis_knows_it_or_not(redis: Redis) -> None:
    """Redis forgets scripts when it restarts."""
    script = Script(f"return ARGV[1] .. '{uuid4()}'")

    first = await redis.run(script, [], ["a"])

    assert await redis.run(script, [], ["a"]) == first
    await redis.call("SCRIPT", "FLUSH")
    assert await redis.run(script, [], ["a"]) == first
    assert not redis.is_down


async def test_a_redis_that_is_gone_costs_nothing_once_the_breaker_is_open(configure: Configure) -> None:
    """Thousands of calls a second must not each wait for a dead server."""
    async with Redis.open(configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")) as gone:
        await exhaust(gone)
        assert gone.is_down

        began = time.process_time()
        for _ in range(1000):
            with pytest.raises(RedisDown):
                await gone.call("PING")

        assert time.process_time() - began < 0.2


async def test_a_silent_redis_is_given_up_after_a_tenth_of_a_second(behind: Redis, proxy: FaultProxy) -> None:
    await behind.call("PING")
    proxy.freeze()

    began = time.monotonic()
    with pytest.raises(RedisDown):
        await behind.call("PING")

    assert time.monotonic() - began < 0.6  # a busy machine is given some


async def test_an_answer_that_came_while_nobody_looked_is_one(redis: Redis) -> None:
    """Redis is not down because this process was busy, or stood still, for longer than a call may take."""
    await redis.call("PING")

    for block in (0.2, 1.0):  # seconds
        asking = [asyncio.create_task(redis.call("ECHO", number)) for number in range(3)]
        await asyncio.sleep(0)
        hold_the_loop(block)
        assert await asyncio.gather(*asking) == ["0", "1", "2"]

    assert redis.failures == 0


async def test_a_redis_that_does_not_let_go_holds_up_no_stop(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """By TLS, a connection is closed by both sides, and one that hangs says nothing."""
    began = time.monotonic()
    async with Redis.open(configure()) as opened:
        monkeypatch.setattr(opened._client, "aclose", asyncio.Event().wait)

    assert time.monotonic() - began < 2


async def test_the_breaker_closes_again_by_itself(behind: Redis, proxy: FaultProxy) -> None:
    """Once a second it is asked whether it is back; when it answers, all are let through."""
    await proxy.cut()
    await exhaust(behind)
    await proxy.restore()

    async def recovered() -> bool:
        with contextlib.suppress(RedisDown):
            await behind.call("PING")
        return not behind.is_down

    await eventually(recovered, within=1.5)
    assert await behind.call("ECHO", "x") == "x"


async def test_who_cannot_wait_a_second_asks_more_often(configure: Configure, stores: Stores, proxy: FaultProxy) -> None:
    """A lease is over by then."""
    url = stores.redis.replace(f":{urlsplit(stores.redis).port}/", f":{proxy.port}/")
    async with Redis.open(configure(REDIS_URL=url), probe_every=0.05) as impatient:
        await proxy.cut()
        await exhaust(impatient)
        began = time.monotonic()
        await proxy.restore()

        async def recovered() -> bool:
            with contextlib.suppress(RedisDown):
                await impatient.call("PING")
            return not impatient.is_down

        await eventually(recovered)

    assert time.monotonic() - began < PROBE_EVERY / 2


async def test_a_redis_that_was_restarted_is_told_its_scripts_again(behind: Redis, proxy: FaultProxy) -> None:
    """F13: it knows none of them. The first call after it is back must not be spent on hearing so."""
    script = Script(f"return ARGV[1] .. '{uuid4()}'")
    first = await behind.run(script, [], ["a"])
    await behind.call("SCRIPT", "FLUSH")
    await proxy.cut()
    await exhaust(behind)
    await proxy.restore()

    async def recovered() -> bool:
        with contextlib.suppress(RedisDown):
            return bool(await behind.run(script, [], ["a"]) == first)
        return False

    await eventually(recovered, within=1.5)


async def test_an_open_breaker_asks_once_beside_its_callers(behind: Redis, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A herd of probes is what a struggling server does not need, and a caller has no time for one that hangs."""
    proxy.freeze()
    await exhaust(behind)
    behind._probe_at = 0.0  # the second is over
    asked, ask = list[str](), behind._client.execute_command

    async def execute(*command: str) -> object:
        asked.extend(command)
        return await ask(*command)

    monkeypatch.setattr(behind._client, "execute_command", execute)

    for _ in range(50):
        with pytest.raises(RedisDown):
            async with asyncio.timeout(0):  # whoever waits for anything is too late
                await behind.call("ECHO", "x")
        await asyncio.sleep(0)

    assert asked == ["PING"]
    await proxy.restore()
    behind._probe_at = 0.0

    async def recovered() -> bool:
        with contextlib.suppress(RedisDown):
            return bool(await behind.call("ECHO", "x") == "x")
        return False

    await eventually(recovered)


async def test_a_ping_tries_in_spite_of_the_breaker(behind: Redis, proxy: FaultProxy) -> None:
    await proxy.cut()
    await exhaust(behind)
    with pytest.raises(RedisDown):
        await behind.ping()
    await proxy.restore()

    await behind.ping()

    assert not behind.is_down


async def test_a_cancelled_call_is_not_a_failure_of_redis(behind: Redis, proxy: FaultProxy) -> None:
    """Callers who hang up must not switch the limits off."""
    proxy.delay = 0.02
    for _ in range(FAILURES_TO_OPEN * 2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await behind.call("PING")

    assert not behind.is_down


async def test_no_answer_reaches_a_stranger(behind: Redis, proxy: FaultProxy) -> None:
    """A144: 300 calls cancelled at random, then 2,000 checked ones, through a slow network (CVE-2023-28858)."""
    chance = random.Random(144)

    async def is_warm() -> bool:
        with contextlib.suppress(RedisDown):  # twenty connections at once may take a busy machine too long
            await asyncio.gather(*(behind.call("ECHO", "warm") for _ in range(20)))
            return True
        return False

    await eventually(is_warm)
    proxy.delay = 0.002

    async def ask_and_leave(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0, 0.005)):
                await behind.call("ECHO", f"cancelled-{number}")

    for start in range(0, 300, 20):
        await asyncio.gather(*(ask_and_leave(number) for number in range(start, start + 20)))

    async def ask(number: int) -> bool:
        """Say whether the answer is the right one; on a busy machine some are given up, which is an answer to nobody."""
        answers = list[str]()

        async def answered() -> bool:
            with contextlib.suppress(RedisDown):
                answers.append(await behind.call("ECHO", f"checked-{number}"))
            return bool(answers)

        await eventually(answered)
        return answers == [f"checked-{number}"]

    verdicts = [right for start in range(0, 2000, 20) for right in await asyncio.gather(*(ask(number) for number in range(start, start + 20)))]
    assert verdicts == [True] * 2000
