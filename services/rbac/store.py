"""Every statement of rbac.

`RbacStore` reads outside of changes. `TenantChange` is the inside of one: it holds the tenant's lock, so what it reads stays true until it commits.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.postgres import Change, Database, Row, bump
from services.chassis.tenancy import TenantId
from services.rbac.authority import Administration
from services.rbac.holdings import NOTHING, HeldRole, Holding, Holdings, Revision, Snapshot, State
from services.rbac.model import ADMINISTRATOR, Edge, Group, Role, RoleBinding, Subject, SubjectType, Written
from services.rbac.patterns import Patterns
from services.rbac.revisions import encode
from watchword.errors import NotFound, PermissionDenied

T = TypeVar("T")

_FIND_STATE = """
    SELECT coalesce((SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1), 0) AS revision,
           coalesce((SELECT revision FROM policy WHERE tenant_id = $1), 0) AS policy
"""

# One statement, so one snapshot. Rows of four kinds: the state; each bound role with all its patterns; which subject (by number) holds which role
# where; and what each resource lies below. UNION drops what was seen before, so the recursions end whatever the tables hold.
_LOAD = """
    WITH RECURSIVE asked AS (
        SELECT no, type, id FROM unnest($2::smallint[], $3::uuid[]) WITH ORDINALITY AS a (type, id, no)
    ), holder AS (
        SELECT no, type, id FROM asked
        UNION
        SELECT h.no, 2::smallint, m.group_id
        FROM holder h JOIN group_member m ON m.tenant_id = $1 AND m.member_type = h.type AND m.member_id = h.id
    ), held AS MATERIALIZED (
        SELECT h.no, b.role_id, b.resource, b.expire_time
        FROM holder h JOIN role_binding b ON b.tenant_id = $1 AND b.subject_type = h.type AND b.subject_id = h.id
        WHERE b.expire_time IS NULL OR b.expire_time > $5
    ), reached AS (
        SELECT role_id AS held_id, role_id FROM held
        UNION
        SELECT r.held_id, p.parent_id FROM reached r JOIN role_parent p ON p.tenant_id = $1 AND p.role_id = r.role_id
    ), place AS (
        SELECT name COLLATE "C" AS resource, name COLLATE "C" AS above FROM unnest($4::text[]) AS name
        UNION
        SELECT p.resource, r.parent FROM place p JOIN resource r ON r.tenant_id = $1 AND r.name = p.above
    )
    SELECT 'state' AS kind, NULL::bigint AS no, NULL::uuid AS role_id, NULL::text AS name, NULL::text[] AS texts, NULL::timestamptz[] AS ends,
           coalesce((SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1), 0) AS revision,
           coalesce((SELECT revision FROM policy WHERE tenant_id = $1), 0) AS policy
    UNION ALL
    SELECT 'role', NULL, r.held_id, h.name, array_agg(DISTINCT pattern) FILTER (WHERE pattern IS NOT NULL), NULL, NULL, NULL
    FROM reached r
    JOIN role h ON h.tenant_id = $1 AND h.id = r.held_id
    JOIN role a ON a.tenant_id = $1 AND a.id = r.role_id
    LEFT JOIN unnest(a.permissions) AS pattern ON true
    GROUP BY r.held_id, h.name
    UNION ALL
    SELECT 'holding', no, role_id, NULL, array_agg(resource), array_agg(expire_time), NULL, NULL FROM held GROUP BY no, role_id
    UNION ALL
    SELECT 'place', NULL, NULL, resource, array_agg(above), NULL, NULL, NULL FROM place GROUP BY resource
"""

_ROLE = """
    SELECT r.id, r.name, r.description, r.permissions, r.system, r.version, r.create_time, r.update_time,
           ARRAY(SELECT p.parent_id FROM role_parent p WHERE p.tenant_id = r.tenant_id AND p.role_id = r.id ORDER BY p.parent_id) AS parent_ids
    FROM role r
