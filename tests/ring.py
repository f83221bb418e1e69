"""Keys of every kind and in every state, beside the one that signs: what a forger would play off against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from services.chassis.sealing import Sealer
from tests import forgery
from tests.forgery import Original, b64, compact

STATES = {"ring-retiring": "RETIRING", "ring-published": "PUBLISHED", "ring-retired": "RETIRED"}
KINDS = {"ring-ps256": "PS256", "ring-es256": "ES256", "ring-ed25519": "Ed25519"}


@dataclass(frozen=True)
class Ring:
    """Keys that stand beside the active one: every algorithm, and every state."""

    private: Mapping[str, Any]

    def signed(self, kid: str, alg: str, body: forgery.Members, *, by: str = "") -> str:
        """Return a token named `kid` that says `alg`, signed by the key `by`: in the manner of `alg` as far as that key can."""
        key, head = self.private[by or kid], {"alg": alg, "kid": kid, "typ": "at+jwt"}
        text = f"{b64(compact(head))}.{b64(compact(body))}"
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return forgery.ecdsa_token(key, head, body)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return f"{text}.{b64(key.sign(text.encode()))}"
        return Original.of(key, kid, body).sign(text, how=forgery.PSS if alg == "PS256" else forgery.PKCS1)


def new_key(alg: str) -> Any:
    """Return a private key for an algorithm."""
    if alg == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate() if alg == "Ed25519" else rsa.generate_private_key(65537, 2048)


_INSERT = """
    INSERT INTO token.signing_key (kid, algorithm, state, public_pem, sealed_private, create_time, state_time)
    VALUES ($1, $2, $3, $4, $5, now(), now())
"""


async def new_ring(url: str, sealer: Sealer) -> Ring:
    """Put keys into the ring, sealed as they should be."""
    rows = [(kid, "RS256", state) for kid, state in STATES.items()] + [(kid, alg, "PUBLISHED") for kid, alg in KINDS.items()]
    made = Ring({kid: new_key(alg) for kid, alg, _ in rows})
    connection = await asyncpg.connect(url)
    for kid, alg, state in rows:
        private = made.private[kid].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = made.private[kid].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        sealed = b"" if state == "RETIRED" else sealer.seal(private, bound_to=kid.encode())
        await connection.execute(_INSERT, kid, alg, state, public, sealed)
    await connection.close()
    return made
