"""Checks that are asked in one turn of the event loop travel together, and none of them hurts another."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from tests.conftest import eventually
from tests.service.watchword.fake_permissions import Answer, FakePermissions, Question, allow, deny, fake_permissions, own_token
from watchword import Client, Decision, Outcome, Subject
from watchword.client import Connection
from watchword.decisions import ANYBODY, Reason, StepUp, SubjectType
from watchword.errors import DeadlineExceeded, InvalidRequest, PermissionDenied, RevisionUnavailable, TokenInvalid, Unavailable, WatchwordError
from watchword.questions import MAX_BYTES
from watchword.rbac.v1 import permission_pb2, rbac_pb2

USER = Subject(SubjectType.USER, str(uuid4()))


@pytest.fixture
async def fake() -> AsyncIterator[FakePermissions]:
    """PermissionService, in the test's hands."""
    async with fake_permissions() as running:
        yield running


@pytest.fixture
async def client(fake: FakePermissions) -> AsyncIterator[Client]:
    """A client without a cache."""
    async with fake.client() as running:
        yield running


def odd(question: Question) -> Answer:
    """Allow resources of odd numbers."""
    return allow() if int(question.resource.partition("/")[2]) % 2 else deny()


async def until_asked(fake: FakePermissions, questions: int) -> None:
    async def are() -> bool:
        return fake.asked >= questions

    await eventually(are)


# Together.


async def test_checks_of_one_turn_are_one_call(client: Client, fake: FakePermissions) -> None:
    """Nobody asked for a batch; the questions stand in the order of asking, and each caller has the answer to his own."""
    fake.answer = odd

    decisions = await asyncio.gather(*(client.check(USER, "folders.read", f"folder/{number}") for number in range(64)))

    (batch,) = fake.batches
    assert [one.resource for one in batch.requests] == [f"folder/{number}" for number in range(64)]
    assert [decision.allowed for decision in decisions] == [number % 2 == 1 for number in range(64)]
    assert fake.singles == []


async def test_callers_that_were_answered_together_ask_together_again(client: Client, fake: FakePermissions) -> None:
    """As the handlers of a busy server do: so few calls serve many requests."""

    async def handler() -> None:
        for _ in range(5):
            await client.check(USER, "folders.read")

    await asyncio.gather(*(handler() for _ in range(64)))

    assert [len(batch.requests) for batch in fake.batches] == [64] * 5


async def test_one_alone_is_a_plain_check(client: Client, fake: FakePermissions) -> None:
    for _ in range(2):
        await client.check(USER, "folders.read", "folder/1")

    assert len(fake.singles) == 2
    assert fake.batches == []


async def test_a_batch_is_no_larger_than_the_server_takes(client: Client, fake: FakePermissions) -> None:
    """By number, and by bytes: contexts are long."""
    fake.answer = odd
    decisions = await asyncio.gather(*(client.check(USER, "folders.read", f"folder/{number}") for number in range(2001)))
    assert [len(batch.requests) for batch in fake.batches] == [1000, 1000]
    assert len(fake.singles) == 1
    assert [decision.allowed for decision in decisions] == [number % 2 == 1 for number in range(2001)]

    fake.batches.clear()
    await asyncio.gather(*(client.check(USER, "folders.read", "folder/1", context={"text": "x" * 8000}) for _ in range(100)))
    assert all(batch.ByteSize() < MAX_BYTES + 1000 for batch in fake.batches)
    assert sum(len(batch.requests) for batch in fake.batches) == 100


async def test_demands_of_freshness_do_not_mix(client: Client, fake: FakePermissions) -> None:
    """Each batch has one demand; a question's own must stay unset in it."""
    await asyncio.gather(
        *(client.check(USER, "folders.read", at_least_as_fresh=token) for token in ("", "s1", "", "s1")),
        client.check(USER, "a.b", at_least_as_fresh="s2"),
    )

    assert {batch.consistency.at_least_as_fresh: len(batch.requests) for batch in fake.batches} == {"": 2, "s1": 2}
    assert not any(one.HasField("consistency") for batch in fake.batches for one in batch.requests)
    assert [one.consistency.at_least_as_fresh for one in fake.singles] == ["s2"]


