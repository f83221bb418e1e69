"""How many things are written at once, in columns: a statement takes ten thousand rows as it takes one."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from services.chassis.postgres import new_id
from services.rbac.model import Edge, Group, Role
from services.rbac.store.rows import ROLE, edges_of, role_of
from services.rbac.store.transaction import PolicyTransaction

Who = tuple[Sequence[int], Sequence[UUID | str]]  # subjects in columns: their types and their ids


class ImportWrites(PolicyTransaction):
    """Imports inside a change. What is there already stays as it is, and is not counted."""

    _ROLES_NAMED = f"{ROLE} WHERE r.tenant_id = $1 AND r.name = ANY($2::text[])"

    async def roles_named(self, names: Iterable[str]) -> dict[str, Role]:
        """Return the roles of these names that exist, by name."""
        return {row["name"]: role_of(row) for row in await self._rows(self._ROLES_NAMED, list(names))}

    _ROLE_IDS = "SELECT name, id FROM role WHERE tenant_id = $1 AND name = ANY($2::text[])"

    async def role_ids(self, names: Iterable[str]) -> dict[str, UUID]:
        """Return the ids of the roles of these names that exist, by name."""
        return {row["name"]: row["id"] for row in await self._rows(self._ROLE_IDS, list(names))}

    _GROUP_IDS = "SELECT name, id FROM subject_group WHERE tenant_id = $1 AND name = ANY($2::text[])"

    async def group_ids(self, names: Iterable[str]) -> dict[str, UUID]:
        """Return the ids of the groups of these names that exist, by name."""
        return {row["name"]: row["id"] for row in await self._rows(self._GROUP_IDS, list(names))}

    _PARENTS_OF = "SELECT name AS child, parent FROM resource WHERE tenant_id = $1 AND name = ANY($2::text[])"

    async def parents_of(self, resources: Iterable[str]) -> dict[str, str]:
        """Return what resources lie directly below; not of roots."""
        return {row["child"]: row["parent"] for row in await self._rows(self._PARENTS_OF, list(resources))}

    _INSERT_ROLES = """
        INSERT INTO role (tenant_id, id, name, description, permissions, system, version, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, false, 1, $6, $6)
    """
    _INSERT_LINEAGE = "INSERT INTO role_parent (tenant_id, role_id, parent_id) SELECT $1, * FROM unnest($2::uuid[], $3::uuid[])"

    async def insert_roles(self, roles: Sequence[Role]) -> None:
        """Write new roles with their parents. Nobody holds them."""
        rows = ((self._tenant_id, role.id, role.name, role.description, role.permissions, role.create_time) for role in roles)
        await self._connection.executemany(self._INSERT_ROLES, list(rows))
        self._note(len(roles), only_gives=True)
        lineage = [(role.id, parent_id) for role in roles for parent_id in role.parent_ids]
        await self._write(self._INSERT_LINEAGE, [role_id for role_id, _ in lineage], [parent_id for _, parent_id in lineage], only_gives=True)

    _INSERT_GROUPS = """
        INSERT INTO subject_group (tenant_id, id, name, description, version, create_time, update_time)
        SELECT $1, id, name, description, 1, $5, $5 FROM unnest($2::uuid[], $3::text[], $4::text[]) AS g (id, name, description)
        ON CONFLICT DO NOTHING
    """

    async def insert_groups(self, groups: Sequence[Group], now: datetime) -> int:
        """Write groups; return how many are new. Nobody is in them."""
        columns = [group.id for group in groups], [group.name for group in groups], [group.description for group in groups]
        return await self._write(self._INSERT_GROUPS, *columns, now, only_gives=True)

    _INSERT_MEMBERS = """
        INSERT INTO group_member (tenant_id, group_id, member_type, member_id)
        SELECT $1, * FROM unnest($2::uuid[], $3::smallint[], $4::uuid[])
        ON CONFLICT DO NOTHING
    """

    async def insert_members(self, groups: Sequence[UUID], who: Who) -> int:
        """Put subjects into groups; return how many were not in them."""
        types, ids = who
        return await self._write(self._INSERT_MEMBERS, groups, types, ids)  # what a group is denied, a member is denied now

    _INSERT_PLACES = """
        INSERT INTO resource (tenant_id, name, parent) SELECT $1, * FROM unnest($2::text[], $3::text[]) ON CONFLICT DO NOTHING
    """

    async def insert_places(self, edges: Sequence[Edge]) -> int:
        """Put roots below other resources; return how many were roots."""
        return await self._write(self._INSERT_PLACES, [edge.child for edge in edges], [edge.parent for edge in edges])

    _INSERT_PLAIN = """
        INSERT INTO role_binding (tenant_id, id, subject_type, subject_id, role_id, resource, expire_time, create_time, update_time)
        SELECT $1, id, type, subject_id, role_id, resource, expire_time, $8, $8
        FROM unnest($2::uuid[], $3::smallint[], $4::uuid[], $5::uuid[], $6::text[], $7::timestamptz[])
             AS b (id, type, subject_id, role_id, resource, expire_time)
        ON CONFLICT DO NOTHING
    """

    async def insert_plain_bindings(
        self, who: Who, roles: Sequence[UUID], resources: Sequence[str], ends: Sequence[datetime | None], *, now: datetime
    ) -> int:
        """Write bindings that allow on no terms but their end; return how many are new."""
        types, ids = who
        return await self._write(self._INSERT_PLAIN, [new_id() for _ in types], types, ids, roles, resources, ends, now)

    _GROUPS_ABOVE = """
        WITH RECURSIVE above AS (
            SELECT member_id, group_id FROM group_member WHERE tenant_id = $1 AND member_type = 2 AND member_id = ANY($2::uuid[])
            UNION
            SELECT m.member_id, m.group_id
            FROM above a JOIN group_member m ON m.tenant_id = $1 AND m.member_type = 2 AND m.member_id = a.group_id
        )
        SELECT c.name AS child, p.name AS parent
        FROM above e
        JOIN subject_group c ON c.tenant_id = $1 AND c.id = e.member_id
        JOIN subject_group p ON p.tenant_id = $1 AND p.id = e.group_id
    """

    async def groups_above(self, group_ids: Iterable[UUID]) -> list[Edge]:
        """Return all edges above groups, by name."""
        return edges_of(await self._rows(self._GROUPS_ABOVE, list(group_ids)))

    _GROUP_HEIGHTS = """
        WITH RECURSIVE below AS (
            SELECT id AS root, id, 1 AS level FROM unnest($2::uuid[]) AS id
            UNION
            SELECT b.root, m.member_id, b.level + 1
            FROM below b JOIN group_member m ON m.tenant_id = $1 AND m.member_type = 2 AND m.group_id = b.id
            WHERE b.level <= 32
        )
        SELECT g.name, max(b.level) AS height FROM below b JOIN subject_group g ON g.tenant_id = $1 AND g.id = b.root GROUP BY g.name
    """

    async def group_heights(self, group_ids: Iterable[UUID]) -> dict[str, int]:
        """Return how many members the longest chain of groups has that goes down from each group, itself included, by name."""
        return {row["name"]: row["height"] for row in await self._rows(self._GROUP_HEIGHTS, list(group_ids))}

    _PLACES_ABOVE_ALL = """
        WITH RECURSIVE above AS (
            SELECT name, parent FROM resource WHERE tenant_id = $1 AND name = ANY($2::text[])
            UNION
            SELECT r.name, r.parent FROM above a JOIN resource r ON r.tenant_id = $1 AND r.name = a.parent
        )
        SELECT name AS child, parent FROM above
    """

    async def edges_above(self, resources: Iterable[str]) -> list[Edge]:
        """Return all edges above resources."""
        return edges_of(await self._rows(self._PLACES_ABOVE_ALL, list(resources)))

    # OFFSET 0 keeps each step a walk along an index: where the planner expects few, it would look through all of the tenant's resources for each.
    _PLACE_HEIGHTS = """
        WITH RECURSIVE below AS (
            SELECT name AS root, name COLLATE "C" AS name, 1 AS level FROM unnest($2::text[]) AS name
            UNION ALL
            SELECT b.root, child.name, b.level + 1 FROM below b CROSS JOIN LATERAL (
                SELECT r.name FROM resource r WHERE r.tenant_id = $1 AND r.parent = b.name OFFSET 0
            ) child
            WHERE b.level <= 32
        )
        SELECT root, max(level) AS height FROM below GROUP BY root
    """

    async def place_heights(self, resources: Iterable[str]) -> dict[str, int]:
        """Return how many members the longest chain has that goes down from each resource, itself included."""
        return {row["root"]: row["height"] for row in await self._rows(self._PLACE_HEIGHTS, list(resources))}
