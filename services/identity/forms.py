"""What is posted to the OAuth 2 endpoints, read by the letter, and what is answered.

Sources: RFC 6749 (2.3.1, 3.1, 3.2, 5.1, 5.2), RFC 7009 section 2.1.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_plus
from uuid import UUID

import msgspec

FORM = "application/x-www-form-urlencoded"
MAX_PARAMETERS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. It is never stored by anybody on the way (RFC 6749 section 5.1)."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Mistake(Exception):
    """What a client did wrong, in the words of RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status

    @property
    def answer(self) -> Answer:
        """What the client is told."""
        body = msgspec.json.encode({"error": self.error, "error_description": self.description})
        return Answer(self.status, body, (("www-authenticate", 'Basic realm="watchword"'),) if self.status == 401 else ())


@dataclass(frozen=True, slots=True)
class Post:
    """What was posted to an endpoint."""

    content_type: str
    body: bytes
    authorization: str


def form_of(post: Post) -> dict[str, str]:
    """Return the parameters, each once and not empty (RFC 6749 section 3.1: an empty one is as if it were not there)."""
    kind, _, charset = post.content_type.partition(";")
    if kind.strip().lower() != FORM or charset.strip().lower() not in ("", "charset=utf-8"):
        raise Mistake("invalid_request", f"the content type must be {FORM}")
    try:
        pairs = parse_qsl(post.body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise Mistake("invalid_request", "the body is not a form in UTF-8") from None
    given = [(name, value) for name, value in pairs if value]
    if len({name for name, _ in given}) != len(given):
        raise Mistake("invalid_request", "a parameter stands there more than once")
    if any("\0" in value for _, value in given):
        raise Mistake("invalid_request", "a parameter holds a NUL")
    return dict(given)


def credentials_of(form: Mapping[str, str], authorization: str) -> tuple[str, str]:
    """Return a client's id and secret, from the header or from the form, never from both (RFC 6749 section 2.3)."""
    if not authorization:
        if "client_id" not in form or "client_secret" not in form:
            raise Mistake("invalid_client", "client authentication failed", status=401)
        return form["client_id"], form["client_secret"]
    if "client_secret" in form:
        raise Mistake("invalid_request", "the client authenticates in the header or in the form, not in both")
    client_id, secret = _basic(authorization)
    if form.get("client_id", client_id) != client_id:
        raise Mistake("invalid_request", "the header and the form name two clients")
    return client_id, secret


def _basic(authorization: str) -> tuple[str, str]:
    """Read HTTP Basic, whose parts are form-encoded before they are joined (RFC 6749 section 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError
        client_id, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        if not colon or not client_id or not secret:
            raise ValueError
        return unquote_plus(client_id, errors="strict"), unquote_plus(secret, errors="strict")
    except (ValueError, binascii.Error):
        raise Mistake("invalid_client", "client authentication failed", status=401) from None


def required(form: Mapping[str, str], name: str) -> str:
    if name not in form:
        raise Mistake("invalid_request", f"the parameter {name} is missing")
    return form[name]


def scopes_of(form: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form.get("scope", "").split()))


def hint_of(form: Mapping[str, str]) -> str:
    """Return the hint if it is one that RFC 7009 knows; others may be ignored."""
    hint = form.get("token_type_hint", "")
    return hint if hint in ("access_token", "refresh_token") else ""


def request_id_of(form: Mapping[str, str]) -> UUID | None:
    """Return the suite's own parameter `request_id`, by which a request that is repeated after a lost answer is known."""
    if "request_id" not in form:
        return None
    try:
        return UUID(form["request_id"])
    except ValueError:
        raise Mistake("invalid_request", "the parameter request_id must be a UUID") from None
