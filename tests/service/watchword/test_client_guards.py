"""Guards that ask through a client: together, from memory, with context, and for a stronger login when that would help."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from tests.service.watchword.fake import SUBJECT, FakeSuite, token
from tests.service.watchword.fake_permissions import Answer, FakePermissions, allow, fake_permissions
from watchword import Client, Permissions, TokenVerifier, status
from watchword.decisions import StepUpRequired
from watchword.errors import PermissionDenied
from watchword.guards import require
from watchword.guards.asgi import TokenGuard
from watchword.guards.grpc import TokenGuard as GrpcGuard
from watchword.rbac.v1 import permission_pb2, rbac_pb2

PAY = require("invoices.pay", context=lambda scope: {"path": scope["path"]})


@pytest.fixture
async def rbac() -> AsyncIterator[FakePermissions]:
    """PermissionService, in the test's hands."""
    async with fake_permissions() as running:
        yield running


@pytest.fixture
async def client(rbac: FakePermissions) -> AsyncIterator[Client]:
    """A client that remembers."""
    async with rbac.client(cache_size=10) as running:
        yield running


async def paid(scope: Any, receive: Any, send: Any) -> None:
    """An application for whoever may pay."""
    await PAY()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"paid"})


def rest(verifier: TokenVerifier, client: Client) -> httpx.AsyncClient:
    guard: Any = TokenGuard(paid, verifier, client=client)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=guard), base_url="http://app")


def too_weak(**age: int) -> Answer:
    """Return what is said of a login that is not strong enough."""
    answer = Answer(decision=permission_pb2.STEP_UP_REQUIRED, reason=permission_pb2.LOGIN_TOO_WEAK, step_up=rbac_pb2.StepUp(acr="mfa"))
    if age:
        answer.step_up.max_age.FromSeconds(age["seconds"])
    return answer


async def test_the_login_and_the_request_are_part_of_the_question(verifier: TokenVerifier, client: Client, rbac: FakePermissions) -> None:
    """Else no condition and no demand of a stronger login could ever be met."""
    rbac.answer = lambda _: allow()
    async with rest(verifier, client) as app:
        answer = await app.get("/7", headers={"authorization": f"Bearer {token(acr='mfa', auth_time=1_700_000_000)}"})
    assert answer.status_code == 200
    (question,) = rbac.singles
    assert (question.subject.id, question.acr, question.auth_time.seconds) == (SUBJECT, "mfa", 1_700_000_000)
    assert MessageToDict(question.context) == {"path": "/7"}


async def test_requests_at_once_ask_at_once_and_later_ones_not_at_all(verifier: TokenVerifier, client: Client, rbac: FakePermissions) -> None:
    """A crowd costs one call; and what was answered is remembered."""
    rbac.answer = lambda _: allow()
    async with rest(verifier, client) as app:
        headers = {"authorization": f"Bearer {token()}"}
        crowd = await asyncio.gather(*(app.get(f"/{number}", headers=headers) for number in range(20)))
        assert {answer.status_code for answer in crowd} == {200}
        assert len(rbac.singles) + len(rbac.batches) <= 2
        asked = rbac.asked
        assert (await app.get("/21", headers=headers)).status_code == 200
    assert rbac.asked == asked


@pytest.mark.parametrize(
    ("answer", "challenge"), [(too_weak(), 'acr_values="mfa"'), (too_weak(seconds=300), 'acr_values="mfa", max_age="300"')], ids=["acr", "age"]
)
async def test_who_needs_a_stronger_login_is_told_which(
    verifier: TokenVerifier, client: Client, rbac: FakePermissions, answer: Answer, challenge: str
) -> None:
    """RFC 9470 section 3: 401, so that the application sends him to log in again, and not away."""
    rbac.answer = lambda _: answer
    async with rest(verifier, client) as app:
        refusal = await app.get("/7", headers={"authorization": f"Bearer {token()}"})
    assert refusal.status_code == 401
    assert refusal.headers["www-authenticate"] == f'Bearer realm="watchword", error="insufficient_user_authentication", {challenge}'
    assert refusal.json()["details"][0]["metadata"]["acr"] == "mfa"


@pytest.mark.parametrize("decision", [permission_pb2.DENY, permission_pb2.CONDITIONAL])
async def test_whatever_is_not_allowed_is_refused(verifier: TokenVerifier, client: Client, rbac: FakePermissions, decision: Any) -> None:
    rbac.answer = lambda _: Answer(decision=decision)
    async with rest(verifier, client) as app:
        assert (await app.get("/7", headers={"authorization": f"Bearer {token()}"})).status_code == 403


async def test_a_grpc_caller_is_told_too(verifier: TokenVerifier, client: Client, rbac: FakePermissions) -> None:
    """PERMISSION_DENIED, with the login that would do in its details."""
    rbac.answer = lambda _: too_weak(seconds=60)

    async def pay(request: bytes, context: Any) -> bytes:
        return b"paid"

    guard: Any = GrpcGuard(verifier, {"/acme.Bank/Pay": require("invoices.pay", context=lambda request: {"to": request.decode()})}, client=client)
    server = grpc.aio.server(interceptors=[guard])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("acme.Bank", {"Pay": grpc.unary_unary_rpc_method_handler(pay, None, None)}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/acme.Bank/Pay")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await method(b"bob", metadata=(("authorization", f"Bearer {token()}"),))
        refusal = status.decode(raised.value)
        assert isinstance(refusal, PermissionDenied)
        assert refusal.metadata == {"acr": "mfa", "max_age": "60"}
        rbac.answer = lambda _: allow()
        assert await method(b"bob", metadata=(("authorization", f"Bearer {token()}"),)) == b"paid"
    await server.stop(None)
    assert MessageToDict(rbac.singles[-1].context) == {"to": "bob"}


async def test_permissions_tell_the_whole_decision(verifier: TokenVerifier, client: Client, rbac: FakePermissions, fake: FakeSuite) -> None:
    """For applications that decide what to do about it themselves; without a client of their own they ask on the verifier's channel."""
    rbac.answer = lambda _: too_weak()
    permissions, principal = Permissions(verifier, client), verifier.verify(token())
    decision = await permissions.decide(principal, "invoices.pay")
    assert decision.step_up is not None
    assert not await permissions.allows(principal, "invoices.pay")

    asked, client_token = rbac.asked, verifier.verify(token(sub_type="client", sid=..., scope="invoices.read"))
    assert not await permissions.allows(client_token, "invoices.pay")  # its scopes bound it: nobody is asked
    assert rbac.asked == asked

    fake.decisions["invoices.pay"] = True
    assert await Permissions(verifier).allows(principal, "invoices.pay")
    assert isinstance(StepUpRequired(), PermissionDenied)
