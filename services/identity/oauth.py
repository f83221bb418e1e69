"""The OAuth 2 endpoints: forms in, RFC 6749 JSON out.

A client's mistake is an answer here, never a failure of the call: the RFCs say its status and body to the letter. Only an outage of ours has no place
in them; it answers 503. Sources: RFC 6749 (3.2, 4.4, 5.2, 6), RFC 7009, RFC 7662, RFC 8693, RFC 6750 section 3.1 for insufficient_scope.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.identity.accounts import ClientCredential
from services.identity.clients import Clients
from services.identity.forms import Answer, Mistake, Post, credentials_of, form_of, hint_of, request_id_of, required, scopes_of
from services.identity.grants import Exchange, Grant, Introspection, Tokens
from watchword.errors import (
    IdempotencyConflict,
    InvalidCredentials,
    InvalidRequest,
    PreconditionFailed,
    RefreshTokenReused,
    TokenInvalid,
    Unavailable,
)

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.peers import RbacPeer, TokenPeer
    from services.identity.store.accounts import AccountStore

MAX_TOKEN_BYTES = 8192  # what token takes; a longer one is no token of ours
MAX_REFRESH_BYTES = 512
INTROSPECT_SCOPE = "tokens.introspect"
INACTIVE = b'{"active":false}'
TEMPORARILY_UNAVAILABLE = Answer(503, b'{"error":"temporarily_unavailable"}')
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # RFC 8693 section 2.1
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # RFC 8693 section 3  # noqa: S105
JWT = "urn:ietf:params:oauth:token-type:jwt"


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
            form = form_of(post)
            credential = await self._authenticate(form, post, call)
            grant_type = required(form, "grant_type")
            if grant_type == "client_credentials":
                tokens = await self._client_credentials(form, credential, call)
            elif grant_type == "refresh_token":
                tokens = await self._refresh(form, credential, call)
            elif grant_type == EXCHANGE:
                tokens = await self._exchange(form, credential, call)
            else:
                raise Mistake("unsupported_grant_type", f"the grant types are client_credentials, refresh_token and {EXCHANGE}")
        except Mistake as mistake:
            return mistake.answer
        except Unavailable:
            return TEMPORARILY_UNAVAILABLE
        return Answer(200, msgspec.json.encode(_token_body(tokens, issued_type=ACCESS_TOKEN if grant_type == EXCHANGE else "")))

    async def revoke(self, post: Post, call: Call) -> Answer:
        """RFC 7009. A token that is unknown or another client's answers as if it had been revoked. Raises RateLimited."""
        try:
            form = form_of(post)
            credential = await self._authenticate(form, post, call)
            token = required(form, "token")
            if len(token.encode()) <= MAX_TOKEN_BYTES:
                await self._token.revoke_token(token, hint_of(form), credential.client.id, call)
        except Mistake as mistake:
            return mistake.answer
        except Unavailable:
            return TEMPORARILY_UNAVAILABLE
        return Answer(200, b"")

    async def introspect(self, post: Post, call: Call) -> Answer:
        """RFC 7662. Whatever the client may not know of is not active, in the same bytes. Raises RateLimited."""
        try:
            form = form_of(post)
            credential = await self._authenticate(form, post, call)
            if INTROSPECT_SCOPE not in credential.client.scopes:
                raise Mistake("insufficient_scope", f"the client needs the scope {INTROSPECT_SCOPE}", status=403)
            token = required(form, "token")
            found = await self._token.introspect(token, call) if len(token.encode()) <= MAX_TOKEN_BYTES else None
            if found is None or found.tenant_id != credential.client.tenant_id:
                return Answer(200, INACTIVE)
            return Answer(200, msgspec.json.encode(await self._introspection_body(found)))
        except Mistake as mistake:
            return mistake.answer
        except Unavailable:
            return TEMPORARILY_UNAVAILABLE

    async def _authenticate(self, form: Mapping[str, str], post: Post, call: Call) -> ClientCredential:
        client_id, secret = credentials_of(form, post.authorization)
        try:
            return await self._clients.authenticate(client_id, secret, call)
        except InvalidCredentials:
            raise Mistake("invalid_client", "client authentication failed", status=401) from None

    async def _client_credentials(self, form: Mapping[str, str], credential: ClientCredential, call: Call) -> Tokens:
        client = credential.client
        scopes = scopes_of(form) or client.scopes
        if not set(scopes) <= set(client.scopes):
            raise Mistake("invalid_scope", "the client may not have a scope that was asked for")
        roles = await self._rbac.role_names(client.tenant_id, client.id, call, is_client=True)
        grant = Grant(client.id, client.tenant_id, client.id, roles, scopes, "", self._clock.now(), credential.tenant_revision)
        tokens = await self._token.issue(grant, call)
        await self._note(credential, "client_token_issued", call)
        return tokens

    async def _refresh(self, form: Mapping[str, str], credential: ClientCredential, call: Call) -> Tokens:
        """Redeem a refresh token that was given to this client: RFC 6749 section 6. The same request_id gets the same successor."""
        token, scopes, request_id = required(form, "refresh_token"), scopes_of(form), request_id_of(form)
        if len(token.encode()) > MAX_REFRESH_BYTES:
            raise Mistake("invalid_grant", "the refresh token is not valid")
        found = await self._token.introspect(token, call)
        roles: tuple[str, ...] = ()
        revision = 0
        if found is not None:
            roles, revision = await self._subject_of(found, credential, call)
        try:
            tokens = await self._token.refresh(
                token, client_id=credential.client.id, roles=roles, scopes=scopes, revision=revision, request_id=request_id, call=call
            )
        except (TokenInvalid, RefreshTokenReused):
            raise Mistake("invalid_grant", "the refresh token is not valid") from None
        except InvalidRequest:
            raise Mistake("invalid_scope", "a scope was asked for that was never granted") from None
        except IdempotencyConflict:
            raise Mistake("invalid_request", "this request_id was used with another request") from None
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

    async def _exchange(self, form: Mapping[str, str], credential: ClientCredential, call: Call) -> Tokens:
        """Trade somebody's access token for a narrower one that this client acts with: RFC 8693."""
        try:
            tokens = await self._token.exchange(_exchange_of(form), credential, call)
        except TokenInvalid:
            raise Mistake("invalid_request", "the subject token is not valid here") from None
        except PreconditionFailed as failure:
            raise Mistake("invalid_request", failure.text) from None
        except InvalidRequest as failure:
            raise _refused(failure) from None
        await self._note(credential, "client_token_exchanged", call)
        return tokens

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
        if found.actors:
            body["act"] = _act(found.actors)
        account = None if found.is_client else await self._accounts.find(found.tenant_id, found.subject)
        if account is not None:
            body["username"] = account.username or account.email
        return body

    async def _note(self, credential: ClientCredential, kind: str, call: Call) -> None:
        client = credential.client
        event = AuditEvent(kind, "oauth_client", str(client.id), tenant_id=client.tenant_id, actor_type="client", actor_id=str(client.id))
        await self._database.note(call, event)


