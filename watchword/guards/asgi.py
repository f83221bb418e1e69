"""A guard for ASGI applications of any framework, or of none. Source: RFC 6750 section 3, RFC 9470 section 3.

Add it inside the framework's own error handling, so that what a `Requirement` raises reaches it: with FastAPI and Starlette,
`app.add_middleware(TokenGuard, verifier=verifier)`. Every request needs a good token, but those that `is_public` lets by. A WebSocket or a long
answer that has begun goes on when its token is revoked: end it yourself when that matters.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from watchword.client import Client
from watchword.decisions import StepUpRequired
from watchword.errors import Code, CredentialsMissing, InsufficientScope, PermissionDenied, Unauthenticated, Unavailable, WatchwordError
from watchword.guards import Admission, Requirement, authenticated, bearer, enter
from watchword.permissions import Permissions
from watchword.verifier import TokenVerifier

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PRINCIPAL = "watchword.principal"  # the key of the principal in the scope
REALM = "watchword"
POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1
_STATUS = {Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403, Code.INVALID_ARGUMENT: 400, Code.UNAVAILABLE: 503}


class TokenGuard:
    """Lets requests with a good token through to `app`.

    requires   what every request must have beyond it; handlers may await requirements of their own
    is_public  says of a scope whether it needs no token
    audience   instead of the verifier's
    client     what asks for permissions instead of the verifier's channel, such as one with a cache
    """

    def __init__(
        self,
        app: App,
        verifier: TokenVerifier,
        *,
        requires: Requirement = authenticated,
        is_public: Callable[[Scope], bool] = lambda _: False,
        audience: str = "",
        client: Client | None = None,
    ) -> None:
        self._app = app
        self._verifier = verifier
        self._permissions = Permissions(verifier, client)
        self._requires = requires
        self._is_public = is_public
        self._audience = audience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope["type"], send)
        try:
            inner = await self._admit(scope)
            await self._app(inner, receive, answer.send)
        except (Unauthenticated, PermissionDenied, Unavailable) as error:
            if answer.has_begun:
                raise
            await answer.refuse(error)

    async def _admit(self, scope: Scope) -> Scope:
        """Return the scope for the application, which alone says who calls: what somebody else wrote there is overwritten."""
        enter(None)
        if self._requires.is_public or self._is_public(scope):
            return {**scope, PRINCIPAL: None}
        values = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"]
        principal = await self._verifier.check(bearer(values), audience=self._audience)
        inner = {**scope, PRINCIPAL: principal}
        admission = Admission(principal, self._permissions, inner)
        await self._requires.enforce(admission)
        enter(admission)
        return inner


class _Answer:
    """The way back, which the application may have begun to use."""

    def __init__(self, kind: str, send: Send) -> None:
        self._kind = kind
        self._send = send
        self.has_begun = False

    async def send(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)

    async def refuse(self, error: WatchwordError) -> None:
        """Answer with what went wrong; a WebSocket that was not accepted yet is closed, which the server turns into a 403."""
        if self._kind == "websocket":
            await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.reason})
            return
        body, status = _body(error), 401 if isinstance(error, StepUpRequired) else _STATUS[error.code]
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
        headers += [(name, value.encode("latin-1")) for name, value in _headers(error)]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _headers(error: WatchwordError) -> list[tuple[bytes, str]]:
    if isinstance(error, CredentialsMissing):  # RFC 6750 section 3.1: no error code for who tried nothing
        return [(b"www-authenticate", f'Bearer realm="{REALM}"')]
    if isinstance(error, Unauthenticated):
        return [(b"www-authenticate", f'Bearer realm="{REALM}", error="invalid_token", error_description="{error.text}"')]
    if isinstance(error, StepUpRequired):
        return [(b"www-authenticate", f'Bearer realm="{REALM}", error="insufficient_user_authentication"{_login(error)}')]
    if isinstance(error, InsufficientScope):
        challenge = f'Bearer realm="{REALM}", error="insufficient_scope", scope="{error.metadata.get("scope", "")}"'
        return [(b"www-authenticate", challenge)]
    if isinstance(error, Unavailable):
        return [(b"retry-after", "1")]
    return []


def _login(error: StepUpRequired) -> str:
    """The login that would do, as RFC 9470 writes it."""
    names = {"acr": "acr_values", "max_age": "max_age"}
    return "".join(f', {names[key]}="{value}"' for key, value in error.metadata.items() if key in names)


def _body(error: WatchwordError) -> bytes:
    """The JSON form of google.rpc.Status, as the suite's own REST answers have it."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": error.reason, "domain": "watchword", "metadata": error.metadata}
    return json.dumps({"code": int(error.code), "message": error.text, "details": [info]}).encode()
