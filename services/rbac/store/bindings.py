"""How bindings are written, and what a change asks about those who hold them."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from services.rbac.authority import MENDING, Administration
from services.rbac.model import ADMINISTRATOR, Effect, RoleBinding, Subject, Terms
from services.rbac.patterns import covering
from services.rbac.store.rows import FIND_BINDING, binding_of, found, seconds
from services.rbac.store.transaction import PolicyTransaction

_MENDING = sorted(frozenset().union(*map(covering, MENDING)))  # patterns that grant one of them


class BindingWrites(PolicyTransaction):
    """Bindings inside a change."""

    # Bindings that ended long ago are deleted without the tenant's lock; but not one that a change holds, and may be prolonging.
    _HOLD_BINDING = f"{FIND_BINDING} FOR UPDATE"

    async def get_binding(self, binding_id: UUID) -> RoleBinding:
        """Return a binding, which stays until the end of the change. Raises NotFound."""
        return binding_of(found(await self._row(self._HOLD_BINDING, binding_id)))

    _INSERT_BINDINGS = """
        INSERT INTO role_binding (tenant_id, id, subject_type, subject_id, role_id, resource, expire_time, effect, condition, acr, max_age,
                                  version, create_time, update_time)
        SELECT $1, *
        FROM unnest($2::uuid[], $3::smallint[], $4::uuid[], $5::uuid[], $6::text[], $7::timestamptz[], $8::smallint[], $9::text[], $10::text[],
                    $11::bigint[], $12::bigint[], $13::timestamptz[], $14::timestamptz[])
        ON CONFLICT DO NOTHING RETURNING id
    """

    async def insert_bindings(self, bindings: Sequence[RoleBinding]) -> frozenset[UUID]:
        """Write new bindings; return the ids of those that are written: not of one that is the same as another in all but its id."""
        await self.touch(holders=[binding.subject for binding in bindings])
        rows = await self._rows(self._INSERT_BINDINGS, *map(list, zip(*map(_values, bindings), strict=True)))
        self._note(len(rows), only_gives=all(binding.terms.effect is Effect.ALLOW for binding in bindings))
        return frozenset(row["id"] for row in rows)

    _UPDATE_BINDING = """
        UPDATE role_binding SET expire_time = $3, effect = $4, condition = $5, acr = $6, max_age = $7, version = $8, update_time = $9
        WHERE tenant_id = $1 AND id = $2
    """
    _IS_TWIN = """
        SELECT EXISTS (
            SELECT 1 FROM role_binding
            WHERE tenant_id = $1 AND id <> $2 AND subject_type = $3 AND subject_id = $4 AND role_id = $5 AND resource = $6
              AND expire_time IS NOT DISTINCT FROM $7 AND effect = $8 AND condition = $9 AND acr = $10 AND max_age IS NOT DISTINCT FROM $11
        ) AS found
    """

    async def update_binding(self, binding: RoleBinding) -> bool:
        """Write a binding's new terms; return False if there is another that is the same in all but its id."""
        subject, columns = binding.subject, _columns(binding.terms)
        twin = await self._row(self._IS_TWIN, binding.id, subject.type, subject.id, binding.role_id, binding.resource, *columns)
        if found(twin)["found"]:
            return False
        await self.touch(holders=[subject])
        await self._write(self._UPDATE_BINDING, binding.id, *columns, binding.version, binding.update_time)
        return True

    _DELETE_BINDING = "DELETE FROM role_binding WHERE tenant_id = $1 AND id = $2"

    async def delete_binding(self, binding: RoleBinding) -> None:
        """Delete a binding."""
        await self.touch(holders=[binding.subject])
        await self._write(self._DELETE_BINDING, binding.id, only_gives=binding.terms.effect is Effect.DENY)

    _DELETE_BINDINGS_OF_SUBJECT = "DELETE FROM role_binding WHERE tenant_id = $1 AND subject_type = $2 AND subject_id = $3"
    _DELETE_MEMBERSHIPS_OF_SUBJECT = "DELETE FROM group_member WHERE tenant_id = $1 AND member_type = $2 AND member_id = $3"

    async def delete_holdings(self, subject: Subject) -> tuple[int, int]:
        """Delete a subject's bindings and its memberships of groups; return how many there were of each."""
        await self.touch(holders=[subject])
        bindings = await self._write(self._DELETE_BINDINGS_OF_SUBJECT, subject.type, subject.id)
        return bindings, await self._write(self._DELETE_MEMBERSHIPS_OF_SUBJECT, subject.type, subject.id)

    # Down from the tenant-wide bindings of the administrator's role to users. One on conditions, or for strong logins, may never come true; and
    # who is denied what mends a policy could not mend it. NOT IN makes a hash of the denied, however few the planner expects; NOT EXISTS compares
    # each administrator with each of them.
    _ADMINISTRATION = """
        WITH RECURSIVE reached AS (
            SELECT b.subject_type AS type, b.subject_id AS id, b.expire_time IS NULL AS lasting
            FROM role r JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = r.id
            WHERE r.tenant_id = $1 AND r.name = $2 AND b.resource = '' AND (b.expire_time IS NULL OR b.expire_time > $3)
              AND b.effect = 1 AND b.condition = '' AND b.acr = '' AND b.max_age IS NULL
            UNION
            SELECT m.member_type, m.member_id, r.lasting
            FROM reached r JOIN group_member m ON r.type = 2 AND m.tenant_id = $1 AND m.group_id = r.id
        ), denial AS (
            SELECT subject_type AS type, subject_id AS id, role_id FROM role_binding
            WHERE tenant_id = $1 AND effect = 2 AND resource = '' AND (expire_time IS NULL OR expire_time > $3)
        ), says AS (
            SELECT DISTINCT role_id AS bound_id, role_id FROM denial
            UNION
            SELECT s.bound_id, p.parent_id FROM says s JOIN role_parent p ON p.tenant_id = $1 AND p.role_id = s.role_id
        ), denied AS (
            SELECT d.type, d.id FROM denial d
            WHERE EXISTS (
                SELECT 1 FROM says s JOIN role r ON r.tenant_id = $1 AND r.id = s.role_id WHERE s.bound_id = d.role_id AND r.permissions && $4
            )
            UNION
            SELECT m.member_type, m.member_id
            FROM denied d JOIN group_member m ON d.type = 2 AND m.tenant_id = $1 AND m.group_id = d.id
        )
        SELECT count(*) > 0 AS present, coalesce(bool_or(lasting), false) AS lasting
        FROM reached
        WHERE type = 1 AND NOT EXISTS (SELECT 1 FROM denied WHERE type = 4) AND id NOT IN (SELECT id FROM denied WHERE type = 1)
    """

    async def administration(self, now: datetime) -> Administration:
        """Return whether users administer the tenant, directly or by groups."""
        row = found(await self._row(self._ADMINISTRATION, ADMINISTRATOR, now, _MENDING))
        return Administration(row["present"], row["lasting"])


def _values(binding: RoleBinding) -> tuple[object, ...]:
    """Return a binding as its columns, but for the tenant."""
    subject = binding.subject
    head = (binding.id, int(subject.type), subject.id, binding.role_id, binding.resource)
    return *head, *_columns(binding.terms), binding.version, binding.create_time, binding.update_time


def _columns(terms: Terms) -> tuple[object, ...]:
    """Return terms as their columns: expire_time, effect, condition, acr, max_age."""
    return terms.expire_time, int(terms.effect), terms.condition, terms.acr, seconds(terms.max_age)
