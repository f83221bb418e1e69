"""Every failure travels as itself: what the server raises is what the client catches."""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from watchword import errors, status
from watchword.errors import BY_REASON, Internal, Unavailable, Violation, WatchwordError
from watchword.errors.v1 import reason_pb2

LEAVES = sorted(BY_REASON.values(), key=lambda cls: cls.reason)
REASONS = set(reason_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


def failed(code: grpc.StatusCode, *trailers: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details="what a proxy says")


def over_the_wire(error: WatchwordError) -> WatchwordError:
    encoded = status.encode(error).SerializeToString()
    return status.decode(failed(status.grpc_code(error), (status.DETAILS_KEY, encoded)))


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda cls: cls.reason)
def test_a_failure_decodes_to_the_class_that_was_raised(leaf: type[WatchwordError]) -> None:
    """Callers catch classes: text is for people."""
    raised = leaf(
        "words",
        violations=[Violation("user.email", "must be an address"), Violation("names[3]", "is required")],
        retry_after=timedelta(seconds=1, microseconds=250_001),
        metadata={"kind": "x"},
    )

    caught = over_the_wire(raised)

    assert type(caught) is leaf
    assert (caught.text, caught.violations, caught.retry_after, caught.metadata) == (
        "words",
        raised.violations,
        raised.retry_after,
        {"kind": "x"},
    )


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda cls: cls.reason)
def test_a_failure_without_details_invents_none(leaf: type[WatchwordError]) -> None:
    """A retry_after of zero would make clients hammer."""
    caught = over_the_wire(leaf())

    assert (type(caught), caught.text) == (leaf, leaf.message)
    assert (caught.violations, caught.retry_after, caught.metadata) == ((), None, {})


def test_classes_and_the_contract_name_the_same_reasons() -> None:
    """A reason without a class is unreachable; a class without a reason is undocumented."""
    assert set(BY_REASON) == REASONS


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda cls: cls.reason)
def test_the_contract_says_the_code_of_each_reason(leaf: type[WatchwordError]) -> None:
    """The comment in reason.proto begins with the canonical code."""
    from pathlib import Path

    lines = (Path(__file__).parents[2] / "protos/watchword/errors/v1/reason.proto").read_text(encoding="utf-8").splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip().startswith(f"{leaf.reason} ="))
    assert lines[at - 1].strip().startswith(f"// {leaf.code.name}: ")


def test_every_class_is_a_leaf_or_shares_the_reason_of_one_below_it() -> None:
    """Otherwise `except Leaf` at a client would miss what `raise Base` sent."""
    every = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, WatchwordError)]
    assert all(issubclass(BY_REASON[cls.reason], cls) for cls in every)


def test_messages_are_fit_for_strangers() -> None:
    """No placeholder that code would fill with an id, no statement."""
    assert all(not set("{}%$\n") & set(leaf.message) for leaf in LEAVES)


def test_the_request_id_finds_the_failure_in_the_log() -> None:
    info = error_details_pb2.ErrorInfo()
    status.encode(Internal(), request_id="abc").details[0].Unpack(info)

    assert (info.domain, info.reason, info.metadata["request_id"]) == ("watchword", "INTERNAL", "abc")


CODES = [
    (grpc.StatusCode.UNAVAILABLE, errors.DependencyUnavailable),
    (grpc.StatusCode.UNAUTHENTICATED, errors.TokenInvalid),
    (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.RateLimited),
    (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
    (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
    (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
    (grpc.StatusCode.INTERNAL, Internal),
    (grpc.StatusCode.UNKNOWN, Unavailable),
    (grpc.StatusCode.CANCELLED, Unavailable),
]


@pytest.mark.parametrize(("code", "expected"), CODES, ids=str)
def test_a_status_that_a_proxy_made_becomes_the_nearest_failure(code: grpc.StatusCode, expected: type[WatchwordError]) -> None:
    """And the proxy's words are not shown as ours."""
    caught = status.decode(failed(code))

    assert type(caught) is expected
    assert "proxy" not in caught.text


@pytest.mark.parametrize("other", [{"reason": "SOMETHING_NEW"}, {}], ids=str)
def test_a_reason_from_a_later_release_falls_back_to_its_code(other: dict[str, Any]) -> None:
    """An old client in front of a new server."""
    encoded = status.encode(errors.NotFound())
    encoded.details[0].Pack(error_details_pb2.ErrorInfo(domain="watchword", **other))

    caught = status.decode(failed(grpc.StatusCode.NOT_FOUND, (status.DETAILS_KEY, encoded.SerializeToString())))

    assert type(caught) is errors.NotFound
