"""Refresh tokens, revocation and who may ask for tokens, over two instances."""

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest

from tests.conftest import eventually
from tests.service.token.conftest import TENANT, TokenInstances
from watchword import status
from watchword.errors import (
    CredentialsMissing,
    IdempotencyConflict,
    InvalidRequest,
    PermissionDenied,
    RefreshTokenReused,
    TokenInvalid,
    WatchwordError,
)
from watchword.token.v1 import key_pb2, token_pb2


async def refused(call: Any) -> WatchwordError:
    """Return what a call that must fail raised at the server."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return status.decode(failure.value)


async def refresh(token: TokenInstances, text: str, *, at: int = 0, **fields: Any) -> token_pb2.RefreshTokenResponse:
    return await token.stubs[at].RefreshToken(token_pb2.RefreshTokenRequest(refresh_token=text, **fields), metadata=token.identity)


async def test_only_identity_may_have_tokens_issued(token: TokenInstances) -> None:
    """The other services' identities, a user's token and nobody at all are refused, before the request is even looked at."""
    request = token_pb2.IssueTokenRequest(subject=str(uuid4()), tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_USER)
    user = (("authorization", f"Bearer {(await token.issue()).access_token}"),)

    for name in ("rbac", "gateway", "token"):
        assert type(await refused(token.stubs[0].IssueToken(request, metadata=token.keys.metadata(name, to="token")))) is PermissionDenied
    assert isinstance(await refused(token.stubs[0].IssueToken(request, metadata=user)), PermissionDenied)
    assert type(await refused(token.stubs[0].IssueToken(request))) is CredentialsMissing
    assert type(await refused(token.stubs[0].IssueToken(request, metadata=token.keys.metadata("identity", to="rbac")))) is TokenInvalid


async def test_an_issued_token_says_what_it_was_issued_with(token: TokenInstances) -> None:
    """Issued by one instance, verified by the other."""
    subject = str(uuid4())
    tokens = await token.issue(subject=subject, roles=["clerk"], acr="pwd")
    answer = await token.stubs[1].VerifyToken(token_pb2.VerifyTokenRequest(token=tokens.access_token), metadata=token.identity)

    assert answer.status == token_pb2.VALID
    assert (answer.principal.subject, list(answer.principal.roles), answer.principal.acr) == (subject, ["clerk"], "pwd")
    assert answer.principal.session_id == tokens.session_id
    assert len(tokens.access_token) <= 4096


async def test_roles_that_do_not_fit_are_left_out(token: TokenInstances) -> None:
    """A login must not fail because somebody holds many roles, and no token may burst a header."""
    tokens = await token.issue(roles=[f"role-{number}-{'x' * 80}" for number in range(100)])
    assert len(tokens.access_token) <= 4096
    assert await token.status(tokens.access_token) == "VALID"


async def test_a_refresh_token_is_good_once_and_its_reuse_ends_the_session(token: TokenInstances) -> None:
    """A068: whoever used it second may be the thief, so nobody keeps the session, on any instance."""
    first = await token.issue()
    second = (await refresh(token, first.refresh_token)).tokens
    assert await token.status(second.access_token, at=1) == "VALID"

    assert type(await refused(refresh(token, first.refresh_token, at=1))) is RefreshTokenReused

    assert await token.status(second.access_token) == "REVOKED"
    assert await token.status(first.access_token, at=1) == "REVOKED"
    assert type(await refused(refresh(token, second.refresh_token))) is TokenInvalid


async def test_of_many_redemptions_at_once_exactly_one_succeeds(token: TokenInstances) -> None:
    """A069: read-then-write would let several through."""
    for _ in range(10):
        tokens = await token.issue()
        outcomes = await asyncio.gather(*(refresh(token, tokens.refresh_token, at=n % 2) for n in range(20)), return_exceptions=True)
        assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1


async def test_the_same_request_id_gets_the_same_successor(token: TokenInstances) -> None:
    """A lost reply costs nobody a login; and the id is good for that request only."""
    tokens, request_id = await token.issue(), str(uuid4())
    once = await refresh(token, tokens.refresh_token, request_id=request_id)
    again = await refresh(token, tokens.refresh_token, at=1, request_id=request_id)

    assert once == again
    other = await token.issue()
    assert type(await refused(refresh(token, other.refresh_token, request_id=request_id))) is IdempotencyConflict


async def test_a_refresh_may_narrow_and_never_widen(token: TokenInstances) -> None:
    """A072; a refusal burns nothing."""
    tokens = await token.issue()
    assert type(await refused(refresh(token, tokens.refresh_token, scopes=["admin"]))) is InvalidRequest
    narrowed = await refresh(token, tokens.refresh_token, scopes=["account"])
    assert narrowed.tokens.scope == "account"


async def test_another_client_neither_redeems_nor_burns_a_refresh_token(token: TokenInstances) -> None:
    """A072."""
    tokens = await token.issue(client_id=str(uuid4()))
    assert type(await refused(refresh(token, tokens.refresh_token, client_id=str(uuid4())))) is TokenInvalid
    assert type(await refused(refresh(token, tokens.refresh_token))) is TokenInvalid


async def test_a_revoked_token_is_refused_by_the_other_instance_in_the_next_call(token: TokenInstances) -> None:
    """The promise, a thousand times: after OK, no instance accepts."""
    accepted = 0
    for round_number in range(1000):
        tokens = await token.issue(with_refresh_token=False)
        writer, reader = round_number % 2, 1 - round_number % 2
        await token.stubs[writer].RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.access_token), metadata=token.identity)
        accepted += await token.status(tokens.access_token, at=reader) != "REVOKED"
    assert accepted == 0


async def test_revoking_a_subject_spares_who_is_named_and_those_who_come_after(token: TokenInstances) -> None:
    """A044: a password change ends the other sessions; a later login is not caught by it."""
    subject = str(uuid4())
    mine, other = await token.issue(subject=subject), await token.issue(subject=subject, at=1)
    stranger = await token.issue()
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject, except_session_id=mine.session_id)
    await token.stubs[0].RevokeTokens(request, metadata=token.identity)

    assert await token.status(mine.access_token, at=1) == "VALID"
    assert await token.status(other.access_token, at=0) == "REVOKED"
    assert type(await refused(refresh(token, other.refresh_token))) is TokenInvalid
    assert await token.status(stranger.access_token) == "VALID"
    assert await token.status((await token.issue(subject=subject)).access_token) == "VALID"

    await token.stubs[1].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject), metadata=token.identity)
    assert await token.status(mine.access_token, at=0) == "REVOKED"


async def test_a_login_that_overlaps_a_disabling_gets_a_token_that_is_refused(token: TokenInstances) -> None:
    """The account was found good at a revision before the disabling; however late the token is issued, it is refused."""
    subject, seen = str(uuid4()), await token.revision()
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject, subject_disabled=True)
    await token.stubs[0].RevokeTokens(request, metadata=token.identity)

    late = await token.issue(subject=subject, revision=seen, at=1)

    assert await token.status(late.access_token, at=0) == "SUBJECT_DISABLED"
    assert await token.status(late.access_token, at=1) == "SUBJECT_DISABLED"


async def test_strangers_revoke_nothing_and_learn_nothing(token: TokenInstances) -> None:
    """A074: unknown, malformed and foreign tokens all answer OK, and stay as they are."""
    victim, attacker = await token.issue(), await token.issue()
    metadata = (("authorization", f"Bearer {attacker.access_token}"),)

    for text in (victim.access_token, victim.refresh_token, "rubbish", "wwrt_unknown"):
        await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=text), metadata=metadata)

    assert await token.status(victim.access_token, at=1) == "VALID"
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=attacker.refresh_token), metadata=metadata)
    assert await token.status(attacker.access_token, at=1) == "REVOKED"


async def test_what_is_not_active_introspects_alike(token: TokenInstances) -> None:
    """A076: byte-equal for revoked, malformed, unknown and used."""
    tokens = await token.issue()
    await refresh(token, tokens.refresh_token)
    revoked = await token.issue()
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=revoked.access_token), metadata=token.identity)
    answers = {
        (await token.stubs[1].IntrospectToken(token_pb2.IntrospectTokenRequest(token=text), metadata=token.identity)).SerializeToString()
        for text in (revoked.access_token, "rubbish", "wwrt_unknown", tokens.refresh_token)
    }
    assert answers == {b""}
    alive = await token.issue()
    for text, use in ((alive.access_token, "access_token"), (alive.refresh_token, "refresh_token")):
        answer = await token.stubs[1].IntrospectToken(token_pb2.IntrospectTokenRequest(token=text), metadata=token.identity)
        assert (answer.active, answer.token_use) == (True, use)


async def test_nothing_in_the_database_logs_anybody_in(token: TokenInstances) -> None:
    """T08: a dump of token's schema holds neither refresh tokens nor private keys in the clear."""
    tokens = await token.issue(request_id=str(uuid4()))
    connection = await asyncpg.connect(token.database_url)
    tables = await connection.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'token'")
    dump = ""
    for (name,) in tables:
        dump += "\n".join(str(dict(row)) for row in await connection.fetch(f"SELECT * FROM token.{name}"))
        for row in await connection.fetch(f"SELECT * FROM token.{name}"):
            dump += "".join(value.decode("latin-1") for value in row.values() if isinstance(value, bytes))
    await connection.close()
    assert len(tables) >= 5
    assert tokens.refresh_token not in dump
    assert tokens.access_token not in dump
    assert "PRIVATE KEY" not in dump


