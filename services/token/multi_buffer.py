"""RSA signatures eight at a time, for the price of three: Intel's multi-buffer library does in the lanes of AVX-512 what OpenSSL does for one number.

It needs a processor with AVX-512 and IFMA (Ice Lake, Zen 4), and the library, which `scripts/up` and the image bring (docs/decisions/0023). Where
either is missing, signatures are made one by one, as ever. None leaves unchecked: a fault while half of a Chinese remainder is computed would give
the key away, so each is opened again with the public key first.
Source: RFC 8017 sections 8.2 and 9.2; Boneh, DeMillo and Lipton 1997; Envoy's CryptoMB, which does this for TLS.
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable, Sequence
from ctypes import c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from watchword.keyset import DIGEST_INFO

LANES = 8
PLACE = Path(sys.prefix) / "lib" / "libcrypto_mb.watchword.so"  # where scripts/_signing_library puts it
EXPONENT = 65537  # the only one that the library checks signatures with
BITS = 2048  # of keys that are worth it: with 3,072 bits OpenSSL is faster, with 4,096 all else would wait for 7 ms at a time
# In the processor, and allowed by the system. On AVX-IFMA alone the library works with half the lanes, which nobody has measured here.
_AVX512_IFMA = 0x300000000
_OK = 0

_Pointers = c_void_p * LANES
# Of rows of pointers, the key's bits, and two pointers that may be null; returns four bits a lane, zero if all went well.
Operation = Callable[..., int]


class Unavailable(Exception):
    """Signatures cannot be made together here; the message says why, for the operator."""


class Fault(Exception):
    """What came out is not the signature of what went in."""


class MultiBuffer:
    """The library's two operations, each for eight lanes. Raises Unavailable if it cannot be loaded, or this processor is not one for it."""

    def __init__(self, place: Path = PLACE) -> None:
        try:
            library = ctypes.CDLL(str(place))
            features, private, public = library.mbx_get_cpu_features, library.mbx_rsa_private_crt_mb8, library.mbx_rsa_public_mb8
        except (OSError, AttributeError) as error:
            raise Unavailable(str(error)) from error
        features.argtypes, features.restype = [], c_uint64
        private.argtypes, private.restype = [*[_Pointers] * 7, c_int, c_void_p, c_void_p], c_uint32
        public.argtypes, public.restype = [*[_Pointers] * 3, c_int, c_void_p, c_void_p], c_uint32
        if features() & _AVX512_IFMA != _AVX512_IFMA:
            raise Unavailable("this processor has no AVX-512 with IFMA")
        self.private: Operation = private
        self.public: Operation = public

    def lanes(self, private: Any) -> "Lanes | None":
        """Return eight lanes that sign with `private`, or None if it is not a key for them. Raises Fault."""
        if not isinstance(private, rsa.RSAPrivateKey) or private.key_size != BITS:
            return None
        numbers = private.private_numbers()
        is_even = numbers.p.bit_length() == numbers.q.bit_length() == private.key_size // 2
        return Lanes(self, private) if is_even and numbers.public_numbers.e == EXPONENT else None


class Lanes:
    """One key's eight lanes: RSASSA-PKCS1-v1_5 with SHA-256. Not for several threads at once."""

    def __init__(self, library: MultiBuffer, private: rsa.RSAPrivateKey) -> None:
        numbers, size = private.private_numbers(), private.key_size // 8
        self._library = library
        self._bits, self._size = private.key_size, size
        self._padding = b"\0\1".ljust(size - len(DIGEST_INFO) - 33, b"\xff") + b"\0" + DIGEST_INFO
        halves = (numbers.p, numbers.q, numbers.dmp1, numbers.dmq1, numbers.iqmp)
        self._halves = [_Row.of_one(half.to_bytes(size // 2, "little")) for half in halves]
        self._modulus = _Row.of_one(numbers.public_numbers.n.to_bytes(size, "little"))
        self._asked, self._signed, self._opened = _Row.of_many(size), _Row.of_many(size), _Row.of_many(size)
        self._prove(private)

    def sign(self, texts: Sequence[bytes]) -> list[bytes]:
        """Return the signatures of one to eight texts, in their order. Raises Fault. Cost: the same for one as for eight."""
        assert 1 <= len(texts) <= LANES, "a text for each lane at most"
        asked = [self._padding + hashlib.sha256(text).digest() for text in texts]
        self._asked.write(b"".join((asked * LANES)[:LANES]))
        halves = [half.pointers for half in self._halves]
        signed = self._library.private(self._asked.pointers, self._signed.pointers, *halves, self._bits, None, None)
        opened = self._library.public(self._signed.pointers, self._opened.pointers, self._modulus.pointers, self._bits, None, None)
        if signed != _OK or opened != _OK or self._opened.read() != self._asked.read():
            raise Fault
        every = self._signed.read()
        return [every[number * self._size : (number + 1) * self._size] for number in range(len(texts))]

    def _prove(self, private: rsa.RSAPrivateKey) -> None:
        texts = [b"lane %d" % number for number in range(LANES)]
        if self.sign(texts) != [private.sign(text, padding.PKCS1v15(), SHA256()) for text in texts]:
            raise Fault


class _Row:
    """Memory that eight lanes read or write: a place each, or one for all."""

    def __init__(self, size: int, step: int) -> None:
        self._memory = ctypes.create_string_buffer(size)
        start = ctypes.addressof(self._memory)
        self.pointers = _Pointers(*[start + step * lane for lane in range(LANES)])

    @classmethod
    def of_one(cls, number: bytes) -> "_Row":
        """Let all lanes read the same number."""
        row = cls(len(number), 0)
        row.write(number)
        return row

    @classmethod
    def of_many(cls, size: int) -> "_Row":
        """Give each lane `size` bytes."""
        return cls(size * LANES, size)

    def write(self, raw: bytes) -> None:
        """Fill it."""
        self._memory.raw = raw

    def read(self) -> bytes:
        """Return all of it."""
        return self._memory.raw
