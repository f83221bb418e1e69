"""The failure contract (docs/failure-contract.md), line by line: three instances, each with its own wires to Postgres and to a Redis of the fleet."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from services.chassis.coherence import LEASE
from tests.conftest import Keys, Stores, eventually
from tests.service.token.fleet import AGAIN, PATIENCE, TENANT, Fleet, Valkey, running_fleet
from watchword.token.v1 import key_pb2, token_pb2

COUNT = 3


@pytest.fixture(scope="module")
async def running(stores: Stores, service_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """The fleet."""
    async with running_fleet(stores, service_keys, tmp_path_factory.mktemp("fleet"), size=COUNT) as fleet:
        yield fleet


@pytest.fixture
async def fleet(running: Fleet) -> AsyncIterator[Fleet]:
    """The fleet, whole and answering from memory, before and after."""
    await running.heal()
    yield running
    await running.heal()


async def refused_after_ok(fleet: Fleet, rounds: int) -> None:
    """Revoke at each in turn, and fail on anybody who accepts afterwards."""
    for number in range(rounds):
        tokens = await fleet.issue(number % COUNT)
        assert "REVOKED" not in await fleet.verify_all(tokens.access_token)
        await fleet.revoke(tokens, number % COUNT)
        assert "VALID" not in await fleet.verify_all(tokens.access_token)
        assert not await fleet.accept_otherwise(tokens.access_token)


async def test_an_instance_that_hears_late_is_waited_for(fleet: Fleet) -> None:
    """Its lease lives and its memory answers, some hundredths of a second behind the others: long enough for who does not wait to be seen."""
    fleet.members[2].redis.delay = 0.03
    for number in range(10):
        tokens = await fleet.issue()
        assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
        await fleet.revoke(tokens, number % 2)
        assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}
    assert await fleet.are_leased()


async def test_redis_flushed_again_and_again(fleet: Fleet) -> None:
    """Whatever Redis knew of leases and changes is gone each time, a moment before the revocation."""
    for number in range(4):
        tokens = await fleet.issue()
        assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
        await fleet.valkey.client.flushall()
        await fleet.revoke(tokens, number % COUNT)
        assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def test_the_log_lost_its_changes_and_kept_its_leases(fleet: Fleet) -> None:
    """Eviction of the stream alone, with a change that a pausing instance has not read: numbers are dense, so it sees that one is missing."""
    at_hand, lost, later = [await fleet.issue() for _ in range(3)]
    fleet.members[2].pause()
    revoking = [await begun(fleet, at_hand), await begun(fleet, lost)]  # the first is the answer to a question that it has asked already
    await fleet.valkey.client.delete(*await fleet.keys_of("log"))
    revoking.append(await begun(fleet, later))
    fleet.members[2].resume()

    await asyncio.gather(*revoking)

    for tokens in (at_hand, lost, later):
        assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def begun(fleet: Fleet, tokens: token_pb2.TokenSet) -> "asyncio.Task[None]":
    """Begin to revoke, and return once the change is in the log."""
    before = await fleet.number()
    revoking = asyncio.create_task(fleet.revoke(tokens))

    async def is_logged() -> bool:
        return await fleet.number() > before

    await eventually(is_logged)
    return revoking


async def nonsense_as_state(fleet: Fleet, state: str, log: str) -> None:
    await fleet.valkey.client.set(state, "nonsense")


async def nonsense_as_log(fleet: Fleet, state: str, log: str) -> None:
    await fleet.valkey.client.set(log, "nonsense")


async def nonsense_as_number(fleet: Fleet, state: str, log: str) -> None:
    await fleet.valkey.client.hset(state, "seq", "nonsense")


async def nonsense_as_lease(fleet: Fleet, state: str, log: str) -> None:
    await fleet.valkey.client.hset(state, "lease:stranger", "nonsense")


async def nonsense_as_change(fleet: Fleet, state: str, log: str) -> None:
    await fleet.valkey.client.xadd(log, {"change": "nonsense"}, id=f"{await fleet.number() + 1}-0")


async def a_change_of_the_far_future(fleet: Fleet, state: str, log: str) -> None:
    await fleet.valkey.client.xadd(log, {"other": "nonsense"})


async def a_lease_of_nobody(fleet: Fleet, state: str, log: str) -> None:
    await fleet.valkey.client.hset(state, "lease:stranger", "1:0:0")


@pytest.mark.parametrize(
    "write",
    [
        nonsense_as_state,
        nonsense_as_log,
        nonsense_as_number,
        nonsense_as_lease,
        nonsense_as_change,
        a_change_of_the_far_future,
        a_lease_of_nobody,
    ],
)
async def test_a_stranger_wrote_under_our_keys(fleet: Fleet, write: Callable[[Fleet, str, str], Awaitable[None]]) -> None:
    """It costs a new beginning, no answer; and all come back to memory."""
    (state,) = await fleet.keys_of("state")
    await write(fleet, state, state.replace(":state", ":log"))

    await refused_after_ok(fleet, 1)

    await eventually(fleet.are_leased)


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "old"])
async def test_redis_died_and_came_back(fleet: Fleet, empty: bool) -> None:
    """With nothing, or with leases long renewed and a log that lacks the latest changes: in either case it is another epoch."""
    before, lost, after = [await fleet.issue() for _ in range(3)]
    await fleet.revoke(before)
    await fleet.valkey.client.save()
    await fleet.revoke(lost)
    epoch = await fleet.epoch()

    fleet.valkey.kill()
    await fleet.valkey.start(empty=empty)
    await fleet.revoke(after)

    for tokens in (before, lost, after):
        assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}
    await refused_after_ok(fleet, 2)
    assert await fleet.epoch() != epoch


async def test_a_primary_that_was_a_replica_for_a_moment(fleet: Fleet, tmp_path: Path) -> None:
    """The run goes on, but the data are those of a replica that lacked the latest changes: the log has gone back."""
    async with Valkey(tmp_path / "valkey", password=fleet.valkey.password).running() as other:
        await other.follow(fleet.valkey)
        await other.lead()
        lost = await fleet.issue()
        await fleet.revoke(lost)
        epoch = await fleet.epoch()

        await fleet.valkey.follow(other)
        await fleet.valkey.lead()

        await refused_after_ok(fleet, 2)
        assert set(await fleet.verify_all(lost.access_token)) == {"REVOKED"}
        assert await fleet.epoch() != epoch


async def test_redis_silent(fleet: Fleet) -> None:
    """It accepts and does not answer. Verification goes on throughout; revocations are acknowledged, through Postgres."""
    tokens = await fleet.issue()
    fleet.valkey.pause()
    assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}

    await fleet.revoke(tokens)

    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}
    await eventually(lambda: fleet.are("direct"))
    await refused_after_ok(fleet, 3)


async def test_redis_cut_off_from_all(fleet: Fleet) -> None:
    """As if it were dead. What was acknowledged meanwhile is still refused once memory answers again."""
    tokens = await fleet.issue()
    for member in fleet.members:
        await member.redis.cut()
    await fleet.revoke(tokens)
    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}

    await fleet.heal()

    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def test_an_instance_that_hung_is_right_from_its_first_answer(fleet: Fleet) -> None:
    """It slept through the revocation, and through its lease."""
    tokens = await fleet.issue()
    assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
    fleet.members[2].pause()

    await fleet.revoke(tokens)
    late = asyncio.create_task(fleet.verify(tokens.access_token, 2))
    await asyncio.sleep(0.1)  # the question lies in its socket when it wakes
    fleet.members[2].resume()

    assert await late == "REVOKED"


@pytest.mark.parametrize("hangs", [False, True], ids=["gone", "hangs"])
@pytest.mark.parametrize("is_moved", [False, True], ids=["there", "elsewhere"])
async def test_a_machine_that_stood_still_forgets_nothing(fleet: Fleet, is_moved: bool, hangs: bool) -> None:
    """All slept through their leases; if it was moved, their connections are broken. Without Postgres only memory can answer afterwards."""
    good, bad = await fleet.issue(), await fleet.issue()
    await fleet.revoke(bad)
    for member in fleet.members:
        if hangs:
            member.postgres.freeze()
        else:
            await member.postgres.cut()

    async def is_remembered() -> bool:
        answers = await fleet.verify_all(bad.access_token)
        assert "VALID" not in answers
        return [*answers, *await fleet.verify_all(good.access_token)] == ["REVOKED"] * COUNT + ["VALID"] * COUNT

    for _ in range(3):
        await eventually(is_remembered)
        for member in fleet.members:
            member.pause()
        await asyncio.sleep(1.5 * LEASE)  # a host that gives its time to others
        for member in fleet.members:
            if is_moved:
                await member.redis.cut()
                await member.redis.restore()
            member.resume()
        await eventually(is_remembered)


async def test_an_instance_that_was_killed_is_waited_for_once(fleet: Fleet) -> None:
    """Until its lease is over, which nothing but time can say. Another in its place is right from its first answer."""
    tokens = [await fleet.issue() for _ in range(2)]
    fleet.members[2].kill()

    for one in tokens:
        await fleet.revoke(one)
        assert (await fleet.verify_all(one.access_token))[:2] == ["REVOKED"] * 2
    await fleet.members[2].start()

    async def is_reached_again() -> bool:
        answers = [await fleet.verify(one.access_token, 2) for one in tokens]
        assert "VALID" not in answers
        return answers == ["REVOKED"] * 2

    await eventually(is_reached_again)  # the channel that saw it die waits a moment before it connects anew


async def test_an_instance_that_was_killed_while_redis_is_dead_is_seen_to_be_gone(fleet: Fleet) -> None:
    """Its row says that it answers from memory, and nobody will say otherwise for minutes; but those on the same machine see that it has ended."""
    tokens = await fleet.issue()
    fleet.valkey.kill()
    fleet.members[2].kill()

    await fleet.revoke(tokens)

    assert (await fleet.verify_all(tokens.access_token))[:2] == ["REVOKED"] * 2


async def test_an_instance_cut_off_from_redis_asks_postgres(fleet: Fleet) -> None:
    await fleet.members[1].redis.cut()
    await refused_after_ok(fleet, 3)


async def test_an_instance_cut_off_from_postgres_answers_from_memory_and_changes_nothing(fleet: Fleet) -> None:
    """Old tokens and new ones; it hears of others' revocations; its own are UNAVAILABLE within about a second."""
    tokens, other = await fleet.issue(), await fleet.issue()
    await fleet.members[1].postgres.cut()

    assert [await fleet.verify(one.access_token, 1) for one in (tokens, other)] == ["VALID", "VALID"]
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fleet.members[1].stub.RevokeToken(token_pb2.RevokeTokenRequest(token=other.access_token), metadata=fleet.identity, timeout=5)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began < 1.5

    await fleet.revoke(tokens, 0)
    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def test_an_instance_cut_off_from_both_answers_nothing_and_leaves(fleet: Fleet) -> None:
    """UNAVAILABLE, never VALID; and its health says so, for Envoy to take it out."""
    tokens = await fleet.issue()
    await fleet.members[1].postgres.cut()
    await fleet.members[1].redis.cut()

    await fleet.revoke(tokens, 0)

    assert (await fleet.verify_all(tokens.access_token))[1] in (grpc.StatusCode.UNAVAILABLE, "REVOKED")

    async def has_left() -> bool:
        return not await fleet.members[1].is_ready()

    await eventually(has_left)
    assert await fleet.verify(tokens.access_token, 1) is grpc.StatusCode.UNAVAILABLE


