"""What was acknowledged is there, whatever dies: D01 to D13 of the reliability plan, at every named crash point.

A round arms a point in an instance of its own, asks for a write, sees the instance die there, and sends the same request to who is left. What it then
finds must be all or nothing, once, and as promised. In other rounds the Postgres backend of the session dies instead, with the whole server. Each
row is also tried with its defence taken away in the instances that die, and must then be seen to break.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Sequence
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest

from tests.chaos.durable_accounts import ChangePassword, CreateUser, ResetPassword, VerifyEmail
from tests.chaos.durable_deeds import Deed
from tests.chaos.durable_policies import Bind, Narrow, Unbind
from tests.chaos.durable_rounds import KILLED, Case, Tally, fatally, kill_backends, kill_instances, spread
from tests.chaos.durable_stack import PATIENCE, House, Instance, housed, outcome
from tests.chaos.durable_tokens import Disable, LogOutAll, OpenSession, Refresh, RevokeSubject, RevokeToken, Revoking
from tests.chaos.durable_town import AUTH, PASSWORD, TENANT, TOKENS, Town, bearer
from tests.chaos.record import record
from tests.conftest import Keys, eventually
from watchword.errors import Unavailable, WatchwordError
from watchword.identity.v1 import audit_pb2, audit_pb2_grpc, authentication_pb2
from watchword.token.v1 import key_pb2, key_pb2_grpc, token_pb2

LONG = bool(os.environ.get("WATCHWORD_LONG"))
ROUNDS = 200  # of each row in the long form: half of them kill instances, half backends
MOST, REST = 140, 60  # where a row is of two kinds of writes
AT_ONCE = 6  # instances that die together
WAVE = 50  # calls at once

IN_TRANSACTION = ("change.after_effect", "change.before_commit")
CHANGE = ("change.before_begin", *IN_TRANSACTION, "change.after_commit", "change.after_fanout")
FANOUT = ("fanout.after_publish", "fanout.before_delete")
ALL = Tally()  # of all rows


@pytest.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory, service_keys: Keys) -> AsyncIterator[House]:
    """Stores that may die, and the process that instances are forks of."""
    async with housed(tmp_path_factory.mktemp("durable"), service_keys) as opened:
        yield opened


@pytest.fixture(scope="module")
async def town(house: House) -> AsyncIterator[Town]:
    """Standing instances, and what all deeds need."""
    async with house.suite() as suite:
        yield await Town.found(suite)


@pytest.fixture(scope="module")
async def deaf_town(house: House) -> AsyncIterator[Town]:
    """A suite in which nobody passes on what its writer did not."""
    async with house.suite(without=("outbox",)) as suite:
        yield await Town.found(suite)


async def tried(
    town: Town,
    points: Sequence[str],
    deeds: Sequence[type[Deed]],
    *,
    backends: Sequence[str] = IN_TRANSACTION,
    brief: Sequence[str] = (),
    rounds: int = ROUNDS,
) -> Tally:
    """Return what so many rounds have shown; in the short form each point once, or those of `brief`, with the deeds by turns."""
    tally, shown = Tally(), brief or points
    killed = (
        spread(points, deeds, town, rounds=rounds // 2) if LONG else [Case(point, deeds[at % len(deeds)](town)) for at, point in enumerate(shown)]
    )
    for at in range(0, len(killed), AT_ONCE):
        tally.add(await kill_instances(killed[at : at + AT_ONCE]))
    tally.add(await kill_backends(spread(backends, deeds, town, rounds=rounds // 2 if LONG else 1)))
    ALL.add(tally)
    return tally


async def undefended(town: Town, point: str, deed: type[Deed], without: str, *, backend: bool = False) -> str:
    """Return what breaks first when the instance that dies lacks a defence. A busy machine may hide it once, not always."""
    kill = kill_backends if backend else kill_instances
    for _ in range(4):
        tally = await kill([Case(point, deed(town))], without=(without,))
        if tally.broken:
            return tally.broken[0]
    raise AssertionError(f"without {without} nothing broke")


async def test_an_account_is_made_whole_or_not_at_all(town: Town) -> None:
    """D01. A half-made account could be nobody's, or anybody's."""
    points = (*CHANGE, "account.after_insert")

    tally = await tried(town, points, [CreateUser])

    assert tally.broken == []
    apart = await undefended(town, "change.after_commit", CreateUser, "all in one transaction")
    hasty = await undefended(town, "change.before_commit", CreateUser, "word of the commit", backend=True)
    record(
        "D01",
        broken=f"CreateUser: identity, or its Postgres backend, killed at {len(points)} points",
        promised="the account exists fully or not at all; the same request_id returns the same id; login works",
        seen=str(tally),
        without=f"audit and request record after the commit: {apart}; an error at COMMIT taken for OK: {hasty}",
    )


async def test_a_replaced_password_and_its_tokens_are_worth_nothing(town: Town) -> None:
    """D02. Whoever changes a password because somebody else knows it relies upon this."""
    own = ("change.after_commit", "password.after_replace", "task.before_doing", "task.after_doing")
    points, backends = (*CHANGE, *own[1:]), ("change.before_commit", *own[:2])

    tally = await tried(town, points, [ChangePassword], backends=backends, brief=own, rounds=MOST)  # each round costs five hashes
    reset = ("code.after_redeem", "task.before_doing")
    tally.add(await tried(town, reset, [ResetPassword], backends=("code.after_redeem",), rounds=REST))

    assert tally.broken == []
    forgotten = await undefended(town, "change.after_commit", ChangePassword, "task in the transaction")
    record(
        "D02",
        broken=f"ChangePassword and ResetPassword: identity, or its Postgres backend, killed at {len({*points, *backends, *reset})} points",
        promised="old password, access tokens and refresh tokens are refused everywhere whenever OK was seen",
        seen=str(tally),
        without=f"the order to token kept in memory: {forgotten}",
    )


async def test_what_was_revoked_stays_revoked(town: Town, deaf_town: Town) -> None:
    """D03. Writers die, backends die, Redis dies with them, and in the end everything at once."""
    points = (*CHANGE, *FANOUT, "revocation.after_sessions")
    deeds: list[Revoking] = []

    tally = await tried(
        town, points, [RevokeToken, RevokeSubject], backends=(*IN_TRANSACTION, "change.after_commit", "fanout.after_publish"), rounds=MOST
    )
    tasks = ("change.after_commit", "task.before_doing", "task.after_doing")
    tally.add(await tried(town, tasks, [LogOutAll, Disable], backends=("task.before_doing",), rounds=REST))
    waited = [await passed_on(town, deeds) for _ in range(10 if LONG else 1)]
    last = [RevokeToken(town), RevokeSubject(town)]
    tally.add(await kill_instances([Case("change.after_commit", deed) for deed in last], meanwhile=lambda: lose_redis(town, last)))
    await town.suite.restart()

    assert tally.broken == []
    assert [deed for deed in (*deeds, *last) if not await deed.is_refused()] == []
    deaf = await undefended(deaf_town, "change.after_commit", RevokeToken, "outbox")
    record(
        "D03",
        broken="RevokeToken, RevokeTokens, LogoutAll, DisableUser: instance, backend, Redis killed "
        f"at {len({*points, *tasks})} points; then everything at once",
        promised="refused everywhere from the answer on, also after all is restarted; the outbox is resumed within a second, by the next one too",
        seen=f"{tally}; without a repeat refused everywhere after at most {max(waited):.2f} s, the second instance that passed it on having died too",
        without=f"relay off: {deaf}",
    )


async def lose_redis(town: Town, deeds: Sequence[Revoking]) -> None:
    """Let Redis die and come back empty: nobody hears by the log of what died with its writer, but nobody believes his memory for long either."""
    town.suite.valkey.kill()
    for deed in deeds:
        await eventually(deed.is_refused, within=20)
    await town.suite.valkey.start(empty=True)


async def passed_on(town: Town, deeds: list[Revoking]) -> float:
    """Let a writer die after its commit, and who passes the change on for it too; return the seconds until all refuse, asked by nobody."""
    deed = RevokeToken(town)
    writer, relay = await asyncio.gather(town.suite.start("token"), town.suite.start("token"))
    await deed.prepare()
    await writer.arm("change.after_commit")
    await relay.arm("relay.before_passing_on")
    began = monotonic()
    assert isinstance(await outcome(deed.do(writer)), Unavailable)
    await eventually(deed.is_refused, within=20)
    waited = monotonic() - began
    deeds.append(deed)
    for one in (writer, relay):
        await asyncio.wait({one.ended}, timeout=0.1)
        one.kill()
        await one.channel.close()
    return waited


async def test_checks_say_what_postgres_says(town: Town, deaf_town: Town) -> None:
    """D04. A role that was taken and still counts somewhere is the worst kind of cache."""
    points = (*CHANGE, *FANOUT, "policy.after_bump")

    tally = await tried(town, points, [Unbind, Bind, Narrow], backends=(*IN_TRANSACTION, "policy.after_bump", "change.after_commit"))

    assert tally.broken == []
    deaf = await undefended(deaf_town, "change.after_commit", Unbind, "outbox")
    record(
        "D04",
        broken=f"CreateRoleBinding, DeleteRoleBinding, UpdateRole: rbac, or its Postgres backend, killed at {len(points)} points",
        promised="CheckPermission equals the database on all instances, from the answer on",
        seen=str(tally),
        without=f"relay off: {deaf}",
    )


async def test_a_change_has_one_audit_row(town: Town) -> None:
    """D07. Many at once, one instance of three dying among them: no row is missing, and none is there for what did not happen."""
    count = 500 if LONG else 40
    dying = await town.suite.start("token")
    deeds = [RevokeToken(town) for _ in range(count)]
    for at in range(0, count, 20):
        await asyncio.gather(*(deed.prepare() for deed in deeds[at : at + 20]))
    await dying.arm("change.before_commit:8")
    instances: list[Instance] = [*town.suite.of("token"), dying]

    firsts = list[Any]()
    for at in range(0, count, WAVE):
        alive = [one for one in instances if not one.ended.done()]
        firsts += await asyncio.gather(*(outcome(deed.do(alive[turn % len(alive)])) for turn, deed in enumerate(deeds[at : at + WAVE])))

    assert await asyncio.wait_for(asyncio.shield(dying.ended), PATIENCE) == KILLED
    left = [await deed.left() for deed in deeds]
    acknowledged = [was for was, first in zip(left, firsts, strict=True) if not isinstance(first, WatchwordError)]
    assert set(left) == {(1, 1, 1), (0, 0, 0)}
    assert set(acknowledged) == {(1, 1, 1)}
    await dying.channel.close()
    chain = await whole_chain(town)
    assert chain.state == audit_pb2.AUDIT_LOG_STATE_INTACT
    apart = await undefended(town, "change.after_commit", RevokeToken, "audit in the transaction")
    record(
        "D07",
        broken=f"{count} revocations, {min(count, WAVE)} at once, on three instances of token, one killed inside a transaction",
        promised="an acknowledged change has exactly one audit row, and no row is of a change that was not made; VerifyAuditLog: INTACT",
        seen=f"{len(acknowledged)} acknowledged, each with one row; {left.count((0, 0, 0))} not made, without one; so too in the other rows' rounds;"
        f" a chain of {chain.head.sequence}, intact",
        without=f"audit rows after the commit: {apart}",
    )


async def whole_chain(town: Town) -> Any:
    """Return what VerifyAuditLog says at the chain's end, or where it is broken, once all that was written is in it."""
    identity, answer = town.suite.of("identity")[0], audit_pb2.VerifyAuditLogResponse()

    async def ask() -> Any:
        request = audit_pb2.VerifyAuditLogRequest(start_sequence=answer.next_sequence)
        return await identity.ask(audit_pb2_grpc.AuditServiceStub, "VerifyAuditLog", request, town.admin)

    async def is_sealed() -> bool:
        return not (await ask()).unsealed_count

    await eventually(is_sealed)
    answer = await ask()
    while answer.next_sequence:
        answer = await ask()
    return answer


