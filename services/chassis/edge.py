"""The edge of a service: what surrounds every RPC, wrapped around it once, at registration.

deadline → room → caller → access → limits → validation → the call → its failure → one log line, one count. A handler takes the request and a `Call`,
returns the response or raises a leaf of `watchword.errors`; it never sees grpc. Whatever else it raises, the caller gets INTERNAL and a request id.
A handler of a stream takes an iterator of requests and yields responses, which may be encoded already.

Most calls of a service like this ask what its memory knows. A servicer may offer `prompts`: by method name, a function from the encoded request and
the caller to the encoded answer, or None if the call has to wait. Nothing is made for such a call but the answer (docs/decisions/0011). An answer
that several calls wait for together is a future: of milliseconds at most, for nobody sees to their deadlines.

And it may offer `shedding`: by method name, a function from the call that raises if there is no room for it. It is asked before anybody else is, so
that those who are turned away cost as little as can be.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID, uuid4

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis.access import Gate, LimitClass, Rule, rule_of
from services.chassis.audit import AuditEvent
from services.chassis.call import Call, Caller, CallerKind, Once
from services.chassis.limits import Limits
from services.chassis.metrics import BOUNDS, CANCELLED, OK, Meter
from services.chassis.validation import Validator
from watchword import status
from watchword.errors import DeadlineExceeded, Internal, InvalidRequest, PermissionDenied, ShuttingDown, TokenInvalid, Unauthenticated, WatchwordError

DEFAULT_DEADLINE = 2.0  # seconds, for callers that name none
CREDENTIAL_DEADLINE = 10.0  # seconds: a password hash takes a quarter of one, and may have to queue
MAX_DEADLINE = 30.0  # seconds
MAX_USER_AGENT = 1024  # bytes
HTTP_STATUS = "x-http-status"  # of a handler's response headers: for REST callers, what gRPC has no code for
FROM_EDGE = "x-watchword-edge"  # the header that Envoy's edge listener sets, whatever the client wrote there
KEEP = 0.02  # seconds of the deadline kept for the answer's way back

Handler = Callable[[Any, Call], Awaitable[Message]]
StreamHandler = Callable[[AsyncIterator[Any], Call], AsyncIterator[Message | bytes]]
FeedHandler = Callable[[Any, Call], AsyncIterator[Message | bytes]]
Prompt = Callable[[bytes, Caller], bytes | asyncio.Future[bytes] | None]
Shed = Callable[[Call], None]
Note = Callable[..., Awaitable[None]]
Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger()


class Malformed:
    """What the deserializer makes of bytes that are no message."""


class Activity:
    """What the drain wants to know: calls in flight, and when the last one came. Streams never end by themselves, so the drain ends them."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.last_arrival = time.monotonic()
        self.closed = False
        self.streams: set[asyncio.Task[Any]] = set()
        self.ends_streams = False

    def end_streams(self) -> None:
        """Tell everybody who watches to go to another instance."""
        self.ends_streams = True
        for task in self.streams:
            task.cancel()


