"""OAuth clients in Postgres."""

from datetime import datetime
from uuid import UUID

from services.chassis.postgres import Change, Database, Row
from services.chassis.tenancy import TenantId
from services.identity.accounts import ClientCredential, OAuthClient

COLUMNS = "c.id, c.tenant_id, c.display_name, c.scopes, c.create_time, c.update_time"


class ClientStore:
    """Reads and writes OAuth clients."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # The revision is read in the snapshot that reads the client.
    _FIND_CREDENTIAL = f"""
        SELECT {COLUMNS}, c.secret_digest, c.old_secret_digest, c.old_secret_expire_time,
               coalesce((SELECT r.revision FROM suite.tenant_revision r WHERE r.tenant_id = c.tenant_id), 0) AS tenant_revision
        FROM oauth_client c WHERE c.id = $1
    """  # noqa: S608

    async def find_credential(self, client_id: UUID) -> ClientCredential | None:
        """Return a client of any tenant: its id says which."""
        row = await self._database.fetch_row(self._FIND_CREDENTIAL, client_id)
        if row is None:
            return None
        return ClientCredential(_client(row), row["secret_digest"], row["old_secret_digest"], row["old_secret_expire_time"], row["tenant_revision"])

    _FIND = f"SELECT {COLUMNS} FROM oauth_client c WHERE c.tenant_id = $1 AND c.id = $2"  # noqa: S608

    async def find(self, tenant_id: TenantId, client_id: UUID) -> OAuthClient | None:
        """Return a client."""
        row = await self._database.fetch_row(self._FIND, tenant_id, client_id)
        return _client(row) if row else None

    _LIST = f"SELECT {COLUMNS} FROM oauth_client c WHERE c.tenant_id = $1 AND ($2::uuid IS NULL OR c.id > $2) ORDER BY c.id LIMIT $3"  # noqa: S608

    async def list(self, tenant_id: TenantId, *, after: UUID | None, limit: int) -> list[OAuthClient]:
        """Return clients, oldest first."""
        return [_client(row) for row in await self._database.fetch(self._LIST, tenant_id, after, limit)]

    _INSERT = """
        INSERT INTO oauth_client (id, tenant_id, display_name, scopes, secret_digest, old_secret_digest, old_secret_expire_time,
                                  create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, '', $6, $6, $6)
    """

    async def insert(self, change: Change, client: OAuthClient, secret_digest: bytes) -> None:
        """Make a client."""
        await change.connection.execute(
            self._INSERT, client.id, client.tenant_id, client.display_name, list(client.scopes), secret_digest, client.create_time
        )

    _ROTATE = f"""
        UPDATE oauth_client AS c SET old_secret_digest = secret_digest, old_secret_expire_time = $4, secret_digest = $3, update_time = $5
        WHERE tenant_id = $1 AND id = $2 RETURNING {COLUMNS}
    """  # noqa: S608

    async def rotate(
        self, change: Change, tenant_id: TenantId, client_id: UUID, secret_digest: bytes, *, old_until: datetime, now: datetime
    ) -> OAuthClient | None:
        """Give a client a new secret; the old one holds until `old_until`."""
        row = await change.connection.fetchrow(self._ROTATE, tenant_id, client_id, secret_digest, old_until, now)
        return _client(row) if row else None

    _DELETE = "DELETE FROM oauth_client WHERE tenant_id = $1 AND id = $2"

    async def delete(self, change: Change, tenant_id: TenantId, client_id: UUID) -> bool:
        """Delete a client; False if there is none."""
        return bool(await change.connection.execute(self._DELETE, tenant_id, client_id) == "DELETE 1")


def _client(row: Row) -> OAuthClient:
    return OAuthClient(row["id"], row["tenant_id"], row["display_name"], tuple(row["scopes"]), row["create_time"], row["update_time"])