async def test_postgres_refuses_token_the_schemas_of_others(token: TokenInstances) -> None:
    """One role a context: an injected or mistaken statement reaches no other context's tables, and rewrites no audit row."""
    connection = await asyncpg.connect(token.database_url, server_settings={"role": "watchword_token"})
    for statement in (
        "SELECT * FROM identity.account",
        "SELECT * FROM rbac.role",
        "DELETE FROM suite.audit_event",
        "SELECT * FROM suite.audit_event",
    ):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedTableError)) as refusal:
            await connection.execute(statement)
        assert "permission denied" in str(refusal.value)
    await connection.close()


async def test_the_key_set_is_public_cacheable_and_holds_nothing_private(token: TokenInstances) -> None:
    """A049, A055."""
    import json

    call = token.key_stubs[0].GetJwks(key_pb2.GetJwksRequest())
    headers, body = dict(await call.initial_metadata()), json.loads((await call).data)
    assert "max-age=" in headers["cache-control"]
    assert body["keys"]
    assert all(not set(key) & {"d", "p", "q", "dp", "dq", "qi", "k"} for key in body["keys"])
    again = token.key_stubs[1].GetJwks(key_pb2.GetJwksRequest(), metadata=(("if-none-match", headers["etag"]),))
    assert dict(await again.initial_metadata())["x-http-status"] == "304"


