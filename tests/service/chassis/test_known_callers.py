"""The promise, for those who remember callers: after a revoking call has answered, no instance of rbac or identity lets its token in."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest

from services.chassis.postgres import Database
from tests.conftest import Keys, Stores, eventually
from tests.service.chassis.conftest import Configure
from tests.service.chassis.guests import VERIFY, Fleet, fleet_of
from watchword.token.v1 import key_pb2, token_pb2

ROUNDS = 400 if os.environ.get("WATCHWORD_LONG") else 25
Revoke = Callable[[Fleet, token_pb2.TokenSet, int], Awaitable[None]]


@pytest.fixture(scope="module")
async def running(stores: Stores, service_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Three of token, three of rbac, one of identity."""
    async with fleet_of(stores, service_keys, tmp_path_factory.mktemp("guests")) as fleet:
        yield fleet


@pytest.fixture
async def fleet(running: Fleet) -> AsyncIterator[Fleet]:
    """All of them, whole and answering from memory, before and after."""
    await running.heal()
    yield running
    await running.heal()


async def by_token(fleet: Fleet, tokens: token_pb2.TokenSet, at: int) -> None:
    await fleet.acknowledged(fleet.tokens[at].RevokeToken, token_pb2.RevokeTokenRequest(token=tokens.access_token, request_id=str(uuid4())))


async def by_refresh_token(fleet: Fleet, tokens: token_pb2.TokenSet, at: int) -> None:
    await fleet.acknowledged(fleet.tokens[at].RevokeToken, token_pb2.RevokeTokenRequest(token=tokens.refresh_token, request_id=str(uuid4())))


async def by_session(fleet: Fleet, tokens: token_pb2.TokenSet, at: int) -> None:
    await fleet.revoke(at=at, session_id=tokens.session_id)


async def by_subject(fleet: Fleet, tokens: token_pb2.TokenSet, at: int) -> None:
    await fleet.revoke(at=at, subject=await subject_of(fleet, tokens))


async def by_disabling(fleet: Fleet, tokens: token_pb2.TokenSet, at: int) -> None:
    """As identity's DisableUser revokes."""
    await fleet.revoke(at=at, subject=await subject_of(fleet, tokens), subject_disabled=True)


async def by_client(fleet: Fleet, tokens: token_pb2.TokenSet, at: int) -> None:
    await fleet.revoke(at=at, client_id=await subject_of(fleet, tokens))


async def by_tenant(fleet: Fleet, _tokens: token_pb2.TokenSet, at: int) -> None:
    await fleet.revoke(at=at, all_of_tenant=True)


async def by_key(fleet: Fleet, _tokens: token_pb2.TokenSet, at: int) -> None:
    manager = await fleet.issue(scopes=["signing-keys.manage"])
    metadata = (("authorization", f"Bearer {manager.access_token}"),)
    keys = (await fleet.keys[at].ListSigningKeys(key_pb2.ListSigningKeysRequest(), metadata=metadata)).keys
    (active,) = (key.key_id for key in keys if key.state == key_pb2.ACTIVE)
    await fleet.keys[at].RevokeSigningKey(key_pb2.RevokeSigningKeyRequest(key_id=active), metadata=metadata)


async def subject_of(fleet: Fleet, tokens: token_pb2.TokenSet) -> str:
    answer = await fleet.tokens[0].VerifyToken(token_pb2.VerifyTokenRequest(token=tokens.access_token), metadata=fleet.identity)
    return answer.principal.subject


async def let_in_after_the_ok(fleet: Fleet, revoke: Revoke, rounds: int) -> list[int]:
    """Warm all, revoke at each instance of token in turn, ask all at once; return the rounds in which somebody was let in."""
    let_in = []
    for number in range(rounds):
        tokens = await fleet.issue(at=number % 3)
        await fleet.warm(tokens.access_token)
        racing = [asyncio.create_task(fleet.accepted(tokens.access_token)) for _ in range(2)]
        await revoke(fleet, tokens, number % 3)
        if any(await fleet.accepted(tokens.access_token)):
            let_in.append(number)
        await asyncio.gather(*racing)
        if any(await fleet.accepted(tokens.access_token)):
            let_in.append(number)
    return let_in


async def test_who_is_known_costs_no_question_to_token(fleet: Fleet) -> None:
    tokens = await fleet.issue()
    await fleet.warm(tokens.access_token)
    before = fleet.asked

    for _ in range(50):
        assert all(await fleet.accepted(tokens.access_token))

    assert fleet.asked == before


@pytest.mark.timeout(120 + ROUNDS)
@pytest.mark.parametrize("revoke", [by_token, by_refresh_token, by_session, by_subject, by_disabling, by_client, by_tenant])
async def test_after_the_ok_nobody_lets_the_token_in(fleet: Fleet, revoke: Revoke) -> None:
    """The headline: warmed on all instances, revoked at one, asked at all at once."""
    assert await let_in_after_the_ok(fleet, revoke, ROUNDS) == []


