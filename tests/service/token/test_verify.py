"""VerifyToken against forged, malformed, misdirected and outdated tokens. The numbers are reliability.md's attack cases."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.service.token.conftest import ISSUER, KID, TENANT, TokenInstances
from watchword.token.v1 import token_pb2

Member = dict[str, Any]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changes: Any) -> Member:
    now = int(time.time())
    members = {
        "iss": ISSUER,
        "sub": str(uuid4()),
        "aud": "watchword",
        "exp": now + 60,
        "iat": now,
        "jti": str(uuid4()),
        "client_id": "watchword",
        "tenant_id": TENANT,
        "sub_type": "user",
        "rev": 2**40,
        "auth_time": now,
    }
    members.update(changes)
    return {name: value for name, value in members.items() if value is not ...}


def header(**changes: Any) -> Member:
    members = {"alg": "RS256", "kid": KID, "typ": "at+jwt", **changes}
    return {name: value for name, value in members.items() if value is not ...}


def sign(key: rsa.RSAPrivateKey, head: bytes | Member, body: bytes | Member) -> str:
    """Sign anything at all, as a broken or malicious issuer that holds the key would."""
    raw = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (head, body)]
    signed = f"{b64(raw[0])}.{b64(raw[1])}"
    return f"{signed}.{b64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def each(name: str, *values: Any) -> list[Member]:
    """Return a change of one claim for each value; `...` leaves the claim out."""
    return [{name: value} for value in values]


async def test_a_well_formed_token_is_valid(token: TokenInstances) -> None:
    """The control: without it, every refusal below could have another cause."""
    assert await token.status(sign(token.private_key, header(), claims())) == "VALID"
    assert await token.status(sign(token.private_key, header(typ="AT+JWT"), claims())) == "VALID"  # A006
    assert await token.status(sign(token.private_key, header(typ="application/at+jwt"), claims())) == "VALID"


@pytest.mark.parametrize("alg", ["none", "NonE", "", None, ["RS256"], 5, "HS256", "RS512", "ES256"], ids=str)
async def test_the_header_does_not_choose_the_algorithm(token: TokenInstances, alg: Any) -> None:
    """A001, A002, A004: unsigned or otherwise signed tokens are refused, however `alg` is written."""
    signed = sign(token.private_key, header(alg=alg), claims())
    unsigned = signed.rpartition(".")[0] + "."

    assert await token.status(signed) in ("MALFORMED", "BAD_SIGNATURE")
    assert await token.status(unsigned) == "MALFORMED"


async def test_the_public_key_is_no_hmac_secret(token: TokenInstances) -> None:
    """A003: the classic confusion, with every form of the public key as the secret."""
    public = token.private_key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    modulus = public.public_numbers().n.to_bytes(256, "big")
    jwk = json.dumps({"kty": "RSA", "n": b64(modulus), "e": "AQAB"}).encode()
    import hmac

    for secret in (pem, pem.strip(), der, jwk, modulus):
        signed = f"{b64(json.dumps(header(alg='HS256')).encode())}.{b64(json.dumps(claims()).encode())}"
        forged = f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}"
        assert await token.status(forged) == "BAD_SIGNATURE"


@pytest.mark.parametrize(
    "change",
    [
        {"typ": "JWT"},
        {"typ": ...},
        {"typ": "rt+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": "logout+jwt"},
        {"crit": ["bork"]},
        {"crit": []},
        {"crit": ["exp"]},
        {"b64": False},
        {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        {"jku": "http://127.0.0.1:9/jwks"},
        {"x5u": "http://127.0.0.1:9/cert"},
        {"x5c": ["AAAA"]},
        {"kid": ...},
        {"kid": 5},
        {"kid": {}},
        {"kid": ""},
    ],
    ids=str,
)
async def test_a_header_holds_alg_kid_and_typ_and_nothing_else(token: TokenInstances, change: Member) -> None:
    """A005 to A014: each of these was once a way in."""
    assert await token.status(sign(token.private_key, header(**change), claims())) == "MALFORMED"


@pytest.mark.parametrize("kid", ["../../dev/null", "/dev/null", "' OR 1=1--", "|id", "x" * 3000, "__proto__", "nobody"])
async def test_a_kid_is_only_ever_a_name_in_our_ring(token: TokenInstances, kid: str) -> None:
    """A013: no path, no statement, no property."""
    assert await token.status(sign(token.private_key, header(kid=kid), claims())) in ("UNKNOWN_KEY", "MALFORMED")


async def test_a_key_that_is_not_ours_signs_nothing(token: TokenInstances) -> None:
    """A010: the attacker's own key, under our kid."""
    theirs = rsa.generate_private_key(65537, 2048)
    assert await token.status(sign(theirs, header(), claims())) == "BAD_SIGNATURE"