async def test_a_code_is_used_once_or_not_at_all(town: Town) -> None:
    """D08. There are no authorization codes here; the codes that come by mail are kept by the same rule."""
    points = ("code.after_redeem", "change.after_effect", "change.before_commit", "change.after_commit", "change.after_fanout")

    tally = await tried(town, points, [VerifyEmail, ResetPassword], backends=("code.after_redeem", "change.before_commit", "change.after_commit"))

    assert tally.broken == []
    burnt = await undefended(town, "code.after_redeem", VerifyEmail, "code in the transaction")
    record(
        "D08",
        broken=f"VerifyEmail, ResetPassword: identity, or its Postgres backend, killed at {len(points)} points (in place of authorization codes)",
        promised="a code is never good twice; one whose effect was lost is still good",
        seen=str(tally),
        without=f"the code deleted outside of the transaction: {burnt}",
    )


async def test_a_refresh_token_has_one_successor(town: Town) -> None:
    """D09. A family that forks is a theft that nobody sees; one that ends for no reason is a login lost."""
    points = (*CHANGE, "refresh.after_use")

    tally = await tried(town, points, [Refresh], backends=(*IN_TRANSACTION, "refresh.after_use", "change.after_commit"), rounds=MOST)
    tally.add(await tried(town, ("session.after_insert", "change.before_commit"), [OpenSession], backends=("session.after_insert",), rounds=REST))

    assert tally.broken == []
    lost = await undefended(town, "refresh.after_use", Refresh, "refresh by one transaction")
    record(
        "D09",
        broken=f"RefreshToken, IssueToken: token, or its Postgres backend, killed at {len(points) + 1} points",
        promised="the predecessor is refused, a repeat gets the same successor, the family is exactly one",
        seen=str(tally),
        without=f"used_time set in a transaction of its own: {lost}",
    )


