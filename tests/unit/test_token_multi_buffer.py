"""Eight signatures at once are the same eight signatures, and a wrong one never comes out."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from services.token.multi_buffer import LANES, Fault, MultiBuffer, Unavailable

TEXTS = [b"", b"a", b"a" * 5000, *[b"text %d" % number for number in range(5)]]


def _loaded() -> MultiBuffer | None:
    try:
        return MultiBuffer()
    except Unavailable:
        return None


LIBRARY = _loaded()
KEY = rsa.generate_private_key(65537, 2048)
needs_library = pytest.mark.skipif(LIBRARY is None, reason="this processor has no AVX-512 with IFMA")


def signed(key: rsa.RSAPrivateKey, texts: list[bytes]) -> list[bytes]:
    """Return the signatures by OpenSSL."""
    return [key.sign(text, padding.PKCS1v15(), SHA256()) for text in texts]


def library() -> MultiBuffer:
    """Return the library, one of a test's own."""
    return MultiBuffer()


def test_it_is_there_where_the_processor_is_one_for_it() -> None:
    """The other tests here are skipped without it: an installation that lost it would else go unseen."""
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text().split() if processor.exists() else []

    assert (LIBRARY is not None) == ("avx512ifma" in flags)


@needs_library
@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_the_signatures_are_those_that_openssl_makes(bits: int) -> None:
    """RSASSA-PKCS1-v1_5 has one signature for a text, so they can be compared byte by byte."""
    key = rsa.generate_private_key(65537, bits)
    lanes = library().lanes(key)

    assert lanes is not None
    for count in range(1, LANES + 1):
        assert lanes.sign(TEXTS[:count]) == signed(key, TEXTS[:count])


@needs_library
def test_keys_share_no_memory() -> None:
    """Two keys sign in turn while one takes over from the other."""
    keys = [KEY, rsa.generate_private_key(65537, 2048)]
    every = [library().lanes(key) for key in keys]

    for _ in range(3):
        for key, lanes in zip(keys, every, strict=True):
            assert lanes is not None
            assert lanes.sign(TEXTS) == signed(key, TEXTS)


@needs_library
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), id="P-256"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2304), id="another-size"),
        pytest.param(lambda: rsa.generate_private_key(3, 2048), id="another-exponent"),
    ],
)
def test_a_key_that_is_none_for_lanes_is_left_alone(make: Any) -> None:
    assert library().lanes(make()) is None


@needs_library
def test_primes_of_two_lengths_are_left_alone() -> None:
    """The library takes both to be half as long as the key."""
    assert library().lanes(_uneven()) is None


@needs_library
@pytest.mark.parametrize("lane", [0, 3, 7])
def test_a_fault_is_kept_back(lane: int) -> None:
    """One bit of one half is enough to compute the key from what comes out (Boneh, DeMillo and Lipton)."""
    faulty = library()
    lanes = faulty.lanes(KEY)
    assert lanes is not None
    faulty.private = _flipping(faulty.private, lane)

    with pytest.raises(Fault):
        lanes.sign(TEXTS)


@needs_library
@pytest.mark.parametrize("function", ["private", "public"])
def test_a_status_that_is_not_ok_is_a_fault(function: str) -> None:
    faulty = library()
    lanes = faulty.lanes(KEY)
    assert lanes is not None
    honest = getattr(faulty, function)
    setattr(faulty, function, lambda *arguments: honest(*arguments) or 1 << 28)

    with pytest.raises(Fault):
        lanes.sign(TEXTS)


@needs_library
def test_lanes_that_sign_otherwise_than_openssl_are_not_made() -> None:
    """Even where the library agrees with itself."""
    wrong = library()
    wrong.private, wrong.public = _agreeing(b"\x01" * 256)

    with pytest.raises(Fault):
        wrong.lanes(KEY)


def test_where_it_is_missing_words_say_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")

    with pytest.raises(Unavailable, match=r"broken\.so.*; .*missing\.so"):
        MultiBuffer([str(broken), str(tmp_path / "missing.so")])


def _uneven() -> rsa.RSAPrivateKey:
    """A key of 2,048 bits whose primes have 1,000 and 1,048 of them."""
    while True:
        p = rsa.generate_private_key(65537, 2096).private_numbers().p
        q = rsa.generate_private_key(65537, 2000).private_numbers().q
        if (p * q).bit_length() == 2048:
            break
    d = rsa.rsa_recover_private_exponent(65537, p, q)
    crt = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return rsa.RSAPrivateNumbers(p, q, d, *crt, rsa.RSAPublicNumbers(65537, p * q)).private_key()


def _flipping(honest: Any, lane: int) -> Any:
    def private(asked: Any, signed: Any, *others: Any) -> int:
        status: int = honest(asked, signed, *others)
        place = ctypes.cast(signed[lane], ctypes.POINTER(ctypes.c_ubyte))
        place[100] ^= 1
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
