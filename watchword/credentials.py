"""How a process proves itself to the suite: an access token of its own, renewed before it expires.

`ClientCredentials` obtains it by RFC 6749 section 4.4; any coroutine function that returns a token will do as well.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlencode

import grpc
from google.api import httpbody_pb2

from watchword import status
from watchword.errors import InvalidCredentials, Unavailable, WatchwordError
from watchword.identity.v1 import oauth_pb2_grpc

TokenSource = Callable[[], Awaitable[str]]
Metadata = tuple[tuple[str, str], ...]

DEADLINE = 5.0  # seconds
RENEW_AT = 2 / 3  # of its life
PAUSE = 1.0  # seconds between a failure and the next attempt
LONG_PAUSE = 30.0  # the same, once the client was refused: identity counts wrong secrets

log = logging.getLogger("watchword")


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """An OAuth client of the tenant whose tokens are verified. It needs the scope tokens.verify, and permissions.check to ask for permissions.

    scopes  fewer than the client was registered with; empty means all
    """

    client_id: str
    client_secret: str = field(repr=False)
    scopes: tuple[str, ...] = ()

    @property
    def form(self) -> bytes:
        """The body of a token request."""
        return urlencode({"grant_type": "client_credentials", **({"scope": " ".join(self.scopes)} if self.scopes else {})}).encode()

    @property
    def basic(self) -> str:
        """HTTP Basic as RFC 6749 section 2.3.1 has it: both parts form-encoded first."""
        return "Basic " + base64.b64encode(f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}".encode()).decode()


@dataclass(frozen=True, slots=True)
class _Held:
    token: str
    renew_at: float  # on the monotonic clock
    expires_at: float


class OwnToken:
    """The token that this process calls with."""

    def __init__(self, source: ClientCredentials | TokenSource, channel: grpc.aio.Channel) -> None:
        self._source = source
        self._stub: oauth_pb2_grpc.OAuthServiceAsyncStub = oauth_pb2_grpc.OAuthServiceStub(channel)
        self._held: _Held | None = None
        self._failure: WatchwordError | None = None
        self._again_at = float("-inf")
        self._lock = asyncio.Lock()

    async def metadata(self) -> Metadata:
        """Return what calls carry. Raises Unavailable, InvalidCredentials."""
        return (("authorization", f"Bearer {await self.get()}"),)

    async def get(self) -> str:
        """Return a token with some life left. Raises Unavailable, InvalidCredentials."""
        if not isinstance(self._source, ClientCredentials):
            return await self._source()
        if self._held is not None and time.monotonic() < self._held.renew_at:
            return self._held.token
        async with self._lock:
            if self._held is None or time.monotonic() >= self._held.renew_at:
                await self._renew(self._source)
            assert self._held is not None
            return self._held.token

    @property
    def is_due(self) -> bool:
        """Whether it is time for another token. Of a token source this is not known."""
        return self._held is not None and time.monotonic() >= self._held.renew_at

    def forget(self) -> None:
        """The suite refused the token: the next call gets another."""
        self._held = None

    async def _renew(self, client: ClientCredentials) -> None:
        """A token that still lives serves until a renewal succeeds, and failures are not repeated at once: identity counts them."""
        now = time.monotonic()
        lives = self._held is not None and now < self._held.expires_at
        if now < self._again_at and self._failure is not None:
            if lives:
                return
            raise self._failure
        try:
            self._held = await self._obtain(client)
        except WatchwordError as error:
            self._failure = error
            self._again_at = time.monotonic() + (LONG_PAUSE if isinstance(error, InvalidCredentials) else PAUSE)
            if not lives:
                raise
            log.warning("the token of this process could not be renewed yet: %s", error.reason)

    async def _obtain(self, client: ClientCredentials) -> _Held:
        asked_at = time.monotonic()
        request = httpbody_pb2.HttpBody(content_type="application/x-www-form-urlencoded", data=client.form)
        try:
            call = self._stub.Token(request, timeout=DEADLINE, metadata=(("authorization", client.basic),))
            http_status = next((value for key, value in await call.initial_metadata() if key == "x-http-status"), "200")
            answer = _object((await call).data)
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from None
        token, life = answer.get("access_token"), answer.get("expires_in")
        if http_status in ("400", "401"):
            raise InvalidCredentials(f"the suite refuses this client: {answer.get('error', 'no reason given')}")
        if http_status != "200" or not isinstance(token, str) or not isinstance(life, int):
            raise Unavailable
        return _Held(token, asked_at + life * RENEW_AT, asked_at + life)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}
