"""Guards before handlers: who gets in, who does not, and how each is told. No framework; real gRPC."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import grpc
import httpx
import pytest

from tests.conftest import eventually
from tests.service.watchword.fake import OTHER_KEY, SUBJECT, FakeSuite, Hands, revocation, token
from watchword import TokenVerifier, status
from watchword.errors import CredentialsMissing, InsufficientScope, PermissionDenied, TokenInvalid, Unavailable, WatchwordError
from watchword.guards import Requirement, authenticated, principal, public, require, require_scope
from watchword.guards.asgi import PRINCIPAL, TokenGuard
from watchword.guards.grpc import TokenGuard as GrpcGuard
from watchword.rbac.v1 import rbac_pb2

Scope = Any


async def whoami(scope: Scope, receive: Any, send: Any) -> None:
    """An application without a framework: says who calls, and enforces what stands in its path."""
    if scope["path"] == "/pay":
        await require("invoices.pay", resource=lambda scope: f"invoice/{scope['query_string'].decode()}")()
    if scope["path"] == "/late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise PermissionDenied
    known = scope[PRINCIPAL]
    body = (known.subject + principal().subject if known else "nobody").encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def rest(verifier: TokenVerifier, **options: Any) -> httpx.AsyncClient:
    guard: Any = TokenGuard(whoami, verifier, **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=guard), base_url="http://app")


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def test_a_good_token_gets_in_and_says_who_calls(verifier: TokenVerifier) -> None:
    """In the scope and in the context."""
    async with rest(verifier) as client:
        for scheme in ("Bearer", "bearer", "BEARER"):
            answer = await client.get("/", headers={"authorization": f"{scheme} {token()}"})
            assert (answer.status_code, answer.text) == (200, SUBJECT * 2)


@pytest.mark.parametrize(
    ("headers", "challenge", "reason"),
    [
        ([], 'Bearer realm="watchword"', "CREDENTIALS_MISSING"),
        ([("authorization", "Basic YTpi")], 'Bearer realm="watchword"', "CREDENTIALS_MISSING"),
        ([("authorization", "")], 'Bearer realm="watchword"', "CREDENTIALS_MISSING"),
        ([("authorization", "Bearer")], "invalid_token", "TOKEN_INVALID"),
        ([("authorization", "Bearer x")], "invalid_token", "TOKEN_INVALID"),
        ([("authorization", "Bearer x,y")], "invalid_token", "TOKEN_INVALID"),
        ([("authorization", "Bearer GOOD GOOD")], "invalid_token", "TOKEN_INVALID"),
        ([("authorization", b"Bearer \xe9")], "invalid_token", "TOKEN_INVALID"),
        ([("authorization", "Bearer GOOD"), ("Authorization", "Bearer GOOD")], "invalid_token", "TOKEN_INVALID"),
        ([("authorization", "Bearer x"), ("authorization", "Bearer GOOD")], "invalid_token", "TOKEN_INVALID"),
    ],
    ids=["none", "basic", "empty", "no-token", "rubbish", "two-in-one", "spaced", "not-ascii", "twice", "bad-and-good"],
)
async def test_without_one_good_token_nobody_gets_in(verifier: TokenVerifier, headers: list[tuple[str, Any]], challenge: str, reason: str) -> None:
    """401 with a challenge, and a body that programs can read."""
    good = token()
    sent = [(name, value.replace("GOOD", good) if isinstance(value, str) else value) for name, value in headers]
    async with rest(verifier) as client:
        answer = await client.get("/", headers=sent)
    assert answer.status_code == 401
    assert challenge in answer.headers["www-authenticate"]
    assert ("error=" in answer.headers["www-authenticate"]) is (reason == "TOKEN_INVALID")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["details"][0]["reason"] == reason


async def test_a_revoked_token_is_refused_like_a_forged_one(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """In the same bytes."""
    text = token(jti=(jti := str(uuid4())))
    async with rest(verifier) as client:
        assert (await client.get("/", headers=bearer(text))).status_code == 200
        fake.stream.say(revocation("TOKEN", jti))
        forged = await client.get("/", headers=bearer(token(key=OTHER_KEY)))

        async def is_out() -> bool:
            return (await client.get("/", headers=bearer(text))).status_code == 401

        await eventually(is_out)
        revoked = await client.get("/", headers=bearer(text))
    assert (revoked.status_code, revoked.content, revoked.headers) == (401, forged.content, forged.headers)


async def test_a_permission_is_asked_for_at_each_request(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """With the resource that the request names. Taken away, the next request is refused."""
    fake.decisions["invoices.pay"] = True
    async with rest(verifier) as client:
        assert (await client.get("/pay?7", headers=bearer(token()))).status_code == 200
        fake.decisions["invoices.pay"] = False
        refused = await client.get("/pay?7", headers=bearer(token()))
    assert (refused.status_code, refused.json()["details"][0]["reason"]) == (403, "PERMISSION_DENIED")
    question = fake.checked[0]
    assert (question.subject.type, question.subject.id) == (rbac_pb2.SUBJECT_TYPE_USER, SUBJECT)
    assert (question.permission, question.resource) == ("invoices.pay", "invoice/7")


@pytest.mark.parametrize("bound", [{"sub_type": "client"}, {"act": {"sub": str(uuid4())}}], ids=["client", "actor"])
async def test_clients_need_the_scope_and_the_permission(verifier: TokenVerifier, fake: FakeSuite, bound: dict[str, Any]) -> None:
    """Scopes bound a client's token, and one that somebody acts with for another; without the scope nobody is asked."""
    fake.decisions["invoices.pay"] = True
    async with rest(verifier) as client:
        without = await client.get("/pay", headers=bearer(token(**bound)))
        assert fake.checked == []
        having = await client.get("/pay", headers=bearer(token(**bound, scope="invoices.pay")))
        fake.decisions["invoices.pay"] = False
        denied = await client.get("/pay", headers=bearer(token(**bound, scope="invoices.pay")))
    assert [without.status_code, having.status_code, denied.status_code] == [403, 200, 403]
    assert 'error="insufficient_scope", scope="invoices.pay"' in without.headers["www-authenticate"]
    assert "www-authenticate" not in denied.headers