async def test_a_login_cut_short_leaves_nothing_that_counts(town: Town) -> None:
    """A login has no request_id: whoever got no answer logs in again, and a session whose tokens nobody got can be ended like any other."""
    account, email = await town.person()
    for point in ("login.after_proof", "login.after_session"):
        dying = await town.suite.start("identity")
        await dying.arm(point)
        request = authentication_pb2.LoginRequest(login=email, password=PASSWORD)
        cut = await fatally(partial(dying.ask, AUTH, "Login", request, (), timeout=20), dying)
        assert isinstance(cut, Unavailable)
        assert dying.ended.result() == KILLED
        await dying.channel.close()

    answer = await town.login(email, PASSWORD)

    assert not isinstance(answer, WatchwordError)
    opened = "SELECT count(*) FROM suite.audit_event WHERE type = 'session_opened' AND details->>'subject' = $1"
    assert await town.suite.ask(opened, account) == await town.suite.ask("SELECT count(*) FROM token.session WHERE subject = $1", account) == 2
    ended = token_pb2.RevokeTokensRequest(tenant_id=str(answer.user.tenant_id), subject=account, request_id=str(uuid4()))
    await town.suite.of("token")[0].ask(TOKENS, "RevokeTokens", ended, town.suite.peer(to="token"))
    assert await town.suite.ask("SELECT count(*) FROM token.session WHERE subject = $1 AND end_time IS NULL", account) == 0


