"""Failures on the wire: `watchword.errors` to google.rpc.Status with ErrorInfo, BadRequest and RetryInfo, and back. Source: AIP-193."""

from datetime import timedelta

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from watchword.errors import BY_REASON, Internal, Unavailable, Violation, WatchwordError

DOMAIN = "watchword"
DETAILS_KEY = "grpc-status-details-bin"
_BY_CODE = {status.value[0]: status for status in grpc.StatusCode}


def encode(error: WatchwordError, *, request_id: str = "") -> status_pb2.Status:
    """Return `error` as a status with machine-readable details."""
    metadata = dict(error.metadata)
    if request_id:
        metadata["request_id"] = request_id
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.violations:
        fields = [error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description) for v in error.violations]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=int(error.code), message=error.text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def grpc_code(error: WatchwordError) -> grpc.StatusCode:
    """Return grpc's name of the error's code."""
    return _BY_CODE[int(error.code)]


def decode(error: grpc.RpcError) -> WatchwordError:
    """Return what a failed call raised at the server; a failure that never reached one is `Unavailable`."""
    status = _status_of(error)
    if status is None:
        return _bare(error)
    reason, metadata, violations = "", dict[str, str](), list[Violation]()
    retry_after: timedelta | None = None
    for packed in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            violations = [Violation(v.field, v.description) for v in bad.field_violations]
        elif packed.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
    leaf = BY_REASON.get(reason)
    if leaf is None:
        return _bare(error)
    return leaf(status.message, violations=violations, retry_after=retry_after, metadata=metadata)


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    trailing = error.trailing_metadata() if isinstance(error, (grpc.aio.AioRpcError, grpc.Call)) else None
    for key, value in trailing or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _bare(error: grpc.RpcError) -> WatchwordError:
    """A status without our details: a proxy, or grpc itself, made it."""
    code = error.code() if isinstance(error, (grpc.aio.AioRpcError, grpc.Call)) else grpc.StatusCode.UNAVAILABLE
    for leaf in BY_REASON.values():
        if code is not None and int(leaf.code) == code.value[0] and code is not grpc.StatusCode.INTERNAL:
            return leaf()
    return Unavailable() if code is not grpc.StatusCode.INTERNAL else Internal()
