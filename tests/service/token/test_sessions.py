"""Refresh tokens, revocation and who may ask for tokens, over three instances."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services import embedded
from services.token.store.revocations import RevocationStore
from tests.conftest import SALT, Keys, Stores, eventually, free_port, instance, process, serving
from tests.forgery import Original, good_claims
from tests.service.token.conftest import ISSUER, KID, TENANT, TokenInstances
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
from watchword.token.v1 import key_pb2, key_pb2_grpc, token_pb2, token_pb2_grpc

ROUNDS = 200 if os.environ.get("WATCHWORD_LONG") else 10


async def refused(call: Any) -> WatchwordError:
    """Return what a call that must fail raised at the server."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return status.decode(failure.value)


@asynccontextmanager
async def instances(stores: Stores, keys: Keys, home: Path, *, url: str, key: rsa.RSAPrivateKey) -> AsyncIterator[TokenInstances]:
    """Run two instances on `url` with an empty Redis of their own while inside."""
    password, port = "of-the-tests", free_port()
    (home / "redis").mkdir(parents=True)
    environment = {
        "DATABASE_URL": url,
        "REDIS_URL": f"redis://:{password}@127.0.0.1:{port}/0",
        "SECURITY_SALT": SALT,
        "SERVICE_KEY": keys.private["token"],
        "SERVICE_PUBLIC_KEYS": keys.public_json,
        "JWT_PRIVATE_KEY": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "JWT_KEY_ID": KID,
        "TOKEN_ISSUER": ISSUER,
    }
    with ExitStack() as stack:
        stack.enter_context(process(embedded.valkey_command(home / "redis", port, password), log=home / "valkey.log"))
        logs = [home / f"token-{number}.log" for number in (1, 2)]
        running = [stack.enter_context(instance("services.token", environment=environment, log=log)) for log in logs]
        for log, (address, started) in zip(logs, running, strict=True):
            await serving(address, started, log)
        channels = [grpc.aio.insecure_channel(address) for address, _ in running]
        yield TokenInstances(
            stubs=[token_pb2_grpc.TokenServiceStub(channel) for channel in channels],
            key_stubs=[key_pb2_grpc.KeyServiceStub(channel) for channel in channels],
            addresses=[address for address, _ in running],
            pids=[started.pid for _, started in running],
            private_key=key,
            keys=keys,
            database_url=url,
        )
        for channel in channels:
            await channel.close()


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


@pytest.mark.timeout(1200)
async def test_of_many_redemptions_at_once_exactly_one_succeeds(token: TokenInstances) -> None:
    """A069: read-then-write would let several through. Whoever came second ends the session, so the one success is worth nothing either."""
    for _ in range(ROUNDS):
        tokens = await token.issue()
        calls = (refresh(token, tokens.refresh_token, at=number % len(token.stubs)) for number in range(50))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        won = [outcome for outcome in outcomes if isinstance(outcome, token_pb2.RefreshTokenResponse)]
        assert len(won) == 1
        assert {await token.status(won[0].tokens.access_token, at=at) for at in range(len(token.stubs))} == {"REVOKED"}


async def test_the_same_request_id_gets_the_same_successor(token: TokenInstances) -> None:
    """A lost reply costs nobody a login; and the id is good for that request only."""
    tokens, request_id = await token.issue(), str(uuid4())
    once = await refresh(token, tokens.refresh_token, request_id=request_id)
    again = await refresh(token, tokens.refresh_token, at=1, request_id=request_id)

    assert once == again
    other = await token.issue()
    assert type(await refused(refresh(token, other.refresh_token, request_id=request_id))) is IdempotencyConflict
    assert type(await refused(refresh(token, tokens.refresh_token, request_id=request_id, scopes=["account"]))) is IdempotencyConflict
    assert type(await refused(refresh(token, tokens.refresh_token, request_id=request_id, client_id=str(uuid4())))) is IdempotencyConflict
    assert await token.status(once.tokens.access_token) == "VALID"


async def test_a_repeat_is_the_same_whatever_identity_found_meanwhile(token: TokenInstances) -> None:
    """Between two tries roles and revisions move, and a used refresh token tells identity nothing of its subject any more."""
    tokens, request_id = await token.issue(), str(uuid4())
    once = await refresh(token, tokens.refresh_token, request_id=request_id, roles=["clerk"], revision=await token.revision())
    again = await refresh(token, tokens.refresh_token, at=1, request_id=request_id)

    assert once == again
    assert list(again.principal.roles) == ["clerk"]


