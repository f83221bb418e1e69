"""What a verifier believes when its feed stops, stalls, breaks, repeats itself or starts over: never too much."""

import asyncio
import json
from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

import grpc
import pytest

from tests.conftest import eventually
from tests.service.watchword.fake import KEY, OTHER_KEY, QUICK, SUBJECT, TENANT, FakeSuite, Hands, Stream, jwks, revocation, token
from watchword import TokenVerifier, WhenStale
from watchword.feed import Patience
from watchword.refusals import KeyUnknown, TokenExpired, TokenRevoked, VerificationStale
from watchword.token.v1 import token_pb2

ID = str(uuid4())


@pytest.fixture
def hands() -> Hands:
    """Clocks that the test can move."""
    return Hands()


def refused(verifier: TokenVerifier, text: str) -> bool:
    try:
        verifier.verify(text)
    except TokenRevoked:
        return True
    return False


async def until_refused(verifier: TokenVerifier, text: str) -> None:
    async def is_refused() -> bool:
        return refused(verifier, text)

    await eventually(is_refused)


async def until_stale(verifier: TokenVerifier, text: str) -> None:
    async def is_stale() -> bool:
        try:
            verifier.verify(text)
        except VerificationStale:
            return True
        return False

    await eventually(is_stale)


async def until_fresh(verifier: TokenVerifier, text: str) -> None:
    async def is_fresh() -> bool:
        try:
            verifier.verify(text)
        except VerificationStale:
            return False
        return True

    await eventually(is_fresh)


