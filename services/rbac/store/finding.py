"""Candidates of lookups: resources that a tenant knows, in the order of their names; subjects that grants reach, in the order of type and id.

Every list begins after a cursor, so that a page costs the same wherever it begins, and changes in between neither repeat nor skip what stays.
"""

from collections.abc import Sequence
from uuid import UUID

from services.chassis.postgres import Database
from services.chassis.tenancy import TenantId
from services.rbac.model import Subject, SubjectType
from services.rbac.patterns import covering

# A tenant's resources are those with a parent, those that are one, and those that a role is bound at. The latter two stand many times in their
# indexes: each step goes to the next name, not to the next row.
_KNOWN = """
    WITH RECURSIVE parent AS (
        (SELECT r.parent AS name FROM resource r WHERE r.tenant_id = $1 AND r.parent > $2 AND r.parent < $3 ORDER BY r.parent LIMIT 1)
        UNION ALL
        SELECT (SELECT r.parent FROM resource r WHERE r.tenant_id = $1 AND r.parent > p.name AND r.parent < $3 ORDER BY r.parent LIMIT 1)
        FROM parent p WHERE p.name IS NOT NULL
    ), bound AS (
        (SELECT b.resource AS name FROM role_binding b
         WHERE b.tenant_id = $1 AND b.resource <> '' AND b.resource > $2 AND b.resource < $3 ORDER BY b.resource LIMIT 1)
        UNION ALL
        SELECT (SELECT b.resource FROM role_binding b
                WHERE b.tenant_id = $1 AND b.resource <> '' AND b.resource > d.name AND b.resource < $3 ORDER BY b.resource LIMIT 1)
        FROM bound d WHERE d.name IS NOT NULL
    )
    SELECT name FROM (
        (SELECT r.name FROM resource r WHERE r.tenant_id = $1 AND r.name > $2 AND r.name < $3 ORDER BY r.name LIMIT $4)
        UNION (SELECT p.name FROM parent p WHERE p.name IS NOT NULL LIMIT $4)
        UNION (SELECT d.name FROM bound d WHERE d.name IS NOT NULL LIMIT $4)
    ) AS known
    ORDER BY name LIMIT $4
"""
_BELOW = """
    WITH RECURSIVE below AS (
        SELECT name COLLATE "C" AS name FROM unnest($5::text[]) AS name
        UNION
        SELECT r.name FROM below b JOIN resource r ON r.tenant_id = $1 AND r.parent = b.name
    )
    SELECT name FROM below WHERE name > $2 AND name < $3 ORDER BY name LIMIT $4
"""
# Roles that grant by patterns of their own or of a parent, whoever is bound to one of them at the places, and all who reach those by groups.
_REACHED = """
    WITH RECURSIVE granting AS (
        SELECT id FROM role WHERE tenant_id = $1 AND permissions && $2::text[]
        UNION
        SELECT p.role_id FROM granting g JOIN role_parent p ON p.tenant_id = $1 AND p.parent_id = g.id
    ), holder AS (
        SELECT b.subject_type AS type, b.subject_id AS id
        FROM granting g JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = g.id
        WHERE b.effect = 1 AND b.resource = ANY($3::text[]) AND (b.expire_time IS NULL OR b.expire_time > now())
        UNION
        SELECT m.member_type, m.member_id FROM holder h JOIN group_member m ON h.type = 2 AND m.tenant_id = $1 AND m.group_id = h.id
    )
"""
_SUBJECTS = f"""
    {_REACHED}
    SELECT type, id FROM holder
    WHERE type = ANY($4::smallint[]) AND (type, id) > ($5::smallint, $6::uuid) ORDER BY type, id LIMIT $7
"""  # noqa: S608


class FindStore:
    """Reads candidates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known_resources(self, tenant_id: TenantId, kind: str, after: str, limit: int) -> list[str]:
        """Return resources of a type, by name."""
        first, end = _names(kind, after)
        return [row["name"] for row in await self._database.fetch(_KNOWN, tenant_id, first, end, limit)]

    async def resources_below(self, tenant_id: TenantId, kind: str, after: str, limit: int, *, scopes: Sequence[str]) -> list[str]:
        """Return `scopes` and what lies below them, of a type, by name."""
        first, end = _names(kind, after)
        return [row["name"] for row in await self._database.fetch(_BELOW, tenant_id, first, end, limit, scopes)]

    async def subjects(
        self, tenant_id: TenantId, permission: str, places: Sequence[str], *, kinds: Sequence[SubjectType], after: tuple[int, UUID], limit: int
    ) -> list[Subject]:
        """Return subjects of `kinds` whom a grant of `permission` at one of `places` reaches, by type and id."""
        patterns, types = sorted(covering(permission)), [int(kind) for kind in kinds]
        rows = await self._database.fetch(_SUBJECTS, tenant_id, patterns, places, types, *after, limit)
        return [Subject(SubjectType(row["type"]), row["id"]) for row in rows]


def _names(kind: str, after: str) -> tuple[str, str]:
    """Return between which names a page lies: byte by byte, "0" follows "/"."""
    return max(after, f"{kind}/"), f"{kind}0"
