"""The strict reader against whatever bytes there are: it refuses or accepts, and fails in no other way; and what it accepts has one spelling."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.token.issuer import render
from services.token.keys import VerificationKey
from tests.attacks import ATTACKS
from tests.forgery import ALPHABET, Original, b64, compact, good_claims, with_loose_bits
from watchword.tokens import _RENDERED, Claims, Malformed, SubjectKind, parse, split

KEY = rsa.generate_private_key(65537, 2048)
ORIGINAL = Original.of(
    KEY, "key", good_claims(issuer="https://auth.test", tenant_id="00000000-0000-7000-8000-000000000001", scope="a b", roles=["r"])
)
GOOD = ORIGINAL.token()
VERIFYING = VerificationKey("key", "RS256", KEY.public_key())
some = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def is_accepted(token: str) -> bool:
    """Whether reader and key both accept. Raises whatever the reader raises, but for Malformed."""
    try:
        header, body, signed, signature = split(token)
        parse(body)
    except Malformed:
        return False
    return header.kid == "key" and header.alg == "RS256" and VERIFYING.verifies(signed, signature)


def read(body: bytes) -> Claims | None:
    """Return what a payload claims, None if it is malformed."""
    try:
        return parse(body)
    except Malformed:
        return None


# JSON as it is written, not as it is meant: odd numbers, doubled members, odd spaces, values of every type for every name.
names = st.sampled_from([*ORIGINAL.head, *ORIGINAL.body, "sid", "acr", "act", "parents", "crit", "b64", "jwk", "cnf", "nbf", "", "\0"]) | st.text(
    max_size=8
)
numbers = st.sampled_from(
    ["0", "-0", "-1", "1.5", "1e5", "1E400", "NaN", "Infinity", "-Infinity", "01", "9" * 30, "9" * 5000, "true", "false", "null"]
)
strings = (st.text(max_size=40) | st.sampled_from(list(map(str, ORIGINAL.body.values())))).map(json.dumps)
spaces = st.sampled_from(["", "", "", " ", "\n", "\t", "\u00a0", "\ufeff"])


def _object(pairs: list[tuple[str, str]], space: str) -> str:
    return "{" + ",".join(f"{space}{json.dumps(name)}{space}:{space}{value}" for name, value in pairs) + space + "}"


values = st.recursive(
    numbers | strings | st.integers().map(str),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]")
        | st.builds(_object, st.lists(st.tuples(names, inner), max_size=4), spaces)
    ),
    max_leaves=8,
)
objects = st.builds(_object, st.lists(st.tuples(names, values), max_size=12), spaces)


def _written(members: Mapping[str, Any], changes: dict[str, str | None], extra: list[tuple[str, str]], space: str) -> str:
    """Write good members with some replaced by other JSON, left out, or doubled."""
    written = {name: json.dumps(value) for name, value in members.items()}
    pairs = [(name, changes.get(name, value)) for name, value in written.items()]
    return _object([(name, value) for name, value in pairs if value is not None] + extra, space)


extras = st.lists(st.tuples(names, values), max_size=2)
nearly_heads = st.builds(
    _written, st.just(ORIGINAL.head), st.dictionaries(st.sampled_from(list(ORIGINAL.head)), st.none() | values, max_size=2), extras, spaces
)
nearly_bodies = st.builds(
    _written, st.just(ORIGINAL.body), st.dictionaries(st.sampled_from(list(ORIGINAL.body)), st.none() | values, max_size=3), extras, spaces
)


@some
@given(st.text() | st.text(ALPHABET + ".=+/ \n", max_size=300) | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_at_all_is_refused(text: str) -> None:
    """Nothing that is made by chance is a token, and nothing but Malformed comes of it."""
    with pytest.raises(Malformed):
        split(text)


@some
@given(st.binary(max_size=200) | objects.map(str.encode), st.binary(max_size=200) | objects.map(str.encode), st.binary(min_size=1, max_size=300))
def test_three_segments_of_anything_are_accepted_by_no_key(head: bytes, body: bytes, signature: bytes) -> None:
    """Well encoded rubbish: the JSON behind it is any JSON, and some that is none."""
    assert not is_accepted(f"{b64(head)}.{b64(body)}.{b64(signature)}")


@some
@given(nearly_heads)
def test_a_header_is_ours_or_malformed(head: str) -> None:
    """Rightly signed whatever it is: what is accepted has three members, each a plain string, and a type that is an access token's."""
    token = ORIGINAL.sign(f"{b64(head.encode('utf-8', 'surrogatepass'))}.{b64(compact(ORIGINAL.body))}")
    try:
        header, _, _, _ = split(token)
    except Malformed:
        return
    members = json.loads(head)
    assert members.keys() == {"alg", "kid", "typ"}
    assert (members["alg"], members["kid"]) == (header.alg, header.kid)
    assert members["typ"].lower() in ("at+jwt", "application/at+jwt")