async def test_a_revocation_is_refused_as_soon_as_it_arrives(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """No checkpoint is needed to refuse; and it is never forgotten while the token lives."""
    text = token(jti=ID)
    assert not refused(verifier, text)
    fake.stream.say(revocation("TOKEN", ID))
    await until_refused(verifier, text)


# Staleness.


async def test_a_silent_feed_is_not_believed_beyond_max_staleness(fake: FakeSuite, hands: Hands) -> None:
    """The clock is moved, so that nothing else can be the cause. REFUSE: not even a token that was good a moment ago."""
    text = token()
    async with fake.refusing(**hands.both, max_staleness=timedelta(seconds=5)) as verifier:
        fake.greeting = None  # from now on no stream says anything
        fake.beats = False
        assert verifier.verify(text)
        hands.ahead = 4.5
        assert verifier.verify(text)
        hands.ahead = 6.0
        with pytest.raises(VerificationStale):
            verifier.verify(text)
        with pytest.raises(VerificationStale):
            await verifier.check(text)
    assert fake.verified == []


@pytest.mark.parametrize("status", ["VALID", "REVOKED"])
async def test_beyond_max_staleness_the_suite_is_asked(fake: FakeSuite, hands: Hands, status: str) -> None:
    """ASK: VerifyToken's answer counts, with audience and scopes; `verify`, which cannot wait, says that it does not know."""
    text = token()
    fake.verdicts[text] = status
    async with fake.verifier(**hands.both) as verifier:
        fake.greeting, fake.beats = None, False
        hands.ahead = 6.0
        await until_stale(verifier, text)
        if status == "VALID":
            principal = await verifier.check(text, scopes=["account"])
            assert (principal.subject, principal.actors) == (SUBJECT, ("a", "b"))
        else:
            with pytest.raises(TokenRevoked):
                await verifier.check(text, scopes=["account"])
    (question,) = fake.verified
    assert (question.token, question.audience, list(question.required_scopes)) == (text, "watchword", ["account"])


@pytest.mark.parametrize("failure", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_who_can_neither_know_nor_ask_accepts_nothing(fake: FakeSuite, hands: Hands, failure: grpc.StatusCode) -> None:
    """And does not blame the token: it may be good."""
    fake.verify_fails = failure
    async with fake.verifier(**hands.both) as verifier:
        fake.greeting, fake.beats = None, False
        hands.ahead = 6.0
        with pytest.raises(VerificationStale):
            await verifier.check(token())
    assert len(fake.verified) == 1


async def test_what_is_known_to_be_revoked_needs_no_question(fake: FakeSuite, hands: Hands) -> None:
    """Revoked stays revoked, however stale; forged stays forged. So a flood of bad tokens does not reach the suite."""
    fake.greeting = [revocation("TOKEN", ID)]
    async with fake.verifier(**hands.both) as verifier:
        fake.greeting, fake.beats = None, False
        hands.ahead = 600.0
        for text in (token(jti=ID), token(exp=1), token(key=OTHER_KEY), "x"):
            with pytest.raises(Exception, match="token is not valid"):
                await verifier.check(text)
    assert fake.verified == []


async def test_staleness_counts_from_when_the_first_message_was_sent(fake: FakeSuite, hands: Hands) -> None:
    """A checkpoint for e seconds after it proves that much and no more, however late it comes: nothing is young because it has just arrived."""
    fake.greeting = None
    verifier = fake.refusing(**hands.both, patience=Patience(silence=5))
    starting = asyncio.create_task(verifier.start())
    stream = await fake.opened(1)
    hands.ahead = 7.0  # the message dawdles for seven seconds
    stream.say(reset=True, jwks=fake.keys, elapsed=0.0, cursor="1")
    await starting
    assert verifier.staleness >= timedelta(seconds=7)
    with pytest.raises(VerificationStale):
        verifier.verify(token())
    stream.say(elapsed=6.9)
    await until_fresh(verifier, token())
    assert verifier.staleness < timedelta(seconds=1)
    await verifier.stop()


async def test_a_server_that_claims_the_future_is_not_believed(fake: FakeSuite, hands: Hands) -> None:
    """A checkpoint can say no more than the moment at which it arrives."""
    async with fake.refusing(**hands.both) as verifier:
        fake.beats = False
        fake.stream.say(revocation("TOKEN", ID), elapsed=1e6)
        await until_refused(verifier, token(jti=ID))
        fake.greeting = None
        hands.ahead = 6.0
        with pytest.raises(VerificationStale):
            verifier.verify(token())


async def test_checkpoints_that_go_back_change_nothing(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """What was known once stays known."""
    fake.beats = False
    fake.stream.say(checkpoint=True)
    fake.stream.say(revocation("TOKEN", ID), elapsed=-100.0)
    await until_refused(verifier, token(jti=ID))
    assert verifier.staleness < timedelta(seconds=1)


async def test_before_the_first_checkpoint_nothing_is_accepted(fake: FakeSuite) -> None:
    """A snapshot that is still coming in may lack the one revocation that matters."""
    fake.greeting = None
    verifier = fake.refusing(patience=Patience())  # a silence that a busy machine prolongs must not end the stream
    await verifier.start(within=timedelta(0))
    stream = await fake.opened(1)
    stream.say(reset=True, jwks=fake.keys)
    stream.say(revocation("TOKEN", str(uuid4())))
    for _ in range(20):
        with pytest.raises(VerificationStale):
            verifier.verify(token())
        await asyncio.sleep(0.01)
    stream.say(checkpoint=True, cursor="1")
    await until_fresh(verifier, token())
    await verifier.stop()


async def test_without_a_server_nothing_is_accepted_and_starting_does_not_fail(fake: FakeSuite) -> None:
    """A program can start before the suite does; it answers 503 until then."""
    verifier = TokenVerifier("127.0.0.1:1", credentials=lambda: asyncio.sleep(0, token()), issuer="x", patience=QUICK)
    await verifier.start(within=timedelta(seconds=0.2))
    assert verifier.staleness == timedelta.max
    with pytest.raises(VerificationStale):
        await verifier.check(token())
    await verifier.stop()
    with pytest.raises(VerificationStale):
        await verifier.check(token())


async def test_a_stopped_verifier_grows_stale(fake: FakeSuite, hands: Hands) -> None:
    """What it held is not taken for the truth for ever."""
    async with fake.verifier(**hands.both) as verifier:
        assert verifier.verify(token())
    hands.ahead = 6.0
    with pytest.raises(VerificationStale):
        await verifier.check(token())


async def test_the_wall_clock_does_not_decide_about_staleness(fake: FakeSuite, hands: Hands) -> None:
    """Set back or forward by less than a token's life: freshness does not move."""
    text = token(iat=1)
    async with fake.refusing(**hands.both) as verifier:
        for hands.wall_ahead in (-3600.0, 40.0):
            assert verifier.staleness < timedelta(seconds=1)
            assert verifier.verify(text)


async def test_a_clock_that_jumps_ahead_and_back_revives_no_revoked_token(fake: FakeSuite, hands: Hands) -> None:
    """While it was ahead, the revocation was due to be forgotten. Back again, the token is refused by its time, or by a snapshot fetched anew."""
    text = token(jti=ID)
    fake.greeting = [revocation("TOKEN", ID, life=60)]
    async with fake.refusing(**hands.both) as verifier:
        assert refused(verifier, text)
        hands.wall_ahead = 7200.0

        async def is_forgotten() -> bool:
            return len(verifier._view().revoked) == 0

        await eventually(is_forgotten)
        hands.wall_ahead = 0.0
        with pytest.raises(TokenExpired):
            verifier.verify(text)
        again = await fake.opened(2)
        assert again.cursor == ""

        async def is_refused_as_revoked() -> bool:
            with suppress(TokenExpired):  # until the snapshot is there
                return refused(verifier, text)
            return False

        await eventually(is_refused_as_revoked)
        assert verifier.verify(token())


# Streams that break.


async def test_a_broken_stream_goes_on_where_it_was(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """By its cursor, with what was held before; and it reports the keys that it can verify with."""
    fake.stream.say(revocation("TOKEN", ID), checkpoint=True, cursor="here")
    await until_refused(verifier, token(jti=ID))
    fake.stream.end()
    second = await fake.opened(2)
    assert (second.cursor, list(second.asked[0].key_ids)) == ("here", ["key-1"])
    assert refused(verifier, token(jti=ID))
    assert verifier.verify(token())


async def test_each_break_is_survived(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """Twenty in a row; the pauses do not add up, for each stream came to a checkpoint."""
    for number in range(1, 21):
        (await fake.opened(number)).end()
    await fake.opened(21)
    await until_fresh(verifier, token())


async def test_a_silent_stream_is_given_up(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """An instance that hangs holds its streams open and says nothing: another one is asked, before anything is stale."""
    fake.beats = False
    await fake.opened(2)
    await asyncio.wait_for(fake.streams[0].ended.wait(), 5)


async def test_a_reset_takes_effect_with_its_first_checkpoint(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """Half a snapshot never takes the place of what is held; a whole one does, and the cursor goes with it."""
    fake.beats = False
    fake.stream.say(revocation("TOKEN", ID), checkpoint=True, cursor="old")
    await until_refused(verifier, token(jti=ID))
    other = str(uuid4())
    fake.stream.say(reset=True, cursor="half")
    fake.stream.say(revocation("TOKEN", other), cursor="half")
    fake.greeting = None
    fake.stream.end()
    second = await fake.opened(2)
    assert second.cursor == "old"
    assert refused(verifier, token(jti=ID))
    assert not refused(verifier, token(jti=other))
    second.say(reset=True, jwks=fake.keys)
    second.say(revocation("TOKEN", other))
    second.say(checkpoint=True, cursor="new")
    await until_refused(verifier, token(jti=other))
    assert not refused(verifier, token(jti=ID))


async def test_a_stream_is_opened_anew_before_clocks_drift_apart(fake: FakeSuite) -> None:
    """With its cursor, so that it costs nothing."""
    async with fake.refusing(patience=Patience(silence=2, stream=0.1, first_pause=0.01)) as verifier:
        third = await fake.opened(3)
        assert third.cursor.startswith("after-")
        assert verifier.verify(token())


async def test_revocations_may_come_twice_and_out_of_order(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """An older state of a subject's revocation takes nothing back from a newer one."""
    fake.stream.say(revocation("SUBJECT", SUBJECT, revision=150))
    await until_refused(verifier, token(rev=149))
    later = revocation("SUBJECT", SUBJECT, revision=120, spared_revision=140, spared_session_id=ID)
    fake.stream.say(later, later, revocation("SUBJECT", SUBJECT, revision=10), revocation("TOKEN", ID), revocation("TOKEN", ID))
    await until_refused(verifier, token(jti=ID, rev=200))
    assert refused(verifier, token(rev=149, sid=ID))
    assert not refused(verifier, token(rev=150))


@pytest.mark.parametrize(
    "strange",
    [
        token_pb2.Revocation(kind=77, tenant_id=TENANT, key=ID),  # type: ignore[arg-type]
        token_pb2.Revocation(kind=token_pb2.REVOKED_KIND_TOKEN, tenant_id=TENANT, key="x"),
        token_pb2.Revocation(kind=token_pb2.REVOKED_KIND_TOKEN, tenant_id=TENANT, key=ID),
    ],
    ids=["kind", "key", "no-expiry"],
)
async def test_what_is_not_understood_is_not_skipped(fake: FakeSuite, hands: Hands, strange: token_pb2.Revocation) -> None:
    """A newer server may say what this package cannot apply: then no checkpoint after it counts."""
    async with fake.refusing(**hands.both) as verifier:
        fake.greeting = [strange]
        fake.stream.say(strange, checkpoint=True)
        await fake.opened(3)
        hands.ahead = 6.0
        await until_stale(verifier, token())


async def test_a_stream_without_keys_proves_nothing(fake: FakeSuite) -> None:
    """A key may have been taken away while it was cut off."""
    fake.greeting = None
    verifier = fake.refusing()
    await verifier.start(within=timedelta(0))
    (await fake.opened(1)).say(reset=True, checkpoint=True)
    await fake.opened(2)
    assert verifier.staleness == timedelta.max
    await verifier.stop()


# Keys.


async def told_keys(stream: Stream, *kids: str) -> None:
    async def are_reported() -> bool:
        return list(stream.asked[-1].key_ids) == list(kids)

    await eventually(are_reported)


async def test_a_new_key_is_reported_and_good(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """The suite signs with it only once those who verify have it."""
    await told_keys(fake.stream, "key-1")
    fake.stream.say(jwks=jwks(key_1=KEY, key_2=OTHER_KEY), checkpoint=True)
    await told_keys(fake.stream, "key-1", "key-2")
    assert verifier.verify(token(kid="key-2", key=OTHER_KEY))


async def test_a_key_that_left_the_set_is_good_no_more(fake: FakeSuite) -> None:
    """Not even for a token that is remembered."""
    async with fake.refusing() as verifier:
        text = token()
        assert verifier.verify(text)
        fake.stream.say(jwks=jwks(key_2=OTHER_KEY), checkpoint=True)
        await told_keys(fake.stream, "key-2")
        with pytest.raises(KeyUnknown):
            verifier.verify(text)


async def test_a_kid_that_changed_hands_makes_remembered_tokens_bad(fake: FakeSuite) -> None:
    """What is remembered belongs to the key, not to its name."""
    async with fake.refusing() as verifier:
        text = token()
        assert verifier.verify(text)
        fake.stream.say(jwks=json.dumps(json.loads(jwks(key_1=OTHER_KEY))), checkpoint=True)
        await told_keys(fake.stream, "key-1")

        async def is_refused() -> bool:
            try:
                verifier.verify(text)
            except Exception as error:
                return error.__class__.__name__ == "SignatureInvalid"
            return False

        await eventually(is_refused)


async def test_a_key_set_that_is_none_breaks_the_stream(fake: FakeSuite, hands: Hands) -> None:
    """It neither empties the ring nor counts as news."""
    async with fake.refusing(**hands.both) as verifier:
        fake.keys = "[]"
        fake.stream.say(jwks="[]", checkpoint=True)
        await fake.opened(3)
        assert verifier.verify(token())
        hands.ahead = 6.0
        await until_stale(verifier, token())


async def test_an_unknown_key_is_asked_about_but_seldom(fake: FakeSuite) -> None:
    """Anybody can name unknown keys: ten questions a second, the rest is refused unasked."""
    good = token(kid="key-9", key=OTHER_KEY)
    fake.verdicts[good] = "VALID"
    bad = token(kid="key-8", key=OTHER_KEY)
    fake.verdicts[bad] = "UNKNOWN_KEY"
    stopped = 1000.0
    async with fake.verifier(clock=lambda: stopped, patience=Patience(silence=5)) as verifier:
        assert (await verifier.check(good)).subject == SUBJECT
        for _ in range(50):
            with pytest.raises(KeyUnknown):
                await verifier.check(bad)
    assert len(fake.verified) == 10
    async with fake.refusing() as refusing:
        with pytest.raises(KeyUnknown):
            await refusing.check(good)


async def test_ask_asks_whatever_memory_says(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """For the few calls that may not be stale at all."""
    text = token()
    fake.verdicts[text] = "SUBJECT_DISABLED"
    with pytest.raises(TokenRevoked):
        await verifier.ask(text)
    assert verifier.verify(text)


async def test_the_cache_is_bounded(fake: FakeSuite) -> None:
    """And a token that fell out of it is as good as before."""
    async with fake.refusing(cache_size=4) as verifier:
        texts = [token(jti=str(uuid4())) for _ in range(12)]
        for text in (*texts, *texts):
            assert verifier.verify(text)
        assert len(verifier._cache.young) + len(verifier._cache.old) <= 4


def test_when_stale_has_no_third_choice() -> None:
    """Nothing accepts."""
    assert {choice.name for choice in WhenStale} == {"ASK", "REFUSE"}
