"""The edge of a service, over a real channel: what a caller can make it do, and what it tells."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis.access import AccessUndeclared, Gate, LimitClass, rule_of
from services.chassis.audit import AuditEvent
from services.chassis.call import Call, Caller, CallerKind
from services.chassis.edge import Edge, _once_of, _plain
from services.chassis.limits import Limit, Limits
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.wire import varint
from tests.conftest import Keys
from watchword import status
from watchword.errors import (
    CredentialsMissing,
    DeadlineExceeded,
    DependencyUnavailable,
    InsufficientScope,
    Internal,
    InvalidRequest,
    LoginCapacityExceeded,
    PermissionDenied,
    RateLimited,
    ShuttingDown,
    TokenInvalid,
    WatchwordError,
)
from watchword.gateway.v1 import health_pb2
from watchword.identity.v1 import authentication_pb2, user_pb2
from watchword.token.v1 import token_pb2

Handler = Callable[[Any, Call], Awaitable[Message]]
Metadata = tuple[tuple[str, str], ...]

CANARY = "canary-of-a-defect"
SERVICES = (
    health_pb2.DESCRIPTOR.services_by_name["HealthService"],
    user_pb2.DESCRIPTOR.services_by_name["UserService"],
    token_pb2.DESCRIPTOR.services_by_name["TokenService"],
)
HEALTH = "/watchword.gateway.v1.HealthService/GetHealth"
VERIFY = "/watchword.token.v1.TokenService/VerifyToken"
ISSUE = "/watchword.token.v1.TokenService/IssueToken"
REVOKE = "/watchword.token.v1.TokenService/RevokeToken"
GET_USER = "/watchword.identity.v1.UserService/GetUser"
USER: Metadata = (("authorization", "Bearer user"),)
ASK = token_pb2.VerifyTokenRequest(token="x")


@dataclass
class Accounts:
    """Knows the tokens "user", "client" and "guest", a user without a scope; nobody holds a permission."""

    id: str = field(default_factory=lambda: str(uuid4()))

    async def authenticate(self, token: str) -> Caller:
        kinds = {"user": CallerKind.USER, "client": CallerKind.CLIENT, "guest": CallerKind.USER}
        if token not in kinds:
            raise TokenInvalid
        return Caller(kinds[token], self.id, scopes=frozenset() if token == "guest" else frozenset({"tokens.verify"}), token=token)

    async def allows(self, _caller: Caller, _permission: str) -> bool:
        return False


@dataclass
class Servicer:
    """Answers every method of every service with what the test put there, or with an empty message; notes its calls."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    shedding: dict[str, Callable[[Call], None]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Handler:
        descriptor = next((method for service in SERVICES for method in service.methods if method.name == name), None)
        if descriptor is None:
            raise AttributeError(name)

        async def handle(request: Message, call: Call) -> Message:
            self.calls.append(call)
            handler = self.handlers.get(name)
            return await handler(request, call) if handler else GetMessageClass(descriptor.output_type)()

        return handle


@dataclass
class Door:
    """A served edge, and a channel to it."""

    servicer: Servicer
    edge: Edge
    notes: list[AuditEvent]
    channel: grpc.aio.Channel
    keys: Keys

    def on(self, method: str, handler: Handler) -> None:
        self.servicer.handlers[method] = handler

    async def bytes_to(self, method: str, request: bytes, metadata: Metadata = (), **options: Any) -> bytes:
        """Send bytes as they are."""
        rpc: Any = self.channel.unary_unary(method)
        answer = await rpc(request, metadata=metadata, **options)
        assert isinstance(answer, bytes)
        return answer

    async def failed(self, method: str, request: Message | bytes = b"", metadata: Metadata = (), **options: Any) -> grpc.aio.AioRpcError:
        """Return how a call that must fail failed."""
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await self.bytes_to(method, raw, metadata, **options)
        return failure.value

    async def refused(self, method: str, request: Message | bytes = b"", metadata: Metadata = (), **options: Any) -> WatchwordError:
        return status.decode(await self.failed(method, request, metadata, **options))


@pytest.fixture
async def door(redis: Redis, service_keys: Keys) -> AsyncIterator[Door]:
    """Serve as token would, with wide limits."""
    accounts, notes, servicer = Accounts(), list[AuditEvent](), Servicer()
    wide: dict[LimitClass, Limit] = {klass: Limit(100_000, 60) for klass in LimitClass if klass is not LimitClass.NONE}

    async def note(_call: Call, event: AuditEvent) -> None:
        notes.append(event)

    edge = Edge(Gate(service_keys.identity("token"), accounts, accounts), Limits(redis, wide, enabled=True), note=note)
    async with _served(edge, servicer) as channel:
        yield Door(servicer, edge, notes, channel, service_keys)


