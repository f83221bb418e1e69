"""What a client remembers is what the server would say, but for what was acknowledged within `max_staleness`: never from further back."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

from tests.conftest import eventually
from tests.service.watchword.fake import Hands
from tests.service.watchword.fake_permissions import QUICK, Answer, Event, FakePermissions, allow, deny, fake_permissions, own_token
from watchword import Client, Subject, SyncClient
from watchword.decision_cache import DecisionCache
from watchword.decisions import ANYBODY, Decision, Outcome, Reason, SubjectType
from watchword.errors import InvalidRequest, RevisionUnavailable, Unavailable
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.staleness import Patience

ALICE, BOB = (Subject(SubjectType.USER, str(uuid4())) for _ in range(2))
READ = "folders.read"
KEY = (READ, "", "", None)
GRANTED = Decision(Outcome.ALLOW, Reason.GRANTED)


@pytest.fixture
async def fake() -> AsyncIterator[FakePermissions]:
    """PermissionService, in the test's hands: it allows."""
    async with fake_permissions() as running:
        running.answer = lambda _: allow()
        yield running


@pytest.fixture
def hands() -> Hands:
    """Clocks that the test can move."""
    return Hands()


@pytest.fixture
async def client(fake: FakePermissions, hands: Hands) -> AsyncIterator[Client]:
    """A client that remembers, following a stream that said its first word."""
    async with fake.client(cache_size=100, **hands.both) as running:
        yield running


async def known(client: Client, *subjects: Subject) -> list[bool]:
    """Say of each whether what he may is answered from memory."""
    return [client.recall(subject, READ) is not None for subject in subjects]


async def until_known(client: Client, subject: Subject, *, is_known: bool) -> None:
    async def is_so() -> bool:
        return (client.recall(subject, READ) is not None) is is_known

    await eventually(is_so)


async def learn(client: Client, *subjects: Subject) -> None:
    """Ask about each, until the answer is remembered."""
    for subject in subjects:

        async def is_learnt(who: Subject = subject) -> bool:
            await client.check(who, READ)
            return client.recall(who, READ) is not None

        await eventually(is_learnt)


# What is remembered, and for how long.


async def test_what_was_answered_is_not_asked_again(client: Client, fake: FakePermissions) -> None:
    """The same question, whatever its context: a plain answer depends on none. Another login is another question."""
    first = await client.check(ALICE, READ, "folder/1", acr="pwd", auth_time=1)
    again = await client.check(str(ALICE), READ, "folder/1", acr="pwd", auth_time=1, context={"ip": "10.0.0.1"})
    assert first == again
    assert fake.asked == 1

    for more in ({"acr": "mfa", "auth_time": 1}, {"acr": "pwd", "auth_time": 2}, {}):
        await client.check(ALICE, READ, "folder/1", **more)  # type: ignore[arg-type]
    assert fake.asked == 4


@pytest.mark.parametrize(
    "answer",
    [
        Answer(decision=permission_pb2.CONDITIONAL, reason=permission_pb2.CONTEXT_MISSING, depends_on_context=True),
        Answer(decision=permission_pb2.STEP_UP_REQUIRED, reason=permission_pb2.LOGIN_TOO_WEAK),
        allow(depends_on_context=True),
        deny(reason=permission_pb2.CONDITION_NOT_MET, depends_on_context=True),
        deny(reason=permission_pb2.DENIED),
        deny(reason=99),
    ],
    ids=["conditional", "step-up", "allowed by a condition", "refused by a condition", "denied", "later reason"],
)
async def test_what_may_change_by_itself_is_not_remembered(client: Client, fake: FakePermissions, answer: Answer) -> None:
    """Conditions look at the time, logins grow old, and nobody says when a binding that denies ends."""
    fake.answer = lambda _: answer
    for _ in range(2):
        await client.check(ALICE, READ)
    assert fake.asked == 2


@pytest.mark.parametrize("subject", [Subject(SubjectType.GROUP, str(uuid4())), ANYBODY], ids=str)
async def test_of_whom_changes_do_not_tell_nothing_is_remembered(client: Client, fake: FakePermissions, subject: Subject) -> None:
    """Changes name users and clients: those behind groups, not groups."""
    for _ in range(2):
        await client.check(subject, READ)
    assert fake.asked == 2


@pytest.mark.parametrize("clock", ["ahead", "wall_ahead"])
async def test_a_grant_is_remembered_until_it_ends(fake: FakePermissions, hands: Hands, clock: str) -> None:
    """By either clock: one that is set back prolongs nothing."""
    answer = allow()
    answer.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=60))
    fake.answer = lambda _: answer
    async with fake.client(cache_size=100, max_staleness=timedelta(hours=1), **hands.both) as client:
        await learn(client, ALICE)
        setattr(hands, clock, 50.0)
        assert await known(client, ALICE) == [True]
        setattr(hands, clock, 61.0)
        assert await known(client, ALICE) == [False]
        setattr(hands, clock, 0.0)
        assert await known(client, ALICE) == [False]


