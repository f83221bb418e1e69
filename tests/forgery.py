"""Forged tokens, built from a good token's makings: pure functions, a private key and claims in, text out.

Most are signed rightly with the issuer's own key, so that nothing but the defence in question refuses them. `tests/attacks.py` lists them by number.
Source: RFC 7515, RFC 7518, RFC 7519, RFC 8017.
"""

import base64
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Members = Mapping[str, Any]
Change = Callable[[str], str]

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
TRAP = "http://127.0.0.1:9"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")  # RFC 8017 section 9.2, note 1
SHA512_INFO = bytes.fromhex("3051300d060960864801650304020305000440")
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
PKCS1 = padding.PKCS1v15()


def b64(raw: bytes) -> str:
    """Return `raw` in base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """Return what `b64` was given."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def compact(part: Any) -> bytes:
    """Return a value as JSON; bytes as they are."""
    return part if isinstance(part, bytes) else json.dumps(part, separators=(",", ":")).encode()


def changed(members: Members, changes: Members) -> Members:
    """Return `members` with some changed; `...` leaves one out."""
    return {name: value for name, value in {**members, **changes}.items() if value is not ...}


def good_claims(*, issuer: str, tenant_id: str, **changes: Any) -> Members:
    """Return claims of a token that is good for a minute."""
    now = int(time.time())
    claims = {
        "iss": issuer,
        "sub": str(uuid4()),
        "aud": "watchword",
        "exp": now + 60,
        "iat": now,
        "jti": str(uuid4()),
        "client_id": "watchword",
        "tenant_id": tenant_id,
        "sub_type": "user",
        "rev": 2**40,
        "auth_time": now,
    }
    return changed(claims, changes)


def claims_of(token: str) -> dict[str, Any]:
    """Return what a token claims, unverified."""
    claims: dict[str, Any] = json.loads(unb64(token.split(".")[1]))
    return claims


@dataclass(frozen=True, slots=True)
class Original:
    """A good token's makings: an RSA key of the suite's ring, a header and claims that it signs every day, and a URL that nobody may open."""

    key: rsa.RSAPrivateKey
    head: Members
    body: Members
    trap: str = TRAP

    @classmethod
    def of(cls, key: rsa.RSAPrivateKey, kid: str, body: Members, trap: str = TRAP) -> "Original":
        """Return the makings of a token of the key `kid`."""
        return cls(key, {"alg": "RS256", "kid": kid, "typ": "at+jwt"}, body, trap)

    def unsigned(self, *, head: Members | bytes | None = None, body: Members | bytes | None = None) -> str:
        """Return header and payload."""
        return f"{b64(compact(self.head if head is None else head))}.{b64(compact(self.body if body is None else body))}"

    def sign(self, signed: str, *, how: Any = PKCS1, digest: type[hashes.HashAlgorithm] = hashes.SHA256) -> str:
        """Return two segments with a signature of the key after them."""
        return f"{signed}.{b64(self.key.sign(signed.encode(), how, digest()))}"

    def token(self, *, head: Members | bytes | None = None, body: Members | bytes | None = None) -> str:
        """Return a rightly signed token, of the given header or payload."""
        return self.sign(self.unsigned(head=head, body=body))

    def with_head(self, **changes: Any) -> str:
        """Return a rightly signed token whose header differs."""
        return self.token(head=changed(self.head, changes))

    def with_body(self, **changes: Any) -> str:
        """Return a rightly signed token whose claims differ."""
        return self.token(body=changed(self.body, changes))

    def with_signature(self, signature: bytes, **header: Any) -> str:
        """Return a token with any bytes as its signature."""
        return f"{self.unsigned(head=changed(self.head, header))}.{b64(signature)}"

    def edited(self, *, head: Members | None = None, body: Members | None = None) -> str:
        """Return a good token that was changed afterwards, with the signature that it had."""
        text = self.unsigned(head=changed(self.head, head or {}), body=changed(self.body, body or {}))
        return text + "." + self.token().rpartition(".")[2]


