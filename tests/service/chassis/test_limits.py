"""Rate limits hold for all instances together, say exactly when to come back, and are never open."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import uuid4

import pytest

from services.chassis.access import LimitClass
from services.chassis.limits import CHECK_LOT, SHARE, Limit, Limits
from services.chassis.redis import Redis
from tests.conftest import eventually, free_port
from tests.service.chassis.conftest import Configure
from watchword.errors import RateLimited

QUICK = Limit(10, 1)  # one each tenth of a second, ten at once
SLOW = Limit(10, 3600)
CHECKS = Limit(1000, 3600)
PATIENCE = 5.0  # seconds, on a busy machine: an instance that waits no longer counts for itself
LOT = min(CHECK_LOT, CHECKS.count // 10)


@dataclass(frozen=True)
class Instances:
    """Two instances' limits over one Redis, each with its own connections."""

    first: Limits
    second: Limits


def limits_over(redis: Redis, *, enabled: bool = True) -> Limits:
    table = {LimitClass.READ: QUICK, LimitClass.WRITE: SLOW, LimitClass.CREDENTIAL: Limit(1, 3600), LimitClass.CHECK: CHECKS}
    return Limits(redis, table, enabled=enabled)


@pytest.fixture
async def instances(configure: Configure) -> AsyncIterator[Instances]:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(Redis.open(configure(), timeout=PATIENCE)) for _ in range(2)]
        yield Instances(limits_over(first), limits_over(second))


async def passes(limits: Limits, klass: LimitClass, who: str) -> bool:
    try:
        await limits.take(klass, "address", who)
    except RateLimited:
        return False
    return True


async def taken(limits: Limits, klass: LimitClass, who: str, *, at_most: int) -> int:
    """Return how many calls in a row pass."""
    for count in range(at_most):
        if not await passes(limits, klass, who):
            return count
    return at_most


async def test_two_instances_count_as_one(instances: Instances) -> None:
    """Otherwise every instance added would be one more try at a password."""
    who = str(uuid4())

    verdicts = [await passes(limits, LimitClass.WRITE, who) for _ in range(10) for limits in (instances.first, instances.second)]

    assert verdicts == [True] * 10 + [False] * 10


async def test_calls_at_once_on_both_instances_take_what_there_is_and_no_more(instances: Instances) -> None:
    """Read-then-write would let more through."""
    who = str(uuid4())
    verdicts = await asyncio.gather(*(passes(limits, LimitClass.WRITE, who) for _ in range(50) for limits in (instances.first, instances.second)))
    assert sum(verdicts) == 10


async def test_budgets_are_separate(instances: Instances) -> None:
    """By kind, by class and by who."""
    who = str(uuid4())
    await taken(instances.first, LimitClass.WRITE, who, at_most=11)

    assert not await passes(instances.first, LimitClass.WRITE, who)
    assert await passes(instances.first, LimitClass.WRITE, who + "x")
    assert await passes(instances.first, LimitClass.READ, who)
    await instances.first.take(LimitClass.WRITE, "client", who)


async def test_the_wait_that_is_told_is_the_wait_there_is(instances: Instances) -> None:
    """Clients that come back exactly then are let in; a moment earlier they are not."""
    who = str(uuid4())
    assert await taken(instances.first, LimitClass.READ, who, at_most=12) == 10
    asking = time.monotonic()
    with pytest.raises(RateLimited) as refusal:
        await instances.second.take(LimitClass.READ, "address", who)
    told = time.monotonic()
    assert refusal.value.retry_after is not None
    wait = refusal.value.retry_after.total_seconds()

    async def admitted() -> bool:
        return await passes(instances.second, LimitClass.READ, who)

    await eventually(admitted, within=0.5)
    let_in = time.monotonic()

    assert 0 < wait <= 0.1
    assert let_in - asking >= wait - 0.005
    assert let_in - told < wait + 0.1


async def test_a_refused_call_costs_nothing(instances: Instances) -> None:
    """Whoever keeps knocking is let in no later than whoever waits."""
    who = str(uuid4())
    await taken(instances.first, LimitClass.WRITE, who, at_most=11)
    waits = []
    for _ in range(50):
        with pytest.raises(RateLimited) as refusal:
            await instances.first.take(LimitClass.WRITE, "address", who)
        assert refusal.value.retry_after is not None
        waits.append(refusal.value.retry_after)

    assert waits == sorted(waits, reverse=True)


async def test_limits_that_are_off_let_all_through(redis: Redis) -> None:
    off, who = limits_over(redis, enabled=False), str(uuid4())
    assert await taken(off, LimitClass.CREDENTIAL, who, at_most=20) == 20
    assert await taken(limits_over(redis), LimitClass.NONE, who, at_most=20) == 20


