"""Login: one answer for every failure, sessions for who proved themselves."""

import asyncio
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace

from services.identity.passwords import Passwords
from services.identity.service import assembled
from tests.conftest import eventually
from tests.hold import Hold, wait_for
from tests.service.identity.conftest import OTHER_PASSWORD, PASSWORD, TENANT, Stack, gather, serving_identity
from watchword.errors import (
    DependencyUnavailable,
    EmailNotVerified,
    InvalidCredentials,
    InvalidRequest,
    LoginCapacityExceeded,
    PasswordChangeRequired,
    PasswordRejected,
    RefreshTokenReused,
    TokenInvalid,
)
from watchword.identity.v1 import authentication_pb2 as pb
from watchword.identity.v1 import user_pb2


async def one_time(stack: Stack, *, email_verified: bool = True) -> str:
    """Return the login of an account whose PASSWORD is a one-time one."""
    email = stack.email()
    user = (await stack.account(email=email, email_verified=email_verified)).user
    await stack.sql("UPDATE account SET password_one_time = true WHERE id = $1::uuid", user.id)
    return email


async def test_either_name_logs_in(stack: Stack) -> None:
    """People forget which of the two they chose."""
    email, username = stack.email("Ada"), stack.email().partition("@")[0]
    user = (await stack.account(email=email, username=username.upper())).user

    for login in (email, email.upper(), username, username.title()):
        answer = await stack.login(login)
        assert answer.user.id == user.id
        assert answer.tokens.access_token
        assert answer.tokens.scope == "account tokens.verify"