# Other kinds of tokens.


def id_token(original: Original, *, client_id: str = "") -> str:
    """Return an OpenID Connect ID token of ours, as an issuer with one key for all would sign it."""
    claims = {"aud": client_id or original.body["aud"], "nonce": "n", "at_hash": "x", "azp": client_id or "watchword"}
    return original.token(head=changed(original.head, {"typ": "JWT"}), body=changed(original.body, claims))


def logout_token(original: Original) -> str:
    """Return a back-channel logout token (OpenID Connect Back-Channel Logout 1.0)."""
    events: Members = {"http://schemas.openid.net/event/backchannel-logout": {}}
    return original.token(head=changed(original.head, {"typ": "logout+jwt"}), body=changed(original.body, {"events": events}))


def dpop_proof(original: Original) -> str:
    """Return a DPoP proof (RFC 9449), signed by a key of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(point.x.to_bytes(32, "big")), "y": b64(point.y.to_bytes(32, "big"))}
    proof = {"jti": str(uuid4()), "htm": "POST", "htu": f"{original.body['iss']}/v1/me", "iat": int(time.time())}
    return ecdsa_token(key, {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}, proof)


def encrypted(original: Original) -> str:
    """Return what looks like a JWE in compact form."""
    head = {"alg": "RSA-OAEP", "enc": "A256GCM", "kid": original.head["kid"], "typ": "at+jwt"}
    return ".".join(b64(part) for part in (compact(head), b"k" * 256, b"i" * 12, compact(original.body), b"t" * 16))


# Keys that the header brings along, or that are none.


def jwk_of(public: rsa.RSAPublicKey) -> Members:
    """Return the RFC 7517 form of a public key."""
    numbers = public.public_numbers()
    return {"kty": "RSA", "n": b64(numbers.n.to_bytes(public.key_size // 8, "big")), "e": "AQAB"}


def by_stranger(original: Original, *, with_jwk: bool = False, **header: Any) -> str:
    """Return a token that is signed by a key of the attacker's, which its header may bring along."""
    theirs = rsa.generate_private_key(65537, 2048)
    return replace(original, key=theirs).with_head(**header, **({"jwk": jwk_of(theirs.public_key())} if with_jwk else {}))


def public_forms(key: rsa.RSAPrivateKey) -> dict[str, bytes]:
    """Return every form in which a public key is known to the world."""
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {
        "pem": pem,
        "pem-stripped": pem.strip(),
        "pem-and-newline": pem + b"\n",
        "der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "jwk": compact(jwk_of(public)),
        "modulus": public.public_numbers().n.to_bytes(key.key_size // 8, "big"),
    }


def by_secret(original: Original, secret: bytes, alg: str = "HS256") -> str:
    """Return a token with an HMAC where its signature should be."""
    signed = original.unsigned(head=changed(original.head, {"alg": alg}))
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), f'sha{alg[2:]}'))}"


def by_other_algorithm(original: Original, alg: str, how: Any, digest: type[hashes.HashAlgorithm]) -> str:
    """Return a token that our key signed in a way that is not the key's."""
    return original.sign(original.unsigned(head=changed(original.head, {"alg": alg})), how=how, digest=digest)


# Spellings.


def unencoded(original: Original) -> str:
    """Sign a payload as it is (RFC 7797)."""
    head = b64(compact(changed(original.head, {"b64": False, "crit": ["b64"]})))
    return original.sign(f"{head}.{compact(original.body).decode()}")


def in_segment(number: int, change: Change) -> Change:
    """Change one of the three segments."""

    def apply(text: str) -> str:
        parts = text.split(".")
        parts[number] = change(parts[number])
        return ".".join(parts)

    return apply