async def test_what_cannot_be_known_is_503(fake: FakeSuite) -> None:
    """Neither in, nor blamed: not for a stale verifier, not for a silent rbac."""
    hands = Hands()
    async with fake.refusing(**hands.both) as verifier, rest(verifier) as client:
        fake.check_fails = True
        unasked = await client.get("/pay", headers=bearer(token()))
        fake.greeting, fake.beats = None, False
        hands.ahead = 6.0
        stale = await client.get("/", headers=bearer(token()))
    for answer in (unasked, stale):
        assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (503, "1", 14)


async def test_a_guard_may_require_more_of_everybody(verifier: TokenVerifier) -> None:
    """And less: what is public needs no token, and then nobody is known, whatever somebody else wrote into the scope."""
    async with rest(verifier, requires=require_scope("invoices.write")) as client:
        assert (await client.get("/", headers=bearer(token()))).status_code == 403
        assert (await client.get("/", headers=bearer(token(scope="invoices.write")))).status_code == 200
    async with rest(verifier, is_public=lambda scope: scope["path"] == "/open") as client:
        assert (await client.get("/open", headers=bearer("rubbish"))).text == "nobody"
        assert (await client.get("/", headers=bearer("rubbish"))).status_code == 401
    async with rest(verifier, audience="reports") as client:
        assert (await client.get("/", headers=bearer(token()))).status_code == 401
        assert (await client.get("/", headers=bearer(token(aud="reports")))).status_code == 200