def _exchange_of(form: Mapping[str, str]) -> Exchange:
    """Read the parameters of RFC 8693 section 2.1. Who acts is the client that has proved itself, so nobody else is taken as actor."""
    subject_token = required(form, "subject_token")
    if required(form, "subject_token_type") not in (ACCESS_TOKEN, JWT):
        raise Mistake("invalid_request", "the subject token must be an access token")
    if form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
        raise Mistake("invalid_request", "only access tokens are issued")
    if "actor_token" in form or "actor_token_type" in form:
        raise Mistake("invalid_request", "the client itself is the actor: no actor token is taken")
    if "resource" in form:
        raise Mistake("invalid_target", "targets are named by audience, not by resource")
    if len(subject_token.encode()) > MAX_TOKEN_BYTES:
        raise Mistake("invalid_request", "the subject token is not valid here")
    return Exchange(subject_token, scopes_of(form), form.get("audience", ""))


def _refused(failure: InvalidRequest) -> Mistake:
    """Say in the words of RFC 8693 section 2.2.2 what token says by the fields that it refuses."""
    fields = {violation.field.partition("[")[0] for violation in failure.violations}
    if "audience" in fields:
        return Mistake("invalid_target", "the audience is neither the subject token's nor the client's own id")
    if "scopes" in fields:
        return Mistake("invalid_scope", "the scopes are not among those that the subject token and the client have in common")
    return Mistake("invalid_request", "the subject token is not valid here")


def _act(actors: tuple[UUID, ...]) -> dict[str, Any]:
    """Return RFC 8693's `act`: the present actor outermost."""
    first, *earlier = actors
    return {"sub": str(first), **({"act": _act(tuple(earlier))} if earlier else {})}


def _token_body(tokens: Tokens, *, issued_type: str) -> dict[str, Any]:
    body: dict[str, Any] = {"access_token": tokens.access_token, "token_type": tokens.token_type, "expires_in": tokens.expires_in}
    if issued_type:
        body["issued_token_type"] = issued_type
    if tokens.refresh_token:
        body["refresh_token"] = tokens.refresh_token
    body["scope"] = tokens.scope
    return body
