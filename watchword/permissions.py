"""Whether somebody whose token was verified may do something: PermissionService decides, at the moment of the question.

A token's scopes bound what it may be used for. A client's own token, and one that somebody acts with for another, may therefore do only what is among
its scopes and permitted; the token of a person's own session, whatever the account may.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from watchword.client import Client
from watchword.decisions import Decision, Outcome, Reason, Subject, SubjectType
from watchword.errors import InvalidRequest, Unavailable, WatchwordError
from watchword.principal import Principal
from watchword.tokens import SubjectKind

if TYPE_CHECKING:
    from watchword.verifier import TokenVerifier

_TYPES = {SubjectKind.USER: SubjectType.USER, SubjectKind.CLIENT: SubjectType.CLIENT}
OUT_OF_SCOPE = Decision(Outcome.DENY, Reason.NO_PERMISSION)  # of a token, whatever its subject may

log = logging.getLogger("watchword")


class Permissions:
    """Asks for permissions with credentials that have the scope permissions.check: those of the verifier, on its channel, or another client's."""

    def __init__(self, verifier: "TokenVerifier", client: Client | None = None) -> None:
        self._client = client or Client(verifier)

    async def allows(self, principal: Principal, permission: str, resource: str = "", *, context: Mapping[str, Any] | None = None) -> bool:
        """Whether `principal` may do `permission` (`type.verb`) to `resource` (`type/id`; empty: in the whole tenant), now.

        Raises  Unavailable if that cannot be known, whatever the cause; InvalidRequest if the question is not well formed
        """
        return (await self.decide(principal, permission, resource, context=context)).allowed

    async def decide(self, principal: Principal, permission: str, resource: str = "", *, context: Mapping[str, Any] | None = None) -> Decision:
        """Return the decision about `principal`, with the strength and time of its login. Raises as `allows`."""
        if is_bounded(principal) and permission not in principal.scopes:
            return OUT_OF_SCOPE
        subject = Subject(_TYPES[principal.kind], principal.subject)
        try:
            return await self._client.check(subject, permission, resource, context=context, acr=principal.acr, auth_time=principal.auth_time)
        except WatchwordError as error:
            raise _unknown(error) from None


def is_bounded(principal: Principal) -> bool:
    """Whether a token may do only what is among its scopes."""
    return principal.kind is SubjectKind.CLIENT or bool(principal.actors)


def _unknown(error: WatchwordError) -> WatchwordError:
    """A refusal of this process is not the caller's fault, and says nothing of what the caller may."""
    log.warning("a permission could not be asked for: %s", error.reason)
    return error if isinstance(error, InvalidRequest) else Unavailable()
