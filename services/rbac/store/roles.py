"""How roles are written, and what a change asks about them."""

from collections.abc import Sequence
from uuid import UUID

from services.rbac.model import Edge, Role
from services.rbac.store.rows import FIND_ROLE, ROLE, edges_of, found, role_of
from services.rbac.store.transaction import PolicyTransaction
from watchword.errors import NotFound


class RoleWrites(PolicyTransaction):
    """Roles inside a change."""

    async def get_role(self, role_id: UUID) -> Role:
        """Return a role. Raises NotFound."""
        return role_of(found(await self._row(FIND_ROLE, role_id)))

    _FIND_ROLE_NAMED = f"{ROLE} WHERE r.tenant_id = $1 AND r.name = $2"

    async def find_role_named(self, name: str) -> Role | None:
        """Return the role of that name."""
        row = await self._row(self._FIND_ROLE_NAMED, name)
        return None if row is None else role_of(row)

    _ENSURE_SYSTEM_ROLES = "SELECT ensure_system_roles($1)"
    _HAS_SYSTEM_ROLES = "SELECT EXISTS (SELECT 1 FROM role WHERE tenant_id = $1 AND system)"

    async def ensure_system_roles(self) -> None:
        """Give the tenant the suite's own roles, as far as it has them not. Those that it has are rewritten, if they say something else."""
        is_new = not await self._connection.fetchval(self._HAS_SYSTEM_ROLES, self._tenant_id)
        if not is_new:
            self.touch_everything()
        await self._write(self._ENSURE_SYSTEM_ROLES, only_gives=is_new)

    _NAME_ROLES = "SELECT name FROM role WHERE tenant_id = $1 AND id = ANY($2::uuid[])"

    async def name_roles(self, role_ids: Sequence[UUID]) -> list[str]:
        """Return the names of roles. Raises NotFound unless all exist."""
        if not role_ids:
            return []
        names = [row["name"] for row in await self._rows(self._NAME_ROLES, role_ids)]
        if len(names) != len(set(role_ids)):
            raise NotFound
        return names

    # Above $2, and below $3, as pairs of names.
    _ROLE_LINEAGE = """
        WITH RECURSIVE above AS (
            SELECT role_id, parent_id FROM role_parent WHERE tenant_id = $1 AND role_id = ANY($2::uuid[])
            UNION
            SELECT p.role_id, p.parent_id FROM above a JOIN role_parent p ON p.tenant_id = $1 AND p.role_id = a.parent_id
        ), below AS (
            SELECT role_id, parent_id FROM role_parent WHERE tenant_id = $1 AND parent_id = $3
            UNION
            SELECT p.role_id, p.parent_id FROM below b JOIN role_parent p ON p.tenant_id = $1 AND p.parent_id = b.role_id
        )
        SELECT c.name AS child, p.name AS parent
        FROM (SELECT role_id, parent_id FROM above UNION SELECT role_id, parent_id FROM below) e
        JOIN role c ON c.tenant_id = $1 AND c.id = e.role_id
        JOIN role p ON p.tenant_id = $1 AND p.id = e.parent_id
    """

    async def role_lineage(self, parent_ids: Sequence[UUID], role_id: UUID) -> list[Edge]:
        """Return all edges above `parent_ids` and below `role_id`."""
        return edges_of(await self._rows(self._ROLE_LINEAGE, parent_ids, role_id))

    _PATTERNS_OF_ROLES = """
        WITH RECURSIVE reached AS (
            SELECT role_id FROM unnest($2::uuid[]) AS role_id
            UNION
            SELECT p.parent_id FROM reached r JOIN role_parent p ON p.tenant_id = $1 AND p.role_id = r.role_id
        )
        SELECT DISTINCT unnest(a.permissions) AS pattern FROM reached r JOIN role a ON a.tenant_id = $1 AND a.id = r.role_id
    """

    async def patterns_of_roles(self, role_ids: Sequence[UUID]) -> list[str]:
        """Return the patterns of roles and all above them."""
        if not role_ids:
            return []
        return [row["pattern"] for row in await self._rows(self._PATTERNS_OF_ROLES, role_ids)]

    _INSERT_ROLE = """
        INSERT INTO role (tenant_id, id, name, description, permissions, system, version, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, false, $6, $7, $8)
    """

    async def insert_role(self, role: Role) -> None:
        """Write a new role with its parents."""
        values = (role.id, role.name, role.description, role.permissions, role.version, role.create_time, role.update_time)
        await self._write(self._INSERT_ROLE, *values, only_gives=True)
        if role.parent_ids:
            await self._write(self._INSERT_PARENTS, role.id, role.parent_ids, only_gives=True)

    _UPDATE_ROLE = """
        UPDATE role SET name = $3, description = $4, permissions = $5, version = $6, update_time = $7
        WHERE tenant_id = $1 AND id = $2 AND NOT system
    """

    async def update_role(self, role: Role) -> None:
        """Write a role's new values and parents."""
        await self.touch(roles=[role.id])
        await self._write(self._UPDATE_ROLE, role.id, role.name, role.description, role.permissions, role.version, role.update_time)
        await self._write(self._DELETE_PARENTS, role.id, role.parent_ids)
        await self._write(self._INSERT_PARENTS, role.id, role.parent_ids)

    _DELETE_PARENTS = "DELETE FROM role_parent WHERE tenant_id = $1 AND role_id = $2 AND parent_id <> ALL($3::uuid[])"
    _INSERT_PARENTS = """
        INSERT INTO role_parent (tenant_id, role_id, parent_id) SELECT $1, $2, unnest($3::uuid[]) ON CONFLICT DO NOTHING
    """

    _HAS_CHILDREN = "SELECT EXISTS (SELECT 1 FROM role_parent WHERE tenant_id = $1 AND parent_id = $2) AS found"

    async def has_children(self, role_id: UUID) -> bool:
        """Return whether a role is parent of another."""
        return bool(found(await self._row(self._HAS_CHILDREN, role_id))["found"])

    _DELETE_BINDINGS_OF_ROLE = "DELETE FROM role_binding WHERE tenant_id = $1 AND role_id = $2"
    _DELETE_ROLE = "DELETE FROM role WHERE tenant_id = $1 AND id = $2 AND NOT system"

    async def delete_role(self, role_id: UUID) -> int:
        """Delete a role with its bindings; return how many they were."""
        await self.touch(roles=[role_id])
        bindings = await self._write(self._DELETE_BINDINGS_OF_ROLE, role_id)
        await self._write(self._DELETE_ROLE, role_id)
        return bindings

    async def is_denied_anywhere(self, role_id: UUID) -> bool:
        """Return whether any binding denies what a role, or one below it, permits."""
        return bool(found(await self._row(self._IS_DENIED, role_id))["found"])

    _IS_DENIED = """
        WITH RECURSIVE role_below AS (
            SELECT $2::uuid AS role_id
            UNION
            SELECT p.role_id FROM role_below r JOIN role_parent p ON p.tenant_id = $1 AND p.parent_id = r.role_id
        )
        SELECT EXISTS (
            SELECT 1 FROM role_below r JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = r.role_id AND b.effect = 2
        ) AS found
    """