async def test_what_is_asked_arrives(client: Client, fake: FakePermissions) -> None:
    """Every part of a question, in every form that a caller may give it."""
    instant = datetime(2026, 11, 24, tzinfo=UTC)
    context = {"ip": "10.0.0.1", "mfa": True, "amounts": [1, 2.5, None]}
    await client.check(f"client:{USER.id}", "folders.read", "folder/1", context=context, acr="mfa", auth_time=instant)
    await client.check("*", "folders.read", auth_time=int(instant.timestamp()))
    await client.check(f"group:{USER.id}", "folders.read", auth_time=0)

    first, second, third = fake.singles
    assert (first.subject.type, first.subject.id, first.permission, first.resource) == (
        rbac_pb2.SUBJECT_TYPE_CLIENT,
        USER.id,
        "folders.read",
        "folder/1",
    )
    assert (first.acr, first.auth_time.ToDatetime(UTC)) == ("mfa", instant)
    assert MessageToDict(first.context) == context
    assert second.subject == rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_ANY)
    assert second.auth_time.seconds == int(instant.timestamp())
    assert third.subject.type == rbac_pb2.SUBJECT_TYPE_GROUP
    assert not third.HasField("auth_time")
    assert not third.HasField("context")


async def test_what_is_answered_is_told(client: Client, fake: FakePermissions) -> None:
    """Every part of an answer; and only an ALLOW is true."""
    answer = allow(consistency_token="s1", depends_on_context=True)
    answer.expire_time.FromSeconds(2_000_000_000)
    fake.answer = lambda _: answer
    decision = await client.check(USER, "folders.read")
    assert decision == Decision(Outcome.ALLOW, Reason.GRANTED, "s1", expire_time=datetime.fromtimestamp(2_000_000_000, UTC), depends_on_context=True)
    assert decision

    fake.answer = lambda _: Answer(decision=permission_pb2.CONDITIONAL, reason=permission_pb2.CONTEXT_MISSING, missing_context=["ip"])
    decision = await client.check(USER, "folders.read")
    assert (decision.outcome, decision.missing_context, bool(decision)) == (Outcome.CONDITIONAL, ("ip",), False)

    answer = Answer(decision=permission_pb2.STEP_UP_REQUIRED, reason=permission_pb2.LOGIN_TOO_WEAK, step_up=rbac_pb2.StepUp(acr="mfa"))
    answer.step_up.max_age.FromSeconds(300)
    fake.answer = lambda _: answer
    decision = await client.check(USER, "folders.read")
    assert (decision.step_up, bool(decision)) == (StepUp("mfa", timedelta(minutes=5)), False)

    fake.answer = lambda _: deny(reason=99)
    decision = await client.check(USER, "folders.read")
    assert (decision.outcome, decision.reason, bool(decision)) == (Outcome.DENY, Reason.UNKNOWN, False)


# Apart.


async def test_a_malformed_question_fails_alone(client: Client, fake: FakePermissions) -> None:
    """The server says so of that one; the others have their answers."""
    bad = Answer(error=permission_pb2.QuestionError(reason="INVALID_REQUEST", message="permission must be a permission"))
    fake.answer = lambda question: bad if question.permission == "bad" else allow()

    first, second, third = await asyncio.gather(
        *(client.check(USER, permission) for permission in ("folders.read", "bad", "folders.write")), return_exceptions=True
    )

    assert isinstance(second, InvalidRequest)
    assert "must be a permission" in second.text
    assert [first, third] == [Decision(Outcome.ALLOW, Reason.GRANTED)] * 2
    assert len(fake.batches) == 1


@pytest.mark.parametrize(
    "question",
    [
        {"subject": "user"},
        {"subject": "admin:1"},
        {"subject": "user:"},
        {"context": {"when": datetime.now(UTC)}},
        {"context": {"text": "x" * 9000}},
        {"context": [1]},
        {"context": {1: 2}},
        {"auth_time": datetime(2026, 1, 1)},
        {"auth_time": 10**18},
        {"permission": "a\ud800.b"},
        {"permission": 7},
    ],
    ids=range(11),
)
async def test_what_cannot_be_sent_is_not(client: Client, fake: FakePermissions, question: dict[str, Any]) -> None:
    """One class of failure, whoever finds it; those beside it are not held up."""
    good = asyncio.create_task(client.check(USER, "folders.read"))
    with pytest.raises(InvalidRequest):
        await client.check(**{"subject": USER, "permission": "a.b", **question})
    assert not (await good).allowed
    assert fake.asked == 1


