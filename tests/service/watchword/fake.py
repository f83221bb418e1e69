"""The suite as a verifier sees it, with everything in the test's hands: which messages a stream says when, and what is answered.

It speaks real gRPC, so that streams break and stall as they do; it signs with a key of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import grpc
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api import httpbody_pb2
from google.protobuf import duration_pb2, timestamp_pb2

from tests.conftest import eventually
from tests.forgery import Original, good_claims, jwk_of
from watchword import ClientCredentials, TokenVerifier, WhenStale, feed
from watchword.feed import Patience
from watchword.rbac.v1 import permission_pb2
from watchword.token.v1 import token_pb2

ISSUER, AUDIENCE, KID = "https://auth.test", "watchword", "key-1"
TENANT, OTHER_TENANT, EVERYWHERE = str(uuid4()), str(uuid4()), str(UUID(int=0))
SUBJECT, SESSION = str(uuid4()), str(uuid4())
CLIENT = ClientCredentials("client", "secret:with %&")
KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
QUICK = Patience(silence=0.4, first_pause=0.01, last_pause=0.05)

Context = grpc.aio.ServicerContext[Any, Any]


def token(*, kid: str = KID, key: rsa.RSAPrivateKey = KEY, **changes: Any) -> str:
    """Return a token that is good unless the changes make it bad."""
    claims = good_claims(issuer=ISSUER, tenant_id=TENANT, sub=SUBJECT, sid=SESSION, rev=100, scope="account invoices.read")
    return Original.of(key, kid, {name: value for name, value in {**claims, **changes}.items() if value is not ...}).token()


def jwks(**keys: rsa.RSAPrivateKey) -> str:
    """Return a key set; `_` in a name stands for `-`."""
    entries = [{**jwk_of(key.public_key()), "kid": kid.replace("_", "-"), "alg": "RS256", "use": "sig"} for kid, key in keys.items()]
    return json.dumps({"keys": entries})


def revocation(
    kind: str, key: str, *, tenant_id: str = TENANT, life: float = 300, issued_before: float | None = None, **more: Any
) -> token_pb2.Revocation:
    """Return a revocation that lives `life` seconds."""
    told = token_pb2.Revocation(kind=token_pb2.RevokedKind.Value(f"REVOKED_KIND_{kind}"), tenant_id=tenant_id, key=key, **more)
    told.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=life))
    if issued_before is not None:
        told.issued_before.CopyFrom(timestamp_pb2.Timestamp(seconds=int(issued_before)))
    return told


@dataclass
class Stream:
    """One stream of a verifier, as the server sees it."""

    authorization: str
    asked: list[token_pb2.WatchRevocationsRequest] = field(default_factory=list)
    arrived: float = 0.0
    says: asyncio.Queue[token_pb2.WatchRevocationsResponse | grpc.StatusCode] = field(default_factory=asyncio.Queue)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cursor(self) -> str:
        """Where the verifier wants to go on."""
        return self.asked[0].cursor

    def say(self, *revocations: token_pb2.Revocation, elapsed: float | None = None, checkpoint: bool = False, **fields: Any) -> None:
        """Send one message; a checkpoint says the truth about elapsed time unless the test says otherwise."""
        message = token_pb2.WatchRevocationsResponse(revocations=revocations, **fields)
        if checkpoint or elapsed is not None:
            seconds = time.monotonic() - self.arrived if elapsed is None else elapsed
            message.checkpoint.elapsed.CopyFrom(duration_pb2.Duration(nanos=0))
            message.checkpoint.elapsed.FromTimedelta(timedelta(seconds=seconds))
        self.says.put_nowait(message)

    def end(self) -> None:
        """Break the stream off."""
        self.says.put_nowait(grpc.StatusCode.UNAVAILABLE)

    def refuse(self) -> None:
        """End it as one whose caller's token is over."""
        self.says.put_nowait(grpc.StatusCode.UNAUTHENTICATED)


