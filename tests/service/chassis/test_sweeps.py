"""What is over is deleted, however much there is of it, and at no cost when there is nothing."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from services.chassis import postgres
from services.chassis.postgres import Database, Sweep
from services.identity.store.accounts import AccountStore
from services.identity.store.outbox import TaskStore
from services.rbac.store.listing import RbacStore
from services.token.store.revocations import RevocationStore
from services.token.store.sessions import SessionStore

SWEEPS = [
    ("identity", AccountStore.SWEEP_CODES),
    ("identity", TaskStore.SWEEP),
    *((schema, Database.FORGET_REQUESTS) for schema in ("identity", "rbac", "token")),
    ("rbac", RbacStore.FORGET_BINDINGS),
    ("rbac", RbacStore.FORGET_CHANGES),
    ("token", RevocationStore.SWEEP),
    ("token", SessionStore.SWEEP),
]
FILL = """
    INSERT INTO token.request (tenant_id, caller_id, request_id, method, fingerprint, create_time)
    SELECT gen_random_uuid(), 'identity', gen_random_uuid(), '', '', now() - $1::interval + random() * interval '1 hour' FROM generate_series(1, $2)
"""
SESSIONS = """
    WITH opened AS (
        INSERT INTO token.session (id, tenant_id, subject, kind, scopes, audience, acr, auth_time, address, user_agent, create_time, last_used_time,
                                   expire_time)
        SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'user', '{}', '', '', now(), '', '', now(), now(), now() + $1::interval
        FROM generate_series(1, $2) RETURNING id, expire_time
    )
    INSERT INTO token.refresh_token (digest, session_id, issue_time, expire_time)
    SELECT uuid_send(gen_random_uuid()), id, now(), expire_time FROM opened, generate_series(1, 300)
"""
OLD, LATE = timedelta(hours=26), timedelta(hours=23)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection, and no request that is remembered."""
    opened = await asyncpg.connect(database_url)
    await opened.execute("TRUNCATE token.request")
    yield opened
    await opened.close()


async def plan(connection: asyncpg.Connection, sweep: Sweep, schema: str) -> str:
    """Return how Postgres would sweep now."""
    await connection.execute(f"SET search_path = {schema}, suite")
    return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {sweep.sql}"))


@pytest.mark.parametrize(("schema", "sweep"), SWEEPS, ids=[f"{schema}.{sweep.table}" for schema, sweep in SWEEPS])
async def test_an_index_finds_what_is_over(connection: asyncpg.Connection, schema: str, sweep: Sweep) -> None:
    """And in its order. With sequential scans and sorts put at the end of all choices, they are left only where there is no other way."""
    await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off")

    told = await plan(connection, sweep, schema)

    assert f"Index Cond: ({sweep.column} <" in told
    assert "Seq Scan" not in told
    assert "Sort" not in told


async def test_a_sweep_that_finds_nothing_reads_nothing(connection: asyncpg.Connection) -> None:
    """Every instance looks every few seconds. In no order at all is where an index seems dear to the planner; here it chooses as it likes."""
    await connection.execute(FILL, LATE, 20_000)
    await connection.execute("VACUUM ANALYZE token.request")

    told = await plan(connection, Database.FORGET_REQUESTS, "token")

    assert "Index Scan using request_by_time" in told
    assert "Seq Scan" not in told


async def test_a_sweep_goes_on_while_there_is_more(database: Database, connection: asyncpg.Connection) -> None:
    """After an outage or a flood there are more than one statement could delete before its timeout."""
    await connection.execute(FILL, OLD, 2 * postgres.SWEPT_AT_ONCE + 1)
    await connection.execute(FILL, LATE, 3)

    await database.forget_requests()

    assert await connection.fetchval("SELECT count(*) FROM token.request") == 3


async def test_a_sweep_does_not_go_on_for_ever(database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first; the rest waits for the next time, so that the other sweeps have their turn."""
    monkeypatch.setattr(postgres, "MOST_BATCHES", 2)
    await connection.execute(FILL, OLD, 25)
    youngest = await connection.fetch("SELECT request_id FROM token.request ORDER BY create_time DESC LIMIT 5")

    await database.sweep(replace(Database.FORGET_REQUESTS, batch=10))

    assert {*await connection.fetch("SELECT request_id FROM token.request")} == {*youngest}


async def test_a_sweep_waits_for_nobody(database: Database, connection: asyncpg.Connection) -> None:
    """Who holds a row may be renewing it, or be another instance that sweeps."""
    await connection.execute(FILL, OLD, 10)
    async with connection.transaction():
        held = await connection.fetch(
            "UPDATE token.request SET create_time = now() WHERE ctid IN (SELECT ctid FROM token.request LIMIT 4) RETURNING 1"
        )

        await database.forget_requests()

    assert await connection.fetchval("SELECT count(*) FROM token.request") == len(held) == 4


async def test_expired_sessions_take_their_refresh_tokens_along(database: Database, connection: asyncpg.Connection) -> None:
    """A session that is refreshed every five minutes for a day has some three hundred: a batch of sessions is small, and there are many batches."""
    await connection.execute(SESSIONS, -timedelta(minutes=1), 250)
    await connection.execute(SESSIONS, timedelta(minutes=1), 3)

    await SessionStore(database).sweep()

    assert await connection.fetchval("SELECT count(*) FROM token.session") == 3
    assert await connection.fetchval("SELECT count(*) FROM token.refresh_token") == 3 * 300
