"""The catalogue of attacks on an access token, by number: how each is forged, and what VerifyToken may say of it.

The tests send every one through gRPC, through REST and as a bearer token. Source: RFC 8725, RFC 9068, and the holes of others that taught them.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes

from tests import forgery
from tests.forgery import P256_ORDER, PKCS1, PSS, SHA512_INFO, Change, Members, Original, b64, changed, compact, unb64

Forge = Callable[[Original], str]
Named = Iterator[tuple[str, "Attack"]]

MAX_TOKEN_BYTES = 8192
REFUSED_UNREAD = "INVALID_REQUEST"  # the request's own rules refuse it: too long, or a NUL in it


@dataclass(frozen=True, slots=True)
class Attack:
    """How to forge, and what VerifyToken may answer. `fits_header`: HTTP can carry it as a credential."""

    forge: Forge
    answers: frozenset[str]
    fits_header: bool = True


def attack(forge: Forge, *answers: str, fits_header: bool = True) -> Attack:
    """Return an attack that is MALFORMED unless something else is said."""
    return Attack(forge, frozenset(answers or ("MALFORMED",)), fits_header)


def head(*answers: str, **changes: Any) -> Attack:
    """Return a rightly signed token with another header."""
    return attack(lambda original: original.with_head(**changes), *answers)


def body(*answers: str, **changes: Any) -> Attack:
    """Return a rightly signed token with other claims."""
    return attack(lambda original: original.with_body(**changes), *answers)


def raw_head(change: Callable[[bytes], bytes]) -> Attack:
    """Return a rightly signed token with other bytes as its header."""
    return attack(lambda original: original.token(head=change(compact(original.head))))


def raw_body(change: Callable[[bytes], bytes]) -> Attack:
    """Return a rightly signed token with other bytes as its payload."""
    return attack(lambda original: original.token(body=change(compact(original.body))))


def text(change: Change, *answers: str, fits_header: bool = True) -> Attack:
    """Return a good token that is spelt otherwise."""
    return attack(lambda original: change(original.token()), *answers, fits_header=fits_header)


def algorithms() -> Named:
    """Who chooses the algorithm: never the header."""
    yield "A001-none-without-signature", attack(lambda original: original.unsigned(head=changed(original.head, {"alg": "none"})) + ".")
    yield "A001-none-with-a-right-signature", head("BAD_SIGNATURE", alg="none")
    yield "A001-no-signature-at-all", attack(lambda original: original.unsigned() + ".")
    for spelling in ("NonE", "nOnE", "NONE", "none "):
        yield f"A002-{spelling}", head("BAD_SIGNATURE", alg=spelling)
    for name, value in {"empty": "", "null": None, "list": ["RS256"], "number": 5, "true": True, "object": {"RS256": 1}, "left-out": ...}.items():
        yield f"A002-alg-{name}", head(alg=value)
    for form in ("pem", "pem-stripped", "pem-and-newline", "der", "jwk", "modulus"):
        yield f"A003-public-key-as-secret-{form}", confused(form)
    for name, alg, how, digest in (
        ("ps256-for-an-rs256-key", "PS256", PSS, hashes.SHA256),
        ("pss-under-rs256", "RS256", PSS, hashes.SHA256),
        ("rs384", "RS384", PKCS1, hashes.SHA384),
        ("rs512", "RS512", PKCS1, hashes.SHA512),
    ):
        yield f"A004-{name}", otherwise_signed(alg, how, digest)
    for alg in ("HS256", "RS512", "ES256", "ES384", "Ed25519", "EdDSA", "rs256", "RS256 "):
        yield f"A001-unsigned-{alg}", unsigned(alg)
        yield f"A004-an-rs256-signature-named-{alg}", head("BAD_SIGNATURE", alg=alg)
    for alg, secret in (("HS256", b""), ("HS256", b"secret"), ("HS384", b"secret"), ("HS512", b"secret")):
        yield f"A029-{alg}-{secret.decode() or 'empty'}", by_secret(alg, secret)


def unsigned(alg: str) -> Attack:
    """Return a token without a signature, whatever its header says."""
    return attack(lambda original: original.unsigned(head=changed(original.head, {"alg": alg})) + ".")


def confused(form: str) -> Attack:
    """Return a token that our public key signs as if it were a secret."""
    return attack(lambda original: forgery.by_secret(original, forgery.public_forms(original.key)[form]), "BAD_SIGNATURE")


def otherwise_signed(alg: str, how: Any, digest: type[hashes.HashAlgorithm]) -> Attack:
    """Return a token that our key signed by another algorithm than its own."""
    return attack(lambda original: forgery.by_other_algorithm(original, alg, how, digest), "BAD_SIGNATURE")


def by_secret(alg: str, secret: bytes) -> Attack:
    """Return a token with an HMAC."""
    return attack(lambda original: forgery.by_secret(original, secret, alg), "BAD_SIGNATURE")


KIDS: dict[str, Any] = {
    "path": "../../dev/null",
    "absolute-path": "/dev/null",
    "sql": "' OR 1=1--",
    "command": "|id",
    "prototype": "__proto__",
    "format": "%s%n{0}",
    "nobody": "nobody",
    "long": "x" * 3000,
    "nul": "a\0b",
    "empty": "",
    "number": 5,
    "object": {},
    "list": ["a"],
    "null": None,
}


def headers() -> Named:
    """A header holds alg, kid and typ, and nothing else."""
    yield "A005-id-token", attack(forgery.id_token)
    for name, typ in {"JWT": "JWT", "longer": "at+jwt2", "spaced": " at+jwt", "application": "application/jwt"}.items():
        yield f"A005-typ-{name}", head(typ=typ)
    for name, value in {"left-out": ..., "null": None, "empty": "", "number": 5, "list": ["at+jwt"]}.items():
        yield f"A006-typ-{name}", head(typ=value)
    for typ in ("rt+jwt", "dpop+jwt", "logout+jwt", "svc+jwt"):
        yield f"A007-{typ}", head(typ=typ)
    yield "A007-logout-token", attack(forgery.logout_token)
    yield "A007-dpop-proof", attack(forgery.dpop_proof)
    for name, value in {"list": ["bork"], "empty": [], "exp": ["exp"], "b64": ["b64"], "string": "exp", "null": None}.items():
        yield f"A008-crit-{name}", head(crit=value)
    yield "A008-crit-twice", raw_head(lambda raw: raw[:-1] + b',"crit":[],"crit":["bork"]}')
    yield "A009-b64-false", head(b64=False)
    yield "A009-b64-false-and-critical", head(b64=False, crit=["b64"])
    yield "A009-b64-true", head(b64=True)
    yield "A009-payload-not-encoded", attack(forgery.unencoded)
    yield "A009-detached-payload", text(forgery.in_segment(1, lambda _: ""))
    yield "A010-jwk-of-the-attacker", attack(lambda original: forgery.by_stranger(original, with_jwk=True))
    yield "A010-jwk-of-the-attacker-without-kid", attack(lambda original: forgery.by_stranger(original, with_jwk=True, kid=...))
    yield "A010-key-of-the-attacker-under-our-kid", attack(forgery.by_stranger, "BAD_SIGNATURE")
    yield "A011-jwk-of-our-own", attack(lambda original: original.with_head(jwk=forgery.jwk_of(original.key.public_key())))
    yield "A012-jku", attack(lambda original: original.with_head(jku=original.trap))
    yield "A012-x5u", attack(lambda original: original.with_head(x5u=original.trap))
    yield "A012-x5c", attack(lambda original: original.with_head(x5c=[b64(original.trap.encode())]))
    yield "A012-x5t", head(**{"x5t#S256": "AAAA"})
    yield "A012-jwk-with-a-url", attack(lambda original: original.with_head(jwk={"kty": "RSA", "x5u": original.trap}))
    yield "A012-kid-is-a-url", attack(lambda original: original.with_head(kid=original.trap), "UNKNOWN_KEY")
    for name, kid in KIDS.items():
        yield f"A013-kid-{name}", head("UNKNOWN_KEY", "MALFORMED", kid=kid)
    yield "A013-kid-of-10000", attack(lambda original: original.with_head(kid="x" * 10_000), REFUSED_UNREAD)
    yield "A014-kid-left-out", head(kid=...)


SEGMENTS: dict[str, Change] = {
    "one-segment": lambda token: token.split(".", maxsplit=1)[0],
    "two-segments": lambda token: token.rpartition(".")[0],
    "four-segments": lambda token: token + ".e30",
    "five-segments": lambda token: token + ".e30.e30",
    "empty-header": forgery.in_segment(0, lambda _: ""),
    "empty-signature": forgery.in_segment(2, lambda _: ""),
    "one-dot": lambda _: ".",
    "two-dots": lambda _: "..",
    "four-dots": lambda _: "....",
    "leading-dot": lambda token: "." + token,
    "trailing-dot": lambda token: token + ".",
    "a-length-that-base64-has-not": forgery.in_segment(2, lambda part: part[: len(part) // 4 * 4] + "A"),
}
SIGNS = {"plus": "+", "slash": "/", "space": " ", "tab": "\t", "percent": "%2B", "cr-lf": "\r\n", "lf": "\n"}


def spellings() -> Named:
    """A token has exactly one spelling."""
    for number, segment in enumerate(("header", "payload", "signature")):
        yield f"A016-padded-{segment}", text(forgery.in_segment(number, lambda part: part + "="))
        yield f"A016-padded-twice-{segment}", text(forgery.in_segment(number, lambda part: part + "=="))
        for name, sign in SIGNS.items():
            yield f"A017-{name}-in-{segment}", text(forgery.inserted(number, sign), fits_header="\n" not in sign)
        yield f"A017-nul-in-{segment}", text(forgery.inserted(number, "\0"), REFUSED_UNREAD, fits_header=False)
    yield "A017-the-other-alphabet", text(lambda token: token.replace("-", "+").replace("_", "/") + "+")
    yield "A018-loose-bits-in-header", attack(lambda original: forgery.with_loose_bits(original, 0))
    yield "A018-loose-bits-in-payload", attack(lambda original: forgery.with_loose_bits(original, 1))
    yield "A018-loose-bits-in-signature", text(forgery.in_segment(2, forgery.loosened))
    for name, change in SEGMENTS.items():
        yield f"A019-{name}", text(change)
    yield "A020-flattened", text(forgery.flattened)
    yield "A020-general", text(forgery.general)
    yield "A021-jwe", attack(forgery.encrypted)
    yield "A030-leading-space", text(lambda token: " " + token)
    yield "A030-trailing-newline", text(lambda token: token + "\n", fits_header=False)
    yield "A030-bearer-within", text(lambda token: "Bearer " + token)
    yield "A030-quoted", text(lambda token: f'"{token}"')
    yield "A030-not-ascii", text(lambda token: token + "é", fits_header=False)
    yield "A030-full-width", text(lambda token: chr(ord(token[0]) + 0xFEE0) + token[1:], fits_header=False)


NOT_JSON: dict[str, Callable[[bytes], bytes]] = {
    "bom": lambda raw: b"\xef\xbb\xbf" + raw,
    "utf-16": lambda raw: raw.decode().encode("utf-16"),
    "utf-16-le": lambda raw: raw.decode().encode("utf-16-le"),
    "utf-32": lambda raw: raw.decode().encode("utf-32-be"),
    "invalid-utf-8": lambda raw: raw[:-1] + b',"\xff":1}',
    "overlong-utf-8": lambda raw: raw[:-1] + b',"\xc0\xaf":1}',
    "raw-surrogate": lambda raw: raw[:-1] + b',"\xed\xa0\x80":1}',
    "nan": lambda raw: raw[:-1] + b',"x":NaN}',
    "infinity": lambda raw: raw[:-1] + b',"x":Infinity}',
    "minus-infinity": lambda raw: raw[:-1] + b',"x":-Infinity}',
    "list": lambda raw: b"[" + raw + b"]",
    "empty-list": lambda _: b"[]",
    "marks-alone": lambda _: b"\xff\xfe",
    "braces": lambda _: b"{" * 2000,
    "brackets": lambda _: b"[" * 2000,
    "string": lambda _: b'"x"',
    "null": lambda _: b"null",
    "number": lambda _: b"1",
    "two-objects": lambda raw: raw + raw,
    "rubbish-after": lambda raw: raw + b"x",
    "nul-after": lambda raw: raw + b"\0",
    "cut-off": lambda raw: raw[:-1],
    "comma-at-the-end": lambda raw: raw[:-1] + b",}",
    "comment": lambda raw: raw[:-1] + b"/*x*/}",
    "single-quotes": lambda raw: raw.replace(b'"', b"'"),
    "control-character": lambda raw: raw.replace(b'"', b'"\n', 1),
}


def json_objects() -> Named:
    """Header and payload are each one plain JSON object."""
    for member in ('"alg":"RS256"', '"typ":"at+jwt"', '"\\u0061lg":"RS256"'):
        yield f"A022-{member}-twice", raw_head(appended(member))
    yield "A022-kid-twice", attack(lambda original: original.token(head=appended(f'"kid":"{original.head["kid"]}"')(compact(original.head))))
    for name, raw in NOT_JSON.items():
        yield f"A023-header-{name}", raw_head(raw)
        yield f"A023-payload-{name}", raw_body(raw)
    yield "A023-payload-lone-surrogate", raw_body(appended('"acr":"\\ud800"'))
    for depth in (64, 1000, 2400):
        yield f"A024-header-{depth}-deep", raw_head(appended('"x":' + "[" * depth + "]" * depth))
        yield f"A024-payload-{depth}-deep", raw_body(appended('"x":' + "[" * depth + "]" * depth))
        yield f"A024-header-{depth}-deep-and-open", raw_head(appended('"x":' + "[" * depth))
        yield f"A024-payload-{depth}-deep-and-open", raw_body(appended('"x":' + "[" * depth))
    yield "A025-8193-bytes", attack(lambda original: forgery.sized(original, MAX_TOKEN_BYTES + 1), REFUSED_UNREAD)
    for member in ('"sub":"x"', '"exp":9999999999', '"aud":"watchword"', '"\\u0073ub":"x"'):
        yield f"A040-{member}-twice", raw_body(appended(member))
        yield f"A040-{member}-first", raw_body(prepended(member))


def appended(member: str) -> Callable[[bytes], bytes]:
    """Add a member to an object that is JSON already."""
    return lambda raw: raw[:-1] + b"," + member.encode() + b"}"


def prepended(member: str) -> Callable[[bytes], bytes]:
    """Put a member before all others."""
    return lambda raw: b"{" + member.encode() + b"," + raw[1:]


BLOCKS: dict[str, Callable[[bytes], bytes]] = {
    "block-type-2": lambda digest: forgery.pkcs1_block(digest, kind=2),
    "block-type-0": lambda digest: forgery.pkcs1_block(digest, kind=0, fill=0),
    "filling-changed": lambda digest: forgery.pkcs1_block(digest, fill=0xFE),
    "rubbish-after-the-hash": lambda digest: forgery.pkcs1_block(digest, short=150),
    "eight-bytes-of-filling": lambda digest: forgery.pkcs1_block(digest, short=256 - 62),
    "zeros-after-the-hash": lambda digest: forgery.pkcs1_block(digest, tail=bytes(20)),
    "another-hash's-name": lambda digest: forgery.pkcs1_block(digest, SHA512_INFO),
    "a-longer-hash": lambda digest: forgery.pkcs1_block(digest + digest, SHA512_INFO),
    "no-hash's-name": lambda digest: forgery.pkcs1_block(digest, b""),
    "no-parameters": lambda digest: forgery.pkcs1_block(digest, bytes.fromhex("302f300b06096086480165030402010420")),
    "hash-cut": lambda digest: forgery.pkcs1_block(digest[:31]),
}
RSA_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "longer": lambda raw: raw + b"\0",
    "longer-in-front": lambda raw: b"\0" + raw,
    "shorter": lambda raw: raw[:-1],
    "shorter-in-front": lambda raw: raw[1:],
    "doubled": lambda raw: raw + raw,
    "reversed": lambda raw: raw[::-1],
    "one-bit-off": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "zeros": lambda raw: bytes(len(raw)),
    "one": lambda raw: bytes(len(raw) - 1) + b"\1",
    "ones": lambda raw: b"\xff" * len(raw),
    "one-byte": lambda _: b"\1",
    "of-ecdsa's-length": lambda _: bytes(64),
}
_ZERO, _ONE, _ORDER, _BEYOND = (number.to_bytes(32, "big") for number in (0, 1, P256_ORDER, P256_ORDER + 1))

# What is made of a right ES256 signature: these need a key of that kind in the ring.
ECDSA_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "A026-r-zero": lambda raw: _ZERO + raw[32:],
    "A026-s-zero": lambda raw: raw[:32] + _ZERO,
    "A026-r-and-s-the-order": lambda _: _ORDER + _ORDER,
    "A026-r-the-order": lambda raw: _ORDER + raw[32:],
    "A026-s-the-order": lambda raw: raw[:32] + _ORDER,
    "A026-r-beyond-the-order": lambda raw: _BEYOND + raw[32:],
    "A026-s-beyond-the-order": lambda raw: raw[:32] + b"\xff" * 32,
    "A026-r-one-s-one": lambda _: _ONE + _ONE,
    "A026-der": forgery.der,
    "A026-extra-zero-bytes": lambda raw: b"\0" + raw[:32] + b"\0" + raw[32:],
    "A026-zero-after": lambda raw: raw + b"\0",
    "A026-zero-before": lambda raw: b"\0" + raw,
    "A026-short": lambda raw: raw[:-1],
    "A026-half": lambda raw: raw[:32],
    "A026-exchanged": lambda raw: raw[32:] + raw[:32],
    "A026-of-es384's-length": lambda raw: raw[:32].rjust(48, b"\0") + raw[32:].rjust(48, b"\0"),
    "A028-psychic": lambda _: bytes(64),
    "A028-psychic-in-der": lambda _: bytes.fromhex("3006020100020100"),
}


def signatures() -> Named:
    """A signature is the one that the key makes, to the bit."""
    for name, block in BLOCKS.items():
        yield f"A027-{name}", powered(block)
    for name, change in RSA_CHANGES.items():
        yield f"A027-signature-{name}", resigned(change)
    yield "A027-signature-plus-modulus", attack(forgery.beyond_the_modulus, "BAD_SIGNATURE")
    yield "A028-psychic-for-an-rsa-key", attack(lambda original: original.with_signature(bytes(64), alg="ES256"), "BAD_SIGNATURE")


def powered(block: Callable[[bytes], bytes]) -> Attack:
    """Return a token whose signature holds a changed PKCS#1 block."""

    def forge(original: Original) -> str:
        return forgery.rsa_power(original, block(hashlib.sha256(original.unsigned().encode()).digest()))

    return attack(forge, "BAD_SIGNATURE")


