"""How resources are written, and what a change asks about them."""

from services.rbac.store.rows import FIND_PARENT
from services.rbac.store.transaction import PolicyTransaction


class ResourceWrites(PolicyTransaction):
    """Resources inside a change."""

    async def find_parent(self, resource: str) -> str:
        """Return what a resource lies below, or an empty string."""
        row = await self._row(FIND_PARENT, resource)
        return "" if row is None else str(row["parent"])

    _SET_PARENT = """
        INSERT INTO resource (tenant_id, name, parent) VALUES ($1, $2, $3) ON CONFLICT (tenant_id, name) DO UPDATE SET parent = excluded.parent
    """
    _DELETE_RESOURCE = "DELETE FROM resource WHERE tenant_id = $1 AND name = $2"

    async def set_parent(self, resource: str, parent: str) -> None:
        """Put a resource below another, or make it a root."""
        old, new = await self._places_above(resource), await self._places_above(parent) if parent else []
        await self.touch(places=[resource], above=[*old, *new])
        if parent:
            await self._write(self._SET_PARENT, resource, parent)
        else:
            await self._write(self._DELETE_RESOURCE, resource)

    _PLACES_ABOVE = """
        WITH RECURSIVE place AS (
            SELECT $2::text COLLATE "C" AS name
            UNION
            SELECT r.parent FROM place p JOIN resource r ON r.tenant_id = $1 AND r.name = p.name
        )
        SELECT name FROM place
    """

    async def _places_above(self, resource: str) -> list[str]:
        """Return a resource and all it lies below."""
        return [row["name"] for row in await self._rows(self._PLACES_ABOVE, resource)]
