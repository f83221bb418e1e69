"""Migrations: numbered SQL files, forward only, one folder and one schema per context. Run as `python -m services.chassis.migrate`.

Many may run at once: an advisory lock lets one work while the others wait and then find nothing to do. Each file is one transaction together
with its row in `<schema>.schema_migration`, so a kill in the middle leaves the file wholly undone. A file that was changed after it was applied
is refused. Expand now, contract a release later: every file leaves the release before it working.
"""

import asyncio
import contextlib
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from services.chassis.settings import SettingsError, read_value

SERVICES = Path(__file__).parent.parent
FOLDERS = {
    "suite": SERVICES / "chassis" / "migrations",
    "identity": SERVICES / "identity" / "migrations",
    "token": SERVICES / "token" / "migrations",
    "rbac": SERVICES / "rbac" / "migrations",
}
ROLES = ("watchword_identity", "watchword_token", "watchword_rbac", "watchword_gateway")
LOCK = 0x57415443  # "WATC": one number for all instances
LOCK_TIMEOUT = "5s"  # a migration that cannot get its lock soon gives way to the traffic


class MigrationError(Exception):
    """The schema and the files do not fit together."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    schema: str
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What tells whether the file was changed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(schema: str) -> list[Migration]:
    """Return the files of `schema`, in order."""
    found: list[Migration] = []
    for path in sorted(FOLDERS[schema].glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", path.name)
        if match is None:
            raise MigrationError(f"{path.name} is not named like 0001_what_it_does.sql")
        if found and found[-1].version == int(match[1]):
            raise MigrationError(f"{path.name} has the number of another migration, {found[-1].name}")
        found.append(Migration(schema, int(match[1]), match[2], path.read_text(encoding="utf-8")))
    return found


def latest(schema: str) -> int:
    """Return the version that this code needs."""
    return max((migration.version for migration in migrations(schema)), default=0)


async def migrate(url: str) -> list[Migration]:
    """Bring every schema up to date; return what was applied. Raises MigrationError."""
    connection = await asyncpg.connect(url, timeout=10, server_settings={"application_name": "watchword migrate", "lock_timeout": LOCK_TIMEOUT})
    try:
        await connection.execute("SET lock_timeout = 0")  # waiting for another migrator is no harm
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK)
        await connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        await _ensure_roles(connection)
        applied: list[Migration] = []
        for schema in FOLDERS:
            applied.extend(await _migrate_schema(connection, schema))
        return applied
    finally:
        await connection.close()


async def _ensure_roles(connection: asyncpg.Connection) -> None:
    for role in ROLES:
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            # Another database of this server may be migrated at the same moment.
            with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
                await connection.execute(f"CREATE ROLE {role} NOLOGIN NOINHERIT")
        # On managed servers an administrator makes the roles and grants them; then there is nothing to grant, nor the right to.
        try:
            await connection.execute(f"SET ROLE {role}; RESET ROLE")
        except asyncpg.InsufficientPrivilegeError:
            await connection.execute(f"GRANT {role} TO CURRENT_USER")


async def _migrate_schema(connection: asyncpg.Connection, schema: str) -> list[Migration]:
    await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS {schema}.schema_migration"
        " (version int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    known = {row["version"]: row["checksum"] for row in await connection.fetch(f"SELECT version, checksum FROM {schema}.schema_migration")}  # noqa: S608
    applied = []
    for migration in migrations(schema):
        if migration.version in known:
            if known[migration.version] != migration.checksum:
                raise MigrationError(f"{schema} {migration.version:04d}_{migration.name} was changed after it was applied; add a new file instead")
            continue
        async with connection.transaction():
            await connection.execute(f"SET LOCAL search_path = {schema}, suite")
            await connection.execute(migration.sql)
            await connection.execute(
                f"INSERT INTO {schema}.schema_migration (version, name, checksum) VALUES ($1, $2, $3)",  # noqa: S608
                migration.version,
                migration.name,
                migration.checksum,
            )
        applied.append(migration)
    if schema != "suite":  # suite grants less, file by file
        await _grant_own(connection, schema)
    return applied


async def _grant_own(connection: asyncpg.Connection, schema: str) -> None:
    """Give a context's role its own schema and no other."""
    await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO watchword_{schema}")
    await connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO watchword_{schema}")
    await connection.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO watchword_{schema}")


def main() -> int:
    """Migrate the database of DATABASE_URL."""
    try:
        url = read_value("DATABASE_URL")
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        applied = asyncio.run(migrate(url))
    except (MigrationError, asyncpg.PostgresError, OSError, TimeoutError) as error:
        print(f"migration failed: {error or type(error).__name__}", file=sys.stderr)
        return 1
    for migration in applied:
        print(f"applied {migration.schema} {migration.version:04d}_{migration.name}")
    print("the schema is current")
    return 0


if __name__ == "__main__":
    sys.exit(main())
