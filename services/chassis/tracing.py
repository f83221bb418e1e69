"""Spans: where a call spent its time, from Envoy through every service that it reached, sent to a collector by OTLP.

Loaded only when OTEL_EXPORTER_OTLP_ENDPOINT is set (telemetry.py). Envoy begins the trace and decides whether it is recorded; the W3C header
`traceparent` carries both on. A span names the RPC, its status and the request id: nothing of the request, and nobody. Streams have no span, because
they last for hours.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis.settings import ChassisSettings

EXPORT_TIMEOUT = 2.0  # seconds; a collector that is away must not hold up the end of a process
REQUEST_ID = "guid:x-request-id"  # Envoy's name of it
OWN = "/watchword."  # health checks and reflection have no spans

_W3C = TraceContextTextMapPropagator()
# What a caller did wrong is no error of this service.
_OUR_ERRORS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


class Tracing:
    """The way of spans out of this process."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("watchword")

    @classmethod
    def begin(cls, settings: ChassisSettings, service: str) -> "Tracing":
        """Send spans to the settings' endpoint from now on. OpenTelemetry's other OTEL_ variables hold as they are."""
        names = {"service.name": service, "service.namespace": "watchword"}
        facts = {"service.version": settings.APP_VERSION, "service.instance.id": settings.INSTANCE_ID}
        provider = TracerProvider(resource=Resource.create({**names, **facts}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=settings.OTEL_EXPORTER_OTLP_ENDPOINT, timeout=EXPORT_TIMEOUT)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @property
    def of_server(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """What a server needs."""
        return [ServerSpans(self._tracer)]

    @property
    def of_channel(self) -> Sequence[grpc.aio.ClientInterceptor]:
        """What a channel needs."""
        return [ClientSpans(self._tracer)]

    def end(self) -> None:
        """Send what is left, and no more."""
        self._provider.shutdown()


def present(_logger: Any, _method: str, event: Any) -> Any:
    """Add the ids of the present span to a log event (a structlog processor)."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"], event["span_id"] = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return event


class ServerSpans(grpc.aio.ServerInterceptor):
    """A span around each unary call that is served."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the handler with a span around it."""
        method = str(handler_call_details.method)
        handler = await continuation(handler_call_details)
        if handler is None or not handler.unary_unary or not method.startswith(OWN):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._around(method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _around(self, method: str, serve: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def traced(request: Any, context: Any) -> Any:
            headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            facts = {**_facts(method), REQUEST_ID: headers.get("x-request-id", "")}
            parent = _W3C.extract(headers)
            with self._tracer.start_as_current_span(
                method[1:], parent, SpanKind.SERVER, facts, record_exception=False, set_status_on_exception=False
            ) as span:
                try:
                    return await serve(request, context)
                finally:
                    _close(span, context.code() or grpc.StatusCode.OK, _OUR_ERRORS)

        return traced


class ClientSpans(grpc.aio.UnaryUnaryClientInterceptor):
    """A span around each call that this process makes on behalf of one that it serves."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def intercept_unary_unary(self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        """Carry the trace on."""
        if not trace.get_current_span().get_span_context().is_valid:
            return await continuation(client_call_details, request)
        method = client_call_details.method.decode() if isinstance(client_call_details.method, bytes) else str(client_call_details.method)
        with self._tracer.start_as_current_span(method[1:], None, SpanKind.CLIENT, _facts(method)) as span:
            call = await continuation(_carrying(client_call_details), request)
            with suppress(grpc.RpcError):
                _close(span, await call.code(), set(grpc.StatusCode) - {grpc.StatusCode.OK})
            return call


def _carrying(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
    """Return the details of a call with the header that names the present span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    metadata = grpc.aio.Metadata(*(details.metadata or ()), *carrier.items())
    return grpc.aio.ClientCallDetails(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)


def _facts(method: str) -> Mapping[str, str]:
    service, _, name = method[1:].partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def _close(span: trace.Span, code: Any, errors: set[grpc.StatusCode]) -> None:
    """Note the status; grpc gives it as its number, too."""
    known = code if isinstance(code, grpc.StatusCode) else next(one for one in grpc.StatusCode if one.value[0] == code)
    span.set_attribute("rpc.grpc.status_code", known.value[0])
    if known in errors:
        span.set_status(StatusCode.ERROR, known.name)
