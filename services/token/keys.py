"""The ring of signing keys: each with one algorithm and one purpose, chosen by `kid` from our own ring, never by what a token says about itself.

The ring lives in Postgres; instances hold it in memory. What others tell about keys only moves keys that were read from Postgres: the public part
in a notice is never believed, or whoever can write to Redis could sign tokens. Private parts are sealed (vault.py), and a key whose private part
does not fit its public one is refused, so a public key written into the table by hand verifies nothing either. Source: RFC 8725 section 3.1.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm, RSAPSSAlgorithm

from services.token.key_pairs import KeyPair, UnusableKey, checked, generate, public_members, read
from services.token.notices import KeyNotice
from services.token.revocations import Lease
from services.token.vault import Vault
from watchword.errors import DependencyUnavailable
from watchword.tokens import encode_segment

__all__ = ["KeyPair", "KeyRing", "KeyState", "Snapshot", "StoredKey", "UnusableKey", "VerificationKey", "generate", "read"]

RELOAD_EVERY = 5.0  # seconds: an unknown kid costs at most one reload in this time, whoever sends how many
RELOAD_EVERY_DIRECT = 1.0  # seconds, without a lease
STALE_AFTER = 10.0  # seconds without a look at Postgres and without a lease after which nothing is signed
HANDOVER = 10.0  # seconds that the last active key may go on signing while its successor's private part is fetched

_ALGORITHMS: Mapping[str, Algorithm] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "Ed25519": OKPAlgorithm(),  # RFC 9864's name of what was EdDSA
}

log = structlog.get_logger()


class KeyState(StrEnum):
    """Where a key is in its life, which goes forward only. Published keys verify; the active one signs."""

    PENDING = "PENDING"
    PUBLISHED = "PUBLISHED"
    ACTIVE = "ACTIVE"
    RETIRING = "RETIRING"
    RETIRED = "RETIRED"

    @property
    def verifies(self) -> bool:
        """Whether tokens of such a key are good."""
        return self in (KeyState.PUBLISHED, KeyState.ACTIVE, KeyState.RETIRING)


_RANK = {state: number for number, state in enumerate(KeyState)}


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the store holds it.

    held_time  since when every live instance, and every verifier that is connected, has held it; None while some have not
    is_asked   somebody asked for it: it is promoted as soon as it may be, not by the schedule
    """

    kid: str
    algorithm: str
    state: KeyState
    public_pem: str
    sealed_private: bytes = field(repr=False)
    create_time: datetime
    state_time: datetime
    held_time: datetime | None = None
    is_asked: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The ring at one instant: `now` by Postgres's clock, the keys oldest first, and the kids that everybody who verifies holds at present."""

    now: datetime
    keys: tuple[StoredKey, ...]
    held: frozenset[str] = frozenset()