async def test_a_writer_cut_off_from_redis_is_helped_by_the_others(fleet: Fleet) -> None:
    """They hold leases and cannot be told by it: one of them finds the change in the outbox and passes it on."""
    await fleet.members[0].redis.cut()
    for _ in range(2):
        tokens = await fleet.issue(1)
        assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
        await fleet.revoke(tokens, 0)
        assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def by_refresh_token(fleet: Fleet) -> tuple[token_pb2.TokenSet, Callable[..., Awaitable[object]]]:
    """Open a session, and return it with the revocation of its refresh token, at an instance of one's choice."""
    tokens = await fleet.issue(1)
    request = token_pb2.RevokeTokenRequest(token=tokens.refresh_token)
    return tokens, lambda at, timeout: fleet.members[at].stub.RevokeToken(request, metadata=fleet.identity, timeout=timeout)


async def by_time(fleet: Fleet) -> tuple[token_pb2.TokenSet, Callable[..., Awaitable[object]]]:
    """Open a session and refresh it; return its token with the revocation of its subject up to a time before the refresh."""
    subject = str(uuid4())
    opened = await fleet.issue(1, subject=subject)
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject)
    request.issued_before.FromDatetime(datetime.now(UTC))
    await eventually(lambda: _is_past(request.issued_before.seconds + 1))  # a token knows whole seconds
    refresh = token_pb2.RefreshTokenRequest(refresh_token=opened.refresh_token, revision=10**6)
    refreshed = await fleet.members[1].stub.RefreshToken(refresh, metadata=fleet.identity, timeout=PATIENCE)
    return refreshed.tokens, lambda at, timeout: fleet.members[at].stub.RevokeTokens(request, metadata=fleet.identity, timeout=timeout)


