"""The promise: after a revoking call has answered, no instance accepts; and while the lease lives, none asks Postgres."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import eventually
from tests.service.token.conftest import TENANT, TokenInstances
from watchword.token.v1 import token_pb2

ROUNDS = 10_000 if os.environ.get("WATCHWORD_LONG") else 500
Revoke = Callable[[TokenInstances, token_pb2.TokenSet, str, int], Awaitable[object]]


async def tokens_are(token: TokenInstances, text: str) -> list[str]:
    """Return what each instance says of a token, asked all at once."""
    return list(await asyncio.gather(*(token.status(text, at=at) for at in range(len(token.stubs)))))


async def warm(token: TokenInstances) -> None:
    """Wait until every instance answers from memory."""

    async def leased() -> bool:
        connection = await asyncpg.connect(token.database_url)
        try:
            alive = "SELECT count(*) FROM token.instance WHERE mode = 'leased' AND seen_time > clock_timestamp() - interval '3 seconds'"
            return bool(await connection.fetchval(alive) >= len(token.stubs))
        finally:
            await connection.close()

    await eventually(leased)


async def by_token(token: TokenInstances, tokens: token_pb2.TokenSet, _subject: str, at: int) -> object:
    return await token.stubs[at].RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.access_token), metadata=token.identity)


async def by_refresh_token(token: TokenInstances, tokens: token_pb2.TokenSet, _subject: str, at: int) -> object:
    return await token.stubs[at].RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.refresh_token), metadata=token.identity)


async def by_session(token: TokenInstances, tokens: token_pb2.TokenSet, _subject: str, at: int) -> object:
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, session_id=tokens.session_id)
    return await token.stubs[at].RevokeTokens(request, metadata=token.identity)


async def by_subject(token: TokenInstances, _tokens: token_pb2.TokenSet, subject: str, at: int) -> object:
    return await token.stubs[at].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject), metadata=token.identity)


async def by_time(token: TokenInstances, _tokens: token_pb2.TokenSet, subject: str, at: int) -> object:
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject)
    request.issued_before.FromDatetime(datetime.now(UTC))
    return await token.stubs[at].RevokeTokens(request, metadata=token.identity)


@pytest.mark.parametrize("revoke", [by_token, by_refresh_token, by_session, by_subject])
async def test_after_the_answer_no_instance_accepts(token: TokenInstances, revoke: Revoke) -> None:
    """The headline: warmed on all instances, revoked at one, asked at all at once."""
    await warm(token)
    accepted = []

    for number in range(ROUNDS // 4):
        subject = str(uuid4())
        tokens = await token.issue(subject=subject)
        assert await tokens_are(token, tokens.access_token) == ["VALID"] * 3
        await revoke(token, tokens, subject, number % 3)
        if await tokens_are(token, tokens.access_token) != ["REVOKED"] * 3:
            accepted.append(number)

    assert accepted == []


async def test_a_revocation_by_time_refuses_what_was_issued_before_it(token: TokenInstances) -> None:
    """Whole seconds are what a token knows of its time of issue."""
    subject = str(uuid4())
    tokens = await token.issue(subject=subject)
    await asyncio.gather(*(token.status(tokens.access_token, at=at) for at in range(3)))

    async def revoked() -> bool:
        await by_time(token, tokens, subject, 0)
        return await tokens_are(token, tokens.access_token) == ["REVOKED"] * 3

    await eventually(revoked, within=3)


async def test_a_tenant_can_be_revoked_whole(token: TokenInstances) -> None:
    """Whoever logs in afterwards is let in again."""
    tenant = str(uuid4())
    tokens = await token.issue(tenant_id=tenant, revision=0)
    assert await tokens_are(token, tokens.access_token) == ["VALID"] * 3

    request = token_pb2.RevokeTokensRequest(tenant_id=tenant, all_of_tenant=True)
    await token.stubs[1].RevokeTokens(request, metadata=token.identity)

    assert await tokens_are(token, tokens.access_token) == ["REVOKED"] * 3
    later = await token.issue(tenant_id=tenant, revision=1)
    assert await tokens_are(token, later.access_token) == ["VALID"] * 3


async def test_a_verification_asks_nobody_while_the_lease_lives(token: TokenInstances) -> None:
    """Memory speed: with the tables of token locked away, whoever asks Postgres waits for the lock; tokens old and new are verified all the same."""
    await warm(token)
    seen, unseen = [[(await token.issue()).access_token for _ in range(20)] for _ in range(2)]
    assert {await token.status(text, at=at) for text in seen for at in range(3)} == {"VALID"}
    connection = await asyncpg.connect(token.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE token.revocation, token.signing_key, token.session IN ACCESS EXCLUSIVE MODE")

            async with asyncio.timeout(5):
                statuses = [await token.status(text, at=at) for text in (*seen, *unseen) for at in range(3)]

        assert statuses == ["VALID"] * 120
    finally:
        await connection.close()


async def test_a_revocation_that_nobody_was_told_of_is_passed_on(token: TokenInstances) -> None:
    """A writer that dies between its commit and the log leaves the change in the outbox; a relay finds it."""
    await warm(token)
    tokens = await token.issue()
    assert await tokens_are(token, tokens.access_token) == ["VALID"] * 3
    payload = (
        f'{{"type":"revocation","tenant_id":"{DEFAULT_TENANT}","kind":"session","key":"{UUID(tokens.session_id)}","revision":1,'
        f'"expire_time":"{(datetime.now(UTC) + timedelta(hours=1)).isoformat()}"}}'
    )
    connection = await asyncpg.connect(token.database_url)
    try:
        await connection.execute("INSERT INTO token.change (takes_away, payload) VALUES (true, $1)", payload)

        async def refused() -> bool:
            return await tokens_are(token, tokens.access_token) == ["REVOKED"] * 3

        await eventually(refused, within=5)

        async def struck_off() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM token.change") == 0)

        await eventually(struck_off, within=5)
    finally:
        await connection.close()