async def test_after_a_key_is_revoked_nobody_lets_its_tokens_in(fleet: Fleet) -> None:
    assert await let_in_after_the_ok(fleet, by_key, 3) == []


async def test_others_stay_known_when_one_is_revoked(fleet: Fleet) -> None:
    """A revocation costs those whom it concerns, and nobody else."""
    tokens, other = await fleet.issue(), await fleet.issue()
    await fleet.warm(tokens.access_token)
    await fleet.warm(other.access_token)
    before = fleet.asked

    await by_session(fleet, tokens, 0)

    assert all(await fleet.accepted(other.access_token))
    assert fleet.asked == before


async def test_an_answer_that_was_held_up_is_not_believed_after_the_ok(fleet: Fleet) -> None:
    """Token said VALID, and the answer was on its way while the token was revoked."""
    for number in range(5):
        tokens = await fleet.issue()
        for guest in fleet.guests:
            guest.wire.hold()
        answered = [guest.wire.answered[VERIFY] for guest in fleet.guests]
        racing = asyncio.create_task(fleet.accepted(tokens.access_token))
        await eventually(lambda: all_answered(fleet, answered))  # noqa: B023  (awaited here)

        await by_token(fleet, tokens, number % 3)
        for guest in fleet.guests:
            guest.wire.release()

        await racing  # began before the OK: either answer is right
        assert not any(await fleet.accepted(tokens.access_token))


async def all_answered(fleet: Fleet, before: list[int]) -> bool:
    return all(guest.wire.answered[VERIFY] > earlier for guest, earlier in zip(fleet.guests, before, strict=True))


async def test_an_instance_of_token_that_lags_does_not_leave_its_answers_behind(fleet: Fleet) -> None:
    """It hears nothing, believes its memory for the rest of its lease, and says VALID to a guest who has applied the notice already."""
    guest, lagging, let_in_late = fleet.guests[1], fleet.redis[1], 0
    for _ in range(8):
        tokens = await fleet.issue()
        await fleet.warm(tokens.access_token)
        lagging.freeze()
        before = guest.wire.calls[VERIFY]

        revoking = asyncio.create_task(by_token(fleet, tokens, 0))
        while not revoking.done():
            let_in_late += await guest.accepts(tokens.access_token) and guest.wire.calls[VERIFY] > before

        assert not any(await fleet.accepted(tokens.access_token))
        await fleet.heal()
    assert let_in_late, "token answered from before the notice, which had reached the guest"


async def test_a_guest_cut_off_from_redis_asks_token(fleet: Fleet) -> None:
    """The writer waits for the rest of its lease, once."""
    tokens = await fleet.issue()
    await fleet.warm(tokens.access_token)
    await fleet.guests[1].redis.cut()

    began = time.monotonic()
    await by_token(fleet, tokens, 0)
    assert time.monotonic() - began < 2
    assert not any(await fleet.accepted(tokens.access_token))

    other = await fleet.issue()
    for _ in range(3):
        before = fleet.asked[1]
        assert all(await fleet.accepted(other.access_token))
        assert fleet.asked[1] == before + 1


async def test_with_redis_dead_for_all_guests_stop_believing_before_the_ok(fleet: Fleet) -> None:
    """Writers look at the rows: guests' too."""
    for _ in range(2):
        tokens = await fleet.issue()
        await fleet.warm(tokens.access_token)
        for proxy in (*fleet.redis, *(guest.redis for guest in fleet.guests)):
            await proxy.cut()

        await by_token(fleet, tokens, 0)

        assert not any(await fleet.accepted(tokens.access_token))
        await eventually(lambda: fleet.are("direct"))
        await fleet.heal()
        assert not any(await fleet.accepted(tokens.access_token))


async def test_redis_flushed_again_and_again(fleet: Fleet) -> None:
    """Whatever Redis knew of guests' leases is gone each time, a moment before the revocation."""
    for number in range(4):
        tokens = await fleet.issue()
        await fleet.warm(tokens.access_token)
        await fleet.store.flushall()

        await by_token(fleet, tokens, number % 3)

        assert not any(await fleet.accepted(tokens.access_token))


async def test_a_guest_that_hung_is_right_from_its_first_answer(fleet: Fleet) -> None:
    """It slept through the revocation, and through its lease; token's writer waited for no more than that."""
    tokens, guest = await fleet.issue(), fleet.guests[2]
    await fleet.warm(tokens.access_token)
    guest.process.send_signal(signal.SIGSTOP)

    began = time.monotonic()
    await by_token(fleet, tokens, 0)
    assert time.monotonic() - began < 2
    late = asyncio.create_task(guest.accepts(tokens.access_token))
    await asyncio.sleep(0.1)  # the question lies in its socket when it wakes
    guest.process.send_signal(signal.SIGCONT)

    assert not await late