@asynccontextmanager
async def _served(edge: Edge, servicer: Servicer) -> AsyncIterator[grpc.aio.Channel]:
    """Serve while inside; yields a channel to it."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(tuple(edge.handler(service, servicer) for service in SERVICES))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def trailers(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    return dict(error.trailing_metadata() or ())


def everything(error: grpc.aio.AioRpcError) -> str:
    """Return all that the wire carried."""
    return repr((error.code(), error.details(), error.initial_metadata(), error.trailing_metadata(), error.debug_error_string()))


def _nested(depth: int) -> bytes:
    message = b""
    for _ in range(depth):
        message = b"\x0a" + varint(len(message)) + message
    return message


MALFORMED = {
    "invalid UTF-8": b"\x0a\x02\xff\xfe",
    "an overlong NUL": b"\x0a\x02\xc0\x80",
    "a surrogate": b"\x0a\x03\xed\xa0\x80",
    "truncated": b"\x0a\x7fabc",
    "a tag alone": b"\x0a",
    "a length beyond all": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "an endless varint": b"\x18" + b"\xff" * 20,
    "field number zero": b"\x00\x00",
    "an unfinished group": b"\x0b\x0b\x0b",
    "a group that ends before it begins": b"\x0c",
    "reserved wire types": b"\x0e\x0f",
    "a hundred levels of groups": b"\x0b" * 200 + b"\x0c" * 200,
    "noise": bytes(range(255, 0, -1)) * 10,
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_bytes_that_are_no_message_are_an_invalid_argument_in_constant_words(door: Door, name: str) -> None:
    """A143: grpc itself would answer UNKNOWN with the parser's words."""
    error = await door.failed(VERIFY, MALFORMED[name], USER)

    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "the request is not a message of this method")
    assert type(status.decode(error)) is InvalidRequest
    assert door.servicer.calls == []


@pytest.mark.parametrize(
    "raw", [b"\x08\x01", b"\x0d\x00\x00\x00\x00", b"".join(varint(9000 + n << 3) + b"\x01" for n in range(10_000)), _nested(5000)]
)
async def test_odd_messages_are_judged_by_the_rules_and_break_nothing(door: Door, raw: bytes) -> None:
    """Wrong wire types and unknown fields are unknown fields to protobuf; then the required token is missing."""
    assert type(await door.refused(VERIFY, raw, USER)) is InvalidRequest


async def test_malformed_bytes_learn_nothing_before_access_is_decided(door: Door) -> None:
    """Who may not call is told that, whatever was sent."""
    assert type(await door.refused(VERIFY, b"\xff")) is CredentialsMissing
    assert type(await door.refused(GET_USER, b"\xff", USER)) is PermissionDenied


async def test_a_request_that_breaks_the_rules_never_reaches_a_handler(door: Door) -> None:
    failure = await door.refused(VERIFY, token_pb2.VerifyTokenRequest(token="a\0b"), USER)

    assert [violation.field for violation in failure.violations] == ["token"]
    assert door.servicer.calls == []


async def test_a_defect_tells_a_request_id_and_nothing_else(door: Door, capfd: pytest.CaptureFixture[str]) -> None:
    """grpc itself would send the exception's text to the caller."""

    async def fail(_request: Any, _call: Call) -> Message:
        raise RuntimeError(CANARY)

    door.on("VerifyToken", fail)
    request_id = str(uuid4())

    error = await door.failed(VERIFY, ASK, (*USER, ("x-request-id", request_id)))

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert CANARY not in everything(error)
    failure = status.decode(error)
    assert type(failure) is Internal
    assert failure.metadata == {"request_id": request_id}
    logged = capfd.readouterr().out
    assert request_id in logged
    assert "handler_failed" in logged


@pytest.mark.parametrize(
    "defect",
    [KeyError(CANARY), AssertionError(CANARY), RecursionError(CANARY), UnicodeDecodeError("utf-8", b"x", 0, 1, CANARY), LookupError(CANARY)],
    ids=lambda e: type(e).__name__,
)
async def test_no_defect_shows_its_words(door: Door, defect: Exception) -> None:
    async def fail(_request: Any, _call: Call) -> Message:
        raise defect

    door.on("GetHealth", fail)
    error = await door.failed(HEALTH)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert CANARY not in everything(error)