async def test_a_session_is_issued_for_what_was_read_with_the_password(stack: Stack) -> None:
    """Token refuses what rests on a revision before a revocation, so login must name the one it read."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    await stack.sql("SELECT suite.bump_revision($1::uuid)", TENANT)
    revision = (await stack.sql("SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1::uuid", TENANT))[0]["revision"]
    stack.peers.permissions.roles[user.id] = ["clerk", "reader"]

    await stack.login(email)

    issued = stack.peers.token.issued[-1]
    assert (issued.subject, issued.tenant_id, issued.revision) == (user.id, TENANT, revision)
    assert list(issued.roles) == ["clerk", "reader"]
    assert issued.acr == "pwd"
    assert issued.with_refresh_token


async def test_every_failure_is_the_same_answer(stack: Stack) -> None:
    """Unknown, wrong, disabled, without password, locked, one-time: nobody learns which, byte for byte (A105)."""
    known, disabled, empty, locked, unverified = (stack.email() for _ in range(5))
    await stack.account(email=known)
    await stack.account(email=disabled)
    await stack.account(email=empty, password="")
    await stack.account(email=locked)
    await stack.account(email=unverified, email_verified=False)
    await stack.sql("UPDATE account SET state = 'disabled' WHERE email = $1", disabled)
    await stack.sql("UPDATE account SET locked_until = now() + interval '1 hour' WHERE email = $1", locked)

    logins = [
        pb.LoginRequest(login=known, password="wrong " + PASSWORD),
        pb.LoginRequest(login=stack.email(), password=PASSWORD),
        pb.LoginRequest(login=disabled, password=PASSWORD),
        pb.LoginRequest(login=empty, password=PASSWORD),
        pb.LoginRequest(login=locked, password=PASSWORD),
        pb.LoginRequest(login=unverified, password="wrong " + PASSWORD),
        pb.LoginRequest(login=await one_time(stack), password="wrong " + PASSWORD, new_password=OTHER_PASSWORD),
        pb.LoginRequest(login="not a login at all", password=PASSWORD),
        pb.LoginRequest(login=known, password=PASSWORD, tenant="no-such-tenant"),
    ]
    replies = {str(await stack.client().reply("Login", login)) for login in logins}

    assert len(replies) == 1
    assert "INVALID_CREDENTIALS" in replies.pop()


async def test_every_failure_is_written_down_with_its_cause(stack: Stack) -> None:
    """What strangers must not learn, auditors must (D05)."""
    email = stack.email()
    user = (await stack.account(email=email)).user

    with pytest.raises(InvalidCredentials):
        await stack.login(email, "wrong " + PASSWORD)
    await stack.sql("UPDATE account SET state = 'disabled' WHERE email = $1", email)
    with pytest.raises(InvalidCredentials):
        await stack.login(email)

    assert await stack.failures(user.id) == ["wrong_password", "disabled"]


async def test_a_success_is_written_down_before_the_answer(stack: Stack) -> None:
    """An answer without its row would be a login that nobody can find."""
    email = stack.email()
    user = (await stack.account(email=email)).user

    session = await stack.login(email)

    rows = await stack.sql("SELECT actor_id, details FROM suite.audit_event WHERE type = 'login_succeeded' AND target_id = $1", user.id)
    assert [row["actor_id"] for row in rows] == [user.id]
    assert session.tokens.session_id in rows[0]["details"]


async def test_a_one_time_password_must_be_replaced(stack: Stack) -> None:
    """Only who proved it is told; the replacement is judged like any new password, and the one-time one is worth nothing after."""
    email = await one_time(stack)

    with pytest.raises(PasswordChangeRequired):
        await stack.login(email)
    with pytest.raises(PasswordRejected) as refusal:
        await stack.login(email, new_password="aaaaaaaaaaaaaaa")
    assert refusal.value.violations[0].field == "new_password"
    with pytest.raises(PasswordRejected):
        await stack.login(email, new_password=PASSWORD)
    await stack.login(email, new_password=OTHER_PASSWORD)

    with pytest.raises(InvalidCredentials):
        await stack.login(email, new_password=OTHER_PASSWORD)
    await stack.login(email, OTHER_PASSWORD)


async def test_a_one_time_password_is_used_up_by_one_of_many(stack: Stack) -> None:
    """Two who both know it do not both get a session."""
    email = await one_time(stack)

    outcomes = await gather(*(stack.login(email, new_password=f"{OTHER_PASSWORD} {n}", client=stack.client(at=n % 2)) for n in range(4)))

    assert len([outcome for outcome in outcomes if isinstance(outcome, pb.LoginResponse)]) == 1
    assert all(isinstance(outcome, (pb.LoginResponse, InvalidCredentials)) for outcome in outcomes)


async def test_an_unfinished_login_leaves_the_one_time_password_alone(stack: Stack) -> None:
    """When rbac is away the caller must be able to try the same again."""
    email = await one_time(stack)
    stack.peers.permissions.is_down = True

    with pytest.raises(DependencyUnavailable):
        await stack.login(email, new_password=OTHER_PASSWORD)

    stack.peers.permissions.is_down = False
    await stack.login(email, new_password=OTHER_PASSWORD)


async def test_an_ordinary_password_is_not_replaced_by_login(stack: Stack) -> None:
    """And only who proved it hears that new_password was the mistake."""
    email = stack.email()
    await stack.account(email=email)

    with pytest.raises(InvalidCredentials):
        await stack.login(email, "wrong " + PASSWORD, new_password=OTHER_PASSWORD)
    with pytest.raises(InvalidRequest) as refusal:
        await stack.login(email, new_password=OTHER_PASSWORD)
    assert refusal.value.violations[0].field == "new_password"
    await stack.login(email)


async def test_a_dearer_cost_takes_effect_at_login(stack: Stack) -> None:
    """Old hashes get the new cost without anybody noticing."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    pepper = stack.identity.passwords.pepper
    cheap = Passwords(pepper, scheme="bcrypt", cost=4).hash(PASSWORD)
    await stack.sql("UPDATE account SET password_hash = $2 WHERE id = $1::uuid", user.id, cheap)

    await stack.login(email)

    kept = (await stack.sql("SELECT password_hash FROM account WHERE id = $1::uuid", user.id))[0]["password_hash"]
    assert kept.startswith("p1$2b$10$")
    await stack.login(email)


