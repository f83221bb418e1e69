"""Service identities: how a service of the suite proves itself to another.

Each service signs short-lived JWTs (`typ: svc+jwt`, EdDSA) with its own key and names the service it calls as audience; each knows the others'
public keys. So a compromised neighbour cannot pose as identity, and a token sent to rbac is worth nothing at token. The key is chosen by the
`kid`, which is a service's name, never by anything else that the token says (RFC 8725 section 3.1).
"""

import json
import secrets
import time
from collections.abc import Mapping
from functools import lru_cache

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from services.chassis.call import Caller, CallerKind
from watchword.errors import TokenInvalid

TYPE = "svc+jwt"
LIFETIME = 60  # seconds
RENEW_BEFORE = 20  # seconds
LEEWAY = 5  # seconds two hosts' clocks may differ
MAX_BYTES = 1024
REMEMBERED = 1024  # verified tokens
_NAMES = frozenset({"alg", "kid", "typ"})


class ServiceKeyError(Exception):
    """A service key is missing, of the wrong kind, or not the one that the others know."""


class ServiceIdentity:
    """This service's own key, and the public keys of all."""

    def __init__(self, name: str, key: Ed25519PrivateKey, peers: Mapping[str, Ed25519PublicKey]) -> None:
        self.name = name
        self._key = key
        self._peers = peers
        self._minted: dict[str, tuple[float, str]] = {}
        self._verified: dict[str, tuple[Caller, int]] = {}

    @classmethod
    def load(cls, name: str, private_pem: str, public_json: str) -> "ServiceIdentity":
        """Read the keys of SERVICE_KEY and SERVICE_PUBLIC_KEYS. Raises ServiceKeyError."""
        try:
            key = load_pem_private_key(private_pem.replace("\\n", "\n").encode(), password=None)
            published = {service: load_pem_public_key(pem.encode()) for service, pem in json.loads(public_json).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ServiceKeyError(
                "SERVICE_KEY must be an Ed25519 private key in PEM, SERVICE_PUBLIC_KEYS a JSON object of public keys in PEM"
            ) from error
        peers = {service: public for service, public in published.items() if isinstance(public, Ed25519PublicKey)}
        if not isinstance(key, Ed25519PrivateKey) or len(peers) != len(published):
            raise ServiceKeyError("service keys must be Ed25519")
        if len({public.public_bytes_raw() for public in peers.values()}) != len(peers):
            raise ServiceKeyError("two services share one key; give each its own")
        own = peers.get(name)
        if own is None or own.public_bytes_raw() != key.public_key().public_bytes_raw():
            raise ServiceKeyError(f"SERVICE_PUBLIC_KEYS does not hold the public key of this SERVICE_KEY under {name!r}")
        return cls(name, key, peers)

    def token_for(self, audience: str) -> str:
        """Return a token that proves this service to `audience`."""
        expires, token = self._minted.get(audience, (0.0, ""))
        now = time.time()
        if expires - RENEW_BEFORE > now:
            return token
        claims = {
            "iss": self.name,
            "sub": self.name,
            "aud": audience,
            "iat": int(now),
            "exp": int(now) + LIFETIME,
            "jti": secrets.token_hex(8),
        }
        token = jwt.encode(claims, self._key, algorithm="EdDSA", headers={"typ": TYPE, "kid": self.name})
        self._minted[audience] = (now + LIFETIME, token)
        return token

    def recall(self, token: str) -> Caller | None:
        """Return the service that a token proves which was verified here before and has not expired."""
        caller, expires = self._verified.get(token, (None, 0))
        return caller if expires > time.time() else None

    def verify(self, token: str) -> Caller:
        """Return the service that `token` proves to this one. Raises TokenInvalid."""
        known = self.recall(token)
        if known is not None:
            return known
        try:
            header = jwt.get_unverified_header(token) if len(token) <= MAX_BYTES else {}
            key = self._peers.get(str(header.get("kid")))
            if key is None or set(header) != _NAMES or header["typ"] != TYPE:
                raise TokenInvalid
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=self.name,
                issuer=header["kid"],
                leeway=LEEWAY,
                options={"require": ["iss", "sub", "aud", "iat", "exp", "jti"], "strict_aud": True},
            )
            lifetime = int(claims["exp"]) - int(claims["iat"])
        except (jwt.InvalidTokenError, ValueError, TypeError, ArithmeticError, RecursionError):
            raise TokenInvalid from None
        if claims["sub"] != claims["iss"] or not 0 < lifetime <= LIFETIME:
            raise TokenInvalid
        if len(self._verified) >= REMEMBERED:
            self._verified.clear()
        caller = Caller(CallerKind.SERVICE, claims["sub"])
        self._verified[token] = (caller, int(claims["exp"]))
        return caller


def is_service_token(token: str) -> bool:
    """Whether a bearer token claims to be a service identity, before anything of it is believed."""
    return len(token) <= MAX_BYTES and _says_service(token.partition(".")[0])


@lru_cache(maxsize=256)  # all tokens that one key signs begin alike
def _says_service(header: str) -> bool:
    try:
        return bool(jwt.get_unverified_header(f"{header}.e30.").get("typ") == TYPE)
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return False