async def test_the_callers_deadline_ends_the_handler(door: Door) -> None:
    """Nobody waits for the answer, so nobody should compute it; twenty milliseconds are kept for the way back."""
    ended = asyncio.Event()

    async def wait(_request: Any, _call: Call) -> Message:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("nobody wakes it")

    door.on("VerifyToken", wait)

    error = await door.failed(VERIFY, ASK, USER, timeout=0.3)

    assert type(status.decode(error)) is DeadlineExceeded
    assert status.DETAILS_KEY in trailers(error), "the server's own answer, not the client's"
    await asyncio.wait_for(ended.wait(), 1)
    assert door.edge.activity.in_flight == 0


async def test_a_caller_who_hangs_up_ends_the_handler(door: Door) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any, _call: Call) -> Message:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("nobody wakes it")

    door.on("VerifyToken", wait)
    rpc: Any = door.channel.unary_unary(VERIFY)
    call = rpc(ASK.SerializeToString(), metadata=USER)
    await asyncio.wait_for(began.wait(), 5)

    call.cancel()

    await asyncio.wait_for(ended.wait(), 5)
    assert door.edge.activity.in_flight == 0


@pytest.mark.parametrize(("asked", "expected"), [(None, 2.0), (1.0, 1.0), (3600.0, 30.0)])
async def test_every_call_has_a_bounded_deadline(door: Door, asked: float | None, expected: float) -> None:
    """A caller who names none would hold a connection for ever."""
    seen = list[float]()

    async def look(_request: Any, call: Call) -> Message:
        seen.append(call.remaining)
        return health_pb2.GetHealthResponse()

    door.on("GetHealth", look)

    await door.bytes_to(HEALTH, b"", timeout=asked)

    assert expected - 0.5 < seen[0] < expected + 0.05  # grpc rounds up when it writes a deadline down


async def test_a_wait_travels_as_details_and_as_the_header_that_rest_callers_need(door: Door) -> None:
    """RFC 9110: whole seconds, never too few, never zero."""
    from datetime import timedelta

    for wait, header in ((timedelta(milliseconds=1), "1"), (timedelta(seconds=2), "2"), (timedelta(seconds=2, microseconds=1), "3")):

        async def refuse(_request: Any, _call: Call, wait: timedelta = wait) -> Message:
            raise LoginCapacityExceeded(retry_after=wait)

        door.on("GetHealth", refuse)
        error = await door.failed(HEALTH)
        assert trailers(error)["retry-after"] == header
        assert status.decode(error).retry_after == wait

    door.on("GetHealth", _raising(DependencyUnavailable()))
    assert "retry-after" not in trailers(await door.failed(HEALTH))


async def test_who_finds_no_room_is_told_before_anybody_is_asked(service_keys: Keys, redis: Redis) -> None:
    servicer = Servicer(shedding={"VerifyToken": _shed})
    limits = Limits(redis, {}, enabled=True)  # knows no class: whoever asks it fails
    edge = Edge(Gate(service_keys.identity("token"), Accounts(), Accounts()), limits)
    async with _served(edge, servicer) as channel:
        door = Door(servicer, edge, [], channel, service_keys)
        shed, asked = await door.refused(VERIFY, ASK, USER), await door.refused(GET_USER, user_pb2.GetUserRequest(), USER)

    assert (type(shed), type(asked)) == (LoginCapacityExceeded, Internal)
    assert servicer.calls == []
    assert edge.meters[VERIFY].reasons == {"LOGIN_CAPACITY_EXCEEDED": 1}


def _shed(_call: Call) -> None:
    raise LoginCapacityExceeded


def _raising(error: WatchwordError) -> Handler:
    async def refuse(_request: Any, _call: Call) -> Message:
        raise error

    return refuse


async def test_an_unknown_caller_is_told_which_credential_is_wanted(door: Door) -> None:
    """RFC 6750 section 3: without a credential no error code, with a bad one `invalid_token`."""
    missing, wrong = await door.failed(VERIFY, ASK), await door.failed(VERIFY, ASK, (("authorization", "Bearer no"),))
    known = await door.failed(GET_USER, user_pb2.GetUserRequest(), USER)

    assert trailers(missing)["www-authenticate"] == "Bearer"
    assert trailers(wrong)["www-authenticate"] == 'Bearer error="invalid_token"'
    assert (type(status.decode(missing)), type(status.decode(wrong))) == (CredentialsMissing, TokenInvalid)
    assert "www-authenticate" not in trailers(known)