async def test_argon2id_is_a_setting_away(stack: Stack) -> None:
    """Accounts move at their next login, in both directions."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    settings = replace(stack.settings, PASSWORD_HASH="argon2id")

    async def kept() -> str:
        return str((await stack.sql("SELECT password_hash FROM account WHERE id = $1::uuid", user.id))[0]["password_hash"])

    async with serving_identity(settings, stack.clock) as served:
        stack.instances.append(served)
        await stack.login(email, client=stack.client(at=-1))
        assert (await kept()).startswith("p1$argon2id$v=19$m=19456,t=2,p=1$")
        await stack.login(email, client=stack.client(at=-1))
        stack.instances.pop()

    await stack.login(email)
    assert (await kept()).startswith("p1$2b$10$")


async def test_an_unverified_address_may_be_a_reason_to_wait(stack: Stack) -> None:
    """With REQUIRE_EMAIL_VERIFICATION, and told only to who proved the password."""
    email = stack.email()
    await stack.account(email=email, email_verified=False)
    settings = replace(stack.settings, REQUIRE_EMAIL_VERIFICATION=True)
    async with serving_identity(settings, stack.clock) as served:
        stack.instances.append(served)
        with pytest.raises(EmailNotVerified):
            await stack.login(email, client=stack.client(at=-1))
        with pytest.raises(InvalidCredentials):
            await stack.login(email, "wrong " + PASSWORD, client=stack.client(at=-1))
        await stack.sql("UPDATE account SET email_verified = true WHERE email = $1", email)
        await stack.login(email, client=stack.client(at=-1))
        stack.instances.pop()
    await stack.login(email)


async def test_without_rbac_nobody_gets_a_session_without_roles(stack: Stack) -> None:
    """And the right password is no failure then."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    stack.peers.permissions.is_down = True

    for _ in range(12):
        with pytest.raises(DependencyUnavailable):
            await stack.login(email)

    stack.peers.permissions.is_down = False
    await stack.login(email)
    assert await stack.failures(user.id) == []


