"""Attempts: counted before they are made, on all instances together, never open (A100 to A104, D12)."""

import asyncio
import time
from collections import Counter
from datetime import timedelta
from statistics import median

import pytest
from msgspec.structs import replace

from services.chassis.settings import Secret
from services.identity import attempts
from services.identity.attempts import Policy
from services.identity.hashing import HashPool
from services.identity.passwords import Passwords
from tests.conftest import free_port
from tests.service.identity.conftest import OTHER_PASSWORD, PASSWORD, Stack, gather, serving_identity
from watchword.errors import InvalidCredentials, RateLimited
from watchword.identity.v1 import authentication_pb2 as pb
from watchword.identity.v1 import oauth_pb2, user_pb2


@pytest.fixture(autouse=True)
def nobody_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom a busy machine has no time for is not counted, and nothing here is about him: see test_login."""
    monkeypatch.setattr(HashPool, "_ahead", 0.0)


async def guess(stack: Stack, login: str, number: int = 0, *, address: str = "") -> type:
    """Guess wrong, at one instance or the other; return the class of the answer."""
    outcome = (await gather(stack.login(login, f"wrong guess number {number}", client=stack.client(at=number % 2, address=address))))[0]
    return type(outcome)


def pause_of(refusal: RateLimited) -> float:
    """Return for how many seconds a refusal asks to wait."""
    assert refusal.retry_after is not None
    return refusal.retry_after.total_seconds()


def hashes(stack: Stack) -> int:
    """Return how many hashes both instances have computed."""
    return sum(each.identity.pool.finished for each in stack.instances)


async def test_of_500_parallel_guesses_ten_reach_the_hash(stack: Stack) -> None:
    """Counting after the comparison lets a burst past the limit (A100, CVE-2024-4629)."""
    email, here = stack.email(), stack.place()
    user = (await stack.account(email=email)).user
    before = hashes(stack)

    outcomes = Counter(await asyncio.gather(*(guess(stack, email, number, address=here) for number in range(500))))

    assert outcomes == {InvalidCredentials: 10, RateLimited: 490}
    assert hashes(stack) - before == 10
    assert await stack.failures(user.id) == ["wrong_password"] * 10
    with pytest.raises(RateLimited) as refusal:
        await stack.login(email, client=stack.client(address=here))
    assert 0 < pause_of(refusal.value) <= 30


async def test_without_the_reservation_every_guess_reaches_the_hash(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above is worth: with the limit out of the way, it would fail."""
    unlimited = Policy("off", free=10**6, pause=1, longest_pause=1, window=1)
    for name in ("NAME_HERE", "ACCOUNT_HERE"):
        monkeypatch.setattr(attempts, name, unlimited)
    email, here = stack.email(), stack.place()
    await stack.account(email=email)
    before = hashes(stack)

    await asyncio.gather(*(guess(stack, email, number, address=here) for number in range(30)))

    assert hashes(stack) - before == 30


async def test_ten_over_two_instances_count_as_ten(stack: Stack) -> None:
    """One after the other, at alternating instances: the eleventh is refused, even the right one."""
    email, here = stack.email(), stack.place()
    await stack.account(email=email)

    outcomes = [await guess(stack, email, number, address=here) for number in range(11)]

    assert outcomes == [InvalidCredentials] * 10 + [RateLimited]
    for at in (0, 1):
        with pytest.raises(RateLimited):
            await stack.login(email, client=stack.client(at=at, address=here))


async def test_a_stranger_keeps_nobody_out_but_himself(stack: Stack) -> None:
    """However long he goes on, each time that his pause is over: the owner logs in, from wherever, and it helps the stranger nothing."""
    email, username, there = stack.email(), stack.email().partition("@")[0], stack.place()
    user = (await stack.account(email=email, username=username)).user
    async with stack.cheaper(Passwords(stack.identity.passwords.pepper, scheme="bcrypt", cost=4)):
        for number in range(40):
            await guess(stack, (email, username)[number % 2], number, address=there)
            await stack.end_pauses()
            if number % 10 == 9:
                await stack.login(email)
                await stack.login(username, client=stack.client(at=1))
    assert (await stack.failures(user.id)).count("wrong_password") == 40

    assert [await guess(stack, email, number, address=there) for number in range(2)] == [InvalidCredentials, RateLimited]
    assert not (await stack.admin().users("GetUser", user_pb2.GetUserRequest(user_id=user.id))).user.HasField("locked_until_time")