@pytest.mark.parametrize(
    "values",
    [
        ("Bearer user", "Bearer user"),
        ("Bearer user", "Bearer client"),
        ("Basic YTpi", "Bearer user"),
        ("Bearer user, Bearer client",),
        ("Basic dXNlcg==",),
        ("user",),
        ("Bearer",),
    ],
)
async def test_a_call_carries_one_bearer_token_or_none(door: Door, values: tuple[str, ...]) -> None:
    """Two, and a proxy may have checked the one while we take the other."""
    metadata = tuple(("authorization", value) for value in values)
    assert type(await door.refused(VERIFY, ASK, metadata)) is TokenInvalid


async def test_the_scheme_may_be_written_in_any_case(door: Door) -> None:
    for scheme in ("bearer", "BEARER"):
        await door.bytes_to(VERIFY, ASK.SerializeToString(), (("authorization", f"{scheme} user"),))


async def test_a_public_rpc_takes_no_notice_of_credentials(door: Door) -> None:
    await door.bytes_to(HEALTH, b"", (("authorization", "Bearer expired"),))
    assert door.servicer.calls[0].caller.kind is CallerKind.ANONYMOUS


async def test_services_of_the_suite_call_what_names_them(door: Door) -> None:
    """And their token for another service is worth nothing here."""
    request = token_pb2.IssueTokenRequest()

    assert type(await door.refused(ISSUE, request, door.keys.metadata("identity", to="token"))) is InvalidRequest
    assert type(await door.refused(ISSUE, request, door.keys.metadata("rbac", to="token"))) is PermissionDenied
    assert type(await door.refused(ISSUE, request, door.keys.metadata("identity", to="rbac"))) is TokenInvalid
    assert type(await door.refused(ISSUE, request, USER)) is PermissionDenied


async def test_the_refusal_of_a_known_caller_is_audited_before_it_is_told(door: Door) -> None:
    """D05: every refusal that somebody saw has its row."""
    await door.refused(GET_USER, user_pb2.GetUserRequest(), USER)
    await door.refused("/watchword.token.v1.TokenService/RevokeTokens", token_pb2.RevokeTokensRequest(), USER)
    await door.refused(VERIFY, ASK)

    assert [(event.type, event.outcome, event.target_id) for event in door.notes] == [
        ("access_denied", "failure", GET_USER),
        ("access_denied", "failure", "/watchword.token.v1.TokenService/RevokeTokens"),
    ]
    assert [event.details["reason"] for event in door.notes] == [PermissionDenied.reason, InsufficientScope.reason]


@pytest.mark.parametrize(("method", "token", "refusal"), [(GET_USER, "client", PermissionDenied), (VERIFY, "guest", InsufficientScope)])
async def test_who_is_refused_again_and_again_writes_no_more_than_who_may_change_something(
    door: Door, redis: Redis, database: Database, database_url: str, method: str, token: str, refusal: type[WatchwordError]
) -> None:
    """A session that may nothing could fill the log, and take the connections that changes need, at the rate of checks."""
    door.edge._limits = Limits(redis, {klass: Limit(3 if klass is LimitClass.WRITE else 1000, 3600) for klass in LimitClass}, enabled=True)
    door.edge._note = database.note
    metadata = (("x-forwarded-for", f"test-{uuid4()}"), ("authorization", f"Bearer {token}"))

    refusals = [await door.refused(method, ASK, metadata) for _ in range(6)]

    assert [type(each) for each in refusals] == [refusal] * 3 + [RateLimited] * 3
    connection = await asyncpg.connect(database_url)
    caller = await door.edge._gate._authenticator.authenticate(token)
    assert await connection.fetchval("SELECT count(*) FROM suite.audit_event WHERE actor_id = $1", caller.id) == 3
    await connection.close()
    # What he may change, he still can.
    await door.bytes_to(REVOKE, token_pb2.RevokeTokenRequest(token="x").SerializeToString(), metadata)


async def test_a_service_of_the_suite_hears_why_it_is_refused_however_often(door: Door, redis: Redis) -> None:
    """Services have no budget."""
    door.edge._limits = Limits(redis, dict.fromkeys(LimitClass, Limit(1, 3600)), enabled=True)

    refusals = [await door.refused(ISSUE, token_pb2.IssueTokenRequest(), door.keys.metadata("rbac", to="token")) for _ in range(3)]

    assert [type(each) for each in refusals] == [PermissionDenied] * 3
    assert len(door.notes) == 3