@dataclass
class FakeSuite:
    """What the verifier calls."""

    address: str = ""
    streams: list[Stream] = field(default_factory=list)
    greeting: Sequence[token_pb2.Revocation] | None = ()  # None: the test itself says everything
    beats: bool = True  # whether each stream gets checkpoints by itself
    keys: str = jwks(key_1=KEY)
    verdicts: dict[str, str] = field(default_factory=dict)
    verify_fails: grpc.StatusCode | None = None
    verified: list[token_pb2.VerifyTokenRequest] = field(default_factory=list)
    issued: list[tuple[httpbody_pb2.HttpBody, str]] = field(default_factory=list)
    own_life: int = 300
    oauth_status: str = "200"
    decisions: dict[str, bool] = field(default_factory=dict)
    checked: list[permission_pb2.CheckPermissionRequest] = field(default_factory=list)
    check_fails: bool = False

    async def WatchRevocations(self, requests: AsyncIterator[token_pb2.WatchRevocationsRequest], context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        stream = Stream(str(metadata.get("authorization", "")))
        stream.asked.append(await anext(requests))
        stream.arrived = time.monotonic()
        self.streams.append(stream)
        if self.greeting is not None:
            stream.say(*self.greeting, reset=not stream.cursor, jwks=self.keys, checkpoint=True, cursor=f"after-{len(self.streams)}")
        helpers = [asyncio.create_task(self._listen(requests, stream)), asyncio.create_task(self._beat(stream))]
        try:
            while not isinstance(message := await stream.says.get(), grpc.StatusCode):
                await context.write(message)
            await context.abort(message)
        finally:
            stream.ended.set()
            for helper in helpers:
                helper.cancel()

    async def _listen(self, requests: AsyncIterator[token_pb2.WatchRevocationsRequest], stream: Stream) -> None:
        async for request in requests:
            stream.asked.append(request)

    async def _beat(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(0.05)
            if self.beats and self.greeting is not None:
                stream.say(checkpoint=True)

    async def VerifyToken(self, request: token_pb2.VerifyTokenRequest, context: Context) -> token_pb2.VerifyTokenResponse:
        self.verified.append(request)
        if self.verify_fails is not None:
            await context.abort(self.verify_fails)
        answer = token_pb2.VerifyTokenResponse(status=token_pb2.TokenStatus.Value(self.verdicts.get(request.token, "MALFORMED")))
        if answer.status == token_pb2.VALID:
            answer.principal.CopyFrom(token_pb2.Principal(subject=SUBJECT, tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_USER))
            answer.principal.actor.subject = "a"
            answer.principal.actor.actor.subject = "b"
        return answer

    async def Token(self, request: httpbody_pb2.HttpBody, context: Context) -> httpbody_pb2.HttpBody:
        self.issued.append((request, str(dict(context.invocation_metadata() or ()).get("authorization", ""))))
        await context.send_initial_metadata((("x-http-status", self.oauth_status),))
        if self.oauth_status != "200":
            return httpbody_pb2.HttpBody(data=b'{"error":"invalid_client"}')
        own = token(sub=str(uuid4()), sub_type="client", sid=..., scope="tokens.verify permissions.check")
        return httpbody_pb2.HttpBody(data=json.dumps({"access_token": own, "token_type": "Bearer", "expires_in": self.own_life}).encode())

    async def CheckPermission(self, request: permission_pb2.CheckPermissionRequest, context: Context) -> permission_pb2.CheckPermissionResponse:
        self.checked.append(request)
        if self.check_fails:
            await context.abort(grpc.StatusCode.UNAVAILABLE)
        allowed = self.decisions.get(request.permission, False)
        return permission_pb2.CheckPermissionResponse(decision=permission_pb2.ALLOW if allowed else permission_pb2.DENY)

    @property
    def stream(self) -> Stream:
        """The present stream."""
        return self.streams[-1]

    async def opened(self, count: int) -> Stream:
        """Wait until so many streams were opened; return the last of them."""

        async def are_open() -> bool:
            return len(self.streams) >= count

        await eventually(are_open)
        return self.streams[count - 1]

    def verifier(self, **options: Any) -> TokenVerifier:
        """Return a verifier of this suite, not started."""
        return TokenVerifier(self.address, **{"credentials": CLIENT, "issuer": ISSUER, "audience": AUDIENCE, "patience": QUICK, **options})

    def refusing(self, **options: Any) -> TokenVerifier:
        """Return one that asks nobody."""
        return self.verifier(when_stale=WhenStale.REFUSE, **options)


def handlers(fake: FakeSuite) -> dict[str, dict[str, Any]]:
    """Return the methods that verifiers call, by service."""

    def unary(method: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(method, request.FromString, lambda answer: answer.SerializeToString())

    watch: Any = grpc.stream_stream_rpc_method_handler(
        cast(Any, fake.WatchRevocations), token_pb2.WatchRevocationsRequest.FromString, lambda answer: cast(bytes, answer.SerializeToString())
    )
    return {
        "watchword.token.v1.TokenService": {"WatchRevocations": watch, "VerifyToken": unary(fake.VerifyToken, token_pb2.VerifyTokenRequest)},
        "watchword.identity.v1.OAuthService": {"Token": unary(fake.Token, httpbody_pb2.HttpBody)},
        "watchword.rbac.v1.PermissionService": {"CheckPermission": unary(fake.CheckPermission, permission_pb2.CheckPermissionRequest)},
    }


@asynccontextmanager
async def fake_suite() -> AsyncIterator[FakeSuite]:
    """Serve a fake on loopback until the block ends."""
    server, fake = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), FakeSuite()
    for service, methods in handlers(fake).items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)


@dataclass
class Hands:
    """Clocks that a test can move."""

    ahead: float = 0.0
    wall_ahead: float = 0.0

    def clock(self) -> float:
        """The clock that measures staleness."""
        return feed.now() + self.ahead

    def wall(self) -> float:
        """The time of day."""
        return time.time() + self.wall_ahead

    @property
    def both(self) -> Mapping[str, Any]:
        """As a verifier's arguments."""
        return {"clock": self.clock, "wall": self.wall}
