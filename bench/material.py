"""Keys and tokens, made before anything is measured.

The bench signs its tokens itself, with the key pair that it gives the instances, so that tens of thousands are there which no server has seen.
"""

import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from uuid import uuid4

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from services.chassis.service_identity import ServiceIdentity
from services.chassis.tenancy import DEFAULT_TENANT
from services.token.issuer import render
from watchword.tokens import Claims, SubjectKind, encode_segment

KID = "bench"
ISSUER = "https://bench.example"
AUDIENCE = "watchword"
LIFETIME = 3600  # seconds: the longest that ACCESS_TOKEN_TTL may be
REVISION = 2**40  # later than any revocation of a subject that a run makes
CONTEXTS = ("identity", "token", "rbac", "gateway")


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs access tokens as token itself does: RS256, type at+jwt."""

    key: rsa.RSAPrivateKey

    @classmethod
    def new(cls) -> "Signer":
        """Make a key of 2048 bits."""
        return cls(rsa.generate_private_key(65537, 2048))

    @classmethod
    def load(cls, pem: str) -> "Signer":
        """Read a key made by `new`."""
        key = load_pem_private_key(pem.encode(), password=None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return cls(key)

    @property
    def pem(self) -> str:
        """The key, for JWT_PRIVATE_KEY."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def user_token(self, user: str | None = None) -> str:
        """Return the token of a session of somebody, or of `user`, who has just logged in."""
        roles = ("accountant", "auditor")
        return self._sign(self._claims(user or str(uuid4()), SubjectKind.USER)._replace(sid=str(uuid4()), scope=("account",), roles=roles, acr="pwd"))

    def client_token(self, *scopes: str) -> str:
        """Return the token of an OAuth client that acts for itself."""
        client = uuid4()
        return self._sign(self._claims(str(client), SubjectKind.CLIENT)._replace(client_id=client, scope=scopes))

    def _claims(self, subject: str, kind: SubjectKind) -> Claims:
        now = int(time.time())
        return Claims(ISSUER, subject, (AUDIENCE,), now + LIFETIME, now, str(uuid4()), DEFAULT_TENANT, kind, REVISION, auth_time=now)

    def _sign(self, claims: Claims) -> str:
        head = json.dumps({"alg": "RS256", "kid": KID, "typ": "at+jwt"}, separators=(",", ":")).encode()
        signed = f"{encode_segment(head)}.{encode_segment(render(claims))}"
        return f"{signed}.{encode_segment(self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def user_tokens(pem: str, count: int) -> list[str]:
    """Return that many tokens of different users."""
    signer = Signer.load(pem)
    return [signer.user_token() for _ in range(count)]


def many_user_tokens(signer: Signer, count: int, *, cores: int) -> list[str]:
    """Return that many tokens, made on all cores: RSA signing is slow."""
    share = -(-count // cores)
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        made = pool.map(user_tokens, [signer.pem] * cores, [share] * cores)
        return [token for tokens in made for token in tokens][:count]


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """A service key of each context, as scripts/up makes them."""

    private: dict[str, str]
    public_json: str

    @classmethod
    def new(cls) -> "ServiceKeys":
        """Make them."""
        keys = {name: Ed25519PrivateKey.generate() for name in CONTEXTS}
        private = {name: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode() for name, key in keys.items()}
        public = {name: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for name, key in keys.items()}
        return cls(private, json.dumps(public))

    def identity(self, name: str) -> ServiceIdentity:
        """Return what proves service `name`."""
        return ServiceIdentity.load(name, self.private[name], self.public_json)
