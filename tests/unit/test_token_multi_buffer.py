"""Eight signatures at once are the same eight signatures, and a wrong one never comes out.

Everything holds for a library that is plain arithmetic, with the same two operations, and for the real one where the processor has what it needs.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from services.token.multi_buffer import EXPONENT, LANES, PLACE, Fault, MultiBuffer, Unavailable

TEXTS = [b"", b"a", b"a" * 5000, *[b"text %d" % number for number in range(5)]]
KEY = rsa.generate_private_key(EXPONENT, 2048)


class Arithmetic(MultiBuffer):
    """The two operations as RFC 8017 section 5 says them."""

    def __init__(self) -> None:
        self.private, self.public = _private, _public


def _private(asked: Any, signed: Any, *rest: Any) -> int:
    p, q, dp, dq, inverse, bits, _, _ = rest
    size = bits // 8
    for lane in range(LANES):
        text = int.from_bytes(ctypes.string_at(asked[lane], size), "big")
        prime, other, first, second, back = (int.from_bytes(ctypes.string_at(row[lane], size // 2), "little") for row in (p, q, dp, dq, inverse))
        two = pow(text, second, other)
        answer = two + other * (back * (pow(text, first, prime) - two) % prime)
        ctypes.memmove(signed[lane], answer.to_bytes(size, "big"), size)
    return 0


def _public(signed: Any, opened: Any, moduli: Any, bits: int, *_: Any) -> int:
    size = bits // 8
    for lane in range(LANES):
        modulus = int.from_bytes(ctypes.string_at(moduli[lane], size), "little")
        text = pow(int.from_bytes(ctypes.string_at(signed[lane], size), "big"), EXPONENT, modulus)
        ctypes.memmove(opened[lane], text.to_bytes(size, "big"), size)
    return 0


def _kinds() -> list[Callable[[], MultiBuffer]]:
    try:
        MultiBuffer()
    except Unavailable:
        return [Arithmetic]
    return [Arithmetic, MultiBuffer]


KINDS = _kinds()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def library(request: pytest.FixtureRequest) -> MultiBuffer:
    """A library of the test's own."""
    made: MultiBuffer = request.param()
    return made


def signed(key: rsa.RSAPrivateKey, texts: list[bytes]) -> list[bytes]:
    """Return the signatures by OpenSSL."""
    return [key.sign(text, padding.PKCS1v15(), SHA256()) for text in texts]


def test_the_real_one_is_there_where_the_processor_is_one_for_it() -> None:
    """An installation that lost it would else go unseen."""
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text().split() if processor.exists() else []

    assert (MultiBuffer in KINDS) == ("avx512ifma" in flags)


@pytest.mark.parametrize("count", range(1, LANES + 1))
def test_the_signatures_are_those_that_openssl_makes(library: MultiBuffer, count: int) -> None:
    """RSASSA-PKCS1-v1_5 has one signature for a text, so they can be compared byte by byte."""
    lanes = library.lanes(KEY)

    assert lanes is not None
    assert lanes.sign(TEXTS[:count]) == signed(KEY, TEXTS[:count])


def test_keys_share_no_memory(library: MultiBuffer) -> None:
    """Two keys sign in turn while one takes over from the other."""
    keys = [KEY, rsa.generate_private_key(EXPONENT, 2048)]
    every = [library.lanes(key) for key in keys]

    for _ in range(2):
        for key, lanes in zip(keys, every, strict=True):
            assert lanes is not None
            assert lanes.sign(TEXTS) == signed(key, TEXTS)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), id="P-256"),
        pytest.param(lambda: rsa.generate_private_key(EXPONENT, 3072), id="another-size"),
        pytest.param(lambda: rsa.generate_private_key(3, 2048), id="another-exponent"),
    ],
)
def test_a_key_that_is_none_for_lanes_is_left_alone(library: MultiBuffer, make: Any) -> None:
    assert library.lanes(make()) is None


def test_primes_of_two_lengths_are_left_alone(library: MultiBuffer) -> None:
    """The library takes both to be half as long as the key."""
    assert library.lanes(_uneven()) is None


@pytest.mark.parametrize("lane", [0, 3, 7])
def test_a_fault_is_kept_back(library: MultiBuffer, lane: int) -> None:
    """One wrong bit of one half is enough to compute the key from what comes out (Boneh, DeMillo and Lipton)."""
    lanes = library.lanes(KEY)
    assert lanes is not None
    library.private = _flipping(library.private, lane)

    with pytest.raises(Fault):
        lanes.sign(TEXTS)


@pytest.mark.parametrize("operation", ["private", "public"])
def test_a_status_that_is_not_ok_is_a_fault(library: MultiBuffer, operation: str) -> None:
    lanes = library.lanes(KEY)
    assert lanes is not None
    honest = getattr(library, operation)
    setattr(library, operation, lambda *arguments: honest(*arguments) or 1 << 28)

    with pytest.raises(Fault):
        lanes.sign(TEXTS)


def test_lanes_that_sign_otherwise_than_openssl_are_not_made(library: MultiBuffer) -> None:
    """Even where the library agrees with itself."""
    library.private, library.public = _agreeing(b"\x01" * 256)

    with pytest.raises(Fault):
        library.lanes(KEY)


@pytest.mark.parametrize("size", [0, LANES + 1])
def test_there_are_eight_lanes(library: MultiBuffer, size: int) -> None:
    lanes = library.lanes(KEY)
    assert lanes is not None

    with pytest.raises(AssertionError):
        lanes.sign([b"text"] * size)


def test_where_it_is_missing_or_another_words_say_so(tmp_path: Path) -> None:
    """Token then signs one by one, instead of not at all."""
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")

    for place, words in ((broken, "broken"), (tmp_path / "missing.so", "missing"), (Path("libc.so.6"), "mbx_get_cpu_features")):
        with pytest.raises(Unavailable, match=words):
            MultiBuffer(place)
    assert PLACE.name == "libcrypto_mb.watchword.so"


@cache
def _uneven() -> rsa.RSAPrivateKey:
    """A key of 2,048 bits whose primes have 1,048 and 1,000 of them."""
    while True:
        p = rsa.generate_private_key(EXPONENT, 2096).private_numbers().p
        q = rsa.generate_private_key(EXPONENT, 2000).private_numbers().q
        if (p * q).bit_length() == 2048:
            break
    d = rsa.rsa_recover_private_exponent(EXPONENT, p, q)
    halves = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return rsa.RSAPrivateNumbers(p, q, d, *halves, rsa.RSAPublicNumbers(EXPONENT, p * q)).private_key()


def _flipping(honest: Any, lane: int) -> Any:
    def private(asked: Any, signed: Any, *others: Any) -> int:
        status: int = honest(asked, signed, *others)
        ctypes.cast(signed[lane], ctypes.POINTER(ctypes.c_ubyte))[100] ^= 1
        return status

    return private


def _agreeing(signature: bytes) -> tuple[Any, Any]:
    """Return a private and a public operation by which `signature` is right for everything."""
    asked: list[bytes] = []

    def private(texts: Any, signed: Any, *_others: Any) -> int:
        asked[:] = [ctypes.string_at(text, len(signature)) for text in texts]
        for place in signed:
            ctypes.memmove(place, signature, len(signature))
        return 0

    def public(_signed: Any, opened: Any, *_others: Any) -> int:
        for place, text in zip(opened, asked, strict=True):
            ctypes.memmove(place, text, len(text))
        return 0

    return private, public
