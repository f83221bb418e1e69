"""The inside of a change of one tenant's policy: every statement that writes, and what it touches.

Before a statement writes, it notes which nodes it touches (for the memories of all instances) and whose permissions that can change (for those who
watch): before, because what is deleted leads to nobody any more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.postgres import Change, Row, bump
from services.chassis.tenancy import TenantId
from services.rbac.authority import Administration
from services.rbac.holdings import Holdings, in_snapshot
from services.rbac.memory import Touched
from services.rbac.model import ADMINISTRATOR, Edge, Effect, Group, Role, RoleBinding, Subject, SubjectType, Terms
from services.rbac.patterns import covering
from services.rbac.revisions import encode
from services.rbac.store.loading import FIND_STATE, load
from services.rbac.store.rows import (
    FIND_BINDING,
    FIND_GROUP,
    FIND_PARENT,
    FIND_ROLE,
    ROLE,
    binding_of,
    edges_of,
    found,
    group_of,
    role_of,
    seconds,
)
from watchword.errors import NotFound

# Whoever may do these can mend whatever else is amiss.
MENDING = sorted(covering("role-bindings.create") | covering("role-bindings.delete"))
NAMED_SUBJECTS = 1000  # whose permissions a change touched; more are told as everybody


class TenantChange:
    """The inside of a change of one tenant's policy."""

    def __init__(self, change: Change, tenant_id: TenantId, *, most_affected: int = NAMED_SUBJECTS) -> None:
        self._change = change
        self._connection = change.connection
        self._tenant_id = tenant_id
        self._most_affected = most_affected
        self._is_changed = False
        self._takes_away = False
        self.policy = 0  # the policy's revision before this change
        self.touched = Touched()
        self.affected: set[Subject] = set()  # users, clients, anybody: at most one more than `most_affected`

    _LOCK = """
        INSERT INTO policy AS p (tenant_id, revision) VALUES ($1, 0)
        ON CONFLICT (tenant_id) DO UPDATE SET revision = p.revision
        RETURNING revision
    """

    async def lock(self) -> None:
        """Wait for the tenant's other changes of policy. Other contexts' changes are not waited for: the shared counter is bumped late."""
        self.policy = int(await self._connection.fetchval(self._LOCK, self._tenant_id))

    _STAMP = "UPDATE policy SET revision = $2 WHERE tenant_id = $1"
    _RECORD = "INSERT INTO policy_change (tenant_id, revision, previous, subjects) VALUES ($1, $2, $3, $4)"

    async def seal(self) -> int:
        """Return the tenant's revision with this change in it: a new one, of which all instances are told, unless nothing was changed."""
        if not self._is_changed:
            return int((await self._connection.fetchrow(FIND_STATE, self._tenant_id))["revision"])
        revision = await bump(self._connection, self._tenant_id)
        await self._connection.execute(self._STAMP, self._tenant_id, revision)
        await self._connection.execute(self._RECORD, self._tenant_id, revision, self.policy, self._affected_texts())
        self._change.tell(encode(self._tenant_id, revision, self.policy, self.touched), takes_away=self._takes_away)
        return revision

    @property
    def is_everybody_affected(self) -> bool:
        """Whether more subjects are affected than are named."""
        return self.touched.everything or len(self.affected) > self._most_affected

    def _affected_texts(self) -> list[str] | None:
        if self.is_everybody_affected:
            return None
        return sorted(f"{int(subject.type)}/{subject.id}" for subject in self.affected)

    # Roles below those touched, their holders and the holders at places, and down through groups to users, clients and anybody.
    _AFFECTED = """
        WITH RECURSIVE role_below AS (
            SELECT role_id FROM unnest($4::uuid[]) AS role_id
            UNION
            SELECT p.role_id FROM role_below r JOIN role_parent p ON p.tenant_id = $1 AND p.parent_id = r.role_id
        ), start AS (
            SELECT type, id FROM unnest($2::smallint[], $3::uuid[]) AS a (type, id)
            UNION ALL
            SELECT b.subject_type, b.subject_id FROM role_below r JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = r.role_id
            UNION ALL
            SELECT b.subject_type, b.subject_id FROM role_binding b WHERE b.tenant_id = $1 AND b.resource <> '' AND b.resource = ANY($5::text[])
        ), holder AS (
            SELECT type, id FROM start
            UNION
            SELECT m.member_type, m.member_id FROM holder h JOIN group_member m ON h.type = 2 AND m.tenant_id = $1 AND m.group_id = h.id
        )
        SELECT type, id FROM holder WHERE type <> 2 LIMIT $6
    """

    async def touch(
        self, *, holders: Iterable[Subject] = (), roles: Iterable[UUID] = (), places: Iterable[str] = (), above: Sequence[str] = ()
    ) -> None:
        """Note that nodes are about to change. `above`: the places whose holders that concerns, where it is more than `places`."""
        who, what, where = frozenset(holders), frozenset(roles), frozenset(places)
        old = self.touched
        self.touched = replace(old, holders=old.holders | who, roles=old.roles | what, places=old.places | where)
        if self.is_everybody_affected:
            return
        subjects, resources = list(who), list(where.union(above))
        arguments = [subject.type for subject in subjects], [subject.id for subject in subjects], list(what), resources, self._most_affected + 1
        rows = await self._connection.fetch(self._AFFECTED, self._tenant_id, *arguments)
        self.affected.update(Subject(SubjectType(row["type"]), row["id"]) for row in rows)

    def touch_everything(self) -> None:
        """Note that more changes than can be named."""
        self.touched = replace(self.touched, everything=True)

    def audit(self, event: AuditEvent) -> None:
        """Add an audit row of this tenant."""
        self._change.audit(replace(event, tenant_id=self._tenant_id))

    async def _write(self, sql: str, *args: object, only_gives: bool = False) -> int:
        """Run a writing statement for the tenant; return how many rows it touched. `only_gives`: no answer can turn from yes to no by it."""
        touched = int((await self._connection.execute(sql, self._tenant_id, *args)).rpartition(" ")[2])
        self._is_changed = self._is_changed or touched > 0
        self._takes_away = self._takes_away or (touched > 0 and not only_gives)
        return touched

    async def _rows(self, sql: str, *args: object) -> list[Row]:
        return list(await self._connection.fetch(sql, self._tenant_id, *args))

    async def _row(self, sql: str, *args: object) -> Row | None:
        row: Row | None = await self._connection.fetchrow(sql, self._tenant_id, *args)
        return row

    # Roles

    async def get_role(self, role_id: UUID) -> Role:
        """Return a role. Raises NotFound."""
        return role_of(found(await self._row(FIND_ROLE, role_id)))

    _FIND_ROLE_NAMED = f"{ROLE} WHERE r.tenant_id = $1 AND r.name = $2"

    async def find_role_named(self, name: str) -> Role | None:
        """Return the role of that name."""
        row = await self._row(self._FIND_ROLE_NAMED, name)
        return None if row is None else role_of(row)

    _ENSURE_SYSTEM_ROLES = "SELECT ensure_system_roles($1)"

    async def ensure_system_roles(self) -> None:
        """Give the tenant the suite's own roles, as far as it has them not."""
        await self._write(self._ENSURE_SYSTEM_ROLES, only_gives=True)

    _NAME_ROLES = "SELECT name FROM role WHERE tenant_id = $1 AND id = ANY($2::uuid[])"

    async def name_roles(self, role_ids: Sequence[UUID]) -> list[str]:
        """Return the names of roles. Raises NotFound unless all exist."""
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
        return [row["pattern"] for row in await self._rows(self._PATTERNS_OF_ROLES, role_ids)]

    _INSERT_ROLE = """
        INSERT INTO role (tenant_id, id, name, description, permissions, system, version, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, false, $6, $7, $8)
    """

    async def insert_role(self, role: Role) -> None:
        """Write a new role with its parents."""
        values = (role.id, role.name, role.description, role.permissions, role.version, role.create_time, role.update_time)
        await self._write(self._INSERT_ROLE, *values, only_gives=True)
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

    # Bindings

    async def get_binding(self, binding_id: UUID) -> RoleBinding:
        """Return a binding. Raises NotFound."""
        return binding_of(found(await self._row(FIND_BINDING, binding_id)))

    _INSERT_BINDING = """
        INSERT INTO role_binding (tenant_id, id, subject_type, subject_id, role_id, resource, expire_time, effect, condition, acr, max_age,
                                  version, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING
    """

    async def insert_binding(self, binding: RoleBinding) -> bool:
        """Write a new binding; return False if there is one that is the same in all but its id."""
        await self.touch(holders=[binding.subject])
        subject = binding.subject
        values = (binding.id, subject.type, subject.id, binding.role_id, binding.resource, *_columns(binding.terms))
        times = (binding.version, binding.create_time, binding.update_time)
        return await self._write(self._INSERT_BINDING, *values, *times, only_gives=binding.terms.effect is Effect.ALLOW) > 0

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

    async def holdings_of(self, *subjects: Subject) -> dict[Subject, Holdings]:
        """Return what subjects hold, inside this change."""
        return in_snapshot(await load(self._connection.fetch, self._tenant_id, subjects, []), subjects)

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

    # Down from the tenant-wide bindings of the administrator's role to users. One on conditions, or for strong logins, may never come true; and
    # who is denied what mends a policy could not mend it.
    _ADMINISTRATION = """
        WITH RECURSIVE reached AS (
            SELECT b.subject_type AS type, b.subject_id AS id, b.expire_time IS NULL AS lasting
            FROM role r JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = r.id
            WHERE r.tenant_id = $1 AND r.name = $2 AND b.resource = '' AND (b.expire_time IS NULL OR b.expire_time > $3)
              AND b.effect = 1 AND b.condition = '' AND b.acr = '' AND b.max_age IS NULL
            UNION
            SELECT m.member_type, m.member_id, r.lasting
            FROM reached r JOIN group_member m ON r.type = 2 AND m.tenant_id = $1 AND m.group_id = r.id
        ), denying AS (
            SELECT id FROM role WHERE tenant_id = $1 AND permissions && $4::text[]
            UNION
            SELECT p.role_id FROM denying d JOIN role_parent p ON p.tenant_id = $1 AND p.parent_id = d.id
        ), denied AS (
            SELECT b.subject_type AS type, b.subject_id AS id
            FROM denying d JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = d.id
            WHERE b.effect = 2 AND b.resource = '' AND (b.expire_time IS NULL OR b.expire_time > $3)
            UNION
            SELECT m.member_type, m.member_id
            FROM denied d JOIN group_member m ON d.type = 2 AND m.tenant_id = $1 AND m.group_id = d.id
        )
        SELECT count(*) > 0 AS present, coalesce(bool_or(lasting), false) AS lasting
        FROM reached r
        WHERE type = 1 AND NOT EXISTS (SELECT 1 FROM denied d WHERE d.type = 4 OR (d.type = 1 AND d.id = r.id))
    """

    async def administration(self, now: datetime) -> Administration:
        """Return whether users administer the tenant, directly or by groups."""
        row = found(await self._row(self._ADMINISTRATION, ADMINISTRATOR, now, MENDING))
        return Administration(row["present"], row["lasting"])

    # Groups

    async def get_group(self, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return group_of(found(await self._row(FIND_GROUP, group_id)))

    _INSERT_GROUP = """
        INSERT INTO subject_group (tenant_id, id, name, description, version, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
    """

    async def insert_group(self, group: Group) -> bool:
        """Write a new group; return False if the name is taken."""
        values = (group.id, group.name, group.description, group.version, group.create_time, group.update_time)
        return await self._write(self._INSERT_GROUP, *values, only_gives=True) > 0

    _FIND_GROUP_NAMED = "SELECT id FROM subject_group WHERE tenant_id = $1 AND name = $2"

    async def is_group_named(self, name: str) -> bool:
        """Return whether a group has that name."""
        return await self._row(self._FIND_GROUP_NAMED, name) is not None

    _UPDATE_GROUP = "UPDATE subject_group SET name = $3, description = $4, version = $5, update_time = $6 WHERE tenant_id = $1 AND id = $2"

    async def update_group(self, group: Group) -> None:
        """Write a group's new values, which decide nothing."""
        await self._write(self._UPDATE_GROUP, group.id, group.name, group.description, group.version, group.update_time, only_gives=True)

    _DELETE_MEMBERS = "DELETE FROM group_member WHERE tenant_id = $1 AND group_id = $2"
    _DELETE_GROUP = "DELETE FROM subject_group WHERE tenant_id = $1 AND id = $2"

    async def delete_group(self, group_id: UUID) -> tuple[int, int]:
        """Delete a group, its members, memberships and bindings; return how many bindings and members it had."""
        bindings, _ = await self.delete_holdings(Subject(SubjectType.GROUP, group_id))  # which touches its members too
        members = await self._write(self._DELETE_MEMBERS, group_id)
        await self._write(self._DELETE_GROUP, group_id)
        return bindings, members

    _INSERT_MEMBER = """
        INSERT INTO group_member (tenant_id, group_id, member_type, member_id) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
    """

    async def insert_member(self, group_id: UUID, member: Subject) -> bool:
        """Put a subject into a group; return False if it is in it."""
        await self.touch(holders=[member])
        return await self._write(self._INSERT_MEMBER, group_id, member.type, member.id) > 0  # what the group is denied, he is denied now

    _DELETE_MEMBER = "DELETE FROM group_member WHERE tenant_id = $1 AND group_id = $2 AND member_type = $3 AND member_id = $4"

    async def delete_member(self, group_id: UUID, member: Subject) -> bool:
        """Take a subject out of a group; return False if it is not in it."""
        await self.touch(holders=[member])
        return await self._write(self._DELETE_MEMBER, group_id, member.type, member.id) > 0

    # The groups above $2, and those below $3, as pairs of names.
    _GROUP_LINEAGE = """
        WITH RECURSIVE above AS (
            SELECT member_id, group_id FROM group_member WHERE tenant_id = $1 AND member_type = 2 AND member_id = $2
            UNION
            SELECT m.member_id, m.group_id
            FROM above a JOIN group_member m ON m.tenant_id = $1 AND m.member_type = 2 AND m.member_id = a.group_id
        ), below AS (
            SELECT member_id, group_id FROM group_member WHERE tenant_id = $1 AND member_type = 2 AND group_id = $3
            UNION
            SELECT m.member_id, m.group_id
            FROM below b JOIN group_member m ON m.tenant_id = $1 AND m.member_type = 2 AND m.group_id = b.member_id
        )
        SELECT c.name AS child, p.name AS parent
        FROM (SELECT member_id, group_id FROM above UNION SELECT member_id, group_id FROM below) e
        JOIN subject_group c ON c.tenant_id = $1 AND c.id = e.member_id
        JOIN subject_group p ON p.tenant_id = $1 AND p.id = e.group_id
    """

    async def group_lineage(self, group_id: UUID, member_id: UUID) -> list[Edge]:
        """Return all edges above one group and below another."""
        return edges_of(await self._rows(self._GROUP_LINEAGE, group_id, member_id))

    # Resources

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

    # Above $2 and below $3.
    _RESOURCE_LINEAGE = """
        WITH RECURSIVE above AS (
            SELECT name, parent FROM resource WHERE tenant_id = $1 AND name = $2
            UNION
            SELECT r.name, r.parent FROM above a JOIN resource r ON r.tenant_id = $1 AND r.name = a.parent
        ), below AS (
            SELECT name, parent FROM resource WHERE tenant_id = $1 AND parent = $3
            UNION
            SELECT r.name, r.parent FROM below b JOIN resource r ON r.tenant_id = $1 AND r.parent = b.name
        )
        SELECT name AS child, parent FROM above UNION SELECT name, parent FROM below
    """

    async def resource_lineage(self, parent: str, resource: str) -> list[Edge]:
        """Return all edges above `parent` and below `resource`."""
        return edges_of(await self._rows(self._RESOURCE_LINEAGE, parent, resource))


def _columns(terms: Terms) -> tuple[object, ...]:
    """Return terms as their columns: expire_time, effect, condition, acr, max_age."""
    return terms.expire_time, int(terms.effect), terms.condition, terms.acr, seconds(terms.max_age)
