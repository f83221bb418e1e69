"""What a token says, read strictly: one form, one meaning, or refused.

The library below verifies signatures; it does not care for duplicate members, padding, types of members or sizes, and each of these has been an
attack. So: sizes first, then exact base64url, then exact JSON, then exact members. Source: RFC 7515, RFC 7519, RFC 8725, RFC 9068.
"""

import binascii
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

MAX_TOKEN_BYTES = 8192  # read; 4096 are written
MAX_EXCHANGES = 4  # times that a token may be exchanged for a narrower one
MAX_SECONDS = 253_402_300_799  # the end of year 9999
MAX_REVISION = 2**63 - 1  # a bigint of Postgres
TYPES = frozenset({"at+jwt", "application/at+jwt"})  # RFC 9068 section 4; media types ignore case
LOGIN_CLIENT = "watchword"  # the client_id (which RFC 9068 requires) of the suite's own login
_FROM_STANDARD = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/...")  # what is of the standard alphabet only becomes a sign of neither
_PADDING = (b"", b"", b"==", b"=")  # by what the length leaves when divided by four
# Which last signs leave no bit unused: any, none (one sign alone is six bits of a byte), those with four zeros at the end, those with two.
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LAST = (frozenset(_ALPHABET), frozenset[int](), frozenset(_ALPHABET[::16]), frozenset(_ALPHABET[::4]))
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TEXT = r"[ !#-\[\]-~]{1,2048}"  # printable ASCII that JSON writes as it is
_WORD = r"[!#-\[\]-~]+"
_SECONDS = r"(0|[1-9][0-9]{0,10})"  # less than MAX_SECONDS
_ID = f"({_UUID.pattern})"
# What the suite's issuer writes of a token for one audience, without actors or parents and in plain ASCII: nearly all tokens, read by one match.
# Whatever is written otherwise is read as JSON. Both readings of one payload are the same (a test compares them).
_RENDERED = re.compile(
    rf'\{{"iss":"({_TEXT})","sub":"{_ID}","aud":"({_TEXT})","exp":{_SECONDS},"iat":{_SECONDS},"jti":"{_ID}","client_id":"({LOGIN_CLIENT}|{_UUID.pattern})",'
    rf'"tenant_id":"{_ID}","sub_type":"(user|client)","rev":(0|[1-9][0-9]{{0,17}}),"auth_time":{_SECONDS}(?:,"sid":"{_ID}")?'
    rf'(?:,"scope":"(?=[^"]{{1,2048}}")({_WORD}(?: {_WORD})*)")?(?:,"roles":\["({_TEXT}(?:","{_TEXT})*)"\])?(?:,"acr":"({_TEXT})")?\}}'
)
_HEADER = frozenset({"alg", "kid", "typ"})
_CLAIMS = frozenset({"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "tenant_id", "sub_type", "rev", "auth_time"})
_MAY_CLAIM = _CLAIMS | {"sid", "scope", "roles", "acr", "act", "parents"}


class Malformed(Exception):
    """Not a token of the form that this suite issues."""


class SubjectKind(StrEnum):
    """What a token's subject is."""

    USER = "user"
    CLIENT = "client"


_KINDS = {kind.value: kind for kind in SubjectKind}


@dataclass(frozen=True, slots=True)
class Header:
    """The three members that a header may have."""

    alg: str
    kid: str


class Claims(NamedTuple):
    """What an access token claims. Times are seconds since 1970.

    The ids that are a token's own are UUIDs as text, in their one spelling: objects of them
    would cost a tenth of a verification.
    """

    iss: str
    sub: str
    aud: tuple[str, ...]
    exp: int
    iat: int
    jti: str
    tenant_id: UUID
    kind: SubjectKind
    rev: int
    client_id: UUID | None = None
    sid: str | None = None
    scope: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    auth_time: int = 0
    acr: str = ""
    actors: tuple[UUID, ...] = ()  # who acts for the subject, the present one first (RFC 8693 `act`)
    parents: tuple[UUID, ...] = ()  # the tokens that this one was exchanged from: revoking one of them revokes it


def split(token: str) -> tuple[Header, bytes, bytes, bytes]:
    """Return header, payload, what is signed, and signature of a compact JWS. Raises Malformed."""
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise Malformed
    signs = token.encode("ascii")
    signed, _, signature = signs.rpartition(b".")
    head, _, body = signed.partition(b".")  # a third dot would be a sign of the payload, and is none of the alphabet
    return _header(head), _decode(body), signed, _decode(signature)


def parse(body: bytes) -> Claims:
    """Return the claims of a payload whose signature was verified. Raises Malformed."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed from None
    rendered = _RENDERED.fullmatch(text)
    return _read_json(text) if rendered is None else _read_rendered(rendered)


def _read_rendered(rendered: re.Match[str]) -> Claims:
    iss, sub, aud, exp, iat, jti, client, tenant, kind, rev, auth_time, sid, scope, roles, acr = rendered.groups()
    return tuple.__new__(  # as Claims(...) does, without a call of Python in between: every new token is read here
        Claims,
        (
            iss,
            sub,
            _often_words(aud, '","'),  # one: no text has a quotation mark
            int(exp),
            int(iat),
            jti,
            _often_uuid(tenant),
            _KINDS[kind],
            int(rev),
            None if client == LOGIN_CLIENT else _often_uuid(client),
            sid,
            () if scope is None else _often_words(scope, " "),
            () if roles is None else _often_words(roles, '","'),
            int(auth_time),
            acr or "",
            (),
            (),
        ),
    )


def _read_json(text: str) -> Claims:
    claims = _object(text)
    if not _CLAIMS <= claims.keys() <= _MAY_CLAIM:
        # Whoever signs for us means something by every member, and it may be a limit: `nbf`, `cnf`, or one of a later release, which therefore
        # reads a new member a release before it writes one.
        raise Malformed
    client = _text(claims, "client_id")
    return Claims(
        iss=_text(claims, "iss"),
        sub=_id(claims, "sub"),
        aud=_audience(claims.get("aud")),
        exp=_seconds(claims, "exp"),
        iat=_seconds(claims, "iat"),
        jti=_id(claims, "jti"),
        tenant_id=_often_uuid(_text(claims, "tenant_id")),
        kind=_kind(claims.get("sub_type")),
        rev=_whole(claims, "rev", MAX_REVISION),
        client_id=None if client == LOGIN_CLIENT else _often_uuid(client),
        sid=_id(claims, "sid") if "sid" in claims else None,
        scope=_scope(_text(claims, "scope")) if "scope" in claims else (),
        roles=_texts(claims.get("roles", [])),
        auth_time=_seconds(claims, "auth_time"),
        acr=_text(claims, "acr") if "acr" in claims else "",
        actors=_actors(claims["act"]) if "act" in claims else (),
        parents=tuple(_as_uuid(text) for text in _texts(claims.get("parents", []), MAX_EXCHANGES)),
    )


def encode_segment(raw: bytes) -> str:
    """Return `raw` in base64url without padding."""
    return binascii.b2a_base64(raw, newline=False).translate(_FROM_STANDARD, b"=").decode("ascii")


def _decode(segment: bytes) -> bytes:
    """Only the one encoding of these bytes is taken: signs of the alphabet alone, and no unused bits set."""
    surplus = len(segment) % 4
    if not segment or segment[-1] not in _LAST[surplus]:
        raise Malformed
    try:
        return binascii.a2b_base64(segment.translate(_TO_STANDARD) + _PADDING[surplus], strict_mode=True)
    except binascii.Error:
        raise Malformed from None


@lru_cache(maxsize=256)  # all tokens of one key begin alike
def _header(segment: bytes) -> Header:
    try:
        members = _object(_decode(segment).decode("utf-8"))
    except UnicodeDecodeError:
        raise Malformed from None
    if members.keys() != _HEADER:
        raise Malformed
    alg, kid, typ = _text(members, "alg"), _text(members, "kid"), _text(members, "typ")
    if typ.lower() not in TYPES:
        raise Malformed
    return Header(alg, kid)


def _object(text: str) -> dict[str, Any]:
    try:
        value = _JSON.decode(text)
    except (ValueError, RecursionError):
        raise Malformed from None
    if type(value) is not dict:
        raise Malformed
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed
    return members


def _refuse(_: str) -> NoReturn:
    raise Malformed


_JSON = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_refuse, parse_float=_refuse)


def _text(members: dict[str, Any], name: str) -> str:
    return _string(members.get(name))


def _string(value: Any) -> str:
    if type(value) is not str or not value or len(value) > 2048:
        raise Malformed
    if not value.isprintable():
        raise Malformed
    return value


def _scope(text: str) -> tuple[str, ...]:
    """RFC 6749 section 3.3: tokens with one space between two of them."""
    scopes = tuple(text.split(" "))
    if "" in scopes:
        raise Malformed
    return scopes


def _actors(act: Any, depth: int = 1) -> tuple[UUID, ...]:
    if type(act) is not dict or not act.keys() <= {"sub", "act"} or depth > MAX_EXCHANGES:
        raise Malformed
    return (UUID(_id(act, "sub")), *(_actors(act["act"], depth + 1) if "act" in act else ()))


def _texts(value: Any, at_most: int = MAX_TOKEN_BYTES) -> tuple[str, ...]:
    if type(value) is not list or len(value) > at_most:
        raise Malformed
    return tuple(_string(item) for item in value)


def _audience(value: Any) -> tuple[str, ...]:
    """RFC 7519 section 4.1.3: a string or a list of strings."""
    audiences = (_string(value),) if type(value) is str else _texts(value)
    if not audiences:
        raise Malformed
    return audiences


def _seconds(members: dict[str, Any], name: str) -> int:
    return _whole(members, name, MAX_SECONDS)


def _whole(members: dict[str, Any], name: str, at_most: int) -> int:
    value = members.get(name)
    if type(value) is not int or not 0 <= value <= at_most:
        raise Malformed
    return value


def _id(members: dict[str, Any], name: str) -> str:
    text = _text(members, name)
    if _UUID.fullmatch(text) is None:
        raise Malformed
    return text


def _as_uuid(text: str) -> UUID:
    if _UUID.fullmatch(text) is None:
        raise Malformed
    return UUID(text)


@lru_cache(maxsize=1024)
def _often_words(text: str, between: str) -> tuple[str, ...]:
    """For what many tokens say alike."""
    return tuple(text.split(between))


@lru_cache(maxsize=1024)
def _often_uuid(text: str) -> UUID:
    """For ids that many tokens share."""
    return _as_uuid(text)


def _kind(value: Any) -> SubjectKind:
    kind = _KINDS.get(value) if type(value) is str else None
    if kind is None:
        raise Malformed
    return kind
