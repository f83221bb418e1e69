"""Revocation of everything issued before a time: also of what came of it since."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.conftest import eventually
from tests.service.token.conftest import TENANT, TokenInstances
from tests.service.token.test_sessions import refresh, refused
from watchword.errors import TokenInvalid
from watchword.token.v1 import token_pb2

HALF_AN_HOUR = timedelta(minutes=30)
MANY = 2500
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0 AND starts_with(btrim(query, E' \n'), $1)"


@asynccontextmanager
async def connected(token: TokenInstances) -> AsyncIterator[Any]:
    """Speak with Postgres as a bystander."""
    connection = await asyncpg.connect(token.database_url, server_settings={"search_path": "token,suite"})
    try:
        yield connection
    finally:
        await connection.close()


async def old_session(token: TokenInstances, **fields: Any) -> token_pb2.TokenSet:
    """Return a session that was opened an hour ago."""
    tokens = await token.issue(**fields)
    async with connected(token) as connection:
        await connection.execute("UPDATE session SET create_time = now() - interval '1 hour' WHERE id = $1", tokens.session_id)
    return tokens


async def revoke_before(token: TokenInstances, when: datetime, *, at: int = 0, **target: Any) -> None:
    request = token_pb2.RevokeTokensRequest(**{"tenant_id": TENANT, **target})
    request.issued_before.FromDatetime(when)
    await token.stubs[at].RevokeTokens(request, metadata=token.identity)


async def statuses(token: TokenInstances, text: str) -> set[str]:
    """Return what all instances say of a token, asked at once."""
    return set(await asyncio.gather(*(token.status(text, at=at) for at in range(len(token.stubs)))))


@pytest.mark.parametrize("target", ["subject", "client_id", "all_of_tenant"])
async def test_what_an_ended_session_was_refreshed_for_is_refused_too(token: TokenInstances, target: str) -> None:
    """Its access token is younger than the time, and would be good for minutes though its session is over. Later sessions go on."""
    tenant_id, subject, client_id = str(uuid4()), str(uuid4()), str(uuid4())
    owner: dict[str, Any] = {"tenant_id": tenant_id, "subject": subject, "client_id": client_id, "revision": 0}
    targets: dict[str, Any] = {"subject": subject, "client_id": client_id, "all_of_tenant": True}
    before, after = await old_session(token, **owner), await token.issue(**owner)
    young = (await refresh(token, before.refresh_token, client_id=client_id)).tokens
    assert await statuses(token, young.access_token) == {"VALID"}

    await revoke_before(token, datetime.now(UTC) - HALF_AN_HOUR, tenant_id=tenant_id, **{target: targets[target]})

    assert await statuses(token, young.access_token) == {"REVOKED"}
    assert await statuses(token, after.access_token) == {"VALID"}
    assert type(await refused(refresh(token, young.refresh_token, client_id=client_id, at=1))) is TokenInvalid
    assert await statuses(token, (await refresh(token, after.refresh_token, client_id=client_id)).tokens.access_token) == {"VALID"}


async def test_only_sessions_that_may_have_a_token_left_are_named(token: TokenInstances) -> None:
    """One that was not refreshed since the time has older tokens only, and one that nobody used for hours has none: they cost no memory."""
    subject = str(uuid4())
    refreshed, unused, idle = [await old_session(token, subject=subject) for _ in range(3)]
    await refresh(token, refreshed.refresh_token)
    async with connected(token) as connection:
        used = "UPDATE session SET last_used_time = now() - $2::interval WHERE id = $1"
        await connection.execute(used, unused.session_id, timedelta(minutes=40))
        await connection.execute(used, idle.session_id, timedelta(hours=2))
        await connection.execute("UPDATE session SET create_time = now() - interval '4 hours' WHERE id = $1", idle.session_id)

        await revoke_before(token, datetime.now(UTC) - HALF_AN_HOUR, subject=subject)
        await revoke_before(token, datetime.now(UTC) - timedelta(hours=3), subject=subject)

        ids = [refreshed.session_id, unused.session_id, idle.session_id]
        named = await connection.fetch("SELECT key FROM revocation WHERE kind = 'session' AND key = ANY($1::uuid[])", ids)
        ended = await connection.fetchval("SELECT count(*) FROM session WHERE id = ANY($1::uuid[]) AND end_time IS NOT NULL", ids)
    assert [str(row["key"]) for row in named] == [refreshed.session_id]
    assert ended == 3


@asynccontextmanager
async def held(token: TokenInstances, statement: str, *arguments: object) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Hold what `statement` locks while inside. Yields what waits until another transaction waits in a statement that begins like that."""
    async with connected(token) as holder, connected(token) as watcher, holder.transaction():
        await holder.execute(statement, *arguments)

        async def until_waits(beginning: str) -> None:
            async def waits() -> bool:
                return bool(await watcher.fetchval(WAITING, beginning))

            await eventually(waits)

        yield until_waits


