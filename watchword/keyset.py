"""A published key set, read strictly: each key has one algorithm and one purpose, or it is no key.

What a token's header says chooses among these keys and nothing else. An entry that is weak, of another use, carries private parts or shares its `kid`
with another is left out, with a line in the log. Source: RFC 7517, RFC 7518 section 6, RFC 8037, RFC 8725 section 3.
"""

import base64
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from watchword.tokens import encode_segment

MAX_JWKS_BYTES = 262_144
MAX_KEYS = 100
MAX_KID = 128  # characters
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192  # weaker ones are broken; larger ones cost whoever verifies too much
EXPONENTS = range(65537, 2**32)
P256_BYTES = 32
_SHA256 = hashes.SHA256()
_ECDSA = ec.ECDSA(_SHA256)
_PKCS1 = padding.PKCS1v15()
DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")  # of SHA-256: RFC 8017 section 9.2, note 1
_PSS = padding.PSS(padding.MGF1(_SHA256), 32)

Verify = Callable[[bytes, bytes], bool]

log = logging.getLogger("watchword")


class KeySetInvalid(Exception):
    """Not a key set at all."""


class _Unusable(Exception):
    """An entry that is no key of ours; says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies, by one algorithm. `verifies(signed, signature)` says whether the signature is the key's."""

    kid: str
    algorithm: str
    verifies: Verify


def read(jwks: str) -> Mapping[str, Key]:
    """Return the usable keys of an RFC 7517 key set by `kid`. Raises KeySetInvalid."""
    entries = _entries(jwks)
    kids = Counter(entry["kid"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("kid"), str))
    keys: dict[str, Key] = {}
    for entry in entries:
        try:
            key = _key(entry)
            if kids[key.kid] > 1:
                raise _Unusable("shares its kid with another")
        except _Unusable as why:
            log.warning("a key of the key set is not used: it %s", why)
        else:
            keys[key.kid] = key
    return keys


def _entries(jwks: str) -> list[Any]:
    try:
        document = json.loads(jwks, object_pairs_hook=_no_duplicates) if len(jwks) <= MAX_JWKS_BYTES else None
    except (ValueError, RecursionError):
        document = None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise KeySetInvalid("the key set is not a JSON object with a short list of keys")
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands there twice")
    return members


def _key(entry: Any) -> Key:
    if not isinstance(entry, dict):
        raise _Unusable("is not an object")
    kid, algorithm = entry.get("kid"), entry.get("alg")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID:
        raise _Unusable("has no proper kid")
    if entry.get("use") != "sig" or entry.get("key_ops", ["verify"]) != ["verify"]:
        raise _Unusable("is not for verifying signatures")
    if entry.keys() & {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}:
        raise _Unusable("carries what must be private")
    make = _MAKERS.get(algorithm) if isinstance(algorithm, str) else None
    if make is None:
        raise _Unusable("has an algorithm that is not taken")
    assert isinstance(algorithm, str)
    try:
        return Key(kid, algorithm, make(entry))
    except ValueError:
        raise _Unusable("is not well formed") from None


def _rsa(entry: Mapping[str, Any]) -> rsa.RSAPublicKey:
    _expect(entry, kty="RSA")
    modulus, exponent = (int.from_bytes(_bytes(entry, name), "big") for name in ("n", "e"))
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS or exponent not in EXPONENTS:
        raise _Unusable(f"is not RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits with an exponent of at least {EXPONENTS[0]}")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _rs256(entry: Mapping[str, Any]) -> Verify:
    """RFC 8017 section 8.2.2 from its end: what the signature covers is opened, and must be what it should be, to the last bit.

    The library opens and takes the padding off, of which there is one for each length of what is left. That costs less than to have it compare.
    """
    key = _rsa(entry)
    size, opened = (key.key_size + 7) // 8, key.recover_data_from_signature

    def verifies(signed: bytes, signature: bytes) -> bool:
        if len(signature) != size:  # else zeros in front could be left out
            return False
        try:
            return opened(signature, _PKCS1, None) == DIGEST_INFO + sha256(signed).digest()
        except (InvalidSignature, ValueError):
            return False

    return verifies


def _ps256(entry: Mapping[str, Any]) -> Verify:
    return _asking(_rsa(entry).verify, _PSS, _SHA256)


def _es256(entry: Mapping[str, Any]) -> Verify:
    _expect(entry, kty="EC", crv="P-256")
    x, y = (_exactly(P256_BYTES, _bytes(entry, name)) for name in ("x", "y"))
    key = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()).public_key()

    def verify(signature: bytes, signed: bytes) -> None:
        r, s = (int.from_bytes(half, "big") for half in (signature[:P256_BYTES], _exactly(2 * P256_BYTES, signature)[P256_BYTES:]))
        key.verify(encode_dss_signature(r, s), signed, _ECDSA)

    return _asking(verify)


def _ed25519(entry: Mapping[str, Any]) -> Verify:
    _expect(entry, kty="OKP", crv="Ed25519")
    return _asking(ed25519.Ed25519PublicKey.from_public_bytes(_bytes(entry, "x")).verify)


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Verify]] = {"RS256": _rs256, "PS256": _ps256, "ES256": _es256, "Ed25519": _ed25519}


def _asking(verify: Callable[..., None], *how: Any) -> Verify:
    """Make a question of what raises: the library's verification, which takes the signature first and `how` last."""

    def verifies(signed: bytes, signature: bytes) -> bool:
        try:
            verify(signature, signed, *how)
        except (InvalidSignature, ValueError):
            return False
        return True

    return verifies


def _expect(entry: Mapping[str, Any], **members: str) -> None:
    if any(entry.get(name) != value for name, value in members.items()):
        raise _Unusable("is not of the kind that its algorithm needs")


def _bytes(entry: Mapping[str, Any], name: str) -> bytes:
    text = entry.get(name)
    if not isinstance(text, str):
        raise ValueError(name)
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode_segment(raw) != text:  # one spelling, as in tokens
        raise ValueError(name)
    return raw


def _exactly(size: int, raw: bytes) -> bytes:
    if len(raw) != size:
        raise ValueError("not of the right length")
    return raw