async def _is_past(seconds: float) -> bool:
    return time.time() >= seconds


@pytest.mark.parametrize("arrange", [by_refresh_token, by_time])
async def test_a_repeat_without_a_request_id_is_answered_when_the_first_could_have_been(
    fleet: Fleet, arrange: Callable[[Fleet], Awaitable[tuple[token_pb2.TokenSet, Callable[..., Awaitable[object]]]]]
) -> None:
    """It finds nothing left to do, while those who hold leases were not told yet: its OK must mean what every OK means."""
    tokens, revoke = await arrange(fleet)
    assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
    await fleet.members[0].redis.cut()  # until a relay finds it, nobody else is told

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await revoke(0, 0.3)
    assert refusal.value.code() in AGAIN
    await revoke(1, PATIENCE)

    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


class Other:
    """The RPCs that neither verify nor revoke, ready to be called at token-1."""

    def __init__(self, fleet: Fleet, opened: token_pb2.TokenSet, manager: str) -> None:
        one, client, revision = fleet.members[0], str(uuid4()), 10**6
        bare: dict[str, Any] = {"tenant_id": TENANT, "type": token_pb2.PRINCIPAL_TYPE_CLIENT, "subject": client, "revision": revision}
        shared: dict[str, Any] = {"subject_token": opened.access_token, "tenant_id": TENANT, "client_scopes": ["account"]}
        exchange = token_pb2.ExchangeTokenRequest(**shared, client_id=client, revision=revision)
        refresh = token_pb2.RefreshTokenRequest(refresh_token=opened.refresh_token, revision=revision)
        rotate = key_pb2.RotateSigningKeysRequest(request_id=str(uuid4()))
        by_manager = (("authorization", f"Bearer {manager}"),)
        self._calls: dict[str, Callable[[], Any]] = {
            "IssueToken": lambda: one.stub.IssueToken(token_pb2.IssueTokenRequest(**bare), metadata=fleet.identity, timeout=8),
            "IssueToken with a session": lambda: one.stub.IssueToken(
                token_pb2.IssueTokenRequest(**bare, with_refresh_token=True), metadata=fleet.identity, timeout=8
            ),
            "ExchangeToken": lambda: one.stub.ExchangeToken(exchange, metadata=fleet.identity, timeout=8),
            "RefreshToken": lambda: one.stub.RefreshToken(refresh, metadata=fleet.identity, timeout=8),
            "GetJwks": lambda: one.keys.GetJwks(key_pb2.GetJwksRequest(), timeout=8),
            "WatchRevocations": lambda: self._watch(fleet),
            "RotateSigningKeys": lambda: one.keys.RotateSigningKeys(rotate, metadata=by_manager, timeout=8),
        }

    @staticmethod
    async def _watch(fleet: Fleet) -> None:
        async def say() -> AsyncIterator[token_pb2.WatchRevocationsRequest]:
            yield token_pb2.WatchRevocationsRequest()
            await asyncio.Event().wait()

        async for response in fleet.members[0].stub.WatchRevocations(say(), metadata=fleet.identity, timeout=3):
            if response.HasField("checkpoint"):
                return

    async def codes(self) -> dict[str, grpc.StatusCode]:
        """Call each, one after another; return how those that fail do."""
        failed = {}
        for name, call in self._calls.items():
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                failed[name] = error.code()
        return failed