class Edge:
    """Wraps the methods of servicers."""

    def __init__(self, gate: Gate, limits: Limits, *, note: Note | None = None) -> None:
        self._gate = gate
        self._limits = limits
        self._note = note
        self._validator = Validator()
        self.activity = Activity()
        self.meters: dict[str, Meter] = {}

    def handler(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Return grpc's handler of all methods of `service`. Raises AccessUndeclared, AttributeError for a method that is not there.

        A generic one: for each registered method grpc keeps a task that waits for calls, and looks at all of them at each call.
        """
        prompts: Mapping[str, Prompt] = getattr(servicer, "prompts", {})
        shedding: Mapping[str, Shed] = getattr(servicer, "shedding", {})

        def method(one: MethodDescriptor) -> "grpc.RpcMethodHandler[Any, Any]":
            return self._method(one, getattr(servicer, one.name), prompts.get(one.name), shedding.get(one.name, _nothing))

        return grpc.method_handlers_generic_handler(service.full_name, {one.name: method(one) for one in service.methods})

    def _method(self, method: MethodDescriptor, handler: Handler, prompt: Prompt | None, shed: Shed) -> "grpc.RpcMethodHandler[Any, Any]":
        rule = rule_of(method)
        name = f"/{method.containing_service.full_name}/{method.name}"
        self._gate.accept(name, rule)
        meter = self.meters[name] = _meter_of(method, has_prompt=prompt is not None)
        request_class = GetMessageClass(method.input_type)

        def deserialize(raw: bytes) -> Message | Malformed:
            try:
                return request_class.FromString(raw)
            except (DecodeError, RecursionError):
                return Malformed()

        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._wrap_stream(name, rule, cast(StreamHandler, handler), meter),
                request_deserializer=deserialize,
                response_serializer=lambda response: response if isinstance(response, bytes) else response.SerializeToString(),
            )
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_feed(name, rule, cast(FeedHandler, handler), meter),
                request_deserializer=deserialize,
                response_serializer=lambda response: response if isinstance(response, bytes) else response.SerializeToString(),
            )
        serve = self._wrap(name, rule, handler, meter, shed)
        if prompt is not None:
            return grpc.unary_unary_rpc_method_handler(self._wrap_prompt(rule, prompt, deserialize, serve, meter))
        return grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=deserialize,
            response_serializer=lambda response: response.SerializeToString(),
        )

    def _wrap_prompt(
        self,
        rule: Rule,
        prompt: Prompt,
        deserialize: Callable[[bytes], Message | Malformed],
        patient: Callable[..., Awaitable[Message]],
        meter: Meter,
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        activity, limits, gate, taken = self.activity, self._limits, self._gate, meter.taken

        def answer(raw: bytes, context: Context) -> bytes | asyncio.Future[bytes] | None:
            authorization, forwarded, is_from_edge = "", "", False
            for key, value in context.invocation_metadata() or ():
                if key == "authorization":
                    if authorization:
                        return None
                    authorization = str(value)
                elif key == "x-forwarded-for":
                    forwarded = str(value)
                elif key == FROM_EDGE:
                    is_from_edge = True
            caller = None if activity.closed else gate.recall(rule, authorization)
            if caller is None or (is_from_edge and caller.is_peer):
                return None
            encoded = prompt(raw, caller)
            if encoded is None:
                return None
            if not caller.is_peer:
                address = _address(forwarded, context.peer())
                if not limits.spend(rule.limit, ("address", address), (caller.kind.value, caller.id)):
                    if not isinstance(encoded, bytes):
                        encoded.cancel()
                    return None
            return encoded

        async def serve(raw: bytes, context: Context) -> bytes:
            began = time.monotonic()
            try:
                encoded = answer(raw, context)
                if encoded is not None and not isinstance(encoded, bytes):
                    encoded = await self._soon(encoded, meter, began)
            except Exception:  # a defect, or a request that only the patient way refuses properly
                log.exception("prompt_failed", method=meter.method)
                encoded = None
            if encoded is None:
                return (await patient(deserialize(raw), context)).SerializeToString()
            activity.last_arrival = now = time.monotonic()
            meter.prompt += 1
            taken.counts[bisect_left(BOUNDS, now - began)] += 1
            taken.seconds += now - began
            return encoded

        return serve

    async def _soon(self, answer: asyncio.Future[bytes], meter: Meter, began: float) -> bytes:
        self.activity.in_flight += 1
        try:
            return await answer
        except asyncio.CancelledError:
            meter.started += 1
            meter.end(CANCELLED, time.monotonic() - began)
            raise
        finally:
            self.activity.in_flight -= 1

    def _wrap(self, name: str, rule: Rule, handler: Handler, meter: Meter, shed: Shed) -> Callable[[Any, Context], Awaitable[Message]]:
        async def serve(request: Message | Malformed, context: Context) -> Message:
            started = time.monotonic()
            call = _call_of(name, rule, context, started)
            structlog.contextvars.bind_contextvars(request_id=call.request_id)  # of this call's task alone
            meter.started += 1
            self.activity.in_flight += 1
            self.activity.last_arrival = started
            failure: WatchwordError | None = None
            is_given_up = False
            try:
                if self.activity.closed:
                    raise ShuttingDown
                shed(call)
                async with asyncio.timeout(max(call.remaining - KEEP, 0)):
                    return await self._serve(rule, handler, request, call, context)
            except WatchwordError as error:
                failure = error
            except TimeoutError:
                failure = DeadlineExceeded()
            except asyncio.CancelledError:
                is_given_up = True
                raise
            except Exception:
                log.exception("handler_failed", method=name, request_id=call.request_id)
                failure = Internal()
            finally:
                self.activity.in_flight -= 1
                _end(call, meter, started, failure, is_given_up=is_given_up)
            return await _abort(context, call, failure)

        return serve

    def _wrap_feed(self, name: str, rule: Rule, handler: FeedHandler, meter: Meter) -> Callable[[Any, Context], AsyncIterator[Message | bytes]]:
        """A feed is a stream of one request."""

        async def follow(requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Message | bytes]:
            async for request in requests:
                async for response in handler(request, call):
                    yield response

        stream = self._wrap_stream(name, rule, follow, meter)

        async def serve(request: Any, context: Context) -> AsyncIterator[Message | bytes]:
            async def one() -> AsyncIterator[Any]:
                yield request

            async for response in stream(one(), context):
                yield response

        return serve

    def _wrap_stream(
        self, name: str, rule: Rule, handler: StreamHandler, meter: Meter
    ) -> Callable[[AsyncIterator[Any], Context], AsyncIterator[Message | bytes]]:
        async def serve(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Message | bytes]:
            started = time.monotonic()
            call = _call_of(name, rule, context, started)
            call.deadline = float("inf") if context.time_remaining() is None else started + (context.time_remaining() or 0)
            task = asyncio.current_task()
            assert task is not None
            structlog.contextvars.bind_contextvars(request_id=call.request_id)
            meter.started += 1
            self.activity.streams.add(task)
            failure: WatchwordError | None = None
            is_given_up = False
            try:
                if self.activity.ends_streams:
                    raise ShuttingDown
                await self._admit(rule, call)
                async for response in handler(self._checked(requests, meter), call):
                    meter.sent += 1
                    yield response
            except WatchwordError as error:
                failure = error
            except asyncio.CancelledError:
                if not self.activity.ends_streams:
                    is_given_up = True
                    raise
                task.uncancel()
                failure = ShuttingDown()
            except Exception:
                log.exception("handler_failed", method=name, request_id=call.request_id)
                failure = Internal()
            finally:
                self.activity.streams.discard(task)
                _end(call, meter, started, failure, is_given_up=is_given_up)
            if failure is not None:
                await _abort(context, call, failure)

        return serve

    async def _checked(self, requests: AsyncIterator[Any], meter: Meter) -> AsyncIterator[Any]:
        async for request in requests:
            meter.received += 1
            if isinstance(request, Malformed):
                raise InvalidRequest("the request is not a message of this method")
            self._validator.check(request)
            yield request

    async def _serve(self, rule: Rule, handler: Handler, request: Message | Malformed, call: Call, context: Context) -> Message:
        await self._admit(rule, call)
        if isinstance(request, Malformed):
            raise InvalidRequest("the request is not a message of this method")
        self._validator.check(request)
        call.once = _once_of(rule, request, call)
        response = await handler(request, call)
        if call.response_headers:
            await context.send_initial_metadata(tuple(call.response_headers))
        return response

    async def _admit(self, rule: Rule, call: Call) -> None:
        """Identify, limit, and let in or refuse; the refusal of a known caller is audited before it is answered.

        Who is refused more often than he may change something is told RATE_LIMITED, and nothing is written.
        """
        authorization = call.headers.get("authorization", "")
        claims_peer = not rule.public and self._gate.claims_peer(authorization)
        if claims_peer and FROM_EDGE in call.headers:
            await self._limits.take(LimitClass.READ, "address", call.address)
            raise TokenInvalid
        if not claims_peer:  # before token is asked who this is, so that the limit shields token too
            await self._limits.take(rule.limit, "address", call.address)
        try:
            call.caller = await self._gate.identify(rule, authorization)
        except Unauthenticated:
            if claims_peer or rule.limit in (LimitClass.CHECK, LimitClass.NONE):
                await self._limits.take(LimitClass.READ, "address", call.address)
            raise
        if call.caller.kind in (CallerKind.USER, CallerKind.CLIENT):
            await self._limits.take(rule.limit, call.caller.kind.value, call.caller.id)
        try:
            await self._gate.admit(rule, call.caller)
        except PermissionDenied as error:
            if self._note is not None:
                await self._limit_refusals(call.caller)
                await self._note(call, AuditEvent("access_denied", "method", call.method, outcome="failure", details={"reason": error.reason}))
            raise

    async def _limit_refusals(self, caller: Caller) -> None:
        """A refusal is written like a change, whatever the call would have cost. Its budget is its own: refusals take nothing from changes."""
        if not caller.is_peer:
            await self._limits.take(LimitClass.WRITE, f"refused-{caller.kind.value}", caller.id)


def _nothing(_call: Call) -> None:
    """Shed nobody."""


def _call_of(name: str, rule: Rule, context: Context, started: float) -> Call:
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    authorizations = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(authorizations) > 1:
        headers["authorization"] = "several"  # parses as no bearer token
    default = CREDENTIAL_DEADLINE if rule.limit is LimitClass.CREDENTIAL else DEFAULT_DEADLINE
    asked = context.time_remaining()
    return Call(
        method=name,
        request_id=_request_id(headers.get("x-request-id", "")),
        address=_address(headers.get("x-forwarded-for", ""), context.peer()),
        user_agent=_plain(headers.get("user-agent", "")),
        deadline=started + min(default if asked is None else asked, MAX_DEADLINE),
        headers=headers,
    )


def _plain(text: str) -> str:
    """Drop what no field may hold, and cut to what every field takes: a strange user agent must not break a right login."""
    return "".join(sign for sign in text if sign.isprintable()).encode()[:MAX_USER_AGENT].decode(errors="ignore")


def _request_id(given: str) -> str:
    with contextlib.suppress(ValueError):
        return str(UUID(given))
    return str(uuid4())


def _address(forwarded: str, peer: str) -> str:
    """Envoy overwrites x-forwarded-for with the address it saw; without Envoy the peer is the address."""
    if forwarded:
        return forwarded.rpartition(",")[2].strip()[:64]
    return peer.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0][:64]


def _once_of(rule: Rule, request: Message, call: Call) -> Once | None:
    text = getattr(request, "request_id", "") if rule.mutates else ""
    if not text:
        return None
    asked = request.SerializeToString(deterministic=True)
    if rule.scope and not rule.permission and call.caller.session_id:
        # What asks for a scope alone is about the caller's own session: logging out of the next one is another request.
        asked += call.caller.session_id.bytes
    return Once(UUID(text), call.method, hashlib.sha256(asked).digest())


async def _abort(context: Context, call: Call, failure: WatchwordError) -> Message:
    """End the call with `failure`. Headers that REST callers need travel in the trailers, which Envoy turns into headers."""
    encoded = status.encode(failure, request_id=call.request_id)
    trailers: list[tuple[str, str | bytes]] = [(status.DETAILS_KEY, encoded.SerializeToString())]
    if failure.retry_after is not None:
        trailers.append(("retry-after", str(max(1, -int(-failure.retry_after.total_seconds() // 1)))))
    if isinstance(failure, Unauthenticated):
        error = "" if failure.reason == "CREDENTIALS_MISSING" else ' error="invalid_token"'
        trailers.append(("www-authenticate", f"Bearer{error}"))
    await context.abort(status.grpc_code(failure), failure.text, tuple(trailers))
    raise AssertionError("abort returns never")


def _meter_of(method: MethodDescriptor, *, has_prompt: bool) -> Meter:
    kinds = {(False, False): "unary", (True, False): "client_stream", (False, True): "server_stream", (True, True): "bidi_stream"}
    kind = kinds[method.client_streaming, method.server_streaming]
    return Meter(method.containing_service.full_name, method.name, kind=kind, has_prompt=has_prompt)


def _end(call: Call, meter: Meter, started: float, failure: WatchwordError | None, *, is_given_up: bool) -> None:
    """Count a call that was not answered from memory, and log it. One that its caller gave up is nobody's failure."""
    seconds = time.monotonic() - started
    if is_given_up:
        meter.end(CANCELLED, seconds)
        return
    meter.end(OK if failure is None else int(failure.code), seconds, reason="" if failure is None else failure.reason)
    for name, value in call.response_headers:
        if name == HTTP_STATUS:
            meter.statuses[value] += 1
    _log_call(call, seconds, failure)


def _log_call(call: Call, seconds: float, failure: WatchwordError | None) -> None:
    if failure is None and not log.is_enabled_for(logging.DEBUG):
        return
    level = "error" if failure is not None and failure.reason == "INTERNAL" else "info" if failure else "debug"
    getattr(log, level)(
        "call_ended",
        method=call.method,
        outcome="OK" if failure is None else failure.code.name,
        reason="" if failure is None else failure.reason,
        caller=f"{call.caller.kind.value}:{call.caller.id}",
        address=call.address,
        request_id=call.request_id,
        milliseconds=round(seconds * 1000, 2),
    )


def services_of(servicers: Sequence[tuple[ServiceDescriptor, object]]) -> list[str]:
    """Return the full names of what is served."""
    return [service.full_name for service, _ in servicers]