async def test_too_many_at_once_hear_so_at_once(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what can be hashed in time, a login is refused before anything is asked, read, counted or hashed.

    The accounts are locked away meanwhile, and there are no limits.
    """
    email, client = stack.email(), stack.client()
    await stack.account(email=email)
    hold, pool = Hold(tmp_path / "hold"), stack.identity.pool
    blocked = [asyncio.create_task(pool.run(partial(wait_for, hold.path), remaining=1e6)) for _ in range(900)]
    await asyncio.sleep(0)
    refused, hashed = pool.refused, pool.finished
    monkeypatch.setattr(stack.identity.edge, "_limits", None)
    locker = await asyncpg.connect(stack.settings.DATABASE_URL.reveal())
    try:
        await locker.execute("BEGIN; LOCK TABLE identity.account, identity.tenant IN ACCESS EXCLUSIVE MODE")
        outcomes = await gather(*(stack.login(email, "wrong" * 5, client=client) for _ in range(15)))
    finally:
        await locker.close()
        hold.release()
        await asyncio.gather(*blocked)
        hold.close()
        monkeypatch.undo()

    assert {type(outcome) for outcome in outcomes} == {LoginCapacityExceeded}
    assert all(outcome.retry_after.total_seconds() >= 1 for outcome in outcomes)
    assert pool.refused - refused == 15
    assert pool.finished - hashed == len(blocked)
    await stack.login(email, client=client)  # ten wrong ones would make it wait


async def test_a_login_whose_turn_comes_too_late_is_no_failed_one(stack: Stack) -> None:
    """Nothing was compared, so nothing may count against the account's owner; nor does the place stay taken."""
    email, client = stack.email(), stack.client()
    await stack.account(email=email)
    pool = stack.identity.pool
    is_too_late, pool.is_too_late = pool.is_too_late, lambda _: True  # type: ignore[method-assign, assignment]
    try:
        # Five at a time: a login under way counts until its outcome is known, and a busy machine may have more of them under way than may fail.
        outcomes = [outcome for _ in range(4) for outcome in await gather(*(stack.login(email, client=client) for _ in range(5)))]
    finally:
        pool.is_too_late = is_too_late  # type: ignore[method-assign]

    assert {type(outcome) for outcome in outcomes} == {LoginCapacityExceeded}
    assert pool.present == 0
    await stack.login(email, client=client)


async def test_a_login_whose_caller_hangs_up_while_it_waits_is_no_failed_one(stack: Stack, tmp_path: Path) -> None:
    """Nor is one whose deadline ends then: twenty of them, where the eleventh failure would have to wait."""
    email, client = stack.email(), stack.client()
    await stack.account(email=email)
    hold, pool = Hold(tmp_path / "hold"), stack.identity.pool
    blocked = [asyncio.create_task(pool.run(partial(wait_for, hold.path), remaining=1e6)) for _ in range(pool.workers)]

    async def all_wait() -> bool:
        return len(pool._queue._waiting) == 5

    async def nobody_waits() -> bool:
        return pool.present == pool.workers

    try:
        for _ in range(4):
            logins = [asyncio.create_task(stack.login(email, client=client)) for _ in range(5)]
            await eventually(all_wait)
            for one in logins:
                one.cancel()
            await eventually(nobody_waits)
    finally:
        hold.release()
        await asyncio.gather(*blocked)
        hold.close()

    await stack.login(email, client=client)


async def test_a_refresh_carries_the_roles_of_now(stack: Stack) -> None:
    """A role given since login appears, one taken disappears."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    tokens = (await stack.login(email)).tokens
    stack.peers.permissions.roles[user.id] = ["promoted"]

    answer = await stack.client().auth("RefreshSession", pb.RefreshSessionRequest(refresh_token=tokens.refresh_token))

    assert answer.tokens.refresh_token not in ("", tokens.refresh_token)
    assert list(stack.peers.token.refreshed[-1].roles) == ["promoted"]
    with pytest.raises(RefreshTokenReused):
        await stack.client().auth("RefreshSession", pb.RefreshSessionRequest(refresh_token=tokens.refresh_token))


async def test_a_refresh_that_is_repeated_is_known_by_its_request_id(stack: Stack) -> None:
    """The id travels to token, which answers the same; also when the first try has used the token up already."""
    email, request_id = stack.email(), str(uuid4())
    await stack.account(email=email)
    asked = pb.RefreshSessionRequest(refresh_token=(await stack.login(email)).tokens.refresh_token, request_id=request_id)

    await stack.client().auth("RefreshSession", asked)
    await gather(stack.client(at=1).auth("RefreshSession", asked))

    heard = [each for each in stack.peers.token.refreshed if each.refresh_token == asked.refresh_token]
    assert [each.request_id for each in heard] == [request_id] * 2


async def test_a_refresh_is_refused_to_the_disabled_the_unknown_and_clients(stack: Stack) -> None:
    """A refresh token outlives neither its account nor its owner's good standing (CVE-2023-22492)."""
    email = stack.email()
    await stack.account(email=email)
    session = (await stack.login(email)).tokens
    await stack.sql("UPDATE account SET state = 'disabled' WHERE email = $1", email)
    access = stack.peers.token.grant("018f0000-0000-7000-8000-000000000000")
    foreign = next(
        t for t, p in stack.peers.token.principals.items() if t.startswith("refresh") and p.subject == "018f0000-0000-7000-8000-000000000000"
    )

    for token in (session.refresh_token, "refresh-unknown", access, foreign, "x" * 512):
        with pytest.raises(TokenInvalid):
            await stack.client().auth("RefreshSession", pb.RefreshSessionRequest(refresh_token=token))


async def test_me_is_who_calls(stack: Stack) -> None:
    """With the roles of the token, and for nobody without one."""
    email = stack.email()
    user = (await stack.account(email=email, display_name="Ada")).user
    mine = await stack.session(email)

    me = await mine.auth("GetMe", pb.GetMeRequest())

    assert (me.user.id, me.user.display_name, list(me.roles)) == (user.id, "Ada", ["reader"])
    assert me.user.last_login_time.seconds > 0
    await stack.admin().users("DeleteUser", user_pb2.DeleteUserRequest(user_id=user.id))
    with pytest.raises(TokenInvalid):
        await mine.auth("GetMe", pb.GetMeRequest())


async def test_no_secret_is_in_the_database(stack: Stack) -> None:
    """Neither a password nor a plain digest of a request that held one, which could be guessed at leisure (T08)."""
    import hashlib
    from uuid import uuid4

    email, request_id = stack.email(), str(uuid4())
    request = pb.RegisterRequest(email=email, password=OTHER_PASSWORD, request_id=request_id)
    await stack.client().auth("Register", request)
    code = await stack.code(email)

    connection = await asyncpg.connect(stack.settings.DATABASE_URL.reveal())
    dump = ""
    for table in ("account", "code", "mail", "request", "task", "oauth_client"):
        dump += str([dict(row) for row in await connection.fetch(f"SELECT * FROM identity.{table}")])
    dump += str([dict(row) for row in await connection.fetch("SELECT * FROM suite.audit_event")])
    await connection.close()

    plain = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    for secret in (OTHER_PASSWORD, code, str(hashlib.sha256(OTHER_PASSWORD.encode()).digest())[2:-1], str(plain)[2:-1]):
        assert secret not in dump


async def test_identity_does_not_start_on_an_old_schema(stack: Stack) -> None:
    """A missing migration is said at start, not at the first login."""
    from services.chassis.postgres import SchemaBehind

    await stack.sql("UPDATE identity.schema_migration SET version = -version")
    try:
        async with assembled(stack.settings) as identity:
            with pytest.raises(SchemaBehind):
                await identity.database.require_schema()
    finally:
        await stack.sql("UPDATE identity.schema_migration SET version = -version")
