"""What a verifier in another process holds: the key set, and what is revoked. And that the package needs no more than it says."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from importlib.metadata import packages_distributions
from itertools import chain, product
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as some

from services.token import key_pairs
from services.token import keys as of_the_suite
from tests.conftest import ROOT
from tests.forgery import b64, raw_ecdsa
from watchword import keyset, rules
from watchword.keyset import KeySetInvalid, read
from watchword.principal import principal_of
from watchword.revoked import MARGIN, SPAN, Revoked, names
from watchword.rules import Revocation, RevokedKind, Verdict
from watchword.tokens import Claims, SubjectKind

NOW = 1_800_000_000.0
TENANT, SUBJECT, SESSION, TOKEN = (uuid4() for _ in range(4))
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
Entry = dict[str, Any]


def number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def rsa_entry(key: rsa.RSAPrivateKey = RSA, **changes: Any) -> Entry:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), "kid": "r", "alg": "RS256", "use": "sig", **changes}


def ec_entry(**changes: Any) -> Entry:
    point = P256.public_key().public_numbers()
    return {"kty": "EC", "crv": "P-256", "x": number(point.x, 32), "y": number(point.y, 32), "kid": "e", "alg": "ES256", "use": "sig", **changes}


def ed_entry(**changes: Any) -> Entry:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(ED.public_key().public_bytes_raw()), "kid": "d", "alg": "Ed25519", "use": "sig", **changes}


def keys(*entries: Any) -> list[str]:
    return sorted(read(json.dumps({"keys": entries})))


SIGNED = b"header.payload"
SIGNATURES = {
    "RS256": RSA.sign(SIGNED, padding.PKCS1v15(), hashes.SHA256()),
    "PS256": RSA.sign(SIGNED, PSS, hashes.SHA256()),
    "ES256": raw_ecdsa(P256, SIGNED.decode(), hashes.SHA256()),
    "Ed25519": ED.sign(SIGNED),
}
ENTRIES = {"RS256": rsa_entry(), "PS256": rsa_entry(alg="PS256"), "ES256": ec_entry(), "Ed25519": ed_entry()}


@pytest.mark.parametrize("algorithm", ENTRIES)
def test_each_key_verifies_by_its_own_algorithm_only(algorithm: str) -> None:
    """Whatever another algorithm signed is refused, also when it is the same key."""
    (key,) = read(json.dumps({"keys": [ENTRIES[algorithm]]})).values()
    assert key.algorithm == algorithm
    assert [name for name, signature in SIGNATURES.items() if key.verifies(SIGNED, signature)] == [algorithm]
    assert not key.verifies(SIGNED + b"x", SIGNATURES[algorithm])
    for signature in (b"", b"x", SIGNATURES[algorithm][:-1], SIGNATURES[algorithm] + b"\0", bytes(len(SIGNATURES[algorithm]))):
        assert not key.verifies(SIGNED, signature)


def test_ecdsa_signatures_have_the_form_of_rfc_7518() -> None:
    """Not ASN.1, which has many spellings."""
    (key,) = read(json.dumps({"keys": [ec_entry()]})).values()
    raw = SIGNATURES["ES256"]
    assert not key.verifies(SIGNED, encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")))


@pytest.mark.parametrize("algorithm", ENTRIES)
def test_the_suites_own_key_sets_are_read(algorithm: str) -> None:
    """What token publishes is what this takes."""
    pair = key_pairs.generate(algorithm)
    jwk = of_the_suite.VerificationKey(pair.kid, algorithm, load_pem_public_key(pair.public_pem.encode())).jwk()
    assert keys(jwk) == [pair.kid]


UNUSABLE: dict[str, Any] = {
    "no-object": 5,
    "without-kid": rsa_entry(kid=None),
    "empty-kid": rsa_entry(kid=""),
    "number-as-kid": rsa_entry(kid=5),
    "long-kid": rsa_entry(kid="x" * 129),
    "encryption": rsa_entry(use="enc"),
    "no-use": {name: value for name, value in rsa_entry().items() if name != "use"},
    "signing": rsa_entry(key_ops=["sign"]),
    "signing-too": rsa_entry(key_ops=["verify", "sign"]),
    "no-algorithm": {name: value for name, value in rsa_entry().items() if name != "alg"},
    "none": rsa_entry(alg="none"),
    "hmac": {"kty": "oct", "k": "AAAA", "kid": "k", "alg": "HS256", "use": "sig"},
    "rs384": rsa_entry(alg="RS384"),
    "list-as-algorithm": rsa_entry(alg=["RS256"]),
    "rsa-for-ecdsa": rsa_entry(alg="ES256"),
    "ec-for-rsa": ec_entry(alg="RS256"),
    "1024-bits": rsa_entry(rsa.generate_private_key(65537, 1024)),
    "exponent-3": rsa_entry(rsa.generate_private_key(3, 2048)),
    "even-exponent": rsa_entry(e=number(65538)),
    "huge-exponent": rsa_entry(e=number(2**64 + 1)),
    "huge-modulus": rsa_entry(n=number(2**8192 + 1)),
    "padded-modulus": rsa_entry(n=rsa_entry()["n"] + "=="),
    "stray-sign-in-modulus": rsa_entry(n="!" + rsa_entry()["n"]),  # which a lax decoder skips
    "number-as-modulus": rsa_entry(n=5),
    "no-modulus": {name: value for name, value in rsa_entry().items() if name != "n"},
    "private": rsa_entry(d="AQAB"),
    "p-384": ec_entry(crv="P-384"),
    "off-the-curve": ec_entry(x=number(5, 32)),
    "short-coordinate": ec_entry(x=b64(b"\1" * 31)),
    "x25519": ed_entry(crv="X25519"),
    "short-point": ed_entry(x=b64(b"\1" * 31)),
}


@pytest.mark.parametrize("entry", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_entry_is_left_out_and_the_others_stand(entry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One bad key must neither be used nor cost the good ones; the operator reads why."""
    assert keys(entry, ed_entry(kid="good")) == ["good"]
    assert "not used" in caplog.text


