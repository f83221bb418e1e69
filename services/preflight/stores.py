"""What Postgres and Redis must be set to."""

from collections.abc import AsyncIterator

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.chassis.postgres import RESERVED_CONNECTIONS
from services.preflight.findings import Finding, State, judged

PATIENCE = 5.0  # seconds
_POSTGRES = """
    SELECT pg_is_in_recovery() AS is_replica, current_setting('max_connections')::int AS connections,
           current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit
"""


async def postgres(url: str, pools: int) -> AsyncIterator[Finding]:
    """Yield what Postgres says of itself. `pools` is how many connections all instances may open."""
    if not url:
        yield Finding(State.NOT_TRIED, "postgres", "set DATABASE_URL")
        return
    try:
        connection = await asyncpg.connect(url, timeout=PATIENCE)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        yield Finding(State.FAILED, "postgres", f"does not let us in: {type(error).__name__}")
        return
    try:
        row = await connection.fetchrow(_POSTGRES)
    finally:
        await connection.close(timeout=PATIENCE)
    assert row is not None
    yield judged("postgres", good=not row["is_replica"], words=f"DATABASE_URL names a {'replica' if row['is_replica'] else 'primary'}")
    room = row["connections"] - RESERVED_CONNECTIONS
    yield judged(
        "pools", good=pools <= room, words=f"{pools} connections at most, of {row['connections']} less {RESERVED_CONNECTIONS}", otherwise="too many"
    )
    off = [name for name in ("fsync", "synchronous_commit") if row[name] == "off"]
    yield judged("durability", good=not off, words=", ".join(off) or "what is committed is on disk", otherwise="switched off")


async def redis(url: str) -> AsyncIterator[Finding]:
    """Yield what Redis says of itself."""
    if not url.startswith(("redis://", "rediss://")):
        words = "look at each node: maxmemory-policy noeviction, min-replicas-to-write 1" if url else "set REDIS_URL"
        yield Finding(State.NOT_TRIED, "redis", words)
        return
    client = Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, decode_responses=True)
    try:
        policy = (await client.config_get("maxmemory-policy")).get("maxmemory-policy", "")
    except RedisError as error:
        yield Finding(State.NOT_TRIED, "redis", f"does not say what it evicts ({type(error).__name__}): maxmemory-policy must be noeviction")
        return
    finally:
        await client.aclose()
    yield judged(
        "redis", good=policy == "noeviction", words=f"maxmemory-policy {policy}", otherwise="may forget what counts guesses and tells of revocations"
    )