async def test_who_is_cancelled_hurts_nobody(client: Client, fake: FakePermissions) -> None:
    """Neither before the batch is sent, when his question is left out, nor after."""
    fake.gate.clear()
    fake.answer = lambda _: allow()
    tasks = [asyncio.create_task(client.check(USER, "folders.read", f"folder/{number}")) for number in range(4)]
    await asyncio.sleep(0)  # they have asked
    tasks[0].cancel()
    await fake.held(1)
    tasks[1].cancel()
    await asyncio.wait({tasks[1]})
    fake.gate.set()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, True, False, False]
    assert all(isinstance(answer, Decision) and answer.allowed for answer in answers[2:])
    assert [one.resource for one in fake.batches[0].requests] == ["folder/1", "folder/2", "folder/3"]


async def test_a_batch_ends_when_nobody_waits(client: Client, fake: FakePermissions) -> None:
    """The server is told, and need not go on."""
    fake.gate.clear()
    tasks = [asyncio.create_task(client.check(USER, "folders.read", timeout=60.0)) for _ in range(3)]
    await fake.held(1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    await fake.held(0)
    assert fake.cancelled == 1


async def test_each_has_a_deadline_of_his_own(client: Client, fake: FakePermissions) -> None:
    """The impatient does not take the patient along, nor wait for him."""
    fake.gate.clear()
    fake.answer = lambda _: allow()
    patient, impatient = (asyncio.create_task(client.check(USER, "folders.read", timeout=timeout)) for timeout in (30.0, 0.05))

    with pytest.raises(DeadlineExceeded):
        await impatient
    assert not patient.done()
    fake.gate.set()

    assert (await patient).allowed
    assert fake.deadlines[0] > 20, "the patient one's, and not the other's"


async def test_a_deadline_that_passes_ends_the_call(client: Client, fake: FakePermissions) -> None:
    fake.gate.clear()
    answers = await asyncio.gather(*(client.check(USER, "folders.read", timeout=0.05) for _ in range(2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DeadlineExceeded] * 2
    await fake.held(0)


async def test_a_token_that_does_not_come_is_not_waited_for(fake: FakePermissions) -> None:
    """The deadline is that of the whole question."""

    async def source() -> str:
        await asyncio.Event().wait()
        return "own"

    async with fake.client(credentials=source) as client:
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(client.check(USER, "folders.read", timeout=0.05), 5)


async def test_a_failed_call_fails_each_with_its_own_exception(client: Client, fake: FakePermissions) -> None:
    """Of the class that the server raised, with what it told; tracebacks do not mix."""
    fake.failures.append(RevisionUnavailable(metadata={"why": "behind"}))

    first, second = await asyncio.gather(*(client.check(USER, "folders.read") for _ in range(2)), return_exceptions=True)

    assert isinstance(first, RevisionUnavailable)
    assert isinstance(second, RevisionUnavailable)
    assert first is not second
    assert first.metadata == second.metadata == {"why": "behind"}


async def test_a_token_that_was_refused_is_replaced_once(client: Client, fake: FakePermissions) -> None:
    """It may have been revoked before its time. Refused again, it is the process that is refused."""
    fake.answer = lambda _: allow()
    fake.failures.append(TokenInvalid())
    assert (await client.check(USER, "folders.read")).allowed
    assert len(fake.singles) == 2

    fake.failures += [TokenInvalid(), TokenInvalid()]
    with pytest.raises(TokenInvalid):
        await client.check(USER, "folders.read")
    assert len(fake.singles) == 4


@pytest.mark.parametrize("failure", [PermissionDenied(), Unavailable()])
async def test_a_refusal_of_this_process_is_no_decision(client: Client, fake: FakePermissions, failure: WatchwordError) -> None:
    """It raises; it is never a DENY, nor an ALLOW."""
    fake.failures.append(failure)
    with pytest.raises(type(failure)):
        await client.check(USER, "folders.read")


@pytest.mark.parametrize("decision", [0, 99])
async def test_what_is_not_understood_is_no_yes(client: Client, fake: FakePermissions, decision: int) -> None:
    """An answer of a later release, or none."""
    fake.answer = lambda _: Answer(decision=permission_pb2.Decision.ValueType(decision))
    with pytest.raises(Unavailable):
        await client.check(USER, "folders.read")


async def test_answers_that_do_not_match_are_no_answers(client: Client, fake: FakePermissions) -> None:
    """Nobody gets the answer to somebody else's question."""
    fake.shorten = True
    answers = await asyncio.gather(*(client.check(USER, "folders.read") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3


async def test_who_stops_leaves_nobody_waiting(fake: FakePermissions) -> None:
    """Not those who wait for an answer, nor those who have just asked; whether the channel is closed or, being somebody else's, goes on."""
    line = Connection(fake.address, own_token, None)
    line.start()
    for client in (fake.client(), Client(line)):
        await client.start()
        fake.gate.clear()
        waiting = asyncio.create_task(client.check(USER, "folders.read", timeout=60.0))
        await fake.held(1)
        late = asyncio.create_task(client.check(USER, "folders.read", timeout=60.0))
        await asyncio.sleep(0)
        await client.stop()
        fake.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(waiting, late, return_exceptions=True), 5)
        assert [type(answer) for answer in answers] == [Unavailable] * 2
    assert fake.asked == 2
    await line.stop()


@pytest.mark.parametrize("turns", range(5))
async def test_who_stops_leaves_nobody_waiting_however_far_his_question_has_come(fake: FakePermissions, turns: int) -> None:
    """A task that is cancelled before it begins does nothing at all: a batch of that instant would wait for ever."""
    client = fake.client()
    await client.start()
    fake.gate.clear()
    waiting = asyncio.create_task(client.check(USER, "folders.read", timeout=60.0))
    for _ in range(turns):
        await asyncio.sleep(0)
    await client.stop()
    fake.gate.set()

    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 5)


async def test_who_has_stopped_answers_no_more(fake: FakePermissions) -> None:
    client = fake.client()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await client.check(USER, "folders.read")
        async with client:
            assert not await client.check(USER, "folders.read")


async def test_a_channel_that_is_closed_fails_calls_and_cancels_nobody(fake: FakePermissions) -> None:
    """grpc then raises CancelledError, which would look as if the caller had been cancelled."""
    client = fake.client()
    await client.start()
    fake.gate.clear()
    waiting = asyncio.create_task(client.check(USER, "folders.read"))
    await fake.held(1)
    assert client._connection is not None
    await client._connection.stop()

    with pytest.raises(Unavailable):
        await waiting
    await client.stop()


async def test_nobody_lends_a_batch_his_context(fake: FakePermissions) -> None:
    """A token source must not see the variables of whoever happened to ask first."""
    who: ContextVar[str] = ContextVar("who", default="nobody")
    seen: list[str] = []

    async def source() -> str:
        seen.append(who.get())
        return "own"

    async def handler(client: Client, name: str) -> None:
        who.set(name)
        await client.check(USER, "folders.read")

    async with fake.client(credentials=source) as asking:
        await asyncio.gather(handler(asking, "alice"), handler(asking, "bob"))

    assert seen == ["nobody"]
    assert fake.tokens == ["Bearer own"]


async def test_a_source_that_fails_fails_the_questions_only(fake: FakePermissions, caplog: pytest.LogCaptureFixture) -> None:
    async def source() -> str:
        if not seen:
            seen.append("once")
            raise ZeroDivisionError
        return "own"

    seen: list[str] = []
    async with fake.client(credentials=source) as client:
        with pytest.raises(Unavailable):
            await client.check(USER, "folders.read")
        assert not await client.check(USER, "folders.read")
    assert "permissions could not be asked for" in caplog.text


async def test_a_client_needs_credentials_or_a_verifier() -> None:
    with pytest.raises(TypeError):
        Client("127.0.0.1:1")
    async with Client("127.0.0.1:1", credentials=lambda: asyncio.sleep(0, "own")) as client:
        with pytest.raises(WatchwordError):
            await client.check(USER, "folders.read", timeout=0.5)
    assert str(ANYBODY) == "*"
    assert Subject.parse(str(USER)) == USER


async def test_an_instance_that_dies_fails_what_it_was_asked(fake: FakePermissions, client: Client) -> None:
    """UNAVAILABLE: the caller may ask again, and does not hang."""
    fake.gate.clear()
    fake.failures.append(Unavailable())
    waiting = asyncio.create_task(client.check(USER, "folders.read"))
    await fake.held(1)
    fake.gate.set()
    with pytest.raises(Unavailable) as failure:
        await waiting
    assert failure.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