async def test_a_failure_is_not_remembered(client: Client, fake: FakePermissions) -> None:
    fake.failures.append(Unavailable())
    with pytest.raises(Unavailable):
        await client.check(ALICE, READ)
    assert await known(client, ALICE) == [False]
    assert await client.check(ALICE, READ)


async def test_who_gave_up_leaves_nothing_behind(client: Client, fake: FakePermissions) -> None:
    """An answer that nobody waited for is nobody's to remember."""
    fake.gate.clear()
    task = asyncio.create_task(client.check(ALICE, READ))
    await fake.held(1)
    task.cancel()
    await asyncio.wait({task})
    fake.gate.set()
    assert await known(client, ALICE) == [False]


async def test_a_demand_of_freshness_asks(client: Client, fake: FakePermissions) -> None:
    """Whoever has just changed something and says so must not be answered from before it."""
    await learn(client, ALICE)
    asked = fake.asked
    await client.check(ALICE, READ, at_least_as_fresh="s7")
    assert fake.asked == asked + 1
    assert fake.singles[-1].consistency.at_least_as_fresh == "s7"


def test_memory_is_bounded() -> None:
    """What was used longest ago goes first; and of the index nothing stays behind."""
    cache = DecisionCache(3, clock=lambda: 0.0, wall=lambda: 0.0)
    cache.believe("s0")
    subjects = [Subject(SubjectType.USER, str(number)) for number in range(5)]
    for subject in subjects[:3]:
        cache.keep(subject, KEY, GRANTED, asked=cache.mark())
    cache.find(subjects[0], KEY)
    for subject in subjects[3:]:
        cache.keep(subject, KEY, GRANTED, asked=cache.mark())
    assert [cache.find(subject, KEY) is not None for subject in subjects] == [True, False, False, True, True]
    assert len(cache) == len(cache._keys) == 3

    for number in range(1000):
        cache.forget([Subject(SubjectType.USER, f"x{number}")], "s1")
    assert len(cache._told) <= 3


# What makes it forget.


async def test_a_change_forgets_whom_it_touched(client: Client, fake: FakePermissions) -> None:
    """As soon as it arrives, and nobody else."""
    await learn(client, ALICE, BOB)
    fake.stream.change("s1", ALICE.id)
    await until_known(client, ALICE, is_known=False)
    assert await known(client, BOB) == [True]
    fake.answer = lambda _: deny()
    assert not await client.check(ALICE, READ)


@pytest.mark.parametrize(
    "change",
    [{"all_subjects": True}, {"types": {"": rbac_pb2.SUBJECT_TYPE_ANY}}, {"types": {"x": rbac_pb2.SUBJECT_TYPE_GROUP}}, {"types": {"x": 77}}],
    ids=["too many to name", "anybody", "a group", "a kind of a later release"],
)
async def test_a_change_that_may_touch_everybody_forgets_everything(client: Client, fake: FakePermissions, change: dict[str, Any]) -> None:
    await learn(client, ALICE, BOB)
    fake.stream.change("s1", **change)
    await until_known(client, ALICE, is_known=False)
    assert await known(client, BOB) == [False]


async def test_a_reset_forgets_everything_and_nothing_is_remembered_until_it_is_known_from_when(client: Client, fake: FakePermissions) -> None:
    await learn(client, ALICE)
    fake.beats = False
    fake.stream.reset()
    await until_known(client, ALICE, is_known=False)
    await client.check(ALICE, READ)
    assert await known(client, ALICE) == [False]

    fake.stream.checkpoint("s9")
    await learn(client, ALICE)
    assert fake.singles[-1].consistency.at_least_as_fresh == "s9"


@pytest.mark.parametrize("change", [{"users": [ALICE.id]}, {"all_subjects": True}, "reset"], ids=["named", "all", "reset"])
async def test_an_answer_that_a_change_overtook_is_not_remembered(client: Client, fake: FakePermissions, change: Any) -> None:
    """It may be from before it, and nobody would tell of the change again."""
    await learn(client, BOB)
    fake.gate.clear()
    question = asyncio.create_task(client.check(ALICE, READ))
    await fake.held(1)
    if change == "reset":
        fake.stream.reset()
        fake.stream.checkpoint("s1")
    else:
        fake.stream.change("s1", BOB.id, *change.get("users", []), all_subjects=change.get("all_subjects", False))
    await until_known(client, BOB, is_known=False)
    fake.gate.set()

    assert await question
    assert await known(client, ALICE) == [False]