async def test_strangers_everywhere_meet_the_loose_limit(stack: Stack) -> None:
    """From a hundred addresses, each below its own limit (A100, NIST's 100). The owner waits at a new place, and not where he has been."""
    email, home = stack.email(), stack.place()
    user = (await stack.account(email=email)).user
    async with stack.cheaper(Passwords(stack.identity.passwords.pepper, scheme="bcrypt", cost=4)):
        await stack.login(email, client=stack.client(address=home))
        outcomes = Counter(await asyncio.gather(*(guess(stack, email, number) for number in range(130))))

        assert outcomes == {InvalidCredentials: 100, RateLimited: 30}
        for at in (0, 1):
            with pytest.raises(RateLimited):
                await stack.login(email, client=stack.client(at=at))
            await stack.login(email, client=stack.client(at=at, address=home))
        with pytest.raises(RateLimited):  # what was right at home does not excuse what is wrong elsewhere
            await stack.login(email)
        assert (await stack.admin().users("GetUser", user_pb2.GetUserRequest(user_id=user.id))).user.HasField("locked_until_time")
        assert [await guess(stack, email, number, address=home) for number in range(11)] == [InvalidCredentials] * 10 + [RateLimited]


async def test_an_account_knows_the_last_places_of_its_owner(stack: Stack) -> None:
    """As keyed digests, and no more than five, the latest first."""
    email, places = stack.email(), [stack.place() for _ in range(7)]
    user = (await stack.account(email=email)).user
    kept = "SELECT familiar_places FROM account WHERE id = $1::uuid"
    seen: list[bytes] = []
    for address in places:
        await stack.login(email, client=stack.client(address=address))
        seen.insert(0, (await stack.sql(kept, user.id))[0]["familiar_places"][0])
    await stack.login(email, client=stack.client(address=places[4]))
    await gather(stack.login(email, "a wrong password"))

    assert (await stack.sql(kept, user.id))[0]["familiar_places"] == [seen[2], seen[0], seen[1], seen[3], seen[4]]
    assert {len(place) for place in seen} == {16}
    assert len(set(seen)) == 7


async def test_an_unknown_name_is_refused_like_a_known_one(stack: Stack) -> None:
    """Otherwise the limit itself would say which accounts exist; and the pauses are the same."""
    known, unknown = stack.email(), stack.email()
    await stack.account(email=known)

    for email in (known, unknown):
        here = stack.place()
        assert [await guess(stack, email, number, address=here) for number in range(10)] == [InvalidCredentials] * 10
        with pytest.raises(RateLimited) as refusal:
            await stack.login(email, client=stack.client(address=here))
        assert 0 < pause_of(refusal.value) <= 30
        assert Counter(await asyncio.gather(*(guess(stack, email, number) for number in range(95)))) == {InvalidCredentials: 90, RateLimited: 5}


async def test_two_names_of_one_account_do_not_double_the_guesses(stack: Stack) -> None:
    """And the second name is not refused either: that would say whose it is."""
    email, username, here = stack.email(), stack.email().partition("@")[0], stack.place()
    user = (await stack.account(email=email, username=username)).user
    for number in range(10):
        await guess(stack, email, number, address=here)

    outcomes = [await guess(stack, username, number, address=here) for number in range(9)]

    assert outcomes == [InvalidCredentials] * 9
    assert Counter(await stack.failures(user.id)) == {"wrong_password": 10, "locked": 9}
    with pytest.raises(InvalidCredentials):
        await stack.login(username, client=stack.client(address=here))


