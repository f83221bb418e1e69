"""The private parts of signing keys, sealed with AES-256-GCM under the key-encryption key. A dump of the database signs nothing."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.chassis.sealing import Sealer, derive
from services.token.key_pairs import KeyPair, UnusableKey

DERIVED = "derived"  # stands in KEY_ENCRYPTION_KEY for the key that is derived from SECURITY_SALT
PURPOSE = "signing-keys"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key pair as it is stored."""

    kid: str
    algorithm: str
    public_pem: str
    sealed_private: bytes = field(repr=False)


class Vault:
    """Seals with the first of its key-encryption keys, and opens with any."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._sealers = [Sealer(key) for key in keys]

    @classmethod
    def of(cls, given: str, salt: str) -> "Vault":
        """Return the vault of KEY_ENCRYPTION_KEY: keys of 32 bytes in base64, newest first. Without any, one is derived. Raises ValueError."""
        return cls([_key(part.strip(), salt) for part in (given or DERIVED).split(",")])

    def seal(self, pair: KeyPair) -> NewKey:
        """Return a key pair fit to be stored; it opens only under its own kid."""
        return NewKey(pair.kid, pair.algorithm, pair.public_pem, self._seal(pair.kid, pair.private_pem.encode()))

    def open(self, kid: str, sealed: bytes) -> bytes:
        """Return the private part in PEM. Raises UnusableKey."""
        for sealer in self._sealers:
            try:
                return sealer.open(sealed, bound_to=kid.encode())
            except ValueError:
                continue
        raise UnusableKey(f"the signing key {kid} does not open: KEY_ENCRYPTION_KEY or SECURITY_SALT is not the one it was stored with")

    def renewed(self, kid: str, sealed: bytes) -> bytes | None:
        """Return what was sealed with an older key-encryption key sealed with the first; None if it is already. Raises UnusableKey."""
        try:
            self._sealers[0].open(sealed, bound_to=kid.encode())
        except ValueError:
            return self._seal(kid, self.open(kid, sealed))
        return None

    def _seal(self, kid: str, private_pem: bytes) -> bytes:
        return self._sealers[0].seal(private_pem, bound_to=kid.encode())


def _key(given: str, salt: str) -> bytes:
    if given == DERIVED:
        return derive(salt, PURPOSE)
    try:
        key = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32 or len(set(key)) < 10:
        raise ValueError("must be 32 random bytes in base64, such as from: openssl rand -base64 32; several are separated by commas, newest first")
    return key
