"""Secrets derived from SECURITY_SALT, each for one purpose: sealed records, signed page tokens, keyed digests.

HKDF-SHA-256 (RFC 5869) gives every purpose its own key, so the salt itself is never used twice. Sealing is AES-256-GCM with a random nonce.
"""

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12  # NIST SP 800-38D: the length GCM is made for


def derive(salt: str, purpose: str, length: int = 32) -> bytes:
    """Return the key of one purpose, `length` bytes."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=b"watchword/" + purpose.encode()).derive(salt.encode())


class Sealer:
    """Encrypts small records so that a dump of the database does not show them."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._mark = digest(key, b"mark")

    def seal(self, plain: bytes, *, bound_to: bytes) -> bytes:
        """Return `plain` encrypted; it opens only with the same `bound_to`."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, bound_to)

    def open(self, sealed: bytes, *, bound_to: bytes) -> bytes:
        """Return what was sealed. Raises ValueError if it was altered, bound to something else, or sealed by another key."""
        try:
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)
        except InvalidTag:
            raise ValueError("the record does not open with this key") from None

    def mark(self, data: bytes) -> bytes:
        """Return a keyed digest of `data`: equal for equal data, and worth nothing to whoever reads the database and would guess."""
        return digest(self._mark, data)


def digest(key: bytes, *parts: bytes) -> bytes:
    """Return HMAC-SHA-256 over length-prefixed `parts`, so that no two lists of parts look alike."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(4, "big") + part)
    return mac.digest()
