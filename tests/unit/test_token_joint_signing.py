"""Who waits for whom when signatures are made together, and that nobody is left without one."""

import asyncio
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from services.token.joint_signing import MAX_PAUSE, NEAR, PATIENCE, PAUSE, WORTHWHILE, JointSigning
from services.token.keys import SigningKey
from services.token.multi_buffer import LANES, Fault, MultiBuffer

PRIVATE, OTHER = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
KEY, NEXT = SigningKey("one", "RS256", PRIVATE), SigningKey("two", "RS256", OTHER)
Soon = asyncio.Future[bytes]


class Library(MultiBuffer):
    """Lanes in the tests' own words: they sign as OpenSSL does, and note how many came together."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.keys: list[Any] = []
        self.is_broken = False

    def lanes(self, private: Any) -> Any:
        self.keys.append(private)
        if self.is_broken:
            raise Fault
        return SimpleNamespace(sign=lambda texts: self._sign(private, texts))

    def _sign(self, private: rsa.RSAPrivateKey, texts: list[bytes]) -> list[bytes]:
        if self.is_broken:
            raise Fault
        self.batches.append(len(texts))
        return [private.sign(text, padding.PKCS1v15(), SHA256()) for text in texts]


class Signing:
    """What is tested, with a clock that the test moves; each call comes right after the one before."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.library = Library()
        self._numbers = count()
        self.joint = JointSigning(self.library, monotonic=lambda: self.now)

    def sign(self, text: str = "text", key: SigningKey = KEY, *, after: float = NEAR / 10) -> bytes | Soon:
        self.now += after
        return self.joint.sign(key, text, lambda signature: self.answer(text, signature))

    @staticmethod
    def answer(text: str, signature: bytes) -> bytes:
        if text.startswith("bad"):
            raise ValueError(text)
        return text.encode() + b"|" + signature

    def several(self, size: int, key: SigningKey = KEY) -> "list[Soon]":
        every = [self.sign(f"text {next(self._numbers)}", key) for _ in range(size)]
        return [one for one in every if not isinstance(one, bytes)]

    async def wait_in_vain(self, waiting: Soon, pause: float | None) -> Soon:
        """Let nobody come until `waiting` is signed for; then nobody waits for `pause`, and whoever comes after it does. None: however long."""
        await waiting
        began = self.now
        if pause is None:
            self.now += MAX_PAUSE
        else:
            self.now = began + pause - NEAR * 0.6
            assert isinstance(self.sign(after=0), bytes)
            assert isinstance(self.sign(after=NEAR / 2), bytes)
            self.now -= NEAR * 0.1
        assert isinstance(self.sign(after=0), bytes)
        answer = self.sign(after=NEAR / 2)
        assert not isinstance(answer, bytes)
        return answer


@pytest.fixture
async def signing() -> Signing:
    """One that has signed for somebody a moment ago."""
    made = Signing()
    assert isinstance(made.sign("first", after=10), bytes)
    return made


def assert_good(answer: bytes, by: rsa.RSAPrivateKey = PRIVATE) -> None:
    text, _, signature = answer.partition(b"|")
    by.public_key().verify(signature, text, padding.PKCS1v15(), SHA256())


async def test_who_comes_by_itself_is_signed_for_at_once(signing: Signing) -> None:
    for _ in range(3):
        answer = signing.sign(after=NEAR * 1.1)
        assert isinstance(answer, bytes)
        assert_good(answer)

    assert (signing.joint.alone, signing.joint.together) == (4, 0)


async def test_eight_who_come_close_together_are_signed_for_in_one_go(signing: Signing) -> None:
    answers = signing.several(LANES - 1)
    assert not any(one.done() for one in answers)
    answers += signing.several(1)

    assert len(answers) == LANES
    assert all(one.done() for one in answers)
    for answer in answers:
        assert_good(await answer)
    assert len({await one for one in answers}) == LANES
    assert signing.library.batches == [LANES]
    assert (signing.joint.alone, signing.joint.together) == (1, LANES)


@pytest.mark.parametrize("size", [1, WORTHWHILE - 1, WORTHWHILE, LANES - 1])
async def test_nobody_waits_for_long(signing: Signing, size: int) -> None:
    """Few are signed for one by one, which is cheaper."""
    answers = signing.several(size)
    async with asyncio.timeout(PATIENCE * 100):
        for answer in answers:
            assert_good(await answer)

    assert len(answers) == size
    assert signing.library.batches == ([size] if size >= WORTHWHILE else [])


async def test_after_a_wait_in_vain_nobody_waits_for_a_while_which_is_longer_each_time(signing: Signing) -> None:
    """A medium load would else wait for nothing, call by call."""
    (waiting,) = signing.several(1)
    for pause in (PAUSE, PAUSE * 2, PAUSE * 4, PAUSE * 8):
        waiting = await signing.wait_in_vain(waiting, pause)

    await asyncio.gather(waiting, *signing.several(LANES - 1))  # a full eight makes all well
    (waiting,) = signing.several(1)
    waiting = await signing.wait_in_vain(waiting, PAUSE)
    for _ in range(10):
        waiting = await signing.wait_in_vain(waiting, None)
    await signing.wait_in_vain(waiting, MAX_PAUSE)


