"""Resources: what lies below what. A role that is held on a resource is held on all that lies below it.

Who may place resources decides where bindings reach; the permission `resources.update` is for the applications that own the resources.
"""

from typing import TYPE_CHECKING

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.tenancy import TenantId
from services.rbac.graph import require_hierarchy
from services.rbac.model import Edge, Written

if TYPE_CHECKING:
    from services.rbac.store import RbacStore, TenantChange


class Resources:
    """Places resources."""

    def __init__(self, store: "RbacStore") -> None:
        self._store = store

    async def set_parent(self, call: Call, resource: str, parent: str) -> Written[None]:
        """Put `resource` with all below it below `parent`, or make it a root if that is empty. Raises Cycle, DepthExceeded."""

        async def effect(change: "TenantChange") -> None:
            old = await change.find_parent(resource)
            if old == parent:
                return
            if parent:
                await _require_place(change, resource, parent)
            await change.set_parent(resource, parent)
            facts = {name: text for name, text in (("parent", parent), ("old_parent", old)) if text}
            change.audit(AuditEvent("resource_moved", "resource", resource, details=facts))

        return await self._store.change(call, call.caller.tenant_id, Written[None], effect)

    async def find_parent(self, tenant_id: TenantId, resource: str) -> str:
        """Return what `resource` lies below, or an empty string."""
        return await self._store.find_parent(tenant_id, resource)


async def _require_place(change: "TenantChange", resource: str, parent: str) -> None:
    edges = await change.resource_lineage(parent, resource)
    require_hierarchy([*edges, Edge(resource, parent)], resource)