async def test_without_redis_an_instance_keeps_its_share_and_is_neither_open_nor_closed(configure: Configure) -> None:
    """Whoever can stop Redis must not get endless guesses, nor lock everybody out."""
    async with Redis.open(configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")) as gone:
        alone, who = limits_over(gone), str(uuid4())

        assert await taken(alone, LimitClass.WRITE, who, at_most=20) == 10 // SHARE
        assert await taken(alone, LimitClass.CREDENTIAL, who, at_most=20) == 1
        assert await taken(alone, LimitClass.CHECK, who, at_most=2000) in range(CHECKS.count // SHARE - LOT, CHECKS.count // SHARE + 1)
        with pytest.raises(RateLimited) as refusal:
            await alone.take(LimitClass.WRITE, "address", who)
        assert refusal.value.retry_after is not None
        assert 0 < refusal.value.retry_after.total_seconds() <= SHARE * 360


async def test_without_redis_the_share_comes_back_with_time(configure: Configure) -> None:
    async with Redis.open(configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")) as gone:
        alone, who = limits_over(gone), str(uuid4())
        assert await taken(alone, LimitClass.READ, who, at_most=20) == 5

        async def admitted() -> bool:
            return await passes(alone, LimitClass.READ, who)

        await eventually(admitted, within=0.5)


async def test_checks_are_taken_in_lots(instances: Instances, redis: Redis) -> None:
    """One round trip for a tenth of the limit; two instances still stay within it together."""
    who = str(uuid4())
    before = await _scripts_run(redis)
    assert await taken(instances.first, LimitClass.CHECK, who, at_most=LOT) == LOT
    assert await _scripts_run(redis) - before <= 2

    both = LOT
    both += await taken(instances.first, LimitClass.CHECK, who, at_most=475)
    both += await taken(instances.second, LimitClass.CHECK, who, at_most=2000)
    assert CHECKS.count - 2 * LOT <= both <= CHECKS.count


async def test_checks_at_once_take_one_lot(instances: Instances, redis: Redis) -> None:
    """If each of them took a lot of its own, ten calls that come together would use up the whole limit."""
    who = str(uuid4())
    before = await _scripts_run(redis)

    at_once = sum(await asyncio.gather(*(passes(instances.first, LimitClass.CHECK, who) for _ in range(LOT))))

    assert at_once == LOT
    assert await _scripts_run(redis) - before <= 2
    assert await taken(instances.second, LimitClass.CHECK, who, at_most=2000) == CHECKS.count - LOT


async def test_a_call_that_is_given_up_takes_no_budget_from_the_others(instances: Instances) -> None:
    """All wait for one lot; whoever asked first may hang up."""
    who = str(uuid4())
    first, *others = [asyncio.create_task(passes(instances.first, LimitClass.CHECK, who)) for _ in range(20)]
    await asyncio.sleep(0)  # all of them wait now

    first.cancel()

    assert await asyncio.gather(*others) == [True] * 19
    assert first.cancelled()


async def test_who_spends_finds_no_lot_empty_and_gets_no_more_than_there_is(instances: Instances) -> None:
    """The next lot is asked for while some of this one is left."""
    who = ("address", str(uuid4()))
    assert await passes(instances.first, LimitClass.CHECK, who[1])
    spent = 1
    while instances.first.spend(LimitClass.CHECK, who):
        spent += 1
        await asyncio.gather(*instances.first._refills.values())

    assert spent == CHECKS.count
    assert not await passes(instances.first, LimitClass.CHECK, who[1])
    assert not await passes(instances.second, LimitClass.CHECK, who[1])


async def test_more_at_once_than_there_are_get_what_there_is(instances: Instances) -> None:
    """Lot after lot, until there is no more; nothing is lost and nothing is given twice."""
    who = str(uuid4())
    verdicts = await asyncio.gather(*(passes(limits, LimitClass.CHECK, who) for _ in range(1000) for limits in (instances.first, instances.second)))
    assert CHECKS.count - LOT <= sum(verdicts) <= CHECKS.count


async def _scripts_run(redis: Redis) -> int:
    info = await redis.call("INFO", "commandstats")
    return sum(int(stats["calls"]) for name, stats in info.items() if name in ("cmdstat_evalsha", "cmdstat_eval"))


@pytest.mark.parametrize(("text", "expected"), [("60/60", Limit(60, 60)), ("1/3600", Limit(1, 3600))])
def test_a_limit_is_read_from_its_setting(text: str, expected: Limit) -> None:
    assert Limit.parse(text) == expected
    assert expected.interval == expected.seconds * 1_000_000 / expected.count