async def test_a_requirement_outside_of_a_guard_lets_nobody_in() -> None:
    """A forgotten guard is noticed at once."""
    with pytest.raises(CredentialsMissing):
        await require_scope("x")()
    with pytest.raises(CredentialsMissing):
        principal()


async def test_an_answer_that_has_begun_is_not_spoilt(verifier: TokenVerifier) -> None:
    """The server ends it; a second status line would be rubbish."""
    async with rest(verifier) as client:
        with pytest.raises(PermissionDenied):
            await client.get("/late", headers=bearer(token()))


async def test_a_websocket_is_closed_before_it_opens(verifier: TokenVerifier) -> None:
    """1008, which servers turn into a 403; with a good token it is the application's."""
    sent: list[Any] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Any) -> None:
        sent.append(message)

    guard = TokenGuard(app, verifier)
    for headers in ([], [(b"authorization", f"Bearer {token()}".encode())]):
        await guard({"type": "websocket", "path": "/", "headers": headers}, _never, send)
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "CREDENTIALS_MISSING"}, {"type": "websocket.accept"}]


async def _never() -> Any:
    raise AssertionError("nothing is to be received")


async def test_what_is_no_request_passes(verifier: TokenVerifier) -> None:
    """Start-up and shut-down of the application."""
    kinds: list[str] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        kinds.append(scope["type"])

    await TokenGuard(app, verifier)({"type": "lifespan"}, _never, cast(Any, _never))
    assert kinds == ["lifespan"]


# gRPC.


