"""Whether somebody whose token was verified may do something: PermissionService decides, at the moment of the question.

A token's scopes bound what it may be used for. A client's own token, and one that somebody acts with for another, may therefore do only what is among
its scopes and permitted; the token of a person's own session, whatever the account may.
"""

import logging
from typing import TYPE_CHECKING

import grpc

from watchword import status
from watchword.errors import InvalidRequest, Unavailable, WatchwordError
from watchword.principal import Principal
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.tokens import SubjectKind

if TYPE_CHECKING:
    from watchword.verifier import TokenVerifier

DEADLINE = 2.0  # seconds
_TYPES = {SubjectKind.USER: rbac_pb2.SUBJECT_TYPE_USER, SubjectKind.CLIENT: rbac_pb2.SUBJECT_TYPE_CLIENT}

log = logging.getLogger("watchword")


class Permissions:
    """Asks for permissions, on the verifier's channel and with its credentials, which need the scope permissions.check."""

    def __init__(self, verifier: "TokenVerifier") -> None:
        self._verifier = verifier

    async def allows(self, principal: Principal, permission: str, resource: str = "") -> bool:
        """Whether `principal` may do `permission` (`type.verb`) to `resource` (`type/id`; empty: in the whole tenant), now.

        Raises  Unavailable if that cannot be known, whatever the cause; InvalidRequest if permission or resource is not well formed
        """
        if is_bounded(principal) and permission not in principal.scopes:
            return False
        stub: permission_pb2_grpc.PermissionServiceAsyncStub = permission_pb2_grpc.PermissionServiceStub(self._verifier.channel)
        subject = rbac_pb2.Subject(type=_TYPES[principal.kind], id=principal.subject)
        question = permission_pb2.CheckPermissionRequest(subject=subject, permission=permission, resource=resource)
        try:
            answer = await stub.CheckPermission(question, metadata=await self._verifier.own.metadata(), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            raise _unknown(status.decode(error)) from None
        except WatchwordError as error:  # of this process's own credentials
            raise _unknown(error) from None
        return answer.decision == permission_pb2.ALLOW


def is_bounded(principal: Principal) -> bool:
    """Whether a token may do only what is among its scopes."""
    return principal.kind is SubjectKind.CLIENT or bool(principal.actors)


def _unknown(error: WatchwordError) -> WatchwordError:
    """A refusal of this process is not the caller's fault, and says nothing of what the caller may."""
    log.warning("a permission could not be asked for: %s", error.reason)
    return error if isinstance(error, InvalidRequest) else Unavailable()