async def test_one_key_signs_wherever_a_rotation_is_cut_short(house: House) -> None:
    """D10. Instances die between any two steps of making and changing keys; who comes next goes on from what is stored."""
    quick = {"JWKS_MAX_AGE": "0.2", "KEY_PROMOTION_LIMIT": "0", "KEY_ROTATION_PERIOD": "0"}
    held = "SELECT array_agg(state ORDER BY create_time) FROM token.signing_key"
    rounds, states = 25 if LONG else 1, list[list[str]]()
    async with house.suite(standing=()) as suite:
        for _ in range(3):  # a key is made, published and promoted, each by an instance that dies of it
            assert await suite.end_of("token", "keys.between_steps", quick) == KILLED
            states.append(await suite.ask(held))
        town = Town(suite)
        for _ in range(rounds):
            old = await town.stand_alone("token", quick)
            before = await town.session(str(uuid4()))
            await ask_for_a_key(town)
            old.kill()
            for point in ("keys.after_superseding", "keys.between_steps"):
                assert await suite.end_of("token", point, quick) == KILLED
                assert (await suite.ask(held)).count("ACTIVE") == 1
            new = await town.stand_alone("token", quick)
            await eventually(lambda: suite.ask("SELECT count(*) = 0 FROM token.signing_key WHERE state = 'PUBLISHED'"))
            after = await town.session(str(uuid4()))
            assert [await town.believers(one.access_token) for one in (before, after)] == [[new.address]] * 2
            assert key_of(before) != key_of(after)
            new.kill()
        last = await town.stand_alone("token", quick)
        await ask_for_a_key(town)
        last.kill()
        assert await suite.end_of("token", "keys.after_superseding", quick, without=("promotion by one transaction",)) == KILLED
        assert "ACTIVE" not in await suite.ask(held)

    assert states == [["PENDING"], ["PUBLISHED"], ["ACTIVE"]]
    record(
        "D10",
        broken="token killed between any two steps of a key's life, and inside a promotion",
        promised="one key signs; tokens of the old and of the new key are valid",
        seen=f"{rounds} rotations cut short twice each, and the first key's making cut short three times: 0 violations",
        without="the former key superseded in a transaction of its own: no key signs",
    )


