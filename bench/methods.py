"""What the load calls and the echo imitates: the messages of each method, and what an answer says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from watchword.rbac.v1 import permission_pb2
from watchword.token.v1 import token_pb2


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `reading` yields what an answer says, once for each thing that was asked."""

    path: str
    request: Any
    answer: Any
    reading: Callable[[Any], Iterator[str]]

    @property
    def name(self) -> str:
        """The method alone."""
        return self.path.rpartition("/")[2]


def _verified(answer: token_pb2.VerifyTokenResponse) -> Iterator[str]:
    yield token_pb2.TokenStatus.Name(answer.status)


def _all_verified(answer: token_pb2.BatchVerifyTokensResponse) -> Iterator[str]:
    for one in answer.responses:
        yield from _verified(one)


def _issued(answer: token_pb2.IssueTokenResponse) -> Iterator[str]:
    kind = "ACCESS_AND_REFRESH" if answer.tokens.refresh_token else "ACCESS"
    yield kind if answer.tokens.access_token else "NOTHING"


def _decided(answer: permission_pb2.CheckPermissionResponse) -> Iterator[str]:
    yield permission_pb2.Decision.Name(answer.decision)


def _all_decided(answer: permission_pb2.BatchCheckPermissionsResponse) -> Iterator[str]:
    for one in answer.responses:
        yield from _decided(one)


def _found(answer: permission_pb2.LookupResourcesResponse) -> Iterator[str]:
    allowed = sum(found.decision == permission_pb2.ALLOW for found in answer.resources)
    yield f"{allowed} ALLOW{', and more' if answer.next_page_token else ''}"


_TOKEN, _PERMISSION = "/watchword.token.v1.TokenService/", "/watchword.rbac.v1.PermissionService/"
METHODS = {
    method.name: method
    for method in (
        Method(f"{_TOKEN}VerifyToken", token_pb2.VerifyTokenRequest, token_pb2.VerifyTokenResponse, _verified),
        Method(f"{_TOKEN}BatchVerifyTokens", token_pb2.BatchVerifyTokensRequest, token_pb2.BatchVerifyTokensResponse, _all_verified),
        Method(f"{_TOKEN}IssueToken", token_pb2.IssueTokenRequest, token_pb2.IssueTokenResponse, _issued),
        Method(f"{_PERMISSION}CheckPermission", permission_pb2.CheckPermissionRequest, permission_pb2.CheckPermissionResponse, _decided),
        Method(
            f"{_PERMISSION}BatchCheckPermissions",
            permission_pb2.BatchCheckPermissionsRequest,
            permission_pb2.BatchCheckPermissionsResponse,
            _all_decided,
        ),
        Method(f"{_PERMISSION}LookupResources", permission_pb2.LookupResourcesRequest, permission_pb2.LookupResourcesResponse, _found),
    )
}