async def test_a_revocation_by_time_sees_a_refresh_that_is_just_before_it(token: TokenInstances) -> None:
    """The refresh has the session's row, and is not yet committed. What it is answered with is refused when the revocation is answered."""
    subject = str(uuid4())
    session = await old_session(token, subject=subject)
    async with held(token, "LOCK TABLE audit_event IN EXCLUSIVE MODE") as until_waits:
        refreshing = asyncio.create_task(refresh(token, session.refresh_token, at=1))
        await until_waits("WITH audited")
        revoking = asyncio.create_task(revoke_before(token, datetime.now(UTC) - HALF_AN_HOUR, subject=subject))
        await until_waits("WITH found")
    young = (await refreshing).tokens
    await revoking

    assert await statuses(token, young.access_token) == {"REVOKED"}
    assert type(await refused(refresh(token, young.refresh_token))) is TokenInvalid


async def test_a_refresh_sees_a_revocation_by_time_that_is_just_before_it(token: TokenInstances) -> None:
    """It found the session alive when it began. It hands out nothing, for nobody would know of it to refuse it."""
    subject = str(uuid4())
    session = await old_session(token, subject=subject)
    await revoke_before(token, datetime.now(UTC), subject=str(uuid4()))  # now the tenant has a revision
    async with held(token, "SELECT FROM tenant_revision WHERE tenant_id = $1 FOR UPDATE", TENANT) as until_waits:
        revoking = asyncio.create_task(revoke_before(token, datetime.now(UTC) - HALF_AN_HOUR, subject=subject))
        await until_waits("SELECT suite.bump_revision")
        refreshing = asyncio.create_task(refused(refresh(token, session.refresh_token, at=1)))
        await until_waits("WITH touched")
    await revoking

    assert type(await refreshing) is TokenInvalid
    assert type(await refused(refresh(token, session.refresh_token))) is TokenInvalid


async def test_a_session_that_overlaps_a_revocation_by_time_is_born_ended(token: TokenInstances) -> None:
    """It was opened before the time and is written after: its refresh token would outlive the revocation."""
    subject = str(uuid4())
    async with connected(token) as holder:
        async with holder.transaction():
            await holder.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{TENANT}/{TENANT}")
            opening = asyncio.create_task(token.issue(subject=subject))

            async def waits() -> bool:
                async with connected(token) as watcher:
                    return bool(await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))

            await eventually(waits)
            await revoke_before(token, datetime.now(UTC), subject=subject)
        tokens = await opening

    assert type(await refused(refresh(token, tokens.refresh_token))) is TokenInvalid
    async with connected(token) as connection:
        assert await connection.fetchval("SELECT end_cause FROM session WHERE id = $1", tokens.session_id) == "revoked"


async def test_a_tenant_of_very_many_sessions_is_told_of_in_a_few_notices(token: TokenInstances) -> None:
    """One row for each session, by one statement; and those who watch are told of every one."""
    tenant_id = str(uuid4())
    model = await old_session(token, tenant_id=tenant_id, revision=0)
    young = (await refresh(token, model.refresh_token)).tokens
    async with connected(token) as connection:
        copied = (
            "tenant_id, subject, client_id, kind, scopes, audience, acr, auth_time, address, user_agent, create_time, last_used_time, expire_time"
        )
        await connection.execute(
            f"INSERT INTO session (id, {copied}) SELECT gen_random_uuid(), {copied} FROM session, generate_series(2, $2) WHERE id = $1",
            model.session_id,
            MANY,
        )
        posted = await connection.fetchval("SELECT nextval(pg_get_serial_sequence('change', 'id'))")
        watching: Any = token.stubs[2].WatchRevocations(metadata=token.identity)
        await watching.write(token_pb2.WatchRevocationsRequest())
        while not (await watching.read()).HasField("checkpoint"):
            continue

        await revoke_before(token, datetime.now(UTC) - HALF_AN_HOUR, tenant_id=tenant_id, all_of_tenant=True)

        assert await statuses(token, young.access_token) == {"REVOKED"}
        rows = await connection.fetch("SELECT key FROM revocation WHERE tenant_id = $1 AND kind = 'session'", tenant_id)
        told: set[str] = set()
        async with asyncio.timeout(10):
            while len(told) < MANY:
                told |= {each.key for each in (await watching.read()).revocations if each.kind == token_pb2.REVOKED_KIND_SESSION}
        watching.cancel()
        assert told == {str(row["key"]) for row in rows}
        assert len(told) == MANY
        assert await connection.fetchval("SELECT nextval(pg_get_serial_sequence('change', 'id'))") - posted <= MANY // 100
