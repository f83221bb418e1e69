"""One call at a time, over gRPC or REST: it is made, its answer is read, and what the answer says is returned.

A REST call is HTTP/1.1 on a connection that is kept, written and read by hand: a client library would cost more than the edge that is measured.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.rpc import error_details_pb2, status_pb2

from watchword.identity.v1 import authentication_pb2
from watchword.rbac.v1 import permission_pb2
from watchword.token.v1 import token_pb2

CALL_LIMIT = 10.0  # seconds
STATUS = "grpc-status-details-bin"
Call = Callable[[bytes], Awaitable[str]]


def _verified(answer: token_pb2.VerifyTokenResponse) -> Iterator[str]:
    yield token_pb2.TokenStatus.Name(answer.status)


def _checked(answer: permission_pb2.CheckPermissionResponse) -> Iterator[str]:
    yield permission_pb2.Decision.Name(answer.decision)


def _logged_in(answer: authentication_pb2.LoginResponse) -> Iterator[str]:
    yield "SESSION" if answer.tokens.access_token and answer.tokens.refresh_token else "NOTHING"


METHODS: dict[str, tuple[str, Any, Callable[[Any], Iterator[str]]]] = {
    "VerifyToken": ("/watchword.token.v1.TokenService/VerifyToken", token_pb2.VerifyTokenResponse, _verified),
    "CheckPermission": ("/watchword.rbac.v1.PermissionService/CheckPermission", permission_pb2.CheckPermissionResponse, _checked),
    "Login": ("/watchword.identity.v1.AuthenticationService/Login", authentication_pb2.LoginResponse, _logged_in),
}


class Grpc:
    """Calls of one method on one channel."""

    def __init__(self, channel: grpc.aio.Channel, method: str, authorization: str, limit: float = CALL_LIMIT) -> None:
        path, answer_class, self._reading = METHODS[method]
        self._rpc: Any = channel.unary_unary(path, request_serializer=bytes, response_deserializer=answer_class.FromString)
        self._metadata = (("authorization", authorization),) if authorization else ()
        self._limit = limit

    async def __call__(self, request: bytes) -> str:
        """Return what the answer says, or the reason of a refusal and whether it tells when to come back."""
        try:
            return next(self._reading(await self._rpc(request, metadata=self._metadata, timeout=self._limit)))
        except grpc.aio.AioRpcError as error:
            return refusal(error)


def refusal(error: grpc.aio.AioRpcError) -> str:
    """Say what an error says: its code, its reason, and whether it carries a RetryInfo."""
    words = [error.code().name]
    for key, value in error.trailing_metadata() or ():
        if key == STATUS:
            details = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode()).details
            words += [found for detail in details if (found := _detail(detail))]
    return " ".join(words)


def _detail(detail: Any) -> str:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        return str(info.reason)
    return "RetryInfo" if detail.Unpack(retry) and retry.retry_delay.ToMilliseconds() > 0 else ""


class Rest:
    """POSTs to one path; each takes a connection that is free, or opens one. `member` of the JSON is what the answer says."""

    def __init__(self, url: str, authorization: str, member: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._member = parts.hostname or "", parts.port or 80, member
        lines = (f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json", f"authorization: {authorization}")
        self._head = "\r\n".join(lines).encode()
        self._free: list[_Connection] = []

    async def __call__(self, body: bytes) -> str:
        """Return what the answer says."""
        connection = await self._connection()
        status, answer = await connection.exchange(b"%b\r\ncontent-length: %d\r\n\r\n%b" % (self._head, len(body), body))
        self._free.append(connection)
        return str(json.loads(answer)[self._member]) if status == b"200" else f"HTTP {status.decode()}"

    async def _connection(self) -> "_Connection":
        while self._free:
            if not (connection := self._free.pop()).is_closed:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        """Close the connections, which must all be free."""
        for connection in self._free:
            connection.close()


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with at most one request under way; answers must say their length, as Envoy's do."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def is_closed(self) -> bool:
        """Whether the edge closed it, or is about to."""
        return self._transport.is_closing()

    def exchange(self, request: bytes) -> "asyncio.Future[tuple[bytes, bytes]]":
        """Send; the future is status and body."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, separator, body = self._read.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length and self._waiting is not None and not self._waiting.done():
            self._read = b""
            self._waiting.set_result((head[9:12], body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error or EOFError("the edge closed the connection"))

    def close(self) -> None:
        with suppress(OSError):
            self._transport.close()
