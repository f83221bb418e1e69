"""Names and whole rows for explanations: what ids alone do not tell people."""

from collections.abc import Iterable
from uuid import UUID

from services.chassis.postgres import Database
from services.chassis.tenancy import TenantId
from services.rbac.model import Role, RoleBinding
from services.rbac.patterns import covering
from services.rbac.store.rows import BINDING, ROLE, binding_of, role_of

_ROLES = f"{ROLE} WHERE r.tenant_id = $1 AND r.id = ANY($2::uuid[])"
_BINDINGS = f"{BINDING} WHERE tenant_id = $1 AND id = ANY($2::uuid[])"
_GROUPS = "SELECT id, name FROM subject_group WHERE tenant_id = $1 AND id = ANY($2::uuid[])"
_EXPIRED = f"{BINDING} WHERE tenant_id = $1 AND subject_type = $2 AND subject_id = $3 AND expire_time <= now() ORDER BY expire_time DESC LIMIT $4"
_GRANTING = f"{ROLE} WHERE r.tenant_id = $1 AND r.permissions && $2::text[] ORDER BY r.system, r.name LIMIT $3"
FEW = 5  # roles or bindings that are named as what would help


class NameStore:
    """Reads what explanations show."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def roles(self, tenant_id: TenantId, ids: Iterable[UUID]) -> dict[UUID, Role]:
        """Return roles by id, of those that exist."""
        return {row["id"]: role_of(row) for row in await self._database.fetch(_ROLES, tenant_id, list(ids))}

    async def bindings(self, tenant_id: TenantId, ids: Iterable[UUID]) -> dict[UUID, RoleBinding]:
        """Return bindings by id, of those that exist."""
        return {row["id"]: binding_of(row) for row in await self._database.fetch(_BINDINGS, tenant_id, list(ids))}

    async def group_names(self, tenant_id: TenantId, ids: Iterable[UUID]) -> dict[UUID, str]:
        """Return the names of groups by id, of those that exist."""
        return {row["id"]: row["name"] for row in await self._database.fetch(_GROUPS, tenant_id, list(ids))}

    async def expired(self, tenant_id: TenantId, kind: int, subject_id: UUID) -> list[RoleBinding]:
        """Return a few of a subject's own bindings that have expired, latest first."""
        return [binding_of(row) for row in await self._database.fetch(_EXPIRED, tenant_id, kind, subject_id, FEW)]

    async def granting(self, tenant_id: TenantId, permission: str) -> list[Role]:
        """Return a few roles that grant `permission` by patterns of their own."""
        return [role_of(row) for row in await self._database.fetch(_GRANTING, tenant_id, sorted(covering(permission)), FEW)]