def _padded(text: str) -> str:
    return text + "="


def _loose_bits(text: str) -> str:
    """The last character of the signature carries four unused bits (342 of 344 characters for 256 bytes)."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]


MANGLED: list[Callable[[str], str]] = [
    _padded,
    _loose_bits,
    lambda text: text.replace("-", "+").replace("_", "/") + "+",
    lambda text: text[:50] + " " + text[50:],
    lambda text: text[:50] + "\n" + text[50:],
    lambda text: text[:50] + "\t" + text[50:],
    lambda text: text + ".",
    lambda text: "." + text,
    lambda text: text + ".e30",
    lambda text: text + ".e30.e30",
    lambda text: text.rpartition(".")[0],
    lambda text: "..",
    lambda text: ".".join(["", *text.split(".")[1:]]),
    lambda text: json.dumps(dict(zip(("protected", "payload", "signature"), text.split("."), strict=True))),
    lambda text: " " + text,
    lambda text: text + "é",
]


@pytest.mark.parametrize("mangle", MANGLED)
async def test_a_token_has_exactly_one_spelling(token: TokenInstances, mangle: Callable[[str], str]) -> None:
    """A016 to A021, A030."""
    assert await token.status(mangle(sign(token.private_key, header(), claims()))) == "MALFORMED"


@pytest.mark.parametrize(
    "head",
    [
        b'{"alg":"RS256","alg":"RS256","kid":"%s","typ":"at+jwt"}' % KID.encode(),
        b"\xef\xbb\xbf" + json.dumps(header()).encode(),
        json.dumps(header()).encode("utf-16"),
        b"\xff\xfe",
        b"[]",
        b'"x"',
        b"{" * 2000,
        b"[" * 2000,
    ],
)
async def test_a_header_is_one_plain_json_object(token: TokenInstances, head: bytes) -> None:
    """A022 to A024."""
    assert await token.status(sign(token.private_key, head, claims())) == "MALFORMED"


@pytest.mark.parametrize(
    "change",
    [
        *each("exp", ..., "9999999999", 1e30, True, None, -1, 10**30, 1.5),
        *each("iat", ..., "1", None),
        *each("aud", ..., [], [1], {}, 5, ""),
        *each("sub", ..., 5, "", "admin", "x" * 300, "a\u0000b", "\u202egnp"),
        *each("jti", ..., 5, "not-a-uuid"),
        *each("tenant_id", ..., "", "x"),
        {"sub_type": "root"},
        {"rev": "1"},
        {"roles": "admin"},
        {"roles": [1]},
        {"client_id": ...},
    ],
    ids=str,
)
async def test_claims_have_their_exact_types(token: TokenInstances, change: Member) -> None:
    """A031, A032, A035, A041, A042."""
    assert await token.status(sign(token.private_key, header(), claims(**change))) == "MALFORMED"


@pytest.mark.parametrize("body", [b'{"sub":"%s","sub":"x"}', b'{"exp":NaN}', b'{"exp":1e400}', b'{"a":"\\ud800"}', b"[]", b"\xff"])
async def test_a_payload_is_one_plain_json_object(token: TokenInstances, body: bytes) -> None:
    """A023, A040."""
    assert await token.status(sign(token.private_key, header(), body)) == "MALFORMED"


async def test_a_duplicated_claim_is_refused_and_not_the_last_taken(token: TokenInstances) -> None:
    """A040, with everything else right: PyJWT alone takes the last `sub`."""
    good = json.dumps(claims())
    doubled = (good[:-1] + f', "sub": "{uuid4()}"}}').encode()
    assert await token.status(sign(token.private_key, header(), doubled)) == "MALFORMED"
    assert jwt.decode(sign(token.private_key, header(), doubled), token.private_key.public_key(), algorithms=["RS256"], audience="watchword")


@pytest.mark.parametrize(("offset", "expected"), [(-4, "VALID"), (-8, "EXPIRED"), (-3600, "EXPIRED"), (0, "VALID")], ids=str)
async def test_a_token_ends_with_five_seconds_of_grace(token: TokenInstances, offset: int, expected: str) -> None:
    """A033."""
    now = int(time.time())
    assert await token.status(sign(token.private_key, header(), claims(iat=now - 7200, exp=now + offset))) == expected


@pytest.mark.parametrize(("offset", "expected"), [(4, "VALID"), (60, "NOT_YET_VALID")])
async def test_a_token_from_the_future_is_refused_beyond_five_seconds(token: TokenInstances, offset: int, expected: str) -> None:
    """A034."""
    now = int(time.time())
    assert await token.status(sign(token.private_key, header(), claims(iat=now + offset, exp=now + 300))) == expected


@pytest.mark.parametrize("aud", ["watchword2", "WATCHWORD", ["other"], ["watchword", "other"]], ids=str)
async def test_a_token_for_others_or_for_several_is_not_for_us(token: TokenInstances, aud: Any) -> None:
    """A036, A038."""
    assert await token.status(sign(token.private_key, header(), claims(aud=aud))) == "WRONG_AUDIENCE"


async def test_an_empty_audience_means_ours_and_never_any(token: TokenInstances) -> None:
    """A037."""
    text = sign(token.private_key, header(), claims(aud="billing"))
    assert await token.status(text) == "WRONG_AUDIENCE"
    assert await token.status(text, audience="billing") == "VALID"


@pytest.mark.parametrize("iss", [ISSUER + "/", ISSUER.upper(), ISSUER + ".evil", "https://evil"])
async def test_an_issuer_is_compared_to_the_letter(token: TokenInstances, iss: str) -> None:
    """A039."""
    assert await token.status(sign(token.private_key, header(), claims(iss=iss))) == "WRONG_ISSUER"


async def test_scopes_that_are_required_must_all_be_there(token: TokenInstances) -> None:
    """INSUFFICIENT_SCOPE still says whose token it is: the caller may want to step up."""
    text = sign(token.private_key, header(), claims(scope="a b"))
    assert await token.status(text, required_scopes=["a", "b"]) == "VALID"
    assert await token.status(text, required_scopes=["a", "c"]) == "INSUFFICIENT_SCOPE"


async def test_a_batch_answers_by_position(token: TokenInstances) -> None:
    """A mixed batch: each answer is the one that the single call gives."""
    texts = [sign(token.private_key, header(), claims()), "rubbish", sign(token.private_key, header(), claims(aud="x"))] * 10
    request = token_pb2.BatchVerifyTokensRequest(requests=[token_pb2.VerifyTokenRequest(token=text) for text in texts])
    answers = (await token.stubs[1].BatchVerifyTokens(request, metadata=token.identity)).responses

    assert [token_pb2.TokenStatus.Name(answer.status) for answer in answers] == ["VALID", "MALFORMED", "WRONG_AUDIENCE"] * 10
    assert not answers[1].HasField("principal")