async def test_an_answer_that_a_change_of_others_overtook_is_remembered(client: Client, fake: FakePermissions) -> None:
    """Else nothing would ever be remembered where much is changed."""
    await learn(client, BOB)
    fake.gate.clear()
    question = asyncio.create_task(client.check(ALICE, READ))
    await fake.held(1)
    fake.stream.change("s1", BOB.id)
    await until_known(client, BOB, is_known=False)
    fake.gate.set()
    assert await question
    assert await known(client, ALICE) == [True]


async def test_what_is_to_be_remembered_is_asked_as_fresh_as_what_was_told(client: Client, fake: FakePermissions) -> None:
    """An instance that has not heard of the change yet would answer from before it, and be believed for ever."""
    await learn(client, ALICE)
    assert fake.singles[-1].consistency.at_least_as_fresh == "s0"
    fake.beats = False
    fake.stream.change("s1", ALICE.id)
    await until_known(client, ALICE, is_known=False)
    await client.check(ALICE, READ)
    assert fake.singles[-1].consistency.at_least_as_fresh == "s1"


@pytest.mark.parametrize("failure", [RevisionUnavailable(), InvalidRequest()], ids=["not there yet", "of another deployment"])
async def test_what_cannot_be_had_that_fresh_is_answered_all_the_same(client: Client, fake: FakePermissions, failure: Exception) -> None:
    """The demand was the memory's, not the caller's. What was answered without it is not remembered."""
    fake.failures.append(failure)  # type: ignore[arg-type]
    assert await client.check(ALICE, READ)
    assert [one.consistency.at_least_as_fresh for one in fake.singles] == ["s0", ""]
    assert await known(client, ALICE) == [False]


async def test_before_the_first_word_nothing_is_remembered(fake: FakePermissions) -> None:
    """Nobody has said yet from which state on changes are told. Starting does not fail."""
    fake.state = ""
    client = fake.client(cache_size=100)
    await client.start(within=timedelta(seconds=0.1))
    assert await client.check(ALICE, READ)
    assert fake.singles[-1].consistency.at_least_as_fresh == ""
    assert await known(client, ALICE) == [False]

    question = asyncio.create_task(client.check(ALICE, READ))
    (await fake.opened(1)).checkpoint("s1")
    await question
    await learn(client, ALICE)
    await client.stop()


async def test_an_answer_from_before_the_first_word_is_not_remembered(fake: FakePermissions) -> None:
    """It was asked for without a demand, whatever is known when it comes."""
    fake.state = ""
    fake.gate.clear()
    client = fake.client(cache_size=100)
    starting = asyncio.create_task(client.start())
    stream = await fake.opened(1)
    question = asyncio.create_task(client.check(ALICE, READ))
    await fake.held(1)
    stream.checkpoint("s1")
    await starting
    fake.gate.set()
    assert await question
    assert await known(client, ALICE) == [False]
    await client.stop()


# Staleness.


async def test_silence_is_not_believed_beyond_max_staleness(fake: FakePermissions, hands: Hands) -> None:
    """Then the server is asked; and when the stream speaks again, memory counts again."""
    async with fake.client(cache_size=100, max_staleness=timedelta(seconds=5), **hands.both) as client:
        await learn(client, ALICE)
        fake.beats, fake.state = False, ""
        hands.ahead = 4.5
        assert await known(client, ALICE) == [True]
        hands.ahead = 6.0
        await until_known(client, ALICE, is_known=False)
        assert client.staleness > timedelta(seconds=5)
        asked = fake.asked
        assert await client.check(ALICE, READ)
        assert fake.asked == asked + 1
        fake.beats, fake.state = True, "s0"
        fake.stream.end()
        await until_known(client, ALICE, is_known=True)


async def test_staleness_counts_from_when_the_stream_was_opened(fake: FakePermissions, hands: Hands) -> None:
    """A checkpoint for e seconds after it proves that much and no more, however late it comes; nor the future."""
    fake.beats, fake.state = False, ""
    client = fake.client(cache_size=100, patience=Patience(silence=5), **hands.both)
    starting = asyncio.create_task(client.start())
    stream = await fake.opened(1)
    hands.ahead = 30.0
    stream.checkpoint("s0", elapsed=10.0)
    await starting
    assert timedelta(seconds=19) < client.staleness < timedelta(seconds=21)

    stream.checkpoint("s0", elapsed=3600.0)

    async def is_now() -> bool:
        return client.staleness < timedelta(seconds=1)

    await eventually(is_now)
    hands.ahead = 40.0
    assert client.staleness > timedelta(seconds=9)
    stream.checkpoint("s0", elapsed=1.0)
    fake.stream.change("s1", ALICE.id)
    assert client.staleness > timedelta(seconds=9)
    await client.stop()


