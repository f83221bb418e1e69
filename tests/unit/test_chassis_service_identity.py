"""Service identities: a compromised neighbour cannot pose as another, and no token is worth anything elsewhere."""

import base64
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from services.chassis.call import CallerKind
from services.chassis.service_identity import LIFETIME, ServiceIdentity, ServiceKeyError, is_service_token
from tests.conftest import Keys
from watchword.errors import TokenInvalid


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forge(keys: Keys, signer: str, *, head: dict[str, Any] | None = None, **changes: Any) -> str:
    """Sign as service `signer`, which is compromised, whatever one likes; a claim of ... is left out."""
    now = int(time.time())
    claims = {"iss": signer, "sub": signer, "aud": "token", "iat": now, "exp": now + 60, "jti": "x", **changes}
    header = {"alg": "EdDSA", "kid": signer, "typ": "svc+jwt", **(head or {})}
    # Times are told by functions of now: tests are collected long before they run.
    parts = [{name: value(now) if callable(value) else value for name, value in part.items() if value is not ...} for part in (header, claims)]
    signed = ".".join(b64(json.dumps(part).encode()) for part in parts)
    key = load_pem_private_key(keys.private[signer].encode(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return f"{signed}.{b64(key.sign(signed.encode()))}"


def test_a_service_proves_itself_to_the_one_it_calls(service_keys: Keys) -> None:
    """The control for every refusal below."""
    for name in ("identity", "rbac", "gateway"):
        caller = service_keys.identity("token").verify(service_keys.identity(name).token_for("token"))
        assert (caller.kind, caller.id) == (CallerKind.SERVICE, name)
    assert service_keys.identity("token").verify(forge(service_keys, "rbac")).id == "rbac"


def test_a_token_for_rbac_is_worth_nothing_at_token(service_keys: Keys) -> None:
    """Otherwise rbac, once broken into, could replay what identity sends it."""
    text = service_keys.identity("identity").token_for("rbac")

    assert service_keys.identity("rbac").verify(text).id == "identity"
    with pytest.raises(TokenInvalid):
        service_keys.identity("token").verify(text)


FORGED: dict[str, dict[str, Any]] = {
    "another's name in the claims": {"iss": "identity", "sub": "identity"},
    "another's subject": {"sub": "identity"},
    "another's kid": {"head": {"kid": "identity"}, "iss": "identity", "sub": "identity"},
    "another's kid over the own claims": {"head": {"kid": "identity"}},
    "the own kid over another's issuer": {"iss": "identity"},
    "an unknown kid": {"head": {"kid": "admin"}},
    "no kid": {"head": {"kid": ...}},
    "a kid that is no text": {"head": {"kid": 5}},
    "a path for a kid": {"head": {"kid": "../../dev/null"}},
    "another audience": {"aud": "rbac"},
    "several audiences": {"aud": ["token", "rbac"]},
    "no audience": {"aud": ...},
    "no issuer": {"iss": ...},
    "no subject": {"sub": ...},
    "no id": {"jti": ...},
    "no beginning": {"iat": ...},
    "no end": {"exp": ...},
    "a long life": {"exp": lambda now: now + 3600},
    "a long life that is nearly over": {"iat": lambda now: now - 3600},
    "expired": {"iat": lambda now: now - 70, "exp": lambda now: now - 10},
    "from the future": {"iat": lambda now: now + 60, "exp": lambda now: now + 100},
    "the end before the beginning": {"exp": lambda now: now - 1},
    "an end that is no number": {"exp": "soon"},
    "a beginning that is text": {"iat": lambda now: str(now - 3000)},
    "an endless end": {"exp": float("inf")},
    "an end that is nothing": {"exp": None},
    "another type": {"head": {"typ": "at+jwt"}},
    "no type": {"head": {"typ": ...}},
    "an embedded key": {"head": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}}},
    "a critical extension": {"head": {"crit": ["exp"]}},
    "another algorithm's name": {"head": {"alg": "HS256"}},
    "no algorithm": {"head": {"alg": "none"}},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_compromised_neighbour_forges_nothing(service_keys: Keys, name: str) -> None:
    """rbac's key signs each of these."""
    with pytest.raises(TokenInvalid):
        service_keys.identity("token").verify(forge(service_keys, "rbac", **FORGED[name]))


def test_an_unsigned_token_is_refused(service_keys: Keys) -> None:
    good = forge(service_keys, "identity", head={"alg": "none"})
    for text in (good.rpartition(".")[0] + ".", good.rpartition(".")[0], forge(service_keys, "identity").rpartition(".")[0] + "."):
        with pytest.raises(TokenInvalid):
            service_keys.identity("token").verify(text)


def test_the_public_key_is_no_hmac_secret(service_keys: Keys) -> None:
    """RFC 8725 section 2.1: everybody holds the public keys."""
    pem = json.loads(service_keys.public_json)["identity"]
    key = load_pem_private_key(service_keys.private["identity"].encode(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    for secret in (pem.encode(), pem.strip().encode(), key.public_key().public_bytes_raw()):
        signed = forge(service_keys, "identity", head={"alg": "HS256"}).rpartition(".")[0]
        with pytest.raises(TokenInvalid):
            service_keys.identity("token").verify(f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}")


@pytest.mark.parametrize(
    "text", ["", "a", "..", "a.b.c", "é.é.é", "e30.e30.", "x" * 5000, b64(b"[" * 700) + ".e30.e30", b64(b'{"a":' * 150) + ".e30.e30"]
)
def test_rubbish_is_refused_and_raises_nothing_else(service_keys: Keys, text: str) -> None:
    assert not is_service_token(text)
    with pytest.raises(TokenInvalid):
        service_keys.identity("token").verify(text)


def test_a_token_is_used_again_while_it_is_fresh(service_keys: Keys) -> None:
    """Signing costs more than a look into a dict; a token is renewed well before it ends."""
    identity = service_keys.identity("identity")
    first = identity.token_for("token")

    assert identity.token_for("token") == first
    assert identity.token_for("rbac") != first
    claims = jwt.decode(first, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == LIFETIME
    assert is_service_token(first)


def pem_of(key: Any) -> str:
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def public_of(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def test_keys_that_do_not_fit_together_refuse_to_start(service_keys: Keys) -> None:
    """Each of these would fail later, at the first call, as somebody else's problem."""
    own, other, rsa_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)
    published = json.loads(service_keys.public_json)
    broken = {
        "another's key": (pem_of(other), {**published, "token": public_of(own)}),
        "an unpublished key": (pem_of(own), {name: pem for name, pem in published.items() if name != "token"}),
        "a shared key": (pem_of(own), {**published, "token": public_of(own), "rbac": public_of(own)}),
        "an RSA key": (pem_of(rsa_key), {**published, "token": public_of(rsa_key)}),
        "a neighbour's EC key": (pem_of(own), {**published, "token": public_of(own), "rbac": public_of(ec.generate_private_key(ec.SECP256R1()))}),
        "no PEM": ("rubbish", published),
        "a number": (pem_of(own), {"token": 5}),
    }
    for name, (private, public) in broken.items():
        with pytest.raises(ServiceKeyError) as failure:
            ServiceIdentity.load("token", private, json.dumps(public))
        assert "PRIVATE" not in str(failure.value), name
    for text in ("", "[]", "{", "null"):
        with pytest.raises(ServiceKeyError):
            ServiceIdentity.load("token", pem_of(own), text)


def test_a_pem_may_have_its_line_breaks_escaped(service_keys: Keys) -> None:
    """As environments that hold one line a variable have it."""
    escaped = service_keys.private["token"].replace("\n", "\\n")
    assert ServiceIdentity.load("token", escaped, service_keys.public_json).name == "token"