@some
@given(nearly_bodies | objects)
def test_a_payload_means_one_thing_or_is_malformed(body: str) -> None:
    """What is accepted can be written down and read again without a change, and a common reader finds the same in it."""
    claims = read(body.encode("utf-8", "surrogatepass"))
    if claims is None:
        return
    assert parse(render(claims)) == claims
    assert render(parse(render(claims))) == render(claims)
    common = json.loads(body)
    assert (common["iss"], common["sub"], common["exp"], common["iat"]) == (claims.iss, claims.sub, claims.exp, claims.iat)
    assert (common["tenant_id"], common["sub_type"], common["jti"], common["rev"]) == (
        str(claims.tenant_id),
        claims.kind,
        claims.jti,
        claims.rev,
    )
    assert common.get("scope", "") == " ".join(claims.scope)
    assert common.get("roles", []) == list(claims.roles)
    assert common["aud"] in (list(claims.aud), *claims.aud)


@some
@given(nearly_bodies)
def test_a_payload_that_is_accepted_says_nothing_that_was_not_read(body: str) -> None:
    """A member that we pass over may be one that the token's issuer meant as a limit: `nbf`, `cnf`, or what will be invented."""
    claims = read(body.encode("utf-8", "surrogatepass"))
    if claims is None:
        return
    common, again = json.loads(body), json.loads(render(claims))
    assert {name for name in common if name not in again} <= {"roles", "parents"}, "empty lists are not written"


_printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)
_seconds = st.integers(0, 253_402_300_799)
_known: dict[str, Any] = {
    "iss": _printable,
    "sub": st.uuids().map(str),
    "aud": st.lists(_printable, min_size=1, max_size=3).map(tuple),
    "exp": _seconds,
    "iat": _seconds,
    "jti": st.uuids().map(str),
    "tenant_id": st.uuids(),
    "kind": st.sampled_from(SubjectKind),
    "rev": st.integers(0, 2**63 - 1),
    "client_id": st.none() | st.uuids(),
    "sid": st.none() | st.uuids().map(str),
    "scope": st.lists(_printable, max_size=4).map(tuple),
    "roles": st.lists(_printable, max_size=4).map(tuple),
    "auth_time": _seconds,
    "acr": st.just("") | _printable,
    "actors": st.lists(st.uuids(), max_size=4).map(tuple),
    "parents": st.lists(st.uuids(), max_size=4).map(tuple),
}


def test_every_claim_is_fuzzed() -> None:
    """A new claim must be added to the strategies."""
    assert set(Claims._fields) == set(_known)


@some
@given(st.builds(Claims, **_known))
def test_what_we_write_we_read(claims: Claims) -> None:
    """Every token of ours is good, and reads back as it was written."""
    assert parse(render(claims)) == claims
    token = ORIGINAL.token(body=render(claims))
    if len(token) <= 8192:
        assert is_accepted(token)


def _poked(text: str, pokes: list[tuple[int, str, bool]]) -> str:
    for place, signs, is_more in pokes:
        at = place % len(text)
        text = text[:at] + signs + text[at + (0 if is_more else 1) :]
    return text


_signs = st.sampled_from([*'"\\,:{}[] 019a-.wu\n\0\x7f\u00e9', "", "  ", '""', '","', "01", "-1", "9" * 12, "9" * 20, "\\u0061", "x" * 2048])
_plain = {
    name: st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20) if name in ("iss", "acr") else values
    for name, values in (_known | {"aud": st.tuples(st.text("abc", min_size=1)), "actors": st.just(()), "parents": st.just(())}).items()
}


@settings(some, max_examples=1000)
@given(st.builds(Claims, **_known) | st.builds(Claims, **_plain), st.lists(st.tuples(st.integers(0), _signs, st.booleans()), max_size=2))
def test_both_ways_of_reading_a_payload_find_the_same(claims: Claims, pokes: list[tuple[int, str, bool]]) -> None:
    """What `render` writes is read by one match, everything else as JSON; a space in front makes it be read as JSON."""
    body = _poked(render(claims).decode(), pokes).encode()
    assert read(body) == read(b" " + body)


