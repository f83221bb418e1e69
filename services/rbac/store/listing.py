"""What rbac reads outside of changes, and how a change begins."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.postgres import Change, Database, Sweep
from services.chassis.tenancy import TenantId
from services.rbac.model import Edge, Group, Role, RoleBinding, Subject, SubjectType, Written
from services.rbac.nodes import Revision, Snapshot, State
from services.rbac.policy import Trial
from services.rbac.store.changing import TenantChange
from services.rbac.store.impact import MOST_COMPARED, attempt
from services.rbac.store.loading import FIND_STATE, load
from services.rbac.store.rows import (
    BINDING,
    FIND_BINDING,
    FIND_GROUP,
    FIND_PARENT,
    FIND_ROLE,
    GROUP,
    ROLE,
    binding_of,
    edges_of,
    found,
    group_of,
    role_of,
)
from watchword.errors import PermissionDenied

T = TypeVar("T")
ENDED_BINDINGS_DAYS = 30  # for which ExplainPermission tells of a binding that has ended


class RbacStore:
    """Policies in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_state(self, tenant_id: TenantId) -> State:
        """Return where the tenant stands."""
        row = (await self._database.fetch(FIND_STATE, tenant_id))[0]
        return State(Revision(row["revision"]), Revision(row["policy"]))

    async def load(self, tenant_id: TenantId, subjects: Iterable[Subject], resources: Sequence[str]) -> Snapshot:
        """Return everything above `subjects` and `resources`: one state, by one statement."""
        return await load(self._database.fetch, tenant_id, subjects, resources)

    async def get_role(self, tenant_id: TenantId, role_id: UUID) -> Role:
        """Return a role. Raises NotFound."""
        return role_of(found(await self._database.fetch_row(FIND_ROLE, tenant_id, role_id)))

    _LIST_ROLES = f"{ROLE} WHERE r.tenant_id = $1 AND r.name > $2 ORDER BY r.name LIMIT $3"

    async def list_roles(self, tenant_id: TenantId, after: str, limit: int) -> list[Role]:
        """Return roles by name."""
        return [role_of(row) for row in await self._database.fetch(self._LIST_ROLES, tenant_id, after, limit)]

    async def get_binding(self, tenant_id: TenantId, binding_id: UUID) -> RoleBinding:
        """Return a binding. Raises NotFound."""
        return binding_of(found(await self._database.fetch_row(FIND_BINDING, tenant_id, binding_id)))

    # Ids are UUIDv7: their order is that of making. A statement for each filter, so that each is planned for its own index.
    _LIST_BINDINGS = f"{BINDING} WHERE tenant_id = $1 AND id > $2 {{}} ORDER BY id LIMIT $3"

    async def list_bindings(
        self, tenant_id: TenantId, after: UUID, limit: int, *, role_id: UUID | None, subject_id: UUID | None
    ) -> list[RoleBinding]:
        """Return bindings, oldest first; of one role, of one subject, if they are given."""
        given = [(column, value) for column, value in (("role_id", role_id), ("subject_id", subject_id)) if value is not None]
        filters = " ".join(f"AND {column} = ${place}" for place, (column, _) in enumerate(given, start=4))
        rows = await self._database.fetch(self._LIST_BINDINGS.format(filters), tenant_id, after, limit, *(value for _, value in given))
        return [binding_of(row) for row in rows]

    async def get_group(self, tenant_id: TenantId, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return group_of(found(await self._database.fetch_row(FIND_GROUP, tenant_id, group_id)))

    _LIST_GROUPS = f"{GROUP} WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3"

    async def list_groups(self, tenant_id: TenantId, after: str, limit: int) -> list[Group]:
        """Return groups by name."""
        return [group_of(row) for row in await self._database.fetch(self._LIST_GROUPS, tenant_id, after, limit)]

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
        row = await self._database.fetch_row(FIND_PARENT, tenant_id, resource)
        return "" if row is None else str(row["parent"])

    _LIST_RESOURCES = "SELECT name AS child, parent FROM resource WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3"
    _LIST_RESOURCES_BELOW = "SELECT name AS child, parent FROM resource WHERE tenant_id = $1 AND name > $2 AND parent = $4 ORDER BY name LIMIT $3"

    async def list_resources(self, tenant_id: TenantId, after: str, limit: int, *, parent: str) -> list[Edge]:
        """Return resources with their parents, by name; those directly below `parent`, if it is given."""
        if parent:
            return edges_of(await self._database.fetch(self._LIST_RESOURCES_BELOW, tenant_id, after, limit, parent))
        return edges_of(await self._database.fetch(self._LIST_RESOURCES, tenant_id, after, limit))

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

    async def attempt(self, call: Call, tenant_id: TenantId, effect: Callable[["TenantChange"], Awaitable[T]]) -> Trial[T]:
        """Run `effect` and undo it. Nobody is told, nothing is audited, and nothing is kept of it. Raises what `effect` raises."""
        async with self._database.transaction() as connection:
            inside = TenantChange(Change(connection, call), tenant_id, most_affected=MOST_COMPARED)
            return await attempt(connection, tenant_id, inside, effect)

    async def note(self, call: Call, *events: AuditEvent) -> None:
        """Write audit rows of something that changed nothing."""
        await self._database.note(call, *events)

    FORGET_CHANGES = Sweep("policy_change", "create_time", before="now() - interval '24 hours'")

    async def forget_changes(self) -> None:
        """Delete the records of changes older than a day."""
        await self._database.sweep(self.FORGET_CHANGES)

    FORGET_BINDINGS = Sweep("role_binding", "expire_time", before=f"now() - interval '{ENDED_BINDINGS_DAYS} days'")

    async def forget_bindings(self) -> None:
        """Delete bindings that ended long ago. They have granted and denied nothing since, so that no instance is told and no revision made of it."""
        await self._database.sweep(self.FORGET_BINDINGS)

    async def ping(self) -> None:
        """Return if Postgres answers."""
        await self._database.ping()