async def test_a_server_that_does_not_say_when_is_not_believed(fake: FakePermissions) -> None:
    """A checkpoint that may have lain in a buffer proves nothing."""
    fake.beats, fake.state = False, ""
    client = fake.client(cache_size=100)
    starting = asyncio.create_task(client.start(within=timedelta(seconds=1)))
    stream = await fake.opened(1)
    stream.says.put_nowait(Event(checkpoint=Event.Checkpoint(consistency_token="s0"), cursor="c"))
    await fake.opened(2)  # it was broken off
    await starting
    assert client.staleness == timedelta.max
    await client.stop()


async def test_a_stream_that_is_not_understood_is_not_believed(client: Client, fake: FakePermissions, hands: Hands) -> None:
    """What a later release tells may concern anybody: nothing counts as complete after it, and the stream is not read past it."""
    await learn(client, ALICE)
    fake.beats, fake.state = False, ""
    cursor = fake.stream.cursor
    fake.stream.says.put_nowait(Event(cursor="beyond"))
    stream = await fake.opened(2)
    assert stream.cursor in ("at-s0", cursor)
    hands.ahead = 6.0
    assert await known(client, ALICE) == [False]


async def test_a_broken_stream_goes_on_where_it_was(client: Client, fake: FakePermissions) -> None:
    """Nothing is forgotten for it, and nothing missed: the next stream begins after the last word that was taken in."""
    await learn(client, ALICE, BOB)
    fake.beats = False
    fake.stream.change("s3", ALICE.id)
    await until_known(client, ALICE, is_known=False)
    fake.stream.end()
    stream = await fake.opened(2)
    assert stream.cursor == "at-s3"
    assert await known(client, BOB) == [True]
    stream.change("s4", BOB.id)
    await until_known(client, BOB, is_known=False)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED])
async def test_each_break_is_survived(client: Client, fake: FakePermissions, code: grpc.StatusCode) -> None:
    fake.stream.end(code)
    await fake.opened(2)
    await learn(client, ALICE)


async def test_a_silent_stream_is_given_up(client: Client, fake: FakePermissions) -> None:
    fake.beats = False
    await fake.opened(2)
    await fake.streams[0].ended.wait()


async def test_a_stream_is_opened_anew_before_clocks_drift_apart(fake: FakePermissions) -> None:
    async with fake.client(cache_size=100, patience=Patience(silence=0.4, stream=0.2, first_pause=0.01, last_pause=0.05)):
        await fake.opened(3)


async def test_who_remembers_nothing_watches_nothing(fake: FakePermissions) -> None:
    async with fake.client() as client:
        await client.check(ALICE, READ)
        assert client.staleness == timedelta.max
        assert client.recall(ALICE, READ) is None
    assert fake.streams == []


async def test_a_stopped_client_grows_stale(fake: FakePermissions, hands: Hands) -> None:
    client = fake.client(cache_size=100, **hands.both)
    await client.start()
    await learn(client, ALICE)
    await client.stop()
    assert await known(client, ALICE) == [True]
    hands.ahead = 6.0
    with pytest.raises(Unavailable):
        await client.check(ALICE, READ)


# Without an event loop.


async def test_threads_share_memory_and_calls(fake: FakePermissions) -> None:
    """What one thread learnt the others know; and a change is seen by all."""

    def run() -> None:
        with SyncClient(fake.address, credentials=own_token, patience=QUICK, cache_size=100) as client:
            assert client.check(ALICE, READ)
            asked = fake.asked
            seen: list[bool] = []
            threads = [threading.Thread(target=lambda: seen.append(client.check(str(ALICE), READ).allowed)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            assert seen == [True] * 8
            assert fake.asked == asked
            assert client.staleness < timedelta(seconds=5)

            fake.answer = lambda _: deny()
            loop.call_soon_threadsafe(lambda: fake.stream.change("s1", ALICE.id))
            while client.check(ALICE, READ):
                pass
            with pytest.raises(InvalidRequest):
                client.check("nobody", READ)
            assert not client.check(ALICE, READ, at_least_as_fresh="s1")

    loop = asyncio.get_running_loop()
    await asyncio.wait_for(asyncio.to_thread(run), 20)


async def test_a_thread_that_ends_leaves_nobody_waiting(fake: FakePermissions) -> None:
    """Who waits gets Unavailable at once, and so does who comes later; stopping twice is no error."""
    fake.gate.clear()
    client = SyncClient(fake.address, credentials=own_token)
    await asyncio.to_thread(client.start)
    waiting = asyncio.create_task(asyncio.to_thread(client.check, ALICE, READ, timeout=60.0))
    await fake.held(1)
    await asyncio.to_thread(client.stop)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(Unavailable):
        await asyncio.to_thread(client.check, ALICE, READ)
    await asyncio.to_thread(client.stop)