@dataclass
class Echo:
    """Four kinds of methods; each answers whom it was called by."""

    async def unary(self, request: bytes, context: Any) -> bytes:
        return principal().subject.encode()

    async def yielding(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(2):
            yield principal().subject.encode()

    async def writing(self, request: bytes, context: Any) -> None:
        for _ in range(2):
            await context.write(principal().subject.encode())

    async def gathering(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return principal().subject.encode() + b"".join([request async for request in requests])

    async def open(self, request: bytes, context: Any) -> bytes:
        return b"open"

    async def refusing(self, request: bytes, context: Any) -> bytes:
        await require("invoices.pay")()
        return b"paid"


RULES: dict[str, Requirement] = {
    "/acme.Echo/*": authenticated,
    "/acme.Echo/Open": public,
    "/acme.Echo/Pay": require("invoices.pay", resource=lambda request: f"invoice/{request.decode()}"),
    "/acme.Echo/Scoped": require_scope("invoices.write"),
}


@asynccontextmanager
async def served(verifier: TokenVerifier) -> AsyncIterator[grpc.aio.Channel]:
    echo, raw = Echo(), None
    guard: Any = GrpcGuard(verifier, RULES)
    server = grpc.aio.server(interceptors=[guard], options=[("grpc.so_reuseport", 0)])
    methods: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo.unary, raw, raw),
        "Pay": grpc.unary_unary_rpc_method_handler(echo.unary, raw, raw),
        "Scoped": grpc.unary_unary_rpc_method_handler(echo.unary, raw, raw),
        "Refusing": grpc.unary_unary_rpc_method_handler(echo.refusing, raw, raw),
        "Open": grpc.unary_unary_rpc_method_handler(echo.open, raw, raw),
        "Yielding": grpc.unary_stream_rpc_method_handler(echo.yielding, raw, raw),
        "Writing": grpc.unary_stream_rpc_method_handler(echo.writing, raw, raw),
        "Gathering": grpc.stream_unary_rpc_method_handler(echo.gathering, raw, raw),
        "Both": grpc.stream_stream_rpc_method_handler(echo.yielding, raw, raw),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("acme.Echo", methods),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("acme.Other", {"Unary": methods["Unary"]}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def call(channel: grpc.aio.Channel, method: str, text: str | None = None, *, metadata: Sequence[tuple[str, str]] = ()) -> list[bytes]:
    """Call a method, whatever its kind; return its answers, or raise what the server raised."""
    sent = [("authorization", f"Bearer {text}")] if text is not None else list(metadata)
    path = method if method.startswith("/") else f"/acme.Echo/{method}"
    stub: Any
    try:
        if method in ("Yielding", "Writing"):
            stub = channel.unary_stream(path)
            return [answer async for answer in stub(b"7", metadata=sent)]
        if method == "Both":
            stub = channel.stream_stream(path)
            return [answer async for answer in stub(iter([b"7"]), metadata=sent)]
        stub = channel.stream_unary(path) if method == "Gathering" else channel.unary_unary(path)
        return [await stub(iter([b"7"]) if method == "Gathering" else b"7", metadata=sent)]
    except grpc.aio.AioRpcError as error:
        raise status.decode(error) from None


@pytest.mark.parametrize("method", ["Unary", "Yielding", "Writing", "Gathering", "Both"])
async def test_every_kind_of_method_is_guarded(verifier: TokenVerifier, method: str) -> None:
    """Good: in, and known. Without: the handler never runs."""
    async with served(verifier) as channel:
        answers = await call(channel, method, token())
        assert answers[0].startswith(SUBJECT.encode())
        assert len(answers) == (1 if method in ("Unary", "Gathering") else 2)
        for text, refusal in ((None, CredentialsMissing), ("x", TokenInvalid), (token(exp=1), TokenInvalid)):
            with pytest.raises(refusal) as raised:
                await call(channel, method, text)
            assert type(raised.value) is refusal


async def test_a_call_with_two_authorizations_is_refused(verifier: TokenVerifier) -> None:
    """Whoever reads the other one would see somebody else."""
    good = ("authorization", f"Bearer {token()}")
    async with served(verifier) as channel:
        assert await call(channel, "Unary", metadata=[good])
        with pytest.raises(TokenInvalid):
            await call(channel, "Unary", metadata=[good, good])


async def test_a_method_without_a_rule_is_closed(verifier: TokenVerifier) -> None:
    """A new RPC is nobody's until somebody says whose it is. What is public is so by name."""
    async with served(verifier) as channel:
        with pytest.raises(PermissionDenied):
            await call(channel, "/acme.Other/Unary", token())
        assert await call(channel, "Open") == [b"open"]


async def test_rules_ask_for_scopes_and_permissions(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """By rule or in the handler; with the resource that the request message names."""
    cases: list[tuple[str, bool, type[WatchwordError] | None, dict[str, Any]]] = [
        ("Pay", True, None, {}),
        ("Pay", False, PermissionDenied, {}),
        ("Pay", True, InsufficientScope, {"sub_type": "client"}),
        ("Refusing", True, None, {}),
        ("Refusing", False, PermissionDenied, {}),
        ("Scoped", True, InsufficientScope, {}),
        ("Scoped", False, None, {"scope": "invoices.write"}),
    ]
    async with served(verifier) as channel:
        for method, allowed, refusal, changes in cases:
            fake.decisions["invoices.pay"] = allowed
            if refusal is None:
                assert await call(channel, method, token(**changes))
                continue
            with pytest.raises(refusal) as raised:
                await call(channel, method, token(**changes))
            assert type(raised.value) is refusal
        fake.check_fails = True
        with pytest.raises(Unavailable):
            await call(channel, "Pay", token())
    assert fake.checked[0].resource == "invoice/7"


async def test_a_stream_of_requests_names_no_resource(verifier: TokenVerifier) -> None:
    """Such a rule could not be kept: the call fails rather than passes."""
    guard = GrpcGuard(verifier, {"/a/b": require("invoices.pay", resource=str)})
    handler: Any = grpc.stream_unary_rpc_method_handler(Echo().gathering)

    async def continuation(_: Any) -> Any:
        return handler

    details: Any = type("Details", (), {"method": "/a/b"})()
    with pytest.raises(TypeError):
        await guard.intercept_service(continuation, details)
