"""Token looks after its store by itself, whatever goes wrong in between."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg

from tests.conftest import SALT, Keys, Stores, eventually, instance, serving

_INSERT = """
    INSERT INTO token.revocation (tenant_id, key, kind, revision, spared_revision, is_disabled, revoke_time, expire_time)
    VALUES ($1, $1, 'token', 1, 0, false, $2, $2)
"""


async def test_the_tending_outlives_every_failure(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    """A table that is missing for a while stands for any defect: if it ended the tending, nothing that expired would ever go."""
    url = await stores.new_database()
    environment = {
        "DATABASE_URL": url,
        "REDIS_URL": stores.redis,
        "SECURITY_SALT": SALT,
        "SERVICE_KEY": service_keys.private["token"],
        "SERVICE_PUBLIC_KEYS": service_keys.public_json,
    }
    connection = await asyncpg.connect(url)
    log, expired = tmp_path / "log", datetime.now(UTC) - timedelta(hours=1)

    async def has_failed() -> bool:
        return "tending_failed" in log.read_text()

    async def is_swept() -> bool:
        return not await connection.fetchval("SELECT count(*) FROM token.revocation WHERE key = $1", swept)

    with instance("services.token", environment=environment, log=log) as (address, running):
        await serving(address, running, log)
        await connection.execute("ALTER TABLE token.request RENAME TO lost")
        await eventually(has_failed, within=15)
        await connection.execute("ALTER TABLE token.lost RENAME TO request")
        swept: UUID = uuid4()
        await connection.execute(_INSERT, swept, expired)

        await eventually(is_swept, within=15)
        assert running.poll() is None
    await connection.close()