def test_a_kid_names_one_key_or_none() -> None:
    """Which of two would verify is not a matter of order."""
    assert keys(rsa_entry(kid="a"), rsa_entry(kid="a", alg="PS256"), ed_entry(kid="b")) == ["b"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"keys":{}}', '{"keys":5}', "{}", '{"keys":[],"keys":[]}', '{"keys":' + "[" * 5000, "x" * (keyset.MAX_JWKS_BYTES + 1)],
    ids=range(9),
)
def test_what_is_no_key_set_is_no_news(text: str) -> None:
    """It is neither empty nor valid."""
    with pytest.raises(KeySetInvalid):
        read(text)


def test_a_key_set_is_short() -> None:
    with pytest.raises(KeySetInvalid):
        read(json.dumps({"keys": [{}] * (keyset.MAX_KEYS + 1)}))


# What is revoked.


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def claims(*, rev: int = 100, iat: int = int(NOW), sid: UUID | None = SESSION) -> Claims:
    return Claims(
        iss="i",
        sub=str(SUBJECT),
        aud=("a",),
        exp=int(NOW) + 300,
        iat=iat,
        jti=str(TOKEN),
        tenant_id=TENANT,
        kind=SubjectKind.USER,
        rev=rev,
        sid=None if sid is None else str(sid),
    )


def revoked(kind: RevokedKind = RevokedKind.TOKEN, key: UUID = TOKEN, *, life: float = 300, **fields: Any) -> Revocation:
    return Revocation(tenant_id=TENANT, kind=kind, key=key, expire_time=at(NOW + life), **{"revision": 1, **fields})


