"""A guard for grpc.aio servers: `grpc.aio.server(interceptors=[TokenGuard(verifier, {...})])`.

Closed by default: a method that the rules do not name is refused. Handlers must be coroutines; those that stream may yield or write.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc

from watchword import status
from watchword.client import Client
from watchword.errors import InvalidRequest, PermissionDenied, Unauthenticated, Unavailable, WatchwordError
from watchword.guards import Admission, Requirement, bearer, enter
from watchword.permissions import Permissions
from watchword.verifier import TokenVerifier

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = grpc.aio.ServicerContext[Any, Any]
Details = grpc.HandlerCallDetails
Guarded = (Unauthenticated, PermissionDenied, Unavailable, InvalidRequest)


class TokenGuard(grpc.aio.ServerInterceptor):
    """Lets calls with a good token and what their method requires through.

    rules     what each method requires, by `/package.Service/Method`, or by `/package.Service/*` for the rest of a service
    audience  instead of the verifier's
    client    what asks for permissions instead of the verifier's channel, such as one with a cache
    """

    def __init__(self, verifier: TokenVerifier, rules: Mapping[str, Requirement], *, audience: str = "", client: Client | None = None) -> None:
        self._verifier = verifier
        self._permissions = Permissions(verifier, client)
        self._rules = rules
        self._audience = audience

    async def intercept_service(self, continuation: Callable[[Details], Awaitable["Handler | None"]], details: Details) -> "Handler | None":
        """Put the guard before the method's handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        service = details.method.rpartition("/")[0]
        rule = self._rules.get(details.method) or self._rules.get(f"{service}/*")
        if rule is not None and (rule.resource or rule.context) and handler.request_streaming:
            raise TypeError(f"{details.method} streams requests: there is no one request to name a resource or context by")
        return self._guarded(handler, rule)

    def _guarded(self, handler: Handler, rule: Requirement | None) -> Handler:
        make, inner = _parts(handler)

        async def unary(request: Any, context: Context) -> Any:
            try:
                await self._admit(rule, None if handler.request_streaming else request, context)
                return await inner(request, context)
            except Guarded as error:
                return await _abort(context, error)

        async def streaming(request: Any, context: Context) -> None:
            try:
                await self._admit(rule, None if handler.request_streaming else request, context)
                answers = inner(request, context)
                if not hasattr(answers, "__aiter__"):
                    await answers
                    return
                async for answer in answers:
                    await context.write(answer)
            except Guarded as error:
                await _abort(context, error)

        guarded: Handler = make(
            streaming if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return guarded

    async def _admit(self, rule: Requirement | None, request: Any, context: Context) -> None:
        enter(None)
        if rule is None:
            raise PermissionDenied
        if rule.is_public:
            return
        values = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        principal = await self._verifier.check(bearer(values), audience=self._audience)
        admission = Admission(principal, self._permissions, request)
        await rule.enforce(admission)
        enter(admission)


def _parts(handler: Handler) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what makes a handler of this one's kind, and its behaviour."""
    kinds: dict[tuple[bool, bool], tuple[Callable[..., Any], Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    return kinds[bool(handler.request_streaming), bool(handler.response_streaming)]


async def _abort(context: Context, error: WatchwordError) -> Any:
    """End the call with google.rpc.Status, as the suite's own services do."""
    details = (status.DETAILS_KEY, status.encode(error).SerializeToString())
    await context.abort(status.grpc_code(error), error.text, (details,))