async def test_guests_whose_hosts_are_all_cut_off_from_redis_stop_believing(fleet: Fleet) -> None:
    """Guests could renew their leases for ever, and nobody could tell them anything. The OK waits until they have stopped."""
    for _ in range(2):
        tokens = await fleet.issue()
        await fleet.warm(tokens.access_token)
        for proxy in fleet.redis:
            await proxy.cut()

        began = time.monotonic()
        await by_token(fleet, tokens, 0)

        assert not any(await fleet.accepted(tokens.access_token))
        assert 0.9 < time.monotonic() - began < 6
        await fleet.heal()
        assert not any(await fleet.accepted(tokens.access_token))


async def test_a_guest_that_died_while_redis_was_dead_is_waited_for_like_a_host(fleet: Fleet) -> None:
    """Nobody can know that it believes no more, before its row is old."""
    tokens, dead = await fleet.issue(), uuid4()
    await fleet.warm(tokens.access_token)
    row = (
        "INSERT INTO token.instance (id, name, mode, version, seen_time, guest) VALUES ($1, 'dead', 'leased', 1, now() - interval '5 minutes', true)"
    )
    await fleet.sql(row, dead)
    for proxy in (*fleet.redis, *(guest.redis for guest in fleet.guests)):
        await proxy.cut()

    revoking = asyncio.create_task(by_token(fleet, tokens, 0))
    await eventually(lambda: only_the_dead_are_leased(fleet, dead))
    await asyncio.wait([revoking], timeout=0.5)
    assert not revoking.done()
    await fleet.sql("UPDATE token.instance SET seen_time = now() - interval '6 minutes' WHERE id = $1", dead)

    await revoking
    assert not any(await fleet.accepted(tokens.access_token))


async def only_the_dead_are_leased(fleet: Fleet, dead: UUID) -> bool:
    alive = "SELECT count(*) FROM token.instance WHERE mode = 'leased' AND id <> $1 AND seen_time > clock_timestamp() - interval '5 minutes'"
    return bool(await fleet.sql(alive, dead) == 0)


async def test_without_token_known_callers_are_let_in_for_a_moment_and_then_nobody(fleet: Fleet) -> None:
    """A guest believes no longer than a host does."""
    tokens = await fleet.issue()
    await fleet.warm(tokens.access_token)
    for running in fleet.processes:
        running.send_signal(signal.SIGSTOP)

    assert all(await fleet.accepted(tokens.access_token))

    async def is_said_to_be_unavailable() -> bool:
        answers = await asyncio.gather(*(guest.accepts(tokens.access_token) for guest in fleet.guests), return_exceptions=True)
        codes = {answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)}
        assert False not in answers, "neither yes nor no is known"
        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        return True not in answers

    await eventually(is_said_to_be_unavailable, within=30)  # each question may take its whole deadline


@pytest.fixture(params=["rbac", "identity"])
async def guests_door(request: pytest.FixtureRequest, configure: Configure, service_keys: Keys) -> AsyncIterator[Database]:
    """A guest's own door to Postgres."""
    async with Database.open(configure(SERVICE_KEY=service_keys.private[request.param]), request.param) as opened:
        yield opened


async def test_a_guest_sees_and_writes_guests_rows_and_nothing_else_of_token(guests_door: Database, database: Database) -> None:
    """None of them can say that an instance of token holds no memory."""
    insert = "INSERT INTO token.instance (id, name, mode, version, seen_time, guest) VALUES ($1, 'x', 'leased', 1, now(), $2)"
    own, others = uuid4(), uuid4()
    await database.execute(insert, others, False)

    await guests_door.execute(insert, own, True)
    await guests_door.execute("UPDATE token.instance SET mode = 'direct'")
    await guests_door.execute("DELETE FROM token.instance WHERE id = $1", others)

    assert await modes(guests_door, own, others) == {own: "direct"}
    assert await modes(database, own, others) == {own: "direct", others: "leased"}
    for statement in (
        insert.replace("$2", "false"),
        "SELECT * FROM token.change",
        "SELECT * FROM token.revocation",
        "SELECT * FROM token.signing_key",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await guests_door.execute(statement, *([uuid4()] if "$1" in statement else []))
    await database.execute("DELETE FROM token.instance WHERE id = ANY($1)", [own, others])


async def modes(door: Database, *ids: UUID) -> dict[UUID, str]:
    rows = await door.fetch("SELECT id, mode FROM token.instance WHERE id = ANY($1)", list(ids))
    return {row["id"]: row["mode"] for row in rows}
