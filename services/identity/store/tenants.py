"""Tenants in Postgres."""

from uuid import UUID

from services.chassis.postgres import Change, Database, Row
from services.chassis.tenancy import DEFAULT_TENANT_NAME, TenantId
from services.identity.accounts import Tenant


class TenantStore:
    """Reads and writes tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _FIND_ID = "SELECT id FROM tenant WHERE name = $1"

    async def find_id(self, name: str) -> TenantId | None:
        """Return the tenant of a name; an empty name is the default tenant's."""
        row = await self._database.fetch_row(self._FIND_ID, name or DEFAULT_TENANT_NAME)
        return TenantId(row["id"]) if row else None

    _FIND_NAME = "SELECT name FROM tenant WHERE id = $1"

    async def find_name(self, tenant_id: TenantId) -> str:
        """Return a tenant's name, empty for an unknown one."""
        row = await self._database.fetch_row(self._FIND_NAME, tenant_id)
        return row["name"] if row else ""

    _INSERT = """
        INSERT INTO tenant (id, name, display_name, create_time) VALUES ($1, $2, $3, $4)
        ON CONFLICT (name) DO NOTHING RETURNING id
    """

    async def insert(self, change: Change, tenant: Tenant) -> bool:
        """Make a tenant; False if its name is taken."""
        row = await change.connection.fetchrow(self._INSERT, tenant.id, tenant.name, tenant.display_name, tenant.create_time)
        return row is not None

    _NOTE_FIRST_ADMINISTRATOR = "UPDATE tenant SET first_admin_id = $2 WHERE id = $1 AND first_admin_id IS NULL"

    async def note_first_administrator(self, change: Change, tenant_id: TenantId, account_id: UUID) -> None:
        """Write down whom a tenant is given as administrator, if it is the first."""
        await change.connection.execute(self._NOTE_FIRST_ADMINISTRATOR, tenant_id, account_id)

    _FIND_FIRST_ADMINISTRATOR = "SELECT first_admin_id FROM tenant WHERE id = $1"

    async def find_first_administrator(self, tenant_id: TenantId) -> UUID | None:
        """Return whom a tenant was given as its first administrator, None if nobody yet. The account may be gone by now."""
        row = await self._database.fetch_row(self._FIND_FIRST_ADMINISTRATOR, tenant_id)
        return row["first_admin_id"] if row else None

    _LIST = "SELECT id, name, display_name, create_time FROM tenant WHERE name > $1 ORDER BY name LIMIT $2"

    async def list(self, *, after: str, limit: int) -> list[Tenant]:
        """Return tenants by name."""
        return [_tenant(row) for row in await self._database.fetch(self._LIST, after, limit)]


def _tenant(row: Row) -> Tenant:
    return Tenant(TenantId(row["id"]), row["name"], row["display_name"], row["create_time"])
