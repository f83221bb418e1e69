"""WatchPermissions: what happens to a policy, as protobuf."""

from collections.abc import AsyncIterator
from typing import Protocol

from services.chassis.call import Call, Caller
from services.chassis.coherence import now
from services.chassis.consistency import ConsistencyTokens
from services.chassis.tenancy import TenantId
from services.rbac.messages import wire_subject
from services.rbac.watch import Complete, Event, Told, Watching
from watchword.errors import InvalidRequest, PermissionDenied, ResourceExhausted
from watchword.rbac.v1 import permission_pb2

MAX_WATCHERS = 5_000  # of one instance
MAX_ENCODED = 64  # changes that are kept encoded, of all tenants
NO_REVISION = -1
PERMISSION = "permissions.check"  # or the scope of this name

Response = permission_pb2.WatchPermissionsResponse


class Authenticator(Protocol):
    """Says whether a caller's token is still good."""

    async def authenticate(self, token: str) -> Caller:
        """Raises TokenInvalid."""


class Decider(Protocol):
    """Says whether a caller holds a permission of the suite, now."""

    async def allows(self, caller: Caller, permission: str) -> bool:
        """Return whether `caller` holds `permission` tenant-wide. Raises DependencyUnavailable."""


class WatchServicer:
    """Serves WatchPermissions. A cursor is a consistency token: of this deployment, of one tenant, at a revision of its policy."""

    def __init__(self, watching: Watching, consistency: ConsistencyTokens, authenticator: Authenticator, decider: Decider) -> None:
        self._watching = watching
        self._consistency = consistency
        self._authenticator = authenticator
        self._decider = decider
        self._encoded: dict[tuple[TenantId, int], tuple[Told, bytes]] = {}
        self.watchers = 0

    async def WatchPermissions(self, request: permission_pb2.WatchPermissionsRequest, call: Call) -> AsyncIterator[Response | bytes]:
        """Stream what happens from the cursor on, while the caller could still begin to."""
        if self.watchers >= MAX_WATCHERS:
            raise ResourceExhausted("too many watch this instance; try again")
        began, tenant_id = now(), call.caller.tenant_id
        self.watchers += 1
        try:
            async for event in self._watching.follow(tenant_id, self._since(request.cursor, call)):
                await self._require_caller(call)
                yield self._response(event, call, began)
        finally:
            self.watchers -= 1

    async def _require_caller(self, call: Call) -> None:
        """Return if the caller may be told. Raises TokenInvalid, PermissionDenied, DependencyUnavailable."""
        await self._authenticator.authenticate(call.caller.token)
        if PERMISSION not in call.caller.scopes and not await self._decider.allows(call.caller, PERMISSION):
            raise PermissionDenied

    def _since(self, cursor: str, call: Call) -> int | None:
        """Return the revision of a cursor; None to begin now. One that is not ours is of no revision that ever was: then all is told to be lost."""
        if not cursor:
            return None
        try:
            return self._consistency.read(cursor, call.caller.tenant_id, "cursor")
        except InvalidRequest:
            return NO_REVISION

    def _response(self, event: Event, call: Call, began: float) -> Response | bytes:
        if isinstance(event, Told):
            return self._told(event, call.caller.tenant_id)
        token = self._consistency.write(call.caller.tenant_id, event.revision)
        if isinstance(event, Complete):
            response = Response(checkpoint=Response.Checkpoint(consistency_token=token), cursor=token)
            response.checkpoint.elapsed.FromNanoseconds(max(0, int((event.at - began) * 1e9)))
            return response
        return Response(reset=Response.Reset(), cursor=token)

    def _told(self, told: Told, tenant_id: TenantId) -> bytes:
        """Return a change, encoded once for all who watch: it may name a thousand subjects, and all watchers are told in one turn of the loop."""
        key = tenant_id, told.revision
        known, encoded = self._encoded.get(key, (None, b""))
        if known != told:  # in a restored database another change may have the revision
            token = self._consistency.write(tenant_id, told.revision)
            change = permission_pb2.PermissionChange(all_subjects=told.subjects is None, consistency_token=token)
            change.subjects.extend(map(wire_subject, told.subjects or ()))
            encoded = Response(change=change, cursor=token).SerializeToString()
            self._encoded[key] = told, encoded
            if len(self._encoded) > MAX_ENCODED:
                del self._encoded[next(iter(self._encoded))]
        return encoded