async def test_repeats_at_once_are_one_redemption(token: TokenInstances) -> None:
    """A client that sends a request again before the first answer came has one session still."""
    tokens, request_id = await token.issue(), str(uuid4())
    answers = await asyncio.gather(*(refresh(token, tokens.refresh_token, at=n % 2, request_id=request_id) for n in range(10)))

    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert await _count(token, "SELECT count(*) FROM token.refresh_token WHERE session_id = $1", tokens.session_id) == 2
    assert await token.status(answers[0].tokens.access_token, at=1) == "VALID"


async def test_a_repeat_after_the_successor_was_used_hands_out_nothing_new(token: TokenInstances) -> None:
    """It gets what it got: an access token as old as it is, and a refresh token that is a trap by now."""
    tokens, request_id = await token.issue(), str(uuid4())
    once = await refresh(token, tokens.refresh_token, request_id=request_id)
    latest = await refresh(token, once.tokens.refresh_token)
    again = await refresh(token, tokens.refresh_token, request_id=request_id, at=1)

    assert again == once
    assert await token.status(latest.tokens.access_token, at=1) == "VALID"
    assert type(await refused(refresh(token, again.tokens.refresh_token, at=1))) is RefreshTokenReused
    assert await token.status(latest.tokens.access_token) == "REVOKED"


async def test_a_repeat_after_the_end_of_the_session_gets_nothing(token: TokenInstances) -> None:
    """What was kept looks like a login; whoever shows it to a user would show one that is over."""
    tokens, request_id = await token.issue(), str(uuid4())
    await refresh(token, tokens.refresh_token, request_id=request_id)
    await token.stubs[0].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, session_id=tokens.session_id), metadata=token.identity)

    assert type(await refused(refresh(token, tokens.refresh_token, request_id=request_id, at=1))) is TokenInvalid


async def test_any_older_generation_ends_the_session_and_is_written_down(token: TokenInstances) -> None:
    """A071: of a chain of four, the first, used again by another request, ends the fourth."""
    chain = [await token.issue()]
    for number in range(3):
        chain.append((await refresh(token, chain[-1].refresh_token, at=number % 2)).tokens)

    assert type(await refused(refresh(token, chain[0].refresh_token, at=1, request_id=str(uuid4())))) is RefreshTokenReused

    assert {await token.status(tokens.access_token, at=at) for tokens in chain for at in (0, 1)} == {"REVOKED"}
    assert type(await refused(refresh(token, chain[-1].refresh_token))) is TokenInvalid
    written = "SELECT count(*) FROM suite.audit_event WHERE type = 'refresh_token_reused' AND outcome = 'failure' AND target_id = $1::uuid::text"
    assert await _count(token, written, chain[0].session_id) == 1