WRITES = {"IssueToken with a session", "ExchangeToken", "RefreshToken", "RotateSigningKeys"}


async def redis_gone(fleet: Fleet) -> None:
    for member in fleet.members:
        await member.redis.cut()
    await eventually(lambda: fleet.are("direct"))


async def postgres_gone(fleet: Fleet) -> None:
    for member in fleet.members:
        await member.postgres.cut()


async def postgres_silent(fleet: Fleet) -> None:
    for member in fleet.members:
        member.postgres.freeze()


@pytest.mark.parametrize(
    ("break_it", "failing"),
    [(redis_gone, {"WatchRevocations"}), (postgres_gone, WRITES), (postgres_silent, WRITES)],
    ids=["redis", "postgres", "silent"],
)
async def test_what_becomes_of_all_other_rpcs(fleet: Fleet, break_it: Callable[[Fleet], Awaitable[None]], failing: set[str]) -> None:
    """What writes needs Postgres; what follows the log needs Redis; signing and the key set need neither."""
    manager = await fleet.issue(type=token_pb2.PRINCIPAL_TYPE_CLIENT, scopes=["signing-keys.manage"])
    others = Other(fleet, await fleet.issue(scopes=["account"]), manager.access_token)
    await break_it(fleet)

    codes = await others.codes()
    assert set(codes) == failing
    assert set(codes.values()) <= set(AGAIN)


async def test_postgres_silent_for_all(fleet: Fleet) -> None:
    """It accepts and does not answer: who would revoke hears so within about a second, however long he could wait, and memory answers meanwhile."""
    tokens = await fleet.issue()
    await postgres_silent(fleet)

    for member in fleet.members:
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await member.stub.RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.access_token), metadata=fleet.identity, timeout=8)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began < 3
    assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}


async def test_postgres_gone_for_all(fleet: Fleet) -> None:
    """Nothing can be changed, so memory is right, for longer than any lease: what was valid is, what was revoked is not."""
    good, bad = await fleet.issue(), await fleet.issue()
    await fleet.revoke(bad)
    for member in fleet.members:
        await member.postgres.cut()
    until = time.monotonic() + 2.5 * LEASE

    for member in fleet.members:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await member.stub.RevokeToken(token_pb2.RevokeTokenRequest(token=good.access_token), metadata=fleet.identity, timeout=5)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE

    while time.monotonic() < until:
        assert set(await fleet.verify_all(good.access_token)) == {"VALID"}
        assert set(await fleet.verify_all(bad.access_token)) == {"REVOKED"}
        await asyncio.sleep(0.05)