def resigned(change: Callable[[bytes], bytes]) -> Attack:
    """Return a good token with a changed signature."""
    return text(forgery.in_segment(2, lambda part: b64(change(unb64(part)))), "BAD_SIGNATURE")


NUMBERS = {"string": "9999999999", "float": 1.5, "exponent": 1e30, "true": True, "null": None, "negative": -1, "10^30": 10**30, "list": [1]}
LITERALS = {"5000-digits": "9" * 5000, "1e400": "1e400", "NaN": "NaN", "1E5": "1E5", "01": "01", "+1": "+1", "0x10": "0x10", "1_0": "1_0"}
UUID_SPELLINGS: dict[str, Change] = {
    "upper-case": lambda uuid: uuid.upper() if uuid.upper() != uuid else "ABCDEFAB-0000-4000-8000-000000000000",
    "without-dashes": lambda uuid: uuid.replace("-", ""),
    "braced": lambda uuid: f"{{{uuid}}}",
    "urn": lambda uuid: f"urn:uuid:{uuid}",
}


def claim_types() -> Named:
    """Claims have their exact types."""
    for claim in ("exp", "iat", "aud", "jti", "iss", "sub", "tenant_id", "sub_type", "client_id", "rev", "auth_time"):
        number = {"exp": "A031", "iat": "A031", "aud": "A035", "jti": "A042"}.get(claim, "A041")
        yield f"{number}-{claim}-left-out", body(**{claim: ...})
    for claim in ("exp", "iat", "auth_time", "rev"):
        for name, value in NUMBERS.items():
            yield f"A032-{claim}-{name}", body(**{claim: value})
        for name, literal in LITERALS.items():
            yield f"A032-{claim}-{name}", with_literal(claim, literal)
    for name, value in {"empty-list": [], "numbers": [1], "object": {}, "number": 5, "empty": "", "null": None, "nested": [["watchword"]]}.items():
        yield f"A036-aud-{name}", body(aud=value)
    for name, value in {"list": ["https://auth.test"], "null": None, "number": 1, "empty": ""}.items():
        yield f"A039-iss-{name}", body(iss=value)
    subjects = {"number": 5, "empty": "", "name": "admin", "of-300": "x" * 300, "nul": "a\0b", "override": "\u202egnp", "surrogate": "\ud800"}
    for name, value in subjects.items():
        yield f"A041-sub-{name}", body(sub=value)
    for claim, number in {"sub": "A041", "tenant_id": "A041", "jti": "A042"}.items():
        for name, respell in UUID_SPELLINGS.items():
            yield f"{number}-{claim}-{name}", respelt(claim, respell)
    for name, value in {"number": 5, "null": None, "no-uuid": "not-a-uuid", "empty": ""}.items():
        yield f"A042-jti-{name}", body(jti=value)
    for name, changes in OTHER_TYPES.items():
        yield f"A041-{name}", body(**changes)