async def test_two_names_of_one_account_do_not_double_the_guesses_of_many(stack: Stack) -> None:
    """Nor do they for strangers at many addresses; and what keeps the account then is in Postgres too."""
    email, username = stack.email(), stack.email().partition("@")[0]
    user = (await stack.account(email=email, username=username)).user
    async with stack.cheaper(Passwords(stack.identity.passwords.pepper, scheme="bcrypt", cost=4)):
        for name in (email, username):
            assert Counter(await asyncio.gather(*(guess(stack, name, number) for number in range(60)))) == {InvalidCredentials: 60}

    assert Counter(await stack.failures(user.id)) == {"wrong_password": 100, "locked": 20}
    await stack.forget_counters()
    with pytest.raises(InvalidCredentials):
        await stack.login(username)


async def test_a_success_forgets_the_failures(stack: Stack) -> None:
    """Nine slips a day lock nobody out."""
    email, here = stack.email(), stack.place()
    await stack.account(email=email)

    for _ in range(3):
        for number in range(9):
            assert await guess(stack, email, number, address=here) is InvalidCredentials
        await stack.login(email, client=stack.client(address=here))


async def test_the_pauses_grow_and_end(stack: Stack) -> None:
    """They double to a quarter of an hour, and no stranger can make one last longer (A102)."""
    store = stack.identity.attempts_store
    key = attempts.Key(Policy("grow", free=2, pause=1, longest_pause=4, window=60), "growing")
    pauses = []
    for _ in range(5):
        count = await store.take(key)
        if not count.wait:
            pauses.append(count.pause.total_seconds())
        await stack.identity.redis.call("HDEL", "identity:attempts:grow:growing", "until")

    assert pauses == [0, 1, 2, 4, 4]
    assert {(policy.pause, policy.longest_pause) for policy in (attempts.NAME, attempts.NAME_HERE, attempts.ACCOUNT)} == {(30, 900)}


async def test_spraying_meets_the_limit_of_the_address(stack: Stack) -> None:
    """One guess at each of many accounts, from one place (A103). Right ones do not excuse wrong ones."""
    address = "203.0.113.77"
    mine = stack.email()
    await stack.account(email=mine)
    pool = stack.identity.passwords
    cheap = Passwords(pool.pepper, scheme="bcrypt", cost=4)
    async with stack.cheaper(cheap):
        outcomes = Counter(await asyncio.gather(*(guess(stack, stack.email(), n, address=address) for n in range(60))))
        await stack.login(mine, client=stack.client(address=address))
        outcomes += Counter(await asyncio.gather(*(guess(stack, stack.email(), n, address=address) for n in range(60))))

    assert outcomes == {InvalidCredentials: 100, RateLimited: 20}
    with pytest.raises(RateLimited):
        await stack.login(mine, client=stack.client(address=address))
    await stack.login(mine)


def test_an_ipv6_network_is_one_address() -> None:
    """A customer has 2^64 addresses to guess from."""
    assert attempts.neighbourhood("2001:db8::1") == attempts.neighbourhood("2001:db8::ffff:1")
    assert attempts.neighbourhood("2001:db8::1") != attempts.neighbourhood("2001:db8:0:1::1")
    assert attempts.neighbourhood("::ffff:192.0.2.1") == attempts.neighbourhood("192.0.2.1")
    assert attempts.neighbourhood("nonsense") == "nonsense"


async def test_without_redis_the_limit_is_smaller_and_never_open(stack: Stack) -> None:
    """Each instance allows its share (F13)."""
    email, here = stack.email(), stack.place()
    user = (await stack.account(email=email)).user
    settings = replace(stack.settings, REDIS_URL=Secret(f"redis://127.0.0.1:{free_port()}/0"))
    async with serving_identity(settings, stack.clock) as served:
        stack.instances.append(served)
        outcomes = Counter(await asyncio.gather(*(_guess_last(stack, email, number, here) for number in range(50))))
        others = Counter(await asyncio.gather(*(_guess_last(stack, email, number) for number in range(60))))
        stack.instances.pop()

    assert outcomes == {InvalidCredentials: 5, RateLimited: 45}
    assert others == {InvalidCredentials: 45, RateLimited: 15}
    assert await stack.failures(user.id) == ["wrong_password"] * 50