async def test_who_has_left_is_not_signed_for(signing: Signing) -> None:
    answers = signing.several(LANES - 1)
    answers[2].cancel()
    answers += signing.several(1)

    for number in (0, 1, 3, 7):
        assert_good(await answers[number])
    assert signing.library.batches == [LANES - 1]


async def test_where_all_have_left_nothing_is_signed(signing: Signing) -> None:
    answers = signing.several(2)
    for answer in answers:
        answer.cancel()
    await asyncio.sleep(PATIENCE * 4)

    assert (signing.joint.alone, signing.joint.together) == (1, 0)
    assert_good(await asyncio.wait_for(_awaited(signing.sign(after=MAX_PAUSE)), 1))


@pytest.mark.parametrize("size", [1, WORTHWHILE, LANES - 1])
async def test_who_waits_is_signed_for_by_the_key_of_its_token(signing: Signing, size: int) -> None:
    """The next key takes over while some wait."""
    before = signing.several(size)
    after = signing.several(1, NEXT)

    assert all(one.done() for one in before)
    assert not after[0].done()
    for answer in before:
        assert_good(await answer)
    assert_good(await after[0], by=OTHER)
    assert signing.library.keys == [PRIVATE, OTHER]


async def test_the_numbers_of_a_former_key_are_forgotten_with_the_first_token_of_the_next(signing: Signing) -> None:
    """Also where nobody waits for anybody: a key that was withdrawn may have been withdrawn because it leaked."""
    for answer in signing.several(LANES):
        await answer
    assert signing.joint._lanes is not None

    signing.sign(key=NEXT, after=10)

    assert signing.joint._lanes is None


async def test_a_full_eight_leaves_no_alarm_behind(signing: Signing) -> None:
    """It would end the wait of those who come next, and count as one in vain."""
    for answer in signing.several(LANES):
        await answer
    began = asyncio.get_running_loop().time()
    later = signing.several(1)
    assert_good(await later[0])

    assert asyncio.get_running_loop().time() - began >= PATIENCE * 0.9
    assert signing.joint._pause == PAUSE * 2


async def test_an_answer_that_cannot_be_made_is_its_askers_alone(signing: Signing) -> None:
    good = signing.several(LANES - 2)
    bad = signing.sign("bad")
    good += signing.several(1)

    assert isinstance(bad, asyncio.Future)
    with pytest.raises(ValueError, match="bad"):
        await bad
    for answer in good:
        assert_good(await answer)


@pytest.mark.parametrize("size", [1, LANES - 1])
async def test_where_nothing_can_be_signed_nobody_waits_for_ever(signing: Signing, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge then takes the other way, which says what is wrong."""
    answers = signing.several(size)
    monkeypatch.setattr(signing.library, "_sign", _raising)
    monkeypatch.setattr(SigningKey, "sign", _raising)

    outcomes = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), PATIENCE * 100)
    assert [type(outcome) for outcome in outcomes] == [MemoryError] * size


async def test_other_algorithms_wait_for_nobody() -> None:
    """They are cheap; and lanes pad for RS256."""
    signing = Signing()
    for algorithm, private in (("ES256", ec.generate_private_key(ec.SECP256R1())), ("PS256", PRIVATE)):
        key = SigningKey(algorithm, algorithm, private)
        assert all(isinstance(signing.sign(key=key), bytes) for _ in range(20))

    assert signing.library.keys == []


async def test_a_fault_costs_nobody_the_signature_and_ends_signing_together(signing: Signing, capfd: pytest.CaptureFixture[str]) -> None:
    answers = signing.several(LANES - 1)
    signing.library.is_broken = True
    answers += signing.several(1)

    for answer in answers:
        assert_good(await answer)
    assert "joint_signing_failed" in capfd.readouterr().out
    assert not signing.joint.is_available
    assert all(isinstance(signing.sign(), bytes) for _ in range(LANES))
    assert all(isinstance(signing.sign(key=NEXT), bytes) for _ in range(LANES))
    assert signing.joint.together == 0


async def test_lanes_that_sign_wrongly_are_not_used(signing: Signing, capfd: pytest.CaptureFixture[str]) -> None:
    signing.library.is_broken = True

    assert all(isinstance(signing.sign(), bytes) for _ in range(LANES))
    assert "joint_signing_failed" in capfd.readouterr().out
    assert not signing.joint.is_available


async def test_who_does_not_want_it_does_not_get_it() -> None:
    joint = JointSigning.begin(is_wanted=False)

    assert not joint.is_available
    assert all(isinstance(joint.sign(KEY, "text", lambda signature: signature), bytes) for _ in range(20))


def _raising(*_: object) -> Any:
    raise MemoryError


async def _awaited(answer: bytes | Soon) -> bytes:
    return answer if isinstance(answer, bytes) else await answer
