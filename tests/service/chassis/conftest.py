"""The chassis on real stores: a context's database, and Redis."""

import time
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import asyncpg
import pytest

from services.chassis.call import Call, Caller, CallerKind, Once
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.settings import ChassisSettings, load
from tests.conftest import SALT, Keys, Stores

Configure = Callable[..., ChassisSettings]


def call_by(caller_id: str = "identity", *, request_id: str = "", method: str = "/test/Do", request: bytes = b"request") -> Call:
    """Return a call of a service of the suite; with a request_id, one that happens once."""
    from uuid import UUID

    once = Once(UUID(request_id), method, request) if request_id else None
    return Call(method, Caller(CallerKind.SERVICE, caller_id), request_id=str(uuid4()), address="192.0.2.1", once=once)


def hold_the_loop(seconds: float) -> None:
    """Let nothing else of this process run, as one that is busy or stands still does not."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


@pytest.fixture(scope="session")
async def database_url(stores: Stores) -> str:
    """Return a database with the suite's schemas, and a table of token's for what effects leave."""
    url = await stores.new_database()
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE token.effect (id uuid PRIMARY KEY, note text NOT NULL); GRANT ALL ON token.effect TO watchword_token")
    await connection.close()
    return url


@pytest.fixture(scope="session")
def configure(stores: Stores, service_keys: Keys, database_url: str) -> Configure:
    """Return a maker of settings that differ in what the test names."""

    def make(**changes: object) -> ChassisSettings:
        values = {
            "DATABASE_URL": database_url,
            "REDIS_URL": stores.redis,
            "SECURITY_SALT": SALT,
            "SERVICE_KEY": service_keys.private["token"],
            "SERVICE_PUBLIC_KEYS": service_keys.public_json,
            **changes,
        }
        return load(ChassisSettings, {name: str(value) for name, value in values.items()})

    return make


@pytest.fixture(scope="session")
async def database(configure: Configure) -> AsyncIterator[Database]:
    """Token's door to Postgres."""
    async with Database.open(configure(), "token") as opened:
        yield opened


@pytest.fixture(scope="session")
async def redis(configure: Configure) -> AsyncIterator[Redis]:
    """A healthy Redis."""
    async with Redis.open(configure()) as opened:
        yield opened