async def ask_for_a_key(town: Town) -> None:
    """Have the next key published."""
    program = token_pb2.IssueTokenRequest(
        subject=str(uuid4()), tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_CLIENT, client_id=str(uuid4()), scopes=["signing-keys.manage"]
    )
    one = town.suite.of("token")[0]
    token = (await one.ask(TOKENS, "IssueToken", program, town.suite.peer(to="token"))).tokens.access_token
    request = key_pb2.RotateSigningKeysRequest(request_id=str(uuid4()))
    await one.ask(key_pb2_grpc.KeyServiceStub, "RotateSigningKeys", request, bearer(token))


def key_of(tokens: token_pb2.TokenSet) -> str:
    """Return the name of the key that signed."""
    return str(json.loads(base64.urlsafe_b64decode(tokens.access_token.split(".")[0] + "=="))["kid"])


async def test_a_repeat_gets_the_kept_result_and_the_effect_is_there_once(town: Town) -> None:
    """D13. Of all that is written, at the two points that matter: the reply is lost, and the client cannot know what it lost."""
    every: list[type[Deed]] = [CreateUser, RevokeToken, Bind, Refresh, OpenSession, Disable, VerifyEmail, Narrow]

    tally = await tried(town, ("change.before_commit", "change.after_commit", "change.after_fanout"), every, backends=("change.after_commit",))

    assert tally.broken == []
    apart = await undefended(town, "change.after_commit", OpenSession, "request record in the transaction")
    record(
        "D13",
        broken="the reply of every kind of change is lost; the same request_id is sent twice more, to different instances",
        promised="each repeat returns the stored result; effect, audit row and result are there exactly once",
        seen=f"{tally}; with the other rows {ALL.rounds} rounds, {len(ALL.broken)} violations",
        without=f"the record under the request_id after the commit: {apart}",
    )