async def test_a_session_that_overlaps_a_revocation_is_born_ended(token: TokenInstances) -> None:
    """Neither its access token nor its refresh token outlives the revocation, whichever of the two calls is first."""
    for _ in range(30):
        subject, seen = str(uuid4()), await token.revision()
        revoke = token.stubs[1].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject), metadata=token.identity)
        issued, _ = await asyncio.gather(token.issue(subject=subject, revision=seen), revoke)
        late = await token.issue(subject=subject, revision=seen, at=1)
        for tokens in (issued, late):
            assert await token.status(tokens.access_token) == "REVOKED"
            assert type(await refused(refresh(token, tokens.refresh_token, revision=await token.revision()))) is TokenInvalid


async def test_sparing_another_session_revives_nothing(token: TokenInstances) -> None:
    """Two password changes in two sessions: the second one spares its own session, and the first one's stays dead."""
    subject = str(uuid4())
    first, second = await token.issue(subject=subject), await token.issue(subject=subject)
    for spared in (second, first):
        request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject, except_session_id=spared.session_id)
        await token.stubs[0].RevokeTokens(request, metadata=token.identity)

    assert await token.status(first.access_token, at=1) == "REVOKED"
    assert await token.status(second.access_token, at=1) == "REVOKED"


async def test_revoking_a_redeemed_refresh_token_ends_its_session(token: TokenInstances) -> None:
    """Its owner may not know that a thief was faster."""
    tokens = await token.issue()
    successor = (await refresh(token, tokens.refresh_token)).tokens
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.refresh_token), metadata=token.identity)

    assert await token.status(successor.access_token, at=1) == "REVOKED"
    assert type(await refused(refresh(token, successor.refresh_token))) is TokenInvalid


async def test_the_sweep_spares_a_revocation_that_was_renewed_while_it_waited(token: TokenInstances) -> None:
    """Two transactions: the renewal is not yet committed when the sweep comes to the row."""
    from datetime import UTC, datetime, timedelta

    from services.token.store import TokenStore

    key, now = uuid4(), datetime.now(UTC)
    renewing, sweeping = [await asyncpg.connect(token.database_url, server_settings={"search_path": "token"}) for _ in range(2)]
    try:
        insert = "INSERT INTO revocation VALUES ($1, $2, 'subject', 1, 0, NULL, false, $3, $4)"
        await renewing.execute(insert, uuid4(), key, now, now - timedelta(seconds=1))
        async with renewing.transaction():
            await renewing.execute("UPDATE revocation SET expire_time = $2 WHERE key = $1", key, now + timedelta(hours=1))
            sweep = asyncio.create_task(sweeping.execute(TokenStore.SWEEP[0], now))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            await eventually(lambda: _counted(token, waiting))
        await sweep
        assert await renewing.fetchval("SELECT count(*) FROM revocation WHERE key = $1", key) == 1
    finally:
        await renewing.close()
        await sweeping.close()


async def _counted(token: TokenInstances, statement: str) -> bool:
    connection = await asyncpg.connect(token.database_url)
    try:
        return bool(await connection.fetchval(statement))
    finally:
        await connection.close()


async def test_another_tenant_learns_nothing_of_a_token(token: TokenInstances) -> None:
    """Valid, revoked or for somebody else: to strangers it is signed by an unknown key."""
    theirs = await token.issue(tenant_id=str(uuid4()), revision=0)
    ours = await token.issue()
    metadata = (("authorization", f"Bearer {ours.access_token}"),)
    question = token_pb2.VerifyTokenRequest(token=theirs.access_token)

    async def seen() -> str:
        return token_pb2.TokenStatus.Name((await token.stubs[0].VerifyToken(question, metadata=metadata)).status)

    assert await seen() == "UNKNOWN_KEY"
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=theirs.access_token), metadata=token.identity)
    assert await token.status(theirs.access_token) == "REVOKED"
    assert await seen() == "UNKNOWN_KEY"