PARTS = {  # of what a signature covers, of 256 bytes: RFC 8017 section 9.2
    "start": b"\0\1",
    "info": bytes.fromhex("3031300d060960864801650304020105000420"),
    "digest": hashlib.sha256(SIGNED).digest(),
}
INFOS = {
    "without NULL": "302f300b06096086480165030402010420",
    "of SHA-512/256": "3031300d060960864801650304020605000420",
    "of SHA3-256": "3031300d060960864801650304020805000420",
    "with a length in two bytes": "308131300d060960864801650304020105000420",
}


def block(start: bytes, info: bytes, digest: bytes, *, after: bytes = b"", padding: bytes = b"", zero: bytes = b"\0") -> bytes:
    """Return a block as long as the key: padding of ones, unless another is given."""
    rest = zero + info + digest + after
    return start + (padding or b"\xff" * (256 - len(start) - len(rest))) + rest


BLOCKS = {
    "garbage after the digest (Bleichenbacher 2006)": block(**PARTS, padding=b"\xff" * 8, after=bytes(194)),
    "one byte after the digest": block(**PARTS, after=b"\0"),
    "a byte of the digest missing": block(**{**PARTS, "digest": PARTS["digest"][:-1]}),
    "another digest": block(**{**PARTS, "digest": bytes(32)}),
    "no DigestInfo": block(**{**PARTS, "info": b""}),
    **{f"a DigestInfo {name}": block(**{**PARTS, "info": bytes.fromhex(info)}) for name, info in INFOS.items()},
    "a hole in the padding": block(**PARTS, padding=b"\xff" * 100 + b"\xfe" + b"\xff" * 101),
    "a zero in the padding": block(**PARTS, padding=b"\xff" * 100 + b"\0" + b"\xff" * 101),
    "no zero after the padding": block(**PARTS, zero=b"\xff"),
    "encrypted, by its first bytes": block(**{**PARTS, "start": b"\0\2"}),
    "no padding, by its first bytes": block(**{**PARTS, "start": b"\0\0"}),
    "a first byte that is not zero": block(**{**PARTS, "start": b"\1\1"}),
}


def opening_to(covered: bytes) -> bytes:
    """Return what RSA makes of any block with the private key."""
    numbers = RSA.private_numbers()
    return pow(int.from_bytes(covered, "big"), numbers.d, numbers.public_numbers.n).to_bytes(256, "big")


def both_say(signed: bytes, signature: bytes, private: rsa.RSAPrivateKey = RSA) -> bool:
    """Whether a signature by RS256 is good to the verifier, which must say what the library's own verification says."""
    (key,) = read(json.dumps({"keys": [rsa_entry(private)]})).values()
    try:
        private.public_key().verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        by_the_library = True
    except InvalidSignature:
        by_the_library = False
    assert key.verifies(signed, signature) is by_the_library
    return by_the_library


def test_the_one_right_block_is_good() -> None:
    """So the blocks below are refused for what is wrong with them."""
    assert all(len(covered) == 256 for covered in BLOCKS.values())
    assert opening_to(block(**PARTS)) == SIGNATURES["RS256"]
    assert both_say(SIGNED, SIGNATURES["RS256"])


@pytest.mark.parametrize("wrong", BLOCKS)
def test_a_signature_that_covers_another_block_is_refused(wrong: str) -> None:
    """With the private key, which whoever forges lacks: a lenient reading is what makes forging possible without."""
    assert not both_say(SIGNED, opening_to(BLOCKS[wrong]))


def test_a_signature_has_one_spelling() -> None:
    """Neither zeros more or fewer in front, nor the modulus added; also where the modulus leaves bits of its first byte unused."""
    odd = rsa.generate_private_key(65537, 2050)
    modulus = odd.public_key().public_numbers().n
    texts = [b"%d" % number for number in range(200)]
    signatures = ((text, odd.sign(text, padding.PKCS1v15(), hashes.SHA256())) for text in texts)
    text, short = next((text, signature) for text, signature in signatures if signature[0] == 0)

    assert len(short) == 257
    assert both_say(text, short, odd)
    wrapped = (int.from_bytes(short, "big") + modulus).to_bytes(257, "big")
    for other in (short[1:], b"\0" + short, short + b"\0", short[:-1], b"", wrapped):
        assert not both_say(text, other, odd)


