"""Resources: what lies below what. A role that is held on a resource is held on all that lies below it.

Who may place resources decides where bindings reach; the permission `resources.update` is for the applications that own the resources.
"""

from typing import TYPE_CHECKING

from services.chassis.audit import AuditEvent
from services.chassis.pages import PageRequest
from services.chassis.tenancy import TenantId
from services.rbac.graph import require_additions
from services.rbac.model import Edge
from services.rbac.policy import PolicyEffect
from watchword.errors import EtagMismatch

if TYPE_CHECKING:
    from services.rbac.store.changing import TenantChange
    from services.rbac.store.listing import RbacStore


class Resources:
    """Says where resources lie, and how they are placed."""

    def __init__(self, store: "RbacStore") -> None:
        self._store = store

    def placing(self, resource: str, parent: str, etag: str) -> PolicyEffect[None]:
        """Return the putting of `resource` and all below it below `parent`; if that is empty, it becomes a root.

        It raises  EtagMismatch, Cycle, DepthExceeded
        """

        async def effect(change: "TenantChange") -> None:
            old = await change.find_parent(resource)
            if etag and etag != Edge(resource, old).etag:
                raise EtagMismatch
            if old == parent:
                change.take_away()
                return
            if parent:
                await _require_place(change, resource, parent)
            await change.set_parent(resource, parent)
            facts = {name: text for name, text in (("parent", parent), ("old_parent", old)) if text}
            change.audit(AuditEvent("resource_moved", "resource", resource, details=facts))

        return effect

    async def find(self, tenant_id: TenantId, resource: str) -> Edge:
        """Return what `resource` lies below: an empty string for a root."""
        return Edge(resource, await self._store.find_parent(tenant_id, resource))

    async def list_page(self, tenant_id: TenantId, page: PageRequest, *, parent: str) -> list[Edge]:
        """Return a page of resources with their parents, and one more, by name; of those directly below `parent`, if it is given."""
        return await self._store.list_resources(tenant_id, page.after[0] if page.after else "", page.size + 1, parent=parent)


async def _require_place(change: "TenantChange", resource: str, parent: str) -> None:
    require_additions([Edge(resource, parent)], await change.edges_above([parent]), await change.place_heights([resource]))
