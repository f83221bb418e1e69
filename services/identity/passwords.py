"""Passwords: how they are kept, compared, and judged.

Kept is bcrypt(base64(HMAC-SHA-384(pepper, password))): the pepper is not in the database, the 64 characters stay below bcrypt's limit of 72 bytes,
and no byte of a long password is lost. Argon2id is there as a setting. The stored form names the pepper's version, the scheme and its cost:
`p1$2b$12$…` or `p1$argon2id$v=19$m=19456,t=2,p=1$…`. Sources: OWASP ASVS 5.0 section 6.2, NIST SP 800-63B-4, RFC 8265.
"""

import base64
import hashlib
import hmac
import unicodedata
from collections.abc import Sequence
from typing import Literal

import bcrypt
from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

from watchword.errors import InvalidRequest, PasswordRejected, Violation

Scheme = Literal["bcrypt", "argon2id"]

PEPPERED = "p1"
MAX_BYTES = 1024  # ASVS 6.2.9 asks for at least 64 characters; beyond this a password is an attack
MAX_JUDGED = 40  # characters that zxcvbn sees: its cost grows with the square
# Signs, besides digits, that zxcvbn takes for letters. It tries every combination of their meanings, so a password of many of them costs seconds:
# more than a few kinds are shown to it as one sign that means nothing. Worst of 3,000 random ones: 40 ms of CPU; with all kinds shown, over 4 s.
LEET = frozenset("@({[<!|$+%")
MAX_LEET = 2
MIN_SCORE = 2  # of zxcvbn's 0 to 4: more than 10^6 guesses; `attempts` allows a name at most a hundred an hour, so that they take more than a year
MIN_OF_ITS_OWN = 4  # characters that a password must have besides names
CONTEXT_WORDS = ("watchword", "password", "admin")  # ASVS 6.2.11: words of the service itself


class Passwords:
    """Hashes and compares. Every method here takes a core's time: call them in the hash pool."""

    def __init__(self, pepper: bytes, *, scheme: Scheme, cost: int) -> None:
        self.pepper = pepper
        self._scheme: Scheme = scheme
        self._cost = cost
        self._argon2 = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)  # OWASP cheat sheet: 19 MiB, two passes
        self._dummy = self.hash("no account has this password")

    def hash(self, password: str) -> str:
        """Return the form in which `password` is kept."""
        if self._scheme == "argon2id":
            return PEPPERED + self._argon2.hash(self._peppered(password))
        return PEPPERED + bcrypt.hashpw(self._peppered(password), bcrypt.gensalt(self._cost)).decode()

    def matches(self, password: str, kept: str) -> bool:
        """Whether `password` is the one that was kept. An empty `kept` matches nothing, at the same cost.

        A mismatch with a hash of a lower cost is topped up to the present cost, so that the time does not say that the account is an old one:
        2^c + 2^c + 2^(c+1) + … + 2^(n-1) = 2^n.
        """
        peppered = self._peppered(password)
        matched = self._compare(peppered, kept or self._dummy) and bool(kept)
        if not matched and kept:
            for cost in range(_bcrypt_cost(kept), self._cost if self._scheme == "bcrypt" else 0):
                bcrypt.hashpw(peppered, bcrypt.gensalt(cost))
        return matched

    def waste(self, password: str) -> None:
        """Take the time of a comparison that cannot succeed."""
        self.matches(password, "")

    def is_outdated(self, kept: str) -> bool:
        """Whether a password kept so should be hashed anew: the scheme changed, or the cost rose."""
        if self._scheme == "argon2id":
            return not _is_argon2(kept) or self._argon2.check_needs_rehash(kept.removeprefix(PEPPERED))
        return _is_argon2(kept) or _bcrypt_cost(kept) < self._cost

    def _compare(self, peppered: bytes, kept: str) -> bool:
        encoded = kept.removeprefix(PEPPERED)
        if not _is_argon2(kept):
            return bcrypt.checkpw(peppered, encoded.encode())
        try:
            return self._argon2.verify(encoded, peppered)
        except (Argon2Error, InvalidHashError):
            return False

    def _peppered(self, password: str) -> bytes:
        return base64.b64encode(hmac.new(self.pepper, opaque(password).encode(), hashlib.sha384).digest())