async def test_a_used_refresh_token_stays_used_when_everything_starts_anew(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    """A070: nothing of it is in memory or Redis; both are lost here between the two uses."""
    url, key = await stores.new_database(), rsa.generate_private_key(65537, 2048)
    async with instances(stores, service_keys, tmp_path / "before", url=url, key=key) as first:
        tokens = await first.issue()
        successor = (await refresh(first, tokens.refresh_token)).tokens
        ended = await first.issue()
        await refresh(first, ended.refresh_token)
        await refused(refresh(first, ended.refresh_token))

    async with instances(stores, service_keys, tmp_path / "after", url=url, key=key) as second:
        assert await second.status(successor.access_token, at=1) == "VALID"
        assert {await second.status(ended.access_token, at=at) for at in (0, 1)} == {"REVOKED"}
        assert type(await refused(refresh(second, ended.refresh_token))) is TokenInvalid
        assert type(await refused(refresh(second, tokens.refresh_token, at=1))) is RefreshTokenReused
        assert {await second.status(successor.access_token, at=at) for at in (0, 1)} == {"REVOKED"}


async def test_a_session_ends_after_its_time_however_much_it_is_used(token: TokenInstances) -> None:
    """A073: the absolute life bounds every successor, and the access tokens that are made towards its end."""
    tokens = await token.issue()
    await _execute(token, "UPDATE token.session SET expire_time = now() + interval '50 seconds' WHERE id = $1", tokens.session_id)
    late = (await refresh(token, tokens.refresh_token)).tokens

    assert 0 < late.expires_in <= 50
    beyond = "SELECT count(*) FROM token.refresh_token r JOIN token.session s ON s.id = r.session_id WHERE s.id = $1 AND r.used_time IS NULL"
    assert await _count(token, beyond + " AND r.expire_time > s.expire_time", tokens.session_id) == 0
    await _execute(token, "UPDATE token.session SET expire_time = now() - interval '1 second' WHERE id = $1", tokens.session_id)
    assert type(await refused(refresh(token, late.refresh_token, at=1))) is TokenInvalid


async def test_a_refresh_token_that_lay_idle_is_over(token: TokenInstances) -> None:
    """And does not end the session of whoever finds it: it was never used. One of its time is given the idle time, not more."""
    tokens = await token.issue()
    row = "SELECT extract(epoch FROM expire_time - issue_time)::int FROM token.refresh_token WHERE session_id = $1"
    assert await _count(token, row, tokens.session_id) == 14 * 86400
    await _execute(token, "UPDATE token.refresh_token SET expire_time = now() - interval '1 second' WHERE session_id = $1", tokens.session_id)

    assert type(await refused(refresh(token, tokens.refresh_token))) is TokenInvalid
    assert await token.status(tokens.access_token) == "VALID"


async def test_a_refresh_may_narrow_and_never_widen(token: TokenInstances) -> None:
    """A072; a refusal burns nothing. What was narrowed once may be asked for again: the grant is the session's (RFC 6749 section 6)."""
    tokens = await token.issue()
    assert type(await refused(refresh(token, tokens.refresh_token, scopes=["admin"]))) is InvalidRequest
    assert type(await refused(refresh(token, tokens.refresh_token, scopes=["account", "admin"], request_id=str(uuid4())))) is InvalidRequest
    narrowed = await refresh(token, tokens.refresh_token, scopes=["account"])
    assert narrowed.tokens.scope == "account"
    assert (await refresh(token, narrowed.tokens.refresh_token)).tokens.scope == "account tokens.verify"


async def test_another_client_neither_redeems_nor_burns_a_refresh_token(token: TokenInstances) -> None:
    """A072: neither an unused one nor a used one, by which it could end other people's sessions."""
    mine = str(uuid4())
    tokens = await token.issue(client_id=mine)
    for stranger in (str(uuid4()), ""):
        assert type(await refused(refresh(token, tokens.refresh_token, client_id=stranger))) is TokenInvalid
    successor = (await refresh(token, tokens.refresh_token, client_id=mine)).tokens

    for stranger in (str(uuid4()), ""):
        assert type(await refused(refresh(token, tokens.refresh_token, client_id=stranger))) is TokenInvalid
    assert await token.status(successor.access_token) == "VALID"
    assert type(await refused(refresh(token, tokens.refresh_token, client_id=mine))) is RefreshTokenReused


async def test_a_revoked_token_is_refused_by_the_other_instance_in_the_next_call(token: TokenInstances) -> None:
    """The promise, a thousand times: after OK, no instance accepts."""
    accepted = 0
    for round_number in range(200):
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
    """A076: byte-equal whatever the cause, to services and to clients, of access and refresh tokens."""
    used, revoked, idle = await token.issue(), await token.issue(), await token.issue()
    await refresh(token, used.refresh_token)
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=revoked.refresh_token), metadata=token.identity)
    await _execute(token, "UPDATE token.refresh_token SET expire_time = now() - interval '1 second' WHERE session_id = $1", idle.session_id)
    foreign = await token.issue(tenant_id=str(uuid4()), revision=0)
    now = int(time.time())
    signed = Original.of(token.private_key, KID, good_claims(issuer=ISSUER, tenant_id=TENANT))
    inactive = {
        "unknown access": signed.with_head(kid="nobody's"),
        "unknown refresh": "wwrt_unknown",
        "malformed": "rubbish",
        "expired access": signed.with_body(iat=now - 400, exp=now - 100),
        "not yet valid": signed.with_body(iat=now + 100, exp=now + 400),
        "of another issuer": signed.with_body(iss="https://other.test"),
        "for another audience": signed.with_body(aud="somebody"),
        "expired refresh": idle.refresh_token,
        "revoked access": revoked.access_token,
        "revoked refresh": revoked.refresh_token,
        "used refresh": used.refresh_token,
    }
    client = await token.issue(scopes=["tokens.introspect"], with_refresh_token=False)
    callers = {"peer": token.identity, "client": (("authorization", f"Bearer {client.access_token}"),)}

    async def bytes_of(text: str, caller: str, at: int) -> bytes:
        question = token_pb2.IntrospectTokenRequest(token=text)
        answer: bytes = (await token.stubs[at].IntrospectToken(question, metadata=callers[caller])).SerializeToString()
        return answer

    seen = {(name, caller): await bytes_of(text, caller, at) for name, text in inactive.items() for at, caller in enumerate(callers)}
    seen |= {("foreign", text[:4]): await bytes_of(text, "client", 0) for text in (foreign.access_token, foreign.refresh_token)}

    assert {name: answer for name, answer in seen.items() if answer != b""} == {}
    alive = await token.issue()
    for text, use in ((alive.access_token, "access_token"), (alive.refresh_token, "refresh_token")):
        for caller in callers.values():
            answer = await token.stubs[1].IntrospectToken(token_pb2.IntrospectTokenRequest(token=text), metadata=caller)
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


