"""Calls to other contexts, through Envoy's internal listener, with this service's identity, the caller's deadline and request id.

A peer's failure is raised as the same class that the peer raised. What is about the credential of *this service* is our defect or a deployment's,
never the caller's: it becomes DependencyUnavailable, so that no user is told to log in because two services disagree.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog

from services.chassis import telemetry
from services.chassis.call import Call
from services.chassis.edge import KEEP
from services.chassis.service_identity import ServiceIdentity
from services.chassis.settings import ChassisSettings
from watchword import status
from watchword.errors import CredentialsMissing, DependencyUnavailable, Internal, PermissionDenied, TokenInvalid, WatchwordError

Rpc = Callable[..., Any]
MAX_MESSAGE = 4 * 1024 * 1024  # bytes
NO_DEADLINE = 5.0  # seconds, for work that no caller waits for

log = structlog.get_logger()


@asynccontextmanager
async def channel(settings: ChassisSettings) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to the internal listener."""
    options = [
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.keepalive_time_ms", 30_000),
    ]
    interceptors = telemetry.Spans.tracing.of_channel if telemetry.Spans.tracing else None
    if settings.TLS_CA:
        pair = (settings.TLS_KEY.reveal().encode() or None, settings.TLS_CERT.encode() or None)
        credentials = grpc.ssl_channel_credentials(settings.TLS_CA.encode(), *pair)
        opened = grpc.aio.secure_channel(settings.INTERNAL_GRPC_ADDRESS, credentials, options=options, interceptors=interceptors)
    else:
        opened = grpc.aio.insecure_channel(settings.INTERNAL_GRPC_ADDRESS, options=options, interceptors=interceptors)
    async with opened:
        yield opened


class Peer:
    """Another context: `await peer.ask(stub.Method, request, call)`."""

    def __init__(self, name: str, identity: ServiceIdentity) -> None:
        self._name = name
        self._identity = identity

    async def ask(self, rpc: Rpc, request: Any, call: Call | None = None, *, answers: tuple[type[WatchwordError], ...] = ()) -> Any:
        """Return the peer's answer. Raises what the peer raised, or DependencyUnavailable.

        answers  failures that speak of the request here, though elsewhere they would speak of this service's credential
        """
        timeout = NO_DEADLINE if call is None else max(call.remaining - KEEP, 0.001)
        metadata = [("authorization", f"Bearer {self._identity.token_for(self._name)}")]
        if request_id := telemetry.request_id() if call is None else call.request_id:
            metadata.append(("x-request-id", request_id))
        try:
            return await rpc(request, timeout=timeout, metadata=tuple(metadata))
        except grpc.aio.AioRpcError as error:
            failure = status.decode(error)
            if type(failure) in answers:
                raise failure from error
            if isinstance(failure, (CredentialsMissing, PermissionDenied, Internal)) or type(failure) is TokenInvalid:
                log.error("peer_refused", peer=self._name, reason=failure.reason, text=error.details())
                raise DependencyUnavailable from error
            raise failure from error