async def _guess_last(stack: Stack, login: str, number: int, address: str = "") -> type:
    return type((await gather(stack.login(login, f"wrong guess number {number}", client=stack.client(at=-1, address=address))))[0])


async def test_a_lock_outlives_redis(stack: Stack) -> None:
    """At the loose limit's threshold it is in Postgres too; then time alone ends it (D12)."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    async with stack.cheaper(Passwords(stack.identity.passwords.pepper, scheme="bcrypt", cost=4)):
        await asyncio.gather(*(guess(stack, email, number) for number in range(100)))

    await stack.forget_counters()
    with pytest.raises(InvalidCredentials):
        await stack.login(email)
    found = await stack.admin().users("GetUser", user_pb2.GetUserRequest(user_id=user.id))
    assert found.user.locked_until_time.seconds > time.time()

    await stack.forget_counters()
    stack.clock.ahead = timedelta(seconds=31)
    await stack.login(email)
    found = await stack.admin().users("GetUser", user_pb2.GetUserRequest(user_id=user.id))
    assert not found.user.HasField("locked_until_time")


async def test_an_administrator_unlocks(stack: Stack) -> None:
    """At once, under all names, at all addresses, in Redis and in Postgres."""
    email, username, here = stack.email(), stack.email().partition("@")[0], stack.place()
    user = (await stack.account(email=email, username=username)).user
    async with stack.cheaper(Passwords(stack.identity.passwords.pepper, scheme="bcrypt", cost=4)):
        for name in (email, username):
            await asyncio.gather(*(guess(stack, name, number, address=here if number < 10 else "") for number in range(110)))
        for name in (email, username):
            for address in (here, ""):
                assert await guess(stack, name, address=address) is RateLimited

    await stack.admin(at=1).users("UnlockUser", user_pb2.UnlockUserRequest(user_id=user.id))

    for name in (email, username):
        await stack.login(name, client=stack.client(address=here))
        await stack.login(name)


async def test_a_password_change_is_counted_like_a_login(stack: Stack) -> None:
    """A stolen session must not be a side door for guessing (A101, CVE-2026-9798)."""
    email = stack.email()
    await stack.account(email=email)
    mine = await stack.session(email)
    for number in range(5):
        await guess(stack, email, number, address=mine.address)

    request = pb.ChangePasswordRequest(current_password="wrong " + PASSWORD, new_password=OTHER_PASSWORD)
    outcomes = [type((await gather(mine.auth("ChangePassword", request)))[0]) for _ in range(6)]

    assert outcomes == [InvalidCredentials] * 5 + [RateLimited]
    with pytest.raises(RateLimited):
        await stack.login(email, client=stack.client(address=mine.address))


async def test_strangers_cannot_keep_a_client_out(stack: Stack) -> None:
    """A client's secret is beyond guessing, so failures elsewhere do not stop its owner; those from one place stop there."""
    admin = stack.admin()
    shown = await admin.clients("CreateOAuthClient", oauth_pb2.CreateOAuthClientRequest(display_name="c", scopes=["tokens.verify"]))
    clients, call = stack.identity.clients, stack.call
    for _ in range(10):
        with pytest.raises(InvalidCredentials):
            await clients.authenticate(shown.client.client_id, "wrong", call("198.51.100.1"))

    with pytest.raises(RateLimited):
        await clients.authenticate(shown.client.client_id, shown.client_secret, call("198.51.100.1"))
    found = await clients.authenticate(shown.client.client_id, shown.client_secret, call("198.51.100.2"))
    assert str(found.client.id) == shown.client.client_id


async def test_a_refused_attempt_takes_no_time_that_tells(stack: Stack) -> None:
    """Unknown accounts and wrong passwords take the same (A106): medians of interleaved tries, in CPU time, which others do not change."""
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    for _ in range(4):
        known = stack.email()
        await stack.account(email=known)
        for number in range(9):
            for kind, login in (("known", known), ("unknown", stack.email())):
                started = time.process_time()
                await guess(stack, login, number - number % 2)
                times[kind].append(time.process_time() - started)

    assert median(times["known"]) == pytest.approx(median(times["unknown"]), rel=0.3)