async def test_a_login_and_a_revocation_of_its_tenant_line_up(token: TokenInstances) -> None:
    """Whichever comes second sees the other. The revision shows which was first: a login that overlaps is born ended."""
    for _ in range(20):
        tenant_id = str(uuid4())
        everybody = token_pb2.RevokeTokensRequest(tenant_id=tenant_id, all_of_tenant=True)
        revoke = token.stubs[1].RevokeTokens(everybody, metadata=token.identity)
        issued, _ = await asyncio.gather(token.issue(tenant_id=tenant_id, revision=0), revoke)
        late = await token.issue(tenant_id=tenant_id, revision=0, at=1)
        for tokens in (issued, late):
            assert await token.status(tokens.access_token) == "REVOKED"
            assert type(await refused(refresh(token, tokens.refresh_token, revision=10**6))) is TokenInvalid
        after = await token.issue(tenant_id=tenant_id, revision=10**6)
        assert await token.status((await refresh(token, after.refresh_token, revision=10**6)).tokens.access_token) == "VALID"


async def test_logins_wait_for_a_revocation_of_the_tenant_and_not_for_one_another(token: TokenInstances) -> None:
    """The same lock, shared by logins: with an exclusive one, a tenant's logins would pass one by one."""
    holder = await asyncpg.connect(token.database_url)
    name = f"{TENANT}/{TENANT}"
    try:
        async with holder.transaction():
            await holder.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 0))", name)
            assert await token.status((await token.issue()).access_token) == "VALID"
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", name)
        login = asyncio.create_task(token.issue())
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: _counted(token, waiting))
        assert not login.done()
        await transaction.rollback()
        assert await token.status((await login).access_token) == "VALID"
    finally:
        await holder.close()


async def test_a_revocation_by_time_leaves_later_sessions_alone(token: TokenInstances) -> None:
    """Logins after it are as good as ever, though their tokens carry a smaller revision than its own."""
    subject, seen = str(uuid4()), await token.revision()
    before = await token.issue(subject=subject, revision=seen)
    await _execute(token, "UPDATE token.session SET create_time = now() - interval '1 hour' WHERE id = $1", before.session_id)
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject)
    request.issued_before.FromDatetime(datetime.now(UTC) - timedelta(seconds=60))
    await token.stubs[0].RevokeTokens(request, metadata=token.identity)

    after = await token.issue(subject=subject, revision=seen, at=1)

    assert await token.status(after.access_token) == "VALID"
    assert await token.status((await refresh(token, after.refresh_token, revision=seen)).tokens.access_token) == "VALID"
    assert type(await refused(refresh(token, before.refresh_token, revision=seen))) is TokenInvalid


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


async def test_the_sweep_spares_a_revocation_that_is_being_renewed(token: TokenInstances) -> None:
    """Two transactions: the renewal is not yet committed when the sweep comes to the row."""
    key, now = uuid4(), datetime.now(UTC)
    renewing, sweeping = [await asyncpg.connect(token.database_url, server_settings={"search_path": "token"}) for _ in range(2)]
    try:
        insert = "INSERT INTO revocation VALUES ($1, $2, 'subject', 1, 0, NULL, false, $3, $4)"
        await renewing.execute(insert, uuid4(), key, now, now - timedelta(seconds=1))
        async with renewing.transaction():
            await renewing.execute("UPDATE revocation SET expire_time = $2 WHERE key = $1", key, now + timedelta(hours=1))
            await sweeping.execute(RevocationStore.SWEEP.sql, timeout=5)
        assert await renewing.fetchval("SELECT count(*) FROM revocation WHERE key = $1", key) == 1
    finally:
        await renewing.close()
        await sweeping.close()


async def _counted(token: TokenInstances, statement: str) -> bool:
    return bool(await _count(token, statement))


async def _count(token: TokenInstances, statement: str, *arguments: object) -> int:
    connection = await asyncpg.connect(token.database_url)
    try:
        return int(await connection.fetchval(statement, *arguments))
    finally:
        await connection.close()


async def _execute(token: TokenInstances, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(token.database_url)
    try:
        assert await connection.execute(statement, *arguments) == "UPDATE 1"
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
