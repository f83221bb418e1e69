"""Signing keys: each with one algorithm and one purpose, chosen by `kid` from our own ring, never by what a token says about itself.

The ring lives in Postgres, private parts encrypted (AES-256-GCM) under the key-encryption key; a key pair of the environment becomes its first
member. Instances that start together agree on one key, because the store makes it under a lock. Source: RFC 8725 sections 3.1 and 3.2, RFC 7638.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm, RSAPSSAlgorithm

from services.chassis.clock import Clock
from services.chassis.sealing import Sealer
from services.token.claims import encode_segment
from watchword.errors import WatchwordError

if TYPE_CHECKING:
    from services.token.store import TokenStore

RSA_BITS = 2048  # NIST SP 800-57: enough until 2030, and half the price of 3072
MIN_EXPONENT = 65537
RELOAD_EVERY = 5.0  # seconds: an unknown kid costs at most one reload in this time, whoever sends how many

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_ALGORITHMS: Mapping[str, Algorithm] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "Ed25519": OKPAlgorithm(),  # RFC 9864's name of what was EdDSA
}


class KeyState(StrEnum):
    """Where a key is in its life. Published keys verify; the active one signs."""

    PENDING = "PENDING"
    PUBLISHED = "PUBLISHED"
    ACTIVE = "ACTIVE"
    RETIRING = "RETIRING"
    RETIRED = "RETIRED"

    @property
    def verifies(self) -> bool:
        """Whether tokens of such a key are good."""
        return self in (KeyState.PUBLISHED, KeyState.ACTIVE, KeyState.RETIRING)


class UnusableKey(WatchwordError):
    """A key cannot be used; the message says why, for the operator."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the store holds it."""

    kid: str
    algorithm: str
    state: KeyState
    public_pem: str
    sealed_private: bytes
    create_time: datetime


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key that verifies, by one algorithm."""

    kid: str
    algorithm: str
    public: Any

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `signed`."""
        try:
            return bool(_ALGORITHMS[self.algorithm].verify(signed, self.public, signature))
        except (InvalidSignature, ValueError):
            return False

    def jwk(self) -> dict[str, str]:
        """Return the RFC 7517 form, made from public numbers only."""
        return {**_public_members(self.public), "use": "sig", "alg": self.algorithm, "kid": self.kid}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that signs."""

    kid: str
    algorithm: str
    private: Any

    def sign(self, payload: bytes) -> str:
        """Return `payload` as a compact JWS of type at+jwt."""
        header = json.dumps({"alg": self.algorithm, "kid": self.kid, "typ": "at+jwt"}, separators=(",", ":")).encode()
        signed = f"{encode_segment(header)}.{encode_segment(payload)}"
        signature = _ALGORITHMS[self.algorithm].sign(signed.encode(), self.private)
        return f"{signed}.{encode_segment(signature)}"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair before it is stored."""

    kid: str
    algorithm: str
    private_pem: str
    public_pem: str


class KeyRing:
    """The keys in memory. `load` before use; unknown kids reload it, seldom."""

    def __init__(self, store: "TokenStore", sealer: Sealer, clock: Clock) -> None:
        self._store = store
        self._sealer = sealer
        self._clock = clock
        self._verifying: Mapping[str, VerificationKey] = {}
        self._active: SigningKey | None = None
        self._jwks = b""
        self._loaded_at = float("-inf")

    async def load(self) -> None:
        """Read the ring from the store. Raises UnusableKey if the key-encryption key is not the one it was sealed with."""
        stored = await self._store.list_keys()
        self._verifying = {key.kid: _verification_key(key) for key in stored if key.state.verifies}
        active = next((key for key in stored if key.state is KeyState.ACTIVE), None)
        self._active = self._open(active) if active else None
        self._jwks = json.dumps({"keys": [key.jwk() for key in self._verifying.values()]}, separators=(",", ":")).encode()
        self._loaded_at = time.monotonic()

    async def ensure(self, given: KeyPair | None, algorithm: str) -> None:
        """Make sure that the ring has an active key: the environment's, or one made now. Raises UnusableKey."""
        await self._store.ensure_active_key(given, lambda: given or generate(algorithm), self._seal, self._clock.now())
        await self.load()

    async def find(self, kid: str) -> VerificationKey | None:
        """Return the key that tokens with this kid are verified with, or None."""
        key = self._verifying.get(kid)
        if key is None and time.monotonic() - self._loaded_at > RELOAD_EVERY:
            await self.load()
            key = self._verifying.get(kid)
        return key

    @property
    def signing(self) -> SigningKey:
        """The active key."""
        if self._active is None:
            raise UnusableKey("the ring has no active key")
        return self._active

    @property
    def jwks(self) -> bytes:
        """The RFC 7517 key set, as JSON."""
        return self._jwks

    @property
    def etag(self) -> str:
        """The strong entity tag of `jwks`."""
        return f'"{hashlib.sha256(self._jwks).hexdigest()[:32]}"'

    def _seal(self, pair: KeyPair) -> bytes:
        return self._sealer.seal(pair.private_pem.encode(), bound_to=pair.kid.encode())

    def _open(self, key: StoredKey) -> SigningKey:
        try:
            pem = self._sealer.open(key.sealed_private, bound_to=key.kid.encode())
        except ValueError:
            raise UnusableKey(
                f"the signing key {key.kid} does not open: KEY_ENCRYPTION_KEY or SECURITY_SALT is not the one it was stored with"
            ) from None
        return SigningKey(key.kid, key.algorithm, load_pem_private_key(pem, password=None))