class Strength:
    """Judges new passwords. No rules about kinds of characters: length, and not being easy to guess (NIST SP 800-63B-4)."""

    def __init__(self, min_length: int) -> None:
        self._min_length = min_length

    def require(self, password: str, *, field: str, names: Sequence[str] = ()) -> None:
        """Return if `password` may be set. Raises PasswordRejected for `field` with the reasons.

        names  of the account: a password made of them is guessed first
        Cost   some milliseconds, 30 for long repetitions: call it in the hash pool
        """
        reasons = list(self._reasons(password, names))
        if reasons:
            raise PasswordRejected(violations=[Violation(field, reason) for reason in reasons])

    def _reasons(self, password: str, names: Sequence[str]) -> list[str]:
        require_size(password, field="password")
        if len(opaque(password)) < self._min_length:
            return [f"must be at least {self._min_length} characters"]
        known = [word.lower() for name in names for word in (name, *name.replace("@", " ").split()) if word]
        if _without([*known, *CONTEXT_WORDS], password) < MIN_OF_ITS_OWN:
            return ["is made of the account's own names or the service's"]
        from zxcvbn import zxcvbn  # 12 MiB of words, which only hash processes need  # noqa: PLC0415

        judged = zxcvbn(_judged(password), user_inputs=[*known, *CONTEXT_WORDS])  # type: ignore[no-untyped-call]
        if judged["score"] >= MIN_SCORE:
            return []
        feedback = judged["feedback"]
        return [" ".join(["is too easy to guess.", feedback["warning"], *feedback["suggestions"]]).replace("  ", " ").strip()]


def prepared(passwords: Passwords, strength: Strength, password: str, *, field: str, names: Sequence[str]) -> str:
    """Return the form in which a new `password` is kept. Raises PasswordRejected for `field`."""
    strength.require(password, field=field, names=names)
    return passwords.hash(password)


def _judged(password: str) -> str:
    """Return what zxcvbn is shown of `password`, bounded in length and in kinds of signs, so that judging it costs a bounded time."""
    shown = password[:MAX_JUDGED]
    kinds = [sign for sign in dict.fromkeys(shown) if sign in LEET]
    return shown.translate({ord(sign): "_" for sign in kinds[MAX_LEET:]})


def _without(words: Sequence[str], password: str) -> int:
    """Return how many characters are left of `password` once all of `words` are taken out."""
    rest = password.lower()
    for word in sorted((word for word in words if len(word) > 2), key=len, reverse=True):
        rest = rest.replace(word, "")
    return len(rest)


def require_size(password: str, *, field: str) -> None:
    """Return if `password` is not absurdly long, before anything else is done with it. Raises InvalidRequest."""
    if len(password.encode()) > MAX_BYTES:
        raise InvalidRequest.of(field, f"must be at most {MAX_BYTES} bytes")


def opaque(password: str) -> str:
    """Return the form of `password` that is compared: RFC 8265 OpaqueString, so that two keyboards agree on it.

    Unlike the profile, no character is refused: it would only shut out passwords that somebody can type. What the profile accepts comes out as there.
    """
    spaced = "".join(" " if unicodedata.category(character) == "Zs" else character for character in password)
    return unicodedata.normalize("NFC", spaced)


def _is_argon2(kept: str) -> bool:
    return kept.startswith(f"{PEPPERED}$argon2id$")


def _bcrypt_cost(kept: str) -> int:
    """Return the cost of a bcrypt hash; of another scheme, one that needs no topping up."""
    return 99 if _is_argon2(kept) else int(kept.split("$")[2])
