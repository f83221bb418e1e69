"""Candidates of lookups: resources that a tenant knows, in the order of their names; subjects that grants reach, in the order of type and id.

Every list begins after a cursor, so that a page costs the same wherever it begins, and changes in between neither repeat nor skip what stays.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from services.chassis.postgres import Database, Row
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
# Walking down stops at so many.
_BELOW = """
    WITH RECURSIVE below AS (
        SELECT name COLLATE "C" AS name FROM unnest($5::text[]) AS name
        UNION
        SELECT r.name FROM below b JOIN resource r ON r.tenant_id = $1 AND r.parent = b.name
    ), walked AS MATERIALIZED (SELECT name FROM below LIMIT $6 + 1)
    SELECT (SELECT count(*) FROM walked) > $6 AS is_cut,
           ARRAY(SELECT name FROM walked WHERE name > $2 AND name < $3 ORDER BY name LIMIT $4) AS names
"""
_COUNTS = "b.effect = 1 AND (b.expire_time IS NULL OR b.expire_time > now())"
_FOLLOWS = "b.subject_type = ANY($4::smallint[]) AND (b.subject_type, b.subject_id) > ($5::smallint, $6::uuid)"
# Roles that grant by patterns of their own or of a parent; groups bound to one of them at the places, and all groups inside those. By each way to be
# reached, a role held everywhere, a place, a group, as many come as the page may hold: each way is an index in the page's order.
_REACHED = f"""
    WITH RECURSIVE granting AS (
        SELECT id FROM role WHERE tenant_id = $1 AND permissions && $2::text[]
        UNION
        SELECT p.role_id FROM granting g JOIN role_parent p ON p.tenant_id = $1 AND p.parent_id = g.id
    ), inside AS (
        (
            SELECT b.subject_id AS id FROM granting g JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = g.id
            WHERE b.resource = '' AND b.subject_type = 2 AND {_COUNTS}
            UNION
            SELECT b.subject_id FROM role_binding b
            WHERE b.tenant_id = $1 AND b.resource <> '' AND b.resource = ANY($3::text[]) AND b.subject_type = 2
              AND b.role_id IN (SELECT id FROM granting) AND {_COUNTS}
        )
        UNION
        SELECT m.member_id FROM inside i JOIN group_member m ON m.tenant_id = $1 AND m.group_id = i.id AND m.member_type = 2
    )
    SELECT type, id FROM (
        SELECT everywhere.type, everywhere.id FROM granting g CROSS JOIN LATERAL (
            SELECT DISTINCT b.subject_type AS type, b.subject_id AS id FROM role_binding b
            WHERE b.tenant_id = $1 AND b.role_id = g.id AND b.resource = '' AND {_FOLLOWS} AND {_COUNTS}
            ORDER BY b.subject_type, b.subject_id LIMIT $7
        ) everywhere
        UNION
        SELECT here.type, here.id FROM unnest($3::text[]) AS place CROSS JOIN LATERAL (
            SELECT DISTINCT b.subject_type AS type, b.subject_id AS id FROM role_binding b
            WHERE b.tenant_id = $1 AND b.resource <> '' AND b.resource = place AND b.role_id IN (SELECT id FROM granting) AND {_FOLLOWS} AND {_COUNTS}
            ORDER BY b.subject_type, b.subject_id LIMIT $7
        ) here
        UNION
        SELECT member.type, member.id FROM inside i CROSS JOIN LATERAL (
            SELECT m.member_type AS type, m.member_id AS id FROM group_member m
            WHERE m.tenant_id = $1 AND m.group_id = i.id AND m.member_type = ANY($4::smallint[])
              AND (m.member_type, m.member_id) > ($5::smallint, $6::uuid)
            ORDER BY m.member_type, m.member_id LIMIT $7
        ) member
    ) AS reached
    ORDER BY type, id LIMIT $7