def with_literal(claim: str, literal: str) -> Attack:
    """Return a token with a number that no encoder writes."""
    return attack(lambda original: forgery.with_literal(original, claim, literal))


def respelt(claim: str, respell: Change) -> Attack:
    """Return a token with an id that reads the same and is spelt otherwise."""
    return attack(lambda original: original.with_body(**{claim: respell(original.body[claim])}))


ACTOR = "00000000-0000-7000-8000-00000000000c"


def nested(depth: int) -> Members:
    """Return a chain of actors (RFC 8693 section 4.1)."""
    return {"sub": ACTOR, **({"act": nested(depth - 1)} if depth > 1 else {})}


OTHER_TYPES: dict[str, Members] = {
    "tenant-empty": {"tenant_id": ""},
    "tenant-no-uuid": {"tenant_id": "x"},
    "tenant-star": {"tenant_id": "*"},
    "sub-type-unknown": {"sub_type": "root"},
    "sub-type-list": {"sub_type": ["user"]},
    "client-unknown": {"client_id": "admin"},
    "session-null": {"sid": None},
    "session-no-uuid": {"sid": "x"},
    "acr-number": {"acr": 1},
    "roles-string": {"roles": "admin"},
    "roles-numbers": {"roles": [1]},
    "roles-object": {"roles": {"admin": 1}},
    "scope-list": {"scope": ["a"]},
    "scope-number": {"scope": 5},
    "scope-zero": {"scope": 0},
    "scope-false": {"scope": False},
    "scope-null": {"scope": None},
    "scope-empty-list": {"scope": []},
    "scope-with-two-spaces": {"scope": "a  b"},
    "actor-null": {"act": None},
    "actor-string": {"act": ACTOR},
    "actor-list": {"act": [{"sub": ACTOR}]},
    "actor-without-subject": {"act": {}},
    "actor-no-uuid": {"act": {"sub": "admin"}},
    "actor-with-more": {"act": {"sub": ACTOR, "iss": "https://evil"}},
    "actor-of-null": {"act": {"sub": ACTOR, "act": None}},
    "actors-of-six": {"act": nested(6)},
    "parents-string": {"parents": ACTOR},
    "parents-null": {"parents": None},
    "parents-no-uuid": {"parents": ["x"]},
    "parents-of-six": {"parents": [ACTOR] * 6},
    "scope-space": {"scope": " "},
}
EDITS: dict[str, Members] = {
    "scope": {"scope": "account tokens.verify tokens.introspect tokens.revoke"},
    "roles": {"roles": ["watchword.administrator"]},
    "subject": {"sub": "00000000-0000-7000-8000-00000000000a"},
    "tenant": {"tenant_id": "00000000-0000-7000-8000-00000000000b"},
    "expiry": {"exp": 9_999_999_999},
    "revision": {"rev": 2**62},
}
ISSUERS: dict[str, Change] = {
    "slash": lambda iss: iss + "/",
    "case": lambda iss: iss.upper(),
    "longer": lambda iss: iss + ".evil",
    "userinfo": lambda iss: iss.replace("://", "://evil@"),
    "another": lambda _: "https://evil",
    "space": lambda iss: iss + " ",
}