def inserted(number: int, sign: str) -> Change:
    """Put a sign into the middle of a segment."""
    return in_segment(number, lambda part: part[: len(part) // 2] + sign + part[len(part) // 2 :])


def loosened(segment: str) -> str:
    """Set an unused bit of the last character: other text, the same bytes. Needs a length of 4n+2 or 4n+3."""
    assert len(segment) % 4 in (2, 3)
    return segment[:-1] + ALPHABET[ALPHABET.index(segment[-1]) | 1]


def with_loose_bits(original: Original, number: int) -> str:
    """Return a token with a loosened header or payload; the signature is over the loosened text, so it is right."""
    parts = [compact(part) for part in (original.head, original.body)]
    parts[number] += b" " * ((1 - len(parts[number])) % 3)
    segments = [b64(part) for part in parts]
    segments[number] = loosened(segments[number])
    return original.sign(".".join(segments))


def flattened(text: str) -> str:
    """Return the flattened JSON serialization."""
    return json.dumps(dict(zip(("protected", "payload", "signature"), text.split("."), strict=True)))


def general(text: str) -> str:
    """Return the general JSON serialization."""
    head, body, signature = text.split(".")
    return json.dumps({"payload": body, "signatures": [{"protected": head, "signature": signature}]}, separators=(",", ":"))


def sized(original: Original, size: int) -> str:
    """Return a rightly signed token of exactly `size` bytes; spaces fill it up."""
    for spaces in range(3):
        head = compact(original.head) + b" " * spaces
        room = size - len(b64(head)) - 2 - len(b64(bytes(original.key.key_size // 8)))
        token = original.token(head=head, body=compact(original.body).ljust(room * 3 // 4))
        if len(token) == size:
            return token
    raise AssertionError(f"no token has {size} bytes")


# Signatures.


def rsa_power(original: Original, block: bytes) -> str:
    """Return a token whose signature is the key's power of any block at all, as an oracle or a small exponent would give it."""
    numbers = original.key.private_numbers()
    power = pow(int.from_bytes(block, "big"), numbers.d, numbers.public_numbers.n)
    return original.with_signature(power.to_bytes(original.key.key_size // 8, "big"))


def pkcs1_block(
    digest: bytes, info: bytes = SHA256_INFO, *, size: int = 256, kind: int = 1, fill: int = 0xFF, short: int = 0, tail: bytes = b""
) -> bytes:
    """Return EMSA-PKCS1-v1_5 of a digest, with its parts changed. `short`: so many bytes of the filling stand behind everything instead."""
    rest = b"\x00" + info + digest + tail
    return (bytes([0, kind]) + bytes([fill]) * (size - 2 - len(rest) - short) + rest).ljust(size, b"\x5a")


def beyond_the_modulus(original: Original) -> str:
    """s + n is another number with the same power: RFC 8017 section 5.2.2 refuses it."""
    signature = int.from_bytes(unb64(original.token().split(".")[2]), "big") + original.key.private_numbers().public_numbers.n
    return original.with_signature(signature.to_bytes(original.key.key_size // 8 + 1, "big"))


def raw_ecdsa(key: ec.EllipticCurvePrivateKey, signed: str, digest: hashes.HashAlgorithm) -> bytes:
    """Return RFC 7518's form: r and s, each of the curve's length."""
    r_and_s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(digest)))
    return b"".join(number.to_bytes((key.key_size + 7) // 8, "big") for number in r_and_s)


def ecdsa_token(key: ec.EllipticCurvePrivateKey, head: Members, body: Members, change: Callable[[bytes], bytes] = bytes) -> str:
    """Return an ECDSA token whose signature was changed."""
    signed = f"{b64(compact(head))}.{b64(compact(body))}"
    digest = hashes.SHA384() if head["alg"] == "ES384" else hashes.SHA256()
    return f"{signed}.{b64(change(raw_ecdsa(key, signed, digest)))}"


def der(raw: bytes) -> bytes:
    """Return r and s as ASN.1."""
    return encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))


# Payloads.


def with_literal(original: Original, claim: str, literal: str) -> str:
    """Return a rightly signed token with a number as no encoder would write it."""
    rest = compact(changed(original.body, {claim: ...}))
    return original.token(body=rest[:-1] + f',"{claim}":{literal}}}'.encode())