class KeySource(Protocol):
    """Where the ring is kept."""

    async def read(self) -> Snapshot:
        """Return the ring as it now is. Raises DependencyUnavailable."""


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
        return {**public_members(self.public), "use": "sig", "alg": self.algorithm, "kid": self.kid}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs."""

    kid: str
    algorithm: str
    private: Any = field(repr=False)
    head: str = field(init=False, repr=False)
    signature_size: int = field(init=False)

    def __post_init__(self) -> None:
        """Make what is the same for all tokens: the header, of type at+jwt, and how long an encoded signature is (RFC 7518 section 3, RFC 8032)."""
        header = json.dumps({"alg": self.algorithm, "kid": self.kid, "typ": "at+jwt"}, separators=(",", ":")).encode()
        size = -(-self.private.key_size // 8) if self.algorithm in ("RS256", "PS256") else 64
        object.__setattr__(self, "head", encode_segment(header))
        object.__setattr__(self, "signature_size", len(encode_segment(bytes(size))))

    def signing_input(self, payload: bytes) -> str:
        """Return what is signed of a token that says `payload`: RFC 7515 section 5.1."""
        return f"{self.head}.{encode_segment(payload)}"

    def sign(self, signing_input: str) -> bytes:
        """Return the signature."""
        return _ALGORITHMS[self.algorithm].sign(signing_input.encode(), self.private)


@dataclass(frozen=True, slots=True)
class _Held:
    """A key in memory."""

    state: KeyState
    public_pem: str
    verification: VerificationKey
    signing: SigningKey


@dataclass(frozen=True, slots=True)
class _NoLease:
    """Memory is as old as its last load."""

    is_current: bool = False


class KeyRing:
    """The keys in memory. `load` before use. `version` moves with every change of what verifies."""

    def __init__(self, source: KeySource, vault: Vault, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._vault = vault
        self._lease: Lease = _NoLease()
        self._monotonic = monotonic
        self._turn = asyncio.Lock()
        self._joint: asyncio.Task[Snapshot] | None = None
        self._news = asyncio.Event()
        self._keys: dict[str, _Held] = {}
        self._told: dict[str, tuple[int, KeyState]] = {}  # what was told since the last load began, and which notice it was
        self._notices = 0
        self._verifying: Mapping[str, VerificationKey] = {}
        self._active: SigningKey | None = None
        self._handover_until = float("inf")
        self._jwks = b'{"keys":[]}'
        self._loaded_at = self._asked_at = float("-inf")
        self.version = 0

    def trust(self, lease: Lease) -> None:
        """Go by what `lease` says of memory from now on."""
        self._lease = lease

    async def load(self) -> Snapshot:
        """Read the ring by a read that begins now, and return it.

        Raises  DependencyUnavailable; UnusableKey if a key does not open with the key-encryption key. Then memory stays as it was.
        """
        async with self._turn:
            began, notices = self._monotonic(), self._notices
            snapshot = await self._source.read()
            self._take(snapshot, notices)
            self._loaded_at = began
            return snapshot

    def apply(self, notice: KeyNotice) -> None:
        """Take note of what an instance told, at once. Notices come twice and in any order. Raises ValueError for no known state."""
        state = KeyState(notice.state)
        self._notices += 1
        if notice.kid in self._told:
            state = _later(state, self._told[notice.kid][1])
        self._told[notice.kid] = (self._notices, state)
        held = self._keys.get(notice.kid)
        if held is not None and _RANK[held.state] < _RANK[state]:
            self._keys[notice.kid] = replace(held, state=state)
            self._rebuild()
        self._news.set()

    async def find(self, kid: str) -> VerificationKey | None:
        """Return the key that tokens with this kid are verified with, or None. Raises DependencyUnavailable."""
        key = self._verifying.get(kid)
        if key is not None:
            return key
        try:
            await self._look_for(kid)
        except UnusableKey as error:  # somebody changed the table: what is in memory stays good, and nothing is added
            log.error("key_ring_unusable", cause=error.text)
        except DependencyUnavailable:
            if not self._lease.is_current or self._is_awaited(kid):
                raise
        return self._verifying.get(kid)

    def peek(self, kid: str) -> VerificationKey | None:
        """Return what memory has under this kid, without waiting."""
        return self._verifying.get(kid)

    async def settle(self) -> None:
        """Return when every key that was told to verify is in memory, or Postgres does not answer."""
        with contextlib.suppress(DependencyUnavailable):
            for kid in list(self._told):
                if self._is_awaited(kid):
                    await self._look_for(kid)

    async def wait_for_news(self, seconds: float) -> None:
        """Return when something was told, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        self._news.clear()

    def holds(self, reported: Iterable[frozenset[str]] = ()) -> list[str]:
        """Return the kids that verify here and that each connected verifier reported."""
        return sorted(frozenset(self._verifying).intersection(*reported))

    @property
    def signing(self) -> SigningKey:
        """The active key. Raises DependencyUnavailable if it is not known, or was not seen for so long that it may be another by now."""
        now = self._monotonic()
        if self._active is None or now > self._handover_until:
            raise DependencyUnavailable("the signing key is being changed; try again")
        if now - self._loaded_at > STALE_AFTER and not self._lease.is_current:
            raise DependencyUnavailable("the signing keys are out of date; try again")
        return self._active

    @property
    def can_sign(self) -> bool:
        """Whether the ring has an active key."""
        return self._active is not None

    @property
    def jwks(self) -> bytes:
        """The RFC 7517 key set, as JSON."""
        return self._jwks

    @property
    def etag(self) -> str:
        """The strong entity tag of `jwks`."""
        return f'"{hashlib.sha256(self._jwks).hexdigest()[:32]}"'

    def _take(self, snapshot: Snapshot, notices: int) -> None:
        """Make memory what Postgres said, moved on by what was told since the read began: that may be missing in it."""
        told = {kid: news for kid, news in self._told.items() if news[0] > notices}
        keys = {}
        for stored in snapshot.keys:
            if stored.state is not KeyState.RETIRED:
                held = self._hold(stored)
                keys[stored.kid] = replace(held, state=_later(stored.state, told[stored.kid][1])) if stored.kid in told else held
        self._told = told
        if keys != self._keys:
            self._keys = keys
            self._rebuild()

    def _hold(self, stored: StoredKey) -> _Held:
        known = self._keys.get(stored.kid)
        if known is not None and known.public_pem == stored.public_pem and known.verification.algorithm == stored.algorithm:
            return replace(known, state=stored.state)
        # It was checked before it was sealed, and the seal is authentic: checking RSA's primes again would take 40 ms.
        pem = self._vault.open(stored.kid, stored.sealed_private)
        private = checked(load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True), stored.algorithm)
        public = private.public_key()
        if public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() != stored.public_pem:
            raise UnusableKey(f"the stored parts of the signing key {stored.kid} do not belong together: somebody changed the table signing_key")
        verification = VerificationKey(stored.kid, stored.algorithm, public)
        return _Held(stored.state, stored.public_pem, verification, SigningKey(stored.kid, stored.algorithm, private))

    def _rebuild(self) -> None:
        verifying = {kid: held.verification for kid, held in self._keys.items() if held.state.verifies}
        if verifying != self._verifying:
            self._verifying = verifying
            self._jwks = jwks_of(list(verifying.values()))
        self._choose()
        self.version += 1

    def _choose(self) -> None:
        """The active key signs. Its predecessor may for a moment, when the successor is known by name only; a retired one never."""
        active = next((held.signing for held in self._keys.values() if held.state is KeyState.ACTIVE), None)
        if active is not None:
            self._active, self._handover_until = active, float("inf")
            return
        former = None if self._active is None else self._keys.get(self._active.kid)
        if former is None or former.state is not KeyState.RETIRING:
            self._active = None
        self._handover_until = min(self._handover_until, self._monotonic() + HANDOVER)

    def _is_awaited(self, kid: str) -> bool:
        return kid not in self._keys and kid in self._told and self._told[kid][1].verifies

    async def _look_for(self, kid: str) -> None:
        """Read the ring anew because of a kid that is not in it: always for one that was told, seldom for any other."""
        if self._is_awaited(kid):
            while self._is_awaited(kid):
                await self._join()
        elif self._is_loading or self._may_ask():
            await self._join()

    def _may_ask(self) -> bool:
        now, interval = self._monotonic(), RELOAD_EVERY if self._lease.is_current else RELOAD_EVERY_DIRECT
        if now - max(self._asked_at, self._loaded_at) < interval:
            return False
        self._asked_at = now
        return True

    @property
    def _is_loading(self) -> bool:
        return self._joint is not None and not self._joint.done()

    async def _join(self) -> None:
        """Wait for the one load that runs for all who ask."""
        if self._joint is None or self._joint.done():
            self._joint = asyncio.create_task(self.load(), name="key-ring")
        await asyncio.shield(self._joint)


def jwks_of(keys: Sequence[VerificationKey]) -> bytes:
    """Return keys as an RFC 7517 key set."""
    return json.dumps({"keys": [key.jwk() for key in keys]}, separators=(",", ":")).encode()


def _later(one: KeyState, other: KeyState) -> KeyState:
    return max(one, other, key=_RANK.__getitem__)