def generate(algorithm: str) -> KeyPair:
    """Make a key pair for `algorithm`, named by its RFC 7638 thumbprint."""
    private: PrivateKey
    if algorithm in ("RS256", "PS256"):
        private = rsa.generate_private_key(MIN_EXPONENT, RSA_BITS)
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        private = ed25519.Ed25519PrivateKey.generate()
    return _pair("", algorithm, private)


def read(private_pem: str, public_pem: str, *, algorithm: str, kid: str) -> KeyPair:
    """Return the environment's key pair, checked. Raises UnusableKey with words for the operator."""
    try:
        private = load_pem_private_key(_pem(private_pem), password=None)
        public = load_pem_public_key(_pem(public_pem)) if public_pem else private.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableKey("JWT_PRIVATE_KEY and JWT_PUBLIC_KEY must be PEM keys without a password") from None
    pair = _pair(kid, algorithm, _checked(private, algorithm))
    if public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() != pair.public_pem:
        raise UnusableKey("JWT_PUBLIC_KEY is not the public key of JWT_PRIVATE_KEY")
    return pair


def _pem(text: str) -> bytes:
    return text.replace("\\n", "\n").encode()


def _checked(private: Any, algorithm: str) -> Any:
    if algorithm in ("RS256", "PS256"):
        if not isinstance(private, rsa.RSAPrivateKey):
            raise UnusableKey(f"JWT_ALGORITHM {algorithm} needs an RSA key")
        if private.key_size < RSA_BITS or private.public_key().public_numbers().e < MIN_EXPONENT:
            raise UnusableKey(f"JWT_PRIVATE_KEY is weak: use RSA of at least {RSA_BITS} bits with the exponent {MIN_EXPONENT}")
    elif algorithm == "ES256":
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise UnusableKey("JWT_ALGORITHM ES256 needs a P-256 key")
    elif not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UnusableKey("JWT_ALGORITHM Ed25519 needs an Ed25519 key")
    return private


def _pair(kid: str, algorithm: str, private: PrivateKey) -> KeyPair:
    public = private.public_key()
    return KeyPair(
        kid=kid or thumbprint(public),
        algorithm=algorithm,
        private_pem=private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        public_pem=public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    )


def thumbprint(public: PublicKey) -> str:
    """Return the RFC 7638 thumbprint."""
    canonical = json.dumps(_public_members(public), separators=(",", ":"), sort_keys=True).encode()
    return encode_segment(hashlib.sha256(canonical).digest())


def _verification_key(key: StoredKey) -> VerificationKey:
    return VerificationKey(key.kid, key.algorithm, load_pem_public_key(key.public_pem.encode()))


def _public_members(public: PublicKey) -> dict[str, str]:
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": _integer(numbers.n), "e": _integer(numbers.e)}
    if isinstance(public, ec.EllipticCurvePublicKey):
        point = public.public_numbers()
        return {"kty": "EC", "crv": "P-256", "x": encode_segment(point.x.to_bytes(32, "big")), "y": encode_segment(point.y.to_bytes(32, "big"))}
    return {"kty": "OKP", "crv": "Ed25519", "x": encode_segment(public.public_bytes_raw())}


def _integer(value: int) -> str:
    return encode_segment(value.to_bytes((value.bit_length() + 7) // 8, "big"))
