"""Key pairs: made, or read from the environment, and judged before anything is signed with them.

A key has one algorithm and one purpose. Whatever is weak, mixed or meant for something else is refused in words for the operator.
Source: RFC 8725 sections 3.1, 3.2 and 3.5, RFC 7638, NIST SP 800-57.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from watchword.errors import WatchwordError
from watchword.tokens import encode_segment

RSA_BITS = 2048  # NIST SP 800-57: enough until 2030, and half the price of 3072
MAX_RSA_BITS = 8192  # a larger one makes every verification a burden
MIN_EXPONENT = 65537
KEY_FILES = ("JWT_PRIVATE_KEY_FILE", "KEY_ENCRYPTION_KEY_FILE")
# RFC 8017 appendix C: a key marked so may sign RSASSA-PSS only, and the library forgets the mark.
_PSS_ONLY = bytes.fromhex("06092a864886f70d01010a")

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class UnusableKey(WatchwordError):
    """A key cannot be used; the message says why, for the operator."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair before it is stored."""

    kid: str
    algorithm: str
    private_pem: str = field(repr=False)
    public_pem: str


def generate(algorithm: str) -> KeyPair:
    """Make a key pair for `algorithm`, named by its RFC 7638 thumbprint. Cost: RSA takes a tenth of a second."""
    private: PrivateKey
    if algorithm in ("RS256", "PS256"):
        private = rsa.generate_private_key(MIN_EXPONENT, RSA_BITS)
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        private = ed25519.Ed25519PrivateKey.generate()
    return _pair("", algorithm, private)


def read(private_pem: str, public_pem: str, *, algorithm: str, kid: str, others: Iterable[str] = ()) -> KeyPair:
    """Return the environment's key pair, checked. Raises UnusableKey with words for the operator.

    others  private keys in PEM that serve another purpose: none of them may sign tokens too
    """
    private, public = _load(private_pem, public_pem)
    if _PSS_ONLY in _der(private_pem) and algorithm != "PS256":
        raise UnusableKey(f"JWT_PRIVATE_KEY is a key for RSASSA-PSS only, and JWT_ALGORITHM is {algorithm}")
    pair = _pair(kid, algorithm, checked(private, algorithm))
    if _spki(public) != pair.public_pem:
        raise UnusableKey("JWT_PUBLIC_KEY is not the public key of JWT_PRIVATE_KEY")
    if pair.public_pem in {_public_part(other) for other in others if other}:
        raise UnusableKey("JWT_PRIVATE_KEY serves another purpose already (SERVICE_KEY or TLS_KEY): make one for tokens alone")
    return pair


def checked(private: Any, algorithm: str) -> Any:
    """Return a private key that is fit for `algorithm`. Raises UnusableKey."""
    if algorithm in ("RS256", "PS256"):
        if not isinstance(private, rsa.RSAPrivateKey):
            raise UnusableKey(f"JWT_ALGORITHM {algorithm} needs an RSA key")
        exponent = private.public_key().public_numbers().e
        if not RSA_BITS <= private.key_size <= MAX_RSA_BITS or exponent < MIN_EXPONENT:
            raise UnusableKey(f"JWT_PRIVATE_KEY is weak: use RSA of at least {RSA_BITS} bits with the exponent {MIN_EXPONENT}")
    elif algorithm == "ES256":
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise UnusableKey("JWT_ALGORITHM ES256 needs a P-256 key")
    elif not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UnusableKey("JWT_ALGORITHM Ed25519 needs an Ed25519 key")
    return private


def thumbprint(public: PublicKey) -> str:
    """Return the RFC 7638 thumbprint."""
    canonical = json.dumps(public_members(public), separators=(",", ":"), sort_keys=True).encode()
    return encode_segment(hashlib.sha256(canonical).digest())


def public_members(public: PublicKey) -> dict[str, str]:
    """Return the members of a JWK, made from public numbers only."""
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": _integer(numbers.n), "e": _integer(numbers.e)}
    if isinstance(public, ec.EllipticCurvePublicKey):
        point = public.public_numbers()
        return {"kty": "EC", "crv": "P-256", "x": encode_segment(point.x.to_bytes(32, "big")), "y": encode_segment(point.y.to_bytes(32, "big"))}
    return {"kty": "OKP", "crv": "Ed25519", "x": encode_segment(public.public_bytes_raw())}


def open_files(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield, in words, which files of secret keys others than this process's user can read or replace.

    Group members may read: that is how a file of root is lent to a service. On a read-only mount the mode is not asked: orchestrators mount
    secrets so, world-readable by default, into a file system that only the container sees.
    """
    for name in KEY_FILES:
        path = environment.get(name, "")
        if path and os.path.exists(path) and not _is_private(path):
            yield f"{name}: other users can read or replace the file; chmod 600 and chown it to the service's user, or set ALLOW_OPEN_KEY_FILE=true"


def _is_private(path: str) -> bool:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return True
    status = os.stat(path)
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IRWXO | stat.S_IWGRP)


def _load(private_pem: str, public_pem: str) -> tuple[Any, Any]:
    blocks = re.findall(r"-----BEGIN ", private_pem), re.findall(r"-----BEGIN ", public_pem)
    if len(blocks[0]) != 1 or len(blocks[1]) != (1 if public_pem else 0):
        raise UnusableKey("JWT_PRIVATE_KEY and JWT_PUBLIC_KEY must be one PEM key each")
    try:
        private = load_pem_private_key(_pem(private_pem), password=None)
        return private, load_pem_public_key(_pem(public_pem)) if public_pem else private.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableKey("JWT_PRIVATE_KEY and JWT_PUBLIC_KEY must be valid PEM keys without a password") from None


def _pem(text: str) -> bytes:
    return text.replace("\\n", "\n").encode()


def _der(text: str) -> bytes:
    body = re.sub(r"-----[A-Z0-9 ]+-----|\\n|\s", "", text)
    try:
        return base64.b64decode(body)[:64]  # the algorithm stands at the beginning
    except binascii.Error:
        return b""


def _public_part(private_pem: str) -> str:
    try:
        return _spki(load_pem_private_key(_pem(private_pem), password=None).public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return ""  # whoever uses that key says what is wrong with it


def _spki(public: Any) -> str:
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def _pair(kid: str, algorithm: str, private: PrivateKey) -> KeyPair:
    public = private.public_key()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return KeyPair(kid=kid or thumbprint(public), algorithm=algorithm, private_pem=pem, public_pem=_spki(public))


def _integer(value: int) -> str:
    return encode_segment(value.to_bytes((value.bit_length() + 7) // 8, "big"))
