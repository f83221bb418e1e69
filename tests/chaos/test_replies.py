"""Answers of Redis that are cut or held in the middle. Source: reliability, F18; CVE-2023-28858."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis.asyncio as aioredis

from services.chassis import redis as chassis_redis
from services.chassis.redis import Redis, RedisDown
from tests.chaos.record import record
from tests.chaos.rows import last, sound
from tests.chaos.test_redis import through
from tests.chaos.world import World
from tests.service.chassis.fault_proxy import FaultProxy
from tests.suite.conftest import Person


@asynccontextmanager
async def client_behind(stack: World, wire: FaultProxy) -> AsyncIterator[Redis]:
    """A client of the services' own kind, behind a wire."""
    url = stack.endpoints.redis_url.replace(f":{urlsplit(stack.endpoints.redis_url).port}/", f":{wire.port}/")
    client = chassis_redis._client(url, 8, chassis_redis.CALL_TIMEOUT)
    try:
        yield Redis(client, turns=7)
    finally:
        await client.aclose()


async def wrong_replies(stack: World, wanted: int) -> tuple[int, int]:
    """Cut and hold connections in the middle of answers, at 50 places in turn; return how many answers were another's, of how many."""
    wrong, answered, chance = 0, 0, random.Random(18)

    async def ask(redis: Redis) -> None:
        nonlocal wrong, answered
        words = f"{uuid4()}" * chance.randint(1, 4)
        with suppress(RedisDown, TimeoutError):
            async with asyncio.timeout(chance.choice((0.001, 0.005, 1.0))):
                wrong += await redis.call("ECHO", words) != words
                answered += 1

    async with FaultProxy.before("127.0.0.1", urlsplit(stack.endpoints.redis_url).port or 0) as wire, client_behind(stack, wire) as redis:
        offset = 0
        while answered < wanted:
            offset = offset % 50 + 1
            wire.delay = 0.002 if offset % 5 == 0 else 0.0
            wire.cut_after(offset)
            redis._failures = 0  # the breaker would let nobody through
            for _ in range(5):
                await asyncio.gather(*(ask(redis) for _ in range(20)))
    return wrong, answered


async def test_f18_an_answer_is_cut_in_the_middle(stack: World, person: Person) -> None:
    """A connection that broke or was left in the middle is thrown away: nobody reads the rest of another's answer."""
    wrong, answered = await wrong_replies(stack, 20_000)

    async def cut() -> None:
        for offset in range(1, 51):
            await stack.wires("cut_after", "redis", value=offset)
            await last(0.1)

    seen = await through(stack, person, cut, stack.whole, lasting=1.0)

    assert wrong == 0
    assert seen.load.reads.failed == []
    said = await sound(seen.load)
    record(
        "F18",
        broken="connections with Redis break in the middle of answers, after 1 to 50 bytes, and callers hang up",
        promised="nobody is given another's answer",
        seen=f"0 of {answered:,} answers; in the stack, cut 50 times: {seen.words}; {said}",
        without=await connections_kept(stack),
    )


async def connections_kept(stack: World) -> str:
    """Keep a connection whose answer nobody waited for: what redis-py did before 4.5.5."""
    read = aioredis.Connection.read_response

    async def keep(self: aioredis.Connection, *arguments: object, **more: object) -> object:
        return await read(self, *arguments, **{**more, "disconnect_on_error": False})  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aioredis.Connection, "read_response", keep)
        wrong, answered = await wrong_replies(stack, 2_000)
    assert wrong
    return f"connections kept: {wrong} of {answered:,}"