def claim_values() -> Named:
    """A token is of our issuer, for our audience, of now, as it was signed, and for whoever bears it."""
    yield "A033-exp-seven-seconds-ago", attack(lambda original: original.with_body(iat=0, exp=int(time.time()) - 7), "EXPIRED")
    yield "A033-exp-zero", body("EXPIRED", exp=0)
    yield "A034-iat-in-a-minute", attack(lambda original: original.with_body(iat=int(time.time()) + 60), "NOT_YET_VALID")
    yield "A034-nbf-in-a-minute", attack(lambda original: original.with_body(nbf=int(time.time()) + 60), "NOT_YET_VALID", "MALFORMED")
    yield "A034-nbf-of-the-wrong-type", body(nbf="tomorrow")
    for name, audience in {"longer": "watchword2", "shorter": "watchwor", "case": "WATCHWORD", "space": "watchword ", "any": "*"}.items():
        yield f"A036-aud-{name}", body("WRONG_AUDIENCE", aud=audience)
    yield "A036-aud-list-without-ours", body("WRONG_AUDIENCE", aud=["other"])
    yield "A038-aud-ours-and-another's", body("WRONG_AUDIENCE", aud=["watchword", "other"])
    yield "A038-aud-another's-and-ours", body("WRONG_AUDIENCE", aud=["other", "watchword"])
    yield "A038-aud-ours-twice", body("WRONG_AUDIENCE", "MALFORMED", aud=["watchword", "watchword"])
    for name, change in ISSUERS.items():
        yield f"A039-iss-{name}", by_issuer(change)
    for name, edit in EDITS.items():
        yield f"A046-{name}-edited", edited(edit)
    yield "A046-kid-edited", attack(lambda original: original.edited(head={"kid": "x"}), "UNKNOWN_KEY")
    yield "A047-bound-to-a-dpop-key", body(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"})
    yield "A047-bound-to-a-jwk", body(cnf={"jwk": {"kty": "oct", "k": "AA"}})
    yield "A048-bound-to-a-certificate", body(cnf={"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"})
    yield "A048-bound-to-nothing", body(cnf={})


def by_issuer(change: Change) -> Attack:
    """Return a token of somebody whose name is nearly ours."""
    return attack(lambda original: original.with_body(iss=change(original.body["iss"])), "WRONG_ISSUER")


def edited(edit: Members) -> Attack:
    """Return a token whose claims were changed after it was signed."""
    return attack(lambda original: original.edited(body=edit), "BAD_SIGNATURE")


_ALL = [*algorithms(), *headers(), *spellings(), *json_objects(), *signatures(), *claim_types(), *claim_values()]
ATTACKS: dict[str, Attack] = dict(_ALL)
assert len(ATTACKS) == len(_ALL), "two attacks have one name"