def verdict(held: Revoked, **of: Any) -> Verdict:
    return judged(held, claims(**of))


def judged(held: Revoked, token: Claims) -> Verdict:
    return held.verdict(token, principal_of(token), "kid")


def test_memory_is_given_back_when_tokens_have_expired() -> None:
    """Ten thousand revocations come and go; nothing is left, and what lives longer stays."""
    held = Revoked()
    for number in range(10_000):
        held.add(revoked(key=uuid4(), life=number % 300))
    held.add(revoked(life=900))
    assert held.sweep(NOW + 300 + MARGIN + SPAN + 2)
    assert (len(held), held._due) == (1, {(int(NOW + 901) // SPAN, RevokedKind.TOKEN): [str(TOKEN)]})
    assert verdict(held) is Verdict.REVOKED


def test_a_revocation_that_comes_again_lives_as_long_as_the_longer_one() -> None:
    """In either order."""
    for lives in ((10, 900), (900, 10)):
        held = Revoked()
        for life in lives:
            held.add(revoked(life=life))
            held.add(revoked(RevokedKind.SUBJECT, SUBJECT, life=life, revision=101))
        held.sweep(NOW + 600)
        assert len(held) == 2
        held.sweep(NOW + 900 + MARGIN + 2 * SPAN)
        assert (len(held), held._due) == (0, {})


def test_a_clock_that_was_set_back_is_noticed() -> None:
    """What was forgotten by the wrong time is behind the horizon."""
    held = Revoked()
    held.add(revoked(life=300))
    assert held.sweep(NOW + 7200)
    assert held.horizon > NOW + 300
    assert not held.sweep(NOW)
    assert held.sweep(NOW + 7200 - rules.LEEWAY)


STATES = some.builds(
    lambda revision, spared, session, before, disabled: revoked(
        RevokedKind.SUBJECT,
        SUBJECT,
        revision=revision,
        spared_revision=spared,
        spared_session_id=session if spared else None,
        issued_before=at(NOW + before) if before else None,
        is_disabled=disabled,
    ),
    some.integers(0, 4),
    some.integers(0, 4),
    some.sampled_from([SESSION, TOKEN]),
    some.integers(0, 3),
    some.booleans(),
)


@given(some.lists(STATES, min_size=1, max_size=4), some.randoms(use_true_random=False))
def test_states_of_one_revocation_add_up_in_any_order(states: list[Revocation], random: Any) -> None:
    """Late and twice: the same is held. And nothing is let through that the revision or the time of any one state refuses."""
    shuffled = [*states, random.choice(states)]
    random.shuffle(shuffled)
    one, other = Revoked(), Revoked()
    for state in states:
        one.add(state)
    for state in shuffled:
        other.add(state)
    for rev in range(5):
        for iat in range(3):
            token = {"rev": rev, "iat": int(NOW) + iat}
            assert verdict(one, **token) is verdict(other, **token)
            if any(rev < state.revision or (state.issued_before and token["iat"] < state.issued_before.timestamp()) for state in states):
                assert verdict(one, **token) is not Verdict.VALID


@given(
    some.sampled_from(list(RevokedKind)),
    some.integers(0, 2),
    some.integers(0, 2),
    some.sampled_from([None, SESSION, TOKEN]),
    some.integers(0, 2),
    some.booleans(),
)
def test_a_held_revocation_refuses_what_the_rule_says(
    kind: RevokedKind, revision: int, spared: int, session: UUID | None, before: int, named: bool
) -> None:
    """The compact form loses nothing."""
    keys_of = {name[0]: UUID(int=name[2]) for name in rules.names_of(claims(), "kid")}
    key = keys_of.get(kind, uuid4()) if named else uuid4()
    state = revoked(kind, key, revision=revision, spared_revision=spared, spared_session_id=session, issued_before=at(NOW + before))
    held = Revoked()
    held.add(state)
    for rev in range(3):
        token = claims(rev=rev, iat=int(NOW) + 1)
        is_named = (kind, state.tenant_id, key.int) in [(name[0], TENANT, name[2]) for name in rules.names_of(token, "kid")]
        expected = Verdict.REVOKED if is_named and state.refuses(token) else Verdict.VALID
        assert judged(held, token) is expected


SOME_CLAIMS = some.builds(
    lambda kind, sid, client, parents, actors: claims(sid=sid)._replace(kind=kind, client_id=client, parents=parents, actors=actors),
    some.sampled_from(SubjectKind),
    some.none() | some.uuids(),
    some.none() | some.uuids(),
    some.lists(some.uuids(), max_size=4).map(tuple),
    some.lists(some.uuids(), max_size=4).map(tuple),
)


@given(SOME_CLAIMS)
def test_whatever_a_token_is_named_by_refuses_it(token: Claims) -> None:
    """One forgotten name would be a token that cannot be revoked so. Each name of the rule refuses it; the same id of another kind does not."""
    by_rule = {(kind, str(UUID(int=number))) for kind, _, number in rules.names_of(token, "kid")}
    assert set(names(token, principal_of(token), "kid")) == by_rule
    ids = {name for _, name in by_rule}
    for kind, name in product(RevokedKind, ids):
        held = Revoked()
        held.add(revoked(kind, UUID(name), revision=token.rev + 1))
        assert (judged(held, token) is Verdict.REVOKED) == ((kind, name) in by_rule)


def test_judging_has_five_seconds_of_leeway() -> None:
    """To the second, on both sides."""
    token = claims()
    answers = [rules.judge(token, issuer="i", audience="a", now=now) for now in (NOW - 5.1, NOW - 5, NOW + 305, NOW + 305.1)]
    assert answers == [Verdict.NOT_YET_VALID, Verdict.VALID, Verdict.VALID, Verdict.EXPIRED]
    assert rules.lifetime(token) == (NOW - 5, NOW + 305)


# The package.


def imported_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has after a statement, those of the standard library apart."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}} - set(sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_the_package_needs_what_it_says_and_no_framework() -> None:
    """grpcio, protobuf, googleapis-common-protos and cryptography; nothing of the server half."""
    found = imported_by("import watchword.guards.asgi, watchword.guards.grpc, watchword.threads")
    ours = {"watchword", "grpc", "google", "cryptography"}
    assert ours <= found
    assert not found & {"services", "jwt", "fastapi", "starlette", "uvicorn", "httpx", "asyncpg", "redis", "structlog", "msgspec", "pydantic"}


def test_the_package_says_what_it_imports() -> None:
    """What this environment happens to hold is no help to whoever installs the package alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {re.split(r"[^\w-]", line)[0].lower() for line in (*project["dependencies"], *chain(*project["optional-dependencies"].values()))}
    trees = [ast.parse(path.read_text()) for path in (ROOT / "watchword").rglob("*.py")]
    names = {name.split(".")[0] for tree in trees for node in ast.walk(tree) for name in _modules(node)} - sys.stdlib_module_names - {"watchword"}
    owners = {**packages_distributions(), "google": ["protobuf", "googleapis-common-protos"]}

    assert {owner.lower() for name in names for owner in owners[name]} == said


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_whoever_wants_the_errors_needs_no_grpc() -> None:
    """Domain code of the suite imports them."""
    assert not imported_by("import watchword.errors, watchword.tokens, watchword.rules") & {"grpc", "google", "cryptography"}


def test_margins_are_in_the_right_order() -> None:
    """A revocation outlives the leeway that its token has."""
    assert timedelta(seconds=MARGIN) > timedelta(seconds=rules.LEEWAY + SPAN)
