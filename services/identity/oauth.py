"""The OAuth 2 endpoints: forms in, RFC 6749 JSON out.

A client's mistake is an answer here, never a failure of the call: the RFCs say its status and body to the letter. Only an outage of ours has no place
in them; it answers 503. Sources: RFC 6749 (2.3.1, 3.2, 4.4, 5.2, 6), RFC 7009, RFC 7662, RFC 6750 section 3.1 for insufficient_scope.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_plus

import msgspec

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.identity.accounts import ClientCredential
from services.identity.clients import Clients
from services.identity.grants import Grant, Introspection, Tokens
from watchword.errors import InvalidCredentials, InvalidRequest, RefreshTokenReused, TokenInvalid, Unavailable

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.peers import RbacPeer, TokenPeer
    from services.identity.store.accounts import AccountStore

FORM = "application/x-www-form-urlencoded"
MAX_PARAMETERS = 30
MAX_TOKEN_BYTES = 8192  # what token takes; a longer one is no token of ours
MAX_REFRESH_BYTES = 512
INTROSPECT_SCOPE = "tokens.introspect"
INACTIVE = b'{"active":false}'


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


TEMPORARILY_UNAVAILABLE = Answer(503, b'{"error":"temporarily_unavailable"}')


@dataclass(frozen=True, slots=True)
class Post:
    """What was posted to an endpoint."""

    content_type: str
    body: bytes
    authorization: str


class OAuth:
    """Answers the OAuth 2 endpoints."""

    def __init__(
        self, *, database: "Database", clients: Clients, accounts: "AccountStore", token: "TokenPeer", rbac: "RbacPeer", clock: Clock
    ) -> None:
        self._database = database
        self._clients = clients
        self._accounts = accounts
        self._token = token
        self._rbac = rbac
        self._clock = clock

    async def token(self, post: Post, call: Call) -> Answer:
        """RFC 6749 section 3.2. Raises RateLimited."""
        try:
            form = _form(post)
            credential = await self._authenticate(form, post, call)
            grant_type = _required(form, "grant_type")
            if grant_type == "client_credentials":
                tokens = await self._client_credentials(form, credential, call)
            elif grant_type == "refresh_token":
                tokens = await self._refresh(form, credential, call)
            else:
                raise Mistake("unsupported_grant_type", "the grant types are client_credentials and refresh_token")
        except Mistake as mistake:
            return mistake.answer
        except Unavailable:
            return TEMPORARILY_UNAVAILABLE
        return Answer(200, msgspec.json.encode(_token_body(tokens)))

    async def revoke(self, post: Post, call: Call) -> Answer:
        """RFC 7009. A token that is unknown or another client's answers as if it had been revoked. Raises RateLimited."""
        try:
            form = _form(post)
            credential = await self._authenticate(form, post, call)
            token = _required(form, "token")
            if len(token.encode()) <= MAX_TOKEN_BYTES:
                await self._token.revoke_token(token, _hint(form), credential.client.id, call)
        except Mistake as mistake:
            return mistake.answer
        except Unavailable:
            return TEMPORARILY_UNAVAILABLE
        return Answer(200, b"")

    async def introspect(self, post: Post, call: Call) -> Answer:
        """RFC 7662. Whatever the client may not know of is not active, in the same bytes. Raises RateLimited."""
        try:
            form = _form(post)
            credential = await self._authenticate(form, post, call)
            if INTROSPECT_SCOPE not in credential.client.scopes:
                raise Mistake("insufficient_scope", f"the client needs the scope {INTROSPECT_SCOPE}", status=403)
            token = _required(form, "token")
            found = await self._token.introspect(token, call) if len(token.encode()) <= MAX_TOKEN_BYTES else None
            if found is None or found.tenant_id != credential.client.tenant_id:
                return Answer(200, INACTIVE)
            return Answer(200, msgspec.json.encode(await self._introspection_body(found)))
        except Mistake as mistake:
            return mistake.answer
        except Unavailable:
            return TEMPORARILY_UNAVAILABLE

    async def _authenticate(self, form: Mapping[str, str], post: Post, call: Call) -> ClientCredential:
        client_id, secret = _credentials(form, post.authorization)
        try:
            return await self._clients.authenticate(client_id, secret, call)
        except InvalidCredentials:
            raise Mistake("invalid_client", "client authentication failed", status=401) from None

    async def _client_credentials(self, form: Mapping[str, str], credential: ClientCredential, call: Call) -> Tokens:
        client = credential.client
        scopes = _scopes(form) or client.scopes
        if not set(scopes) <= set(client.scopes):
            raise Mistake("invalid_scope", "the client may not have a scope that was asked for")
        roles = await self._rbac.role_names(client.tenant_id, client.id, call, is_client=True)
        grant = Grant(client.id, client.tenant_id, client.id, roles, scopes, "", self._clock.now(), credential.tenant_revision)
        tokens = await self._token.issue(grant, call)
        await self._note(credential, "client_token_issued", call)
        return tokens

    async def _refresh(self, form: Mapping[str, str], credential: ClientCredential, call: Call) -> Tokens:
        """Redeem a refresh token that was given to this client: RFC 6749 section 6."""
        token, scopes = _required(form, "refresh_token"), _scopes(form)
        if len(token.encode()) > MAX_REFRESH_BYTES:
            raise Mistake("invalid_grant", "the refresh token is not valid")
        found = await self._token.introspect(token, call)
        roles: tuple[str, ...] = ()
        revision = 0
        if found is not None:
            roles, revision = await self._subject_of(found, credential, call)
        try:
            tokens = await self._token.refresh(token, client_id=credential.client.id, roles=roles, scopes=scopes, revision=revision, call=call)
        except (TokenInvalid, RefreshTokenReused):
            raise Mistake("invalid_grant", "the refresh token is not valid") from None
        except InvalidRequest:
            raise Mistake("invalid_scope", "a scope was asked for that was never granted") from None
        await self._note(credential, "client_token_refreshed", call)
        return tokens

    async def _subject_of(self, found: Introspection, credential: ClientCredential, call: Call) -> tuple[tuple[str, ...], int]:
        """Return the present roles of a refresh token's subject, and the revision at which it was found good."""
        if found.token_use != "refresh_token" or found.client_id != credential.client.id:  # noqa: S105
            raise Mistake("invalid_grant", "the refresh token is not valid")
        revision = credential.tenant_revision
        if not found.is_client:
            owner = await self._accounts.find_credential(found.tenant_id, found.subject)
            if owner is None or not owner.account.is_active:
                raise Mistake("invalid_grant", "the refresh token is not valid")
            revision = owner.tenant_revision
        return await self._rbac.role_names(found.tenant_id, found.subject, call, is_client=found.is_client), revision

    async def _introspection_body(self, found: Introspection) -> dict[str, Any]:
        body: dict[str, Any] = {
            "active": True,
            "scope": " ".join(found.scopes),
            "token_type": "Bearer" if found.token_use == "access_token" else "refresh_token",  # noqa: S105
            "exp": found.expire_time,
            "iat": found.issue_time,
            "sub": str(found.subject),
            "aud": found.audiences[0] if len(found.audiences) == 1 else list(found.audiences),
            "iss": found.issuer,
            "tenant_id": str(found.tenant_id),
        }
        if found.token_id:
            body["jti"] = found.token_id
        if found.client_id is not None:
            body["client_id"] = str(found.client_id)
        account = None if found.is_client else await self._accounts.find(found.tenant_id, found.subject)
        if account is not None:
            body["username"] = account.username or account.email
        return body

    async def _note(self, credential: ClientCredential, kind: str, call: Call) -> None:
        client = credential.client
        event = AuditEvent(kind, "oauth_client", str(client.id), tenant_id=client.tenant_id, actor_type="client", actor_id=str(client.id))
        await self._database.note(call, event)


def _form(post: Post) -> dict[str, str]:
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


def _credentials(form: Mapping[str, str], authorization: str) -> tuple[str, str]:
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


def _required(form: Mapping[str, str], name: str) -> str:
    if name not in form:
        raise Mistake("invalid_request", f"the parameter {name} is missing")
    return form[name]


def _scopes(form: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form.get("scope", "").split()))


def _hint(form: Mapping[str, str]) -> str:
    """Return the hint if it is one that RFC 7009 knows; others may be ignored."""
    hint = form.get("token_type_hint", "")
    return hint if hint in ("access_token", "refresh_token") else ""


def _token_body(tokens: Tokens) -> dict[str, Any]:
    body: dict[str, Any] = {"access_token": tokens.access_token, "token_type": tokens.token_type, "expires_in": tokens.expires_in}
    if tokens.refresh_token:
        body["refresh_token"] = tokens.refresh_token
    body["scope"] = tokens.scope
    return body