async def test_a_change_knows_its_request_id_and_what_was_asked(door: Door) -> None:
    """The fingerprint tells a repeat from another request; a read has neither."""
    request_id = str(uuid4())
    for token in ("a", "a", "b"):
        await door.bytes_to(REVOKE, token_pb2.RevokeTokenRequest(token=token, request_id=request_id).SerializeToString(), USER)
    await door.bytes_to(REVOKE, token_pb2.RevokeTokenRequest(token="a").SerializeToString(), USER)
    await door.bytes_to(VERIFY, ASK.SerializeToString(), USER)

    first, again, other, without, read = (call.once for call in door.servicer.calls)
    assert first is not None
    assert other is not None
    assert (first.request_id, first.method) == (UUID(request_id), REVOKE)
    assert first == again
    assert first.fingerprint != other.fingerprint
    assert (without, read) == (None, None)


@pytest.mark.parametrize("given", ["", "x", "../../etc", "a" * 5000, '"}\\n{"'])
async def test_a_request_id_that_is_no_uuid_is_replaced(door: Door, given: str) -> None:
    """It stands in logs and audit rows."""
    await door.bytes_to(HEALTH, b"", (("x-request-id", given),))
    assert str(UUID(door.servicer.calls[0].request_id)) != given


async def test_the_address_is_the_one_that_the_last_proxy_saw(door: Door) -> None:
    """The others are what the caller wrote: taking the first would let everybody choose whose limit they use up."""
    await door.bytes_to(HEALTH, b"", (("x-forwarded-for", "203.0.113.9, 192.0.2.7"),))
    await door.bytes_to(HEALTH, b"")
    assert [call.address for call in door.servicer.calls] == ["192.0.2.7", "127.0.0.1"]


async def test_limits_come_before_access_and_count_bad_credentials(redis: Redis, door: Door) -> None:
    """Guessing tokens is limited by address, though nobody is known."""
    door.edge._limits = Limits(redis, {LimitClass.READ: Limit(3, 3600), LimitClass.WRITE: Limit(3, 3600)}, enabled=True)
    address = (("x-forwarded-for", f"test-{uuid4()}"),)

    outcomes = [type(await door.refused(REVOKE, b"", (*address, ("authorization", f"Bearer guess-{number}")))) for number in range(5)]

    assert outcomes == [TokenInvalid] * 3 + [RateLimited] * 2
    error = await door.failed(REVOKE, b"", (*address, *USER))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(str(trailers(error)["retry-after"])) > 0


async def test_services_of_the_suite_are_not_limited(redis: Redis, door: Door) -> None:
    """A busy front would lock itself out of its own back."""
    door.edge._limits = Limits(redis, {LimitClass.WRITE: Limit(1, 3600), LimitClass.CHECK: Limit(1, 3600)}, enabled=True)
    request = token_pb2.RevokeTokenRequest(token="x").SerializeToString()
    for _ in range(5):
        await door.bytes_to(REVOKE, request, door.keys.metadata("identity", to="token"))


async def test_what_arrives_after_the_drain_is_told_to_try_elsewhere(door: Door) -> None:
    """UNAVAILABLE, which clients and Envoy repeat, and not CANCELLED, which they do not."""
    door.edge.activity.closed = True
    assert type(await door.refused(HEALTH)) is ShuttingDown


async def test_a_method_that_is_not_there_is_unimplemented(door: Door) -> None:
    error = await door.failed("/watchword.token.v1.TokenService/Forge", b"", USER)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_servicer_that_lacks_a_method_stops_start_up(door: Door) -> None:
    with pytest.raises(AttributeError, match="IssueToken"):
        door.edge.handler(token_pb2.DESCRIPTOR.services_by_name["TokenService"], object())


async def test_a_service_without_a_decider_does_not_serve_permissions(redis: Redis, service_keys: Keys) -> None:
    edge = Edge(Gate(service_keys.identity("token"), Accounts(), None), Limits(redis, {}, enabled=False))
    with pytest.raises(AccessUndeclared, match="UserService"):
        edge.handler(user_pb2.DESCRIPTOR.services_by_name["UserService"], Servicer())