@pytest.mark.parametrize(
    ("member", "values"),
    [
        ("exp", ["0", "00", "01", "-0", "1.0", "253402300799", "253402300800", "99999999999", "999999999999", "1e9", "\u0661"]),
        ("rev", ["0", "9223372036854775807", "9223372036854775808", "999999999999999999", "1000000000000000000", "007"]),
        ("iss", ['""', '" "', '"' + "x" * 2048 + '"', '"' + "x" * 2049 + '"', '"a\\u0062"', '"a\u0001"', '"\u00e9"', '"\u2028"', "1", "null"]),
        ("sub", ['"00000000-0000-7000-8000-00000000000A"', '"00000000000070008000000000000001"', '"{00000000-0000-7000-8000-000000000001}"']),
        ("client_id", ['"watchword"', '"Watchword"', '"00000000-0000-7000-8000-000000000001"', '""']),
        ("scope", ['"a"', '"a b"', '"a  b"', '" a"', '"a "', '""', '"' + "a " * 1024 + '"', '"' + "a " * 1024 + 'a"', '"a\\u0020b"']),
        ("roles", ["[]", '["a"]', '["a","b"]', '["a", "b"]', '["a",""]', '["a","' + "x" * 2049 + '"]', '["a\\",\\"b"]', '"a"', "[1]"]),
        ("sub_type", ['"user"', '"client"', '"User"', '"service"']),
    ],
)
def test_both_ways_find_the_same_at_the_edges(member: str, values: list[str]) -> None:
    """Of numbers, sizes, escapes and lists."""
    whole = parse(compact(ORIGINAL.body))
    body = render(whole._replace(aud=("a",), roles=("r",), scope=("s",))).decode()
    members = {name: json.dumps(value, separators=(",", ":")) for name, value in json.loads(body).items()}
    for value in values:
        written = ("{" + ",".join(f'"{name}":{text}' for name, text in (members | {member: value}).items()) + "}").encode()
        assert read(written) == read(b" " + written), value


def test_a_token_of_a_session_is_read_by_one_match() -> None:
    """Or what is there for speed would be there for nothing."""
    claims = parse(compact(ORIGINAL.body))
    assert _RENDERED.fullmatch(render(claims).decode())
    assert _RENDERED.fullmatch(render(claims._replace(client_id=UUID(claims.sub), sid=None, scope=(), roles=(), acr="")).decode())


@pytest.mark.parametrize("kind", ["replaced", "removed", "inserted", "cut", "doubled"])
def test_a_token_changed_at_any_place_is_refused(kind: str) -> None:
    """Every byte of it, one after the other."""
    assert is_accepted(GOOD)
    for place in range(len(GOOD)):
        before, sign, after = GOOD[:place], GOOD[place], GOOD[place + 1 :]
        for other in (ALPHABET[(ALPHABET.find(sign) + 1) % 64], ALPHABET[(ALPHABET.find(sign) + 33) % 64], ".", "="):
            changed = {
                "replaced": before + other + after,
                "removed": before + after,
                "inserted": before + other + sign + after,
                "cut": before,
                "doubled": before + sign + sign + after,
            }[kind]
            assert changed == GOOD or not is_accepted(changed), (place, other)
            if kind in ("removed", "cut", "doubled"):
                break


@some
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.characters(codec="ascii")), min_size=1, max_size=5), st.integers(0, 5))
def test_a_token_changed_at_several_places_is_refused(changes: list[tuple[int, str]], rotation: int) -> None:
    """Two changes together must not undo one another."""
    signs = list(GOOD)
    for place, sign in changes:
        signs[place] = sign
    changed = "".join(signs[rotation:] + signs[:rotation])
    assert changed == GOOD or not is_accepted(changed)


@some
@given(st.data())
def test_parts_of_two_good_tokens_make_no_third(data: st.DataObject) -> None:
    """Each segment of one or of the other."""
    other = ORIGINAL.with_body(sub=str(UUID(int=7)))
    assert is_accepted(other)
    picked = [data.draw(st.sampled_from([one, two])) for one, two in zip(GOOD.split("."), other.split("."), strict=True)]
    mixed = ".".join(picked)
    assert mixed in (GOOD, other) or not is_accepted(mixed)


@some
@given(st.binary(min_size=1, max_size=120), st.binary(min_size=1, max_size=120))
def test_bytes_have_one_spelling(body: bytes, signature: bytes) -> None:
    """What is read, encoded again, is what was sent: no two texts are one token."""
    token = f"{b64(compact(ORIGINAL.head))}.{b64(body)}.{b64(signature)}"
    _, read_body, signed, read_signature = split(token)
    assert f"{signed.decode()}.{b64(read_signature)}" == token
    assert (read_body, b64(read_body)) == (body, token.split(".")[1])
    for number in (0, 1):
        with pytest.raises(Malformed):
            split(with_loose_bits(ORIGINAL, number))


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.answers == {"MALFORMED"}])
def test_the_reader_alone_refuses_what_is_malformed(name: str) -> None:
    """Not only the services around it: whoever embeds the reader gets the same."""
    assert not is_accepted(ATTACKS[name].forge(ORIGINAL))


@pytest.mark.parametrize("size", [8193, 64 * 1024, 2_000_000])
def test_a_long_token_is_not_even_decoded(size: int) -> None:
    """A025: its length is looked at first."""
    for text in ("A" * size, "." * size, GOOD + "A" * size):
        with pytest.raises(Malformed):
            split(text)