"""  # noqa: S608
# A tenant's users and clients, as far as rbac knows them: those who were given something, and members of groups.
_KNOWN_SUBJECTS = """
    WITH RECURSIVE holder AS (
        (
            SELECT b.subject_type AS type, b.subject_id AS id FROM role_binding b
            WHERE b.tenant_id = $1 AND b.subject_type = ANY($2::smallint[]) AND (b.subject_type, b.subject_id) > ($3::smallint, $4::uuid)
            ORDER BY b.subject_type, b.subject_id LIMIT 1
        )
        UNION ALL
        SELECT following.type, following.id FROM holder h CROSS JOIN LATERAL (
            SELECT b.subject_type AS type, b.subject_id AS id FROM role_binding b
            WHERE b.tenant_id = $1 AND b.subject_type = ANY($2::smallint[]) AND (b.subject_type, b.subject_id) > (h.type, h.id)
            ORDER BY b.subject_type, b.subject_id LIMIT 1
        ) following
    ), member AS (
        (
            SELECT m.member_type AS type, m.member_id AS id FROM group_member m
            WHERE m.tenant_id = $1 AND m.member_type = ANY($2::smallint[]) AND (m.member_type, m.member_id) > ($3::smallint, $4::uuid)
            ORDER BY m.member_type, m.member_id LIMIT 1
        )
        UNION ALL
        SELECT following.type, following.id FROM member h CROSS JOIN LATERAL (
            SELECT m.member_type AS type, m.member_id AS id FROM group_member m
            WHERE m.tenant_id = $1 AND m.member_type = ANY($2::smallint[]) AND (m.member_type, m.member_id) > (h.type, h.id)
            ORDER BY m.member_type, m.member_id LIMIT 1
        ) following
    )
    SELECT type, id FROM ((SELECT type, id FROM holder LIMIT $5) UNION (SELECT type, id FROM member LIMIT $5)) AS known
    ORDER BY type, id LIMIT $5
"""


class FindStore:
    """Reads candidates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known_resources(self, tenant_id: TenantId, kind: str, after: str, limit: int) -> list[str]:
        """Return resources of a type, by name."""
        first, end = _names(kind, after)
        return [row["name"] for row in await self._database.fetch(_KNOWN, tenant_id, first, end, limit)]

    async def resources_below(self, tenant_id: TenantId, kind: str, after: str, limit: int, *, scopes: Sequence[str], most: int) -> list[str] | None:
        """Return `scopes` and what lies below them, of a type, by name. None if that is more than `most` resources of all types."""
        first, end = _names(kind, after)
        row = (await self._database.fetch(_BELOW, tenant_id, first, end, limit, scopes, most))[0]
        return None if row["is_cut"] else list(row["names"])

    async def reached_subjects(
        self, tenant_id: TenantId, permission: str, places: Sequence[str], *, kinds: Sequence[SubjectType], after: tuple[int, UUID], limit: int
    ) -> list[Subject]:
        """Return subjects of `kinds` whom a grant of `permission` at one of `places` reaches, by type and id."""
        patterns, types = sorted(covering(permission)), [int(kind) for kind in kinds]
        return _subjects(await self._database.fetch(_REACHED, tenant_id, patterns, places, types, *after, limit))

    async def known_subjects(self, tenant_id: TenantId, *, kinds: Sequence[SubjectType], after: tuple[int, UUID], limit: int) -> list[Subject]:
        """Return the subjects of `kinds` who hold anything or belong to a group, by type and id."""
        return _subjects(await self._database.fetch(_KNOWN_SUBJECTS, tenant_id, [int(kind) for kind in kinds], *after, limit))


def _subjects(rows: Iterable[Row]) -> list[Subject]:
    return [Subject(SubjectType(row["type"]), row["id"]) for row in rows]


def _names(kind: str, after: str) -> tuple[str, str]:
    """Return between which names a page lies: byte by byte, "0" follows "/"."""
    return max(after, f"{kind}/"), f"{kind}0"