async def test_headers_of_a_handler_are_sent_before_its_answer(door: Door) -> None:
    async def tell(_request: Any, call: Call) -> Message:
        call.response_headers.append(("cache-control", "max-age=60"))
        return health_pb2.GetHealthResponse()

    door.on("GetHealth", tell)
    rpc: Any = door.channel.unary_unary(HEALTH)
    call = rpc(b"")
    assert dict(await call.initial_metadata())["cache-control"] == "max-age=60"
    await call


async def test_calls_at_once_do_not_see_one_another(door: Door) -> None:
    """T26: 500 calls, two callers, each answered as itself."""

    async def echo(_request: Any, call: Call) -> Message:
        await asyncio.sleep(0)
        return token_pb2.VerifyTokenResponse(token_id=f"{call.caller.kind}-{call.headers['x-number']}")

    door.on("VerifyToken", echo)

    async def ask(number: int) -> bool:
        who = ("user", "client")[number % 2]
        metadata = (("authorization", f"Bearer {who}"), ("x-number", str(number)))
        answer = await door.bytes_to(VERIFY, ASK.SerializeToString(), metadata, timeout=20)
        return token_pb2.VerifyTokenResponse.FromString(answer).token_id == f"{who}-{number}"

    assert all(await asyncio.gather(*(ask(number) for number in range(500))))


async def test_nothing_of_a_call_is_said_by_grpc_itself(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Its own log of unhandled exceptions would hold what ours hides."""
    with caplog.at_level(logging.DEBUG, logger="grpc"):
        door.on("GetHealth", _raising(WatchwordError(CANARY)))
        await door.failed(HEALTH)
        await door.failed(VERIFY, b"\xff", USER)
    assert CANARY not in json.dumps([record.getMessage() for record in caplog.records])


async def test_the_limit_of_an_address_comes_before_anybody_is_asked_who_it_is(redis: Redis, door: Door) -> None:
    """Otherwise a flood of tokens, good or bad, would reach token through every service that it hits."""
    limits: dict[LimitClass, Limit] = {LimitClass.READ: Limit(3, 3600), LimitClass.WRITE: Limit(3, 3600)}
    door.edge._limits = Limits(redis, limits, enabled=True)
    asked = list[str]()
    authenticator = door.edge._gate._authenticator
    authenticate = authenticator.authenticate

    async def count(token: str) -> Caller:
        asked.append(token)
        return await authenticate(token)

    authenticator.authenticate = count  # type: ignore[method-assign]
    address = (("x-forwarded-for", f"test-{uuid4()}"),)
    request = token_pb2.RevokeTokenRequest(token="x").SerializeToString()

    outcomes = []
    for number in range(20):
        rpc: Any = door.channel.unary_unary(REVOKE)
        running = rpc(request, metadata=(*address, ("authorization", f"Bearer {('user', 'client', 'guess')[number % 3]}")))
        outcomes.append(await running.code())

    assert outcomes[3:] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 17
    assert asked == ["user", "client", "guess"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("curl/8.5", "curl/8.5"),
        ("tab\there", "tabhere"),
        ("line\r\nbreak\0nul", "linebreaknul"),
        ("\x7f\x1b[31mred", "[31mred"),
        ("left\u202eright\ud800", "leftright"),
        ("é" * 2000, "é" * 512),
        ("x" * 1023 + "é", "x" * 1023),
        ("", ""),
    ],
    ids=["plain", "tab", "line breaks", "escape", "override", "long", "cut within a sign", "none"],
)
def test_a_user_agent_is_kept_as_what_a_field_may_hold(sent: str, kept: str) -> None:
    """It is written beside the session: a strange one must not make a right login fail."""
    assert _plain(sent) == kept


async def test_one_request_id_in_two_sessions_of_an_account_is_two_requests(door: Door) -> None:
    """What asks for a scope alone is about the caller's own session: logging out here is not logging out there."""
    logout = "/watchword.identity.v1.AuthenticationService/Logout"
    request, sessions = authentication_pb2.LogoutRequest(request_id=str(uuid4())), [uuid4(), uuid4()]
    rule = rule_of(authentication_pb2.DESCRIPTOR.services_by_name["AuthenticationService"].methods_by_name["Logout"])
    calls = [Call(logout, Caller(CallerKind.USER, "a", session_id=session)) for session in (*sessions, sessions[0])]

    one, other, again = (_once_of(rule, request, call) for call in calls)

    assert one == again
    assert one is not None
    assert other is not None
    assert one.fingerprint != other.fingerprint