"""
_BINDING = "SELECT id, subject_type, subject_id, role_id, resource, expire_time, create_time FROM role_binding"
_GROUP = "SELECT id, name, description, create_time FROM subject_group"

_FIND_ROLE = f"{_ROLE} WHERE r.tenant_id = $1 AND r.id = $2"
_FIND_BINDING = f"{_BINDING} WHERE tenant_id = $1 AND id = $2"
_FIND_GROUP = f"{_GROUP} WHERE tenant_id = $1 AND id = $2"
_FIND_PARENT = "SELECT parent FROM resource WHERE tenant_id = $1 AND name = $2"


class RbacStore:
    """Policies in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_state(self, tenant_id: TenantId) -> State:
        """Return where the tenant stands."""
        row = (await self._database.fetch(_FIND_STATE, tenant_id))[0]
        return State(row["revision"], row["policy"])

    async def load(self, tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str], now: datetime) -> Snapshot:
        """Return what subjects hold, unless it expired before `now`, and where resources lie: one state, by one statement."""
        return _snapshot(await self._database.fetch(_LOAD, *_load_arguments(tenant_id, subjects, resources, now)), subjects)

    async def get_role(self, tenant_id: TenantId, role_id: UUID) -> Role:
        """Return a role. Raises NotFound."""
        return _role(_found(await self._database.fetch_row(_FIND_ROLE, tenant_id, role_id)))

    _LIST_ROLES = f"{_ROLE} WHERE r.tenant_id = $1 AND r.name > $2 ORDER BY r.name LIMIT $3"

    async def list_roles(self, tenant_id: TenantId, after: str, limit: int) -> list[Role]:
        """Return roles by name."""
        return [_role(row) for row in await self._database.fetch(self._LIST_ROLES, tenant_id, after, limit)]

    async def get_binding(self, tenant_id: TenantId, binding_id: UUID) -> RoleBinding:
        """Return a binding. Raises NotFound."""
        return _binding(_found(await self._database.fetch_row(_FIND_BINDING, tenant_id, binding_id)))

    # Ids are UUIDv7: their order is that of making.
    _LIST_BINDINGS = f"""
        {_BINDING}
        WHERE tenant_id = $1 AND id > $2 AND ($4::uuid IS NULL OR role_id = $4) AND ($5::uuid IS NULL OR subject_id = $5)
        ORDER BY id LIMIT $3
    """

    async def list_bindings(
        self, tenant_id: TenantId, after: UUID, limit: int, *, role_id: UUID | None, subject_id: UUID | None
    ) -> list[RoleBinding]:
        """Return bindings, oldest first; of one role, of one subject, if they are given."""
        return [_binding(row) for row in await self._database.fetch(self._LIST_BINDINGS, tenant_id, after, limit, role_id, subject_id)]

    async def get_group(self, tenant_id: TenantId, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return _group(_found(await self._database.fetch_row(_FIND_GROUP, tenant_id, group_id)))

    _LIST_GROUPS = f"{_GROUP} WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3"

    async def list_groups(self, tenant_id: TenantId, after: str, limit: int) -> list[Group]:
        """Return groups by name."""
        return [_group(row) for row in await self._database.fetch(self._LIST_GROUPS, tenant_id, after, limit)]

    _LIST_MEMBERS = """
        SELECT member_type, member_id FROM group_member
        WHERE tenant_id = $1 AND group_id = $2 AND (member_type, member_id) > ($3, $4)
        ORDER BY member_type, member_id LIMIT $5
    """

    async def list_members(self, tenant_id: TenantId, group_id: UUID, after: tuple[int, UUID], limit: int) -> list[Subject]:
        """Return a group's direct members, by type and id."""
        rows = await self._database.fetch(self._LIST_MEMBERS, tenant_id, group_id, *after, limit)
        return [Subject(SubjectType(row["member_type"]), row["member_id"]) for row in rows]

    async def find_parent(self, tenant_id: TenantId, resource: str) -> str:
        """Return what a resource lies below, or an empty string."""
        row = await self._database.fetch_row(_FIND_PARENT, tenant_id, resource)
        return "" if row is None else str(row["parent"])

    async def change(self, call: Call, tenant_id: TenantId, result: type[Written[T]], effect: Callable[["TenantChange"], Awaitable[T]]) -> Written[T]:
        """Run `effect` under the tenant's lock in one transaction; with a request_id, once in 24 hours. A refusal is audited."""

        async def locked(change: Change) -> Written[T]:
            inside = TenantChange(change, tenant_id)
            await inside.lock()
            item = await effect(inside)
            return Written(item, await inside.seal())

        try:
            return await self._database.change(call, result, locked)
        except PermissionDenied as error:
            refused = AuditEvent("policy_change_denied", "method", call.method, outcome="failure", details={"cause": error.text}, tenant_id=tenant_id)
            await self.note(call, refused)
            raise

    async def note(self, call: Call, *events: AuditEvent) -> None:
        """Write audit rows of something that changed nothing."""
        await self._database.note(call, *events)

    async def sweep(self) -> None:
        """Delete the records of requests older than a day."""
        await self._database.forget_requests()

    async def ping(self) -> None:
        """Return if Postgres answers."""
        await self._database.ping()


class TenantChange:
    """The inside of a change of one tenant's policy."""

    def __init__(self, change: Change, tenant_id: TenantId) -> None:
        self._change = change
        self._connection = change.connection
        self._tenant_id = tenant_id
        self._is_changed = False
        self._takes_away = False

    _LOCK = """
        INSERT INTO policy AS p (tenant_id, revision) VALUES ($1, 0)
        ON CONFLICT (tenant_id) DO UPDATE SET revision = p.revision
    """

    async def lock(self) -> None:
        """Wait for the tenant's other changes of policy. Other contexts' changes are not waited for: the shared counter is bumped late."""
        await self._connection.execute(self._LOCK, self._tenant_id)

    _STAMP = "UPDATE policy SET revision = $2 WHERE tenant_id = $1"

    async def seal(self) -> int:
        """Return the tenant's revision with this change in it: a new one, of which all instances are told, unless nothing was changed."""
        if not self._is_changed:
            return int((await self._connection.fetchrow(_FIND_STATE, self._tenant_id))["revision"])
        revision = await bump(self._connection, self._tenant_id)
        await self._connection.execute(self._STAMP, self._tenant_id, revision)
        self._change.tell(encode(self._tenant_id, revision), takes_away=self._takes_away)
        return revision

    def audit(self, event: AuditEvent) -> None:
        """Add an audit row of this tenant."""
        self._change.audit(replace(event, tenant_id=self._tenant_id))

    async def _write(self, sql: str, *args: object) -> int:
        """Run a writing statement for the tenant; return how many rows it touched."""
        touched = int((await self._connection.execute(sql, self._tenant_id, *args)).rpartition(" ")[2])
        self._is_changed = self._is_changed or touched > 0
        only_adds = sql.lstrip().startswith("INSERT") and "DO UPDATE" not in sql
        self._takes_away = self._takes_away or (touched > 0 and not only_adds)
        return touched

    async def _rows(self, sql: str, *args: object) -> list[Row]:
        return list(await self._connection.fetch(sql, self._tenant_id, *args))

    async def _row(self, sql: str, *args: object) -> Row | None:
        row: Row | None = await self._connection.fetchrow(sql, self._tenant_id, *args)
        return row

    # Roles

    async def get_role(self, role_id: UUID) -> Role:
        """Return a role. Raises NotFound."""
        return _role(_found(await self._row(_FIND_ROLE, role_id)))

    _FIND_ROLE_NAMED = f"{_ROLE} WHERE r.tenant_id = $1 AND r.name = $2"

    async def find_role_named(self, name: str) -> Role | None:
        """Return the role of that name."""
        row = await self._row(self._FIND_ROLE_NAMED, name)
        return None if row is None else _role(row)

    _ENSURE_SYSTEM_ROLES = "SELECT ensure_system_roles($1)"

    async def ensure_system_roles(self) -> None:
        """Give the tenant the suite's own roles, as far as it has them not."""
        await self._write(self._ENSURE_SYSTEM_ROLES)

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
        return _edges(await self._rows(self._ROLE_LINEAGE, parent_ids, role_id))

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
        await self._write(self._INSERT_ROLE, role.id, role.name, role.description, role.permissions, role.version, role.create_time, role.update_time)
        await self._set_parents(role)

    _UPDATE_ROLE = """
        UPDATE role SET name = $3, description = $4, permissions = $5, version = $6, update_time = $7
        WHERE tenant_id = $1 AND id = $2 AND NOT system
    """

    async def update_role(self, role: Role) -> None:
        """Write a role's new values and parents."""
        await self._write(self._UPDATE_ROLE, role.id, role.name, role.description, role.permissions, role.version, role.update_time)
        await self._set_parents(role)

    _DELETE_PARENTS = "DELETE FROM role_parent WHERE tenant_id = $1 AND role_id = $2 AND parent_id <> ALL($3::uuid[])"
    _INSERT_PARENTS = """
        INSERT INTO role_parent (tenant_id, role_id, parent_id) SELECT $1, $2, unnest($3::uuid[]) ON CONFLICT DO NOTHING
    """

    async def _set_parents(self, role: Role) -> None:
        await self._write(self._DELETE_PARENTS, role.id, role.parent_ids)
        await self._write(self._INSERT_PARENTS, role.id, role.parent_ids)

    _HAS_CHILDREN = "SELECT EXISTS (SELECT 1 FROM role_parent WHERE tenant_id = $1 AND parent_id = $2) AS found"

    async def has_children(self, role_id: UUID) -> bool:
        """Return whether a role is parent of another."""
        return bool(_found(await self._row(self._HAS_CHILDREN, role_id))["found"])

    _DELETE_BINDINGS_OF_ROLE = "DELETE FROM role_binding WHERE tenant_id = $1 AND role_id = $2"
    _DELETE_ROLE = "DELETE FROM role WHERE tenant_id = $1 AND id = $2 AND NOT system"

    async def delete_role(self, role_id: UUID) -> int:
        """Delete a role with its bindings; return how many they were."""
        bindings = await self._write(self._DELETE_BINDINGS_OF_ROLE, role_id)
        await self._write(self._DELETE_ROLE, role_id)
        return bindings

    # Bindings

    async def get_binding(self, binding_id: UUID) -> RoleBinding:
        """Return a binding. Raises NotFound."""
        return _binding(_found(await self._row(_FIND_BINDING, binding_id)))

    _INSERT_BINDING = """
        INSERT INTO role_binding (tenant_id, id, subject_type, subject_id, role_id, resource, expire_time, create_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
    """

    async def insert_binding(self, binding: RoleBinding) -> bool:
        """Write a new binding; return False if there is one that is the same in all but its id."""
        subject = binding.subject
        values = (binding.id, subject.type, subject.id, binding.role_id, binding.resource, binding.expire_time, binding.create_time)
        return await self._write(self._INSERT_BINDING, *values) > 0

    _DELETE_BINDING = "DELETE FROM role_binding WHERE tenant_id = $1 AND id = $2"

    async def delete_binding(self, binding_id: UUID) -> None:
        """Delete a binding."""
        await self._write(self._DELETE_BINDING, binding_id)

    _DELETE_BINDINGS_OF_SUBJECT = "DELETE FROM role_binding WHERE tenant_id = $1 AND subject_type = $2 AND subject_id = $3"
    _DELETE_MEMBERSHIPS_OF_SUBJECT = "DELETE FROM group_member WHERE tenant_id = $1 AND member_type = $2 AND member_id = $3"

    async def delete_holdings(self, subject: Subject) -> tuple[int, int]:
        """Delete a subject's bindings and its memberships of groups; return how many there were of each."""
        bindings = await self._write(self._DELETE_BINDINGS_OF_SUBJECT, subject.type, subject.id)
        return bindings, await self._write(self._DELETE_MEMBERSHIPS_OF_SUBJECT, subject.type, subject.id)

    async def holdings_of(self, subject: Subject, now: datetime) -> Holdings:
        """Return what a subject holds, inside this change."""
        rows = await self._connection.fetch(_LOAD, *_load_arguments(self._tenant_id, [subject], [], now))
        return _snapshot(rows, [subject]).holdings[subject]

    # Down from the tenant-wide bindings of the administrator's role to users.
    _ADMINISTRATION = """
        WITH RECURSIVE reached AS (
            SELECT b.subject_type AS type, b.subject_id AS id, b.expire_time IS NULL AS lasting
            FROM role r JOIN role_binding b ON b.tenant_id = $1 AND b.role_id = r.id
            WHERE r.tenant_id = $1 AND r.name = $2 AND b.resource = '' AND (b.expire_time IS NULL OR b.expire_time > $3)
            UNION
            SELECT m.member_type, m.member_id, r.lasting
            FROM reached r JOIN group_member m ON r.type = 2 AND m.tenant_id = $1 AND m.group_id = r.id
        )
        SELECT count(*) > 0 AS present, coalesce(bool_or(lasting), false) AS lasting FROM reached WHERE type = 1
    """

    async def administration(self, now: datetime) -> Administration:
        """Return whether users administer the tenant, directly or by groups."""
        row = _found(await self._row(self._ADMINISTRATION, ADMINISTRATOR, now))
        return Administration(row["present"], row["lasting"])

    # Groups

    async def get_group(self, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return _group(_found(await self._row(_FIND_GROUP, group_id)))

    _INSERT_GROUP = """
        INSERT INTO subject_group (tenant_id, id, name, description, create_time) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
    """

    async def insert_group(self, group: Group) -> bool:
        """Write a new group; return False if the name is taken."""
        return await self._write(self._INSERT_GROUP, group.id, group.name, group.description, group.create_time) > 0

    _DELETE_MEMBERS = "DELETE FROM group_member WHERE tenant_id = $1 AND group_id = $2"
    _DELETE_GROUP = "DELETE FROM subject_group WHERE tenant_id = $1 AND id = $2"

    async def delete_group(self, group_id: UUID) -> tuple[int, int]:
        """Delete a group, its members, memberships and bindings; return how many bindings and members it had."""
        bindings, _ = await self.delete_holdings(Subject(SubjectType.GROUP, group_id))
        members = await self._write(self._DELETE_MEMBERS, group_id)
        await self._write(self._DELETE_GROUP, group_id)
        return bindings, members

    _INSERT_MEMBER = """
        INSERT INTO group_member (tenant_id, group_id, member_type, member_id) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
    """

    async def insert_member(self, group_id: UUID, member: Subject) -> bool:
        """Put a subject into a group; return False if it is in it."""
        return await self._write(self._INSERT_MEMBER, group_id, member.type, member.id) > 0

    _DELETE_MEMBER = "DELETE FROM group_member WHERE tenant_id = $1 AND group_id = $2 AND member_type = $3 AND member_id = $4"

    async def delete_member(self, group_id: UUID, member: Subject) -> bool:
        """Take a subject out of a group; return False if it is not in it."""
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
        return _edges(await self._rows(self._GROUP_LINEAGE, group_id, member_id))

    # Resources

    async def find_parent(self, resource: str) -> str:
        """Return what a resource lies below, or an empty string."""
        row = await self._row(_FIND_PARENT, resource)
        return "" if row is None else str(row["parent"])

    _SET_PARENT = """
        INSERT INTO resource (tenant_id, name, parent) VALUES ($1, $2, $3) ON CONFLICT (tenant_id, name) DO UPDATE SET parent = excluded.parent
    """
    _DELETE_RESOURCE = "DELETE FROM resource WHERE tenant_id = $1 AND name = $2"

    async def set_parent(self, resource: str, parent: str) -> None:
        """Put a resource below another, or make it a root."""
        if parent:
            await self._write(self._SET_PARENT, resource, parent)
        else:
            await self._write(self._DELETE_RESOURCE, resource)

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
        return _edges(await self._rows(self._RESOURCE_LINEAGE, parent, resource))


def _found(row: Row | None) -> Row:
    if row is None:
        raise NotFound
    return row


def _load_arguments(tenant_id: TenantId, subjects: Sequence[Subject], resources: Sequence[str], now: datetime) -> tuple[object, ...]:
    return tenant_id, [subject.type for subject in subjects], [subject.id for subject in subjects], resources, now


def _snapshot(rows: Iterable[Row], subjects: Sequence[Subject]) -> Snapshot:
    by_kind: dict[str, list[Row]] = {"state": [], "role": [], "holding": [], "place": []}
    for row in rows:
        by_kind[row["kind"]].append(row)
    state = by_kind["state"][0]
    roles = {row["role_id"]: HeldRole(row["role_id"], row["name"], Patterns(row["texts"] or ())) for row in by_kind["role"]}
    held: dict[Subject, list[Holding]] = {}
    for row in by_kind["holding"]:
        ends = zip(row["texts"], row["ends"], strict=True)
        held.setdefault(subjects[row["no"] - 1], []).extend(Holding(roles[row["role_id"]], resource, end) for resource, end in ends)
    return Snapshot(
        revision=Revision(state["revision"]),
        policy=Revision(state["policy"]),
        holdings={subject: Holdings(held[subject]) if subject in held else NOTHING for subject in subjects},
        places={row["name"]: tuple(row["texts"]) for row in by_kind["place"]},
    )


def _edges(rows: Iterable[Row]) -> list[Edge]:
    return [Edge(row["child"], row["parent"]) for row in rows]


def _role(row: Row) -> Role:
    return Role(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        permissions=tuple(row["permissions"]),
        parent_ids=tuple(row["parent_ids"]),
        system=row["system"],
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def _binding(row: Row) -> RoleBinding:
    return RoleBinding(
        id=row["id"],
        subject=Subject(SubjectType(row["subject_type"]), row["subject_id"]),
        role_id=row["role_id"],
        resource=row["resource"],
        expire_time=row["expire_time"],
        create_time=row["create_time"],
    )


def _group(row: Row) -> Group:
    return Group(id=row["id"], name=row["name"], description=row["description"], create_time=row["create_time"])
