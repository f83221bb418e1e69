"""Tenants, the audit log, and the first administrator."""

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace

from services.chassis.postgres import new_id
from services.chassis.settings import Secret
from services.chassis.tenancy import DEFAULT_TENANT
from services.identity.bootstrap import NoAdministrator, bootstrap
from services.identity.service import client_scopes
from tests.conftest import Keys, instance, serving
from tests.service.identity.conftest import OTHER_PASSWORD, PASSWORD, TENANT, Stack, gather
from watchword.errors import (
    AlreadyExists,
    FanoutPending,
    InvalidCredentials,
    InvalidRequest,
    PageTokenInvalid,
    PasswordChangeRequired,
    PermissionDenied,
    Unavailable,
)
from watchword.identity.v1 import audit_pb2, tenant_pb2, user_pb2


def new_tenant(stack: Stack, **fields: str) -> tenant_pb2.CreateTenantRequest:
    """Return an order for a tenant."""
    given = {"name": f"t{secrets.token_hex(6)}", "admin_email": stack.email(), "request_id": str(uuid4()), **fields}
    return tenant_pb2.CreateTenantRequest(**given)


async def test_a_tenant_begins_with_an_administrator(stack: Stack) -> None:
    """With a one-time password, and the tenant's administration bound by rbac."""
    request = new_tenant(stack, display_name="Acme")

    made = await stack.admin().tenants("CreateTenant", request)

    binding = stack.peers.bindings.bound[made.admin_user_id]
    assert (binding.role_name, binding.tenant_id) == ("watchword.admin", made.tenant.id)
    with pytest.raises(PasswordChangeRequired):
        await stack.login(request.admin_email, made.admin_password, tenant=request.name)
    session = await stack.login(request.admin_email, made.admin_password, tenant=request.name, new_password=OTHER_PASSWORD)
    assert session.user.tenant_id == made.tenant.id
    with pytest.raises(InvalidCredentials):
        await stack.login(request.admin_email, OTHER_PASSWORD)  # in the default tenant there is no such account


async def test_the_same_address_is_another_account_in_another_tenant(stack: Stack) -> None:
    """Tenants' data never meet."""
    email = stack.email()
    here = (await stack.account(email=email)).user
    request = new_tenant(stack, admin_email=email)

    made = await stack.admin().tenants("CreateTenant", request)

    assert made.admin_user_id != here.id
    assert (await stack.login(email)).user.id == here.id
    users = await stack.admin(tenant_id=made.tenant.id).users("ListUsers", user_pb2.ListUsersRequest())
    assert [user.id for user in users.users] == [made.admin_user_id]


async def test_only_the_default_tenant_keeps_tenants(stack: Stack) -> None:
    """A customer's administrator holds every permission, and still none here."""
    stranger = stack.admin(tenant_id=str(uuid4()))

    with pytest.raises(PermissionDenied):
        await stranger.tenants("CreateTenant", new_tenant(stack))
    with pytest.raises(PermissionDenied):
        await stranger.tenants("ListTenants", tenant_pb2.ListTenantsRequest())


async def test_a_name_is_one_tenants(stack: Stack) -> None:
    """Whoever comes second is told."""
    request = new_tenant(stack)

    outcomes = await gather(*(stack.admin(at=n % 2).tenants("CreateTenant", new_tenant(stack, name=request.name)) for n in range(4)))

    assert [type(each) for each in outcomes].count(tenant_pb2.CreateTenantResponse) == 1
    assert {type(each) for each in outcomes} == {tenant_pb2.CreateTenantResponse, AlreadyExists}
    with pytest.raises(AlreadyExists):
        await stack.admin().tenants("CreateTenant", new_tenant(stack, name="default"))
    for wrong in ({"name": "Not a slug"}, {"admin_email": "no address"}):
        with pytest.raises(InvalidRequest) as refusal:
            await stack.admin().tenants("CreateTenant", new_tenant(stack, **wrong))
        assert refusal.value.violations[0].field == next(iter(wrong))


async def test_a_tenant_is_whole_or_not_confirmed(stack: Stack) -> None:
    """With rbac away the answer is FANOUT_PENDING; the same request_id gets the same password once the role is bound."""
    admin, request = stack.admin(), new_tenant(stack, request_id=str(uuid4()))
    stack.peers.bindings.is_down = True
    with pytest.raises(FanoutPending):
        await admin.tenants("CreateTenant", request)
    stack.peers.bindings.is_down = False

    made = await stack.again(admin, 1).tenants("CreateTenant", request)

    assert made == await admin.tenants("CreateTenant", request)
    assert made.admin_user_id in stack.peers.bindings.bound
    await stack.login(request.admin_email, made.admin_password, tenant=request.name, new_password=OTHER_PASSWORD)


async def test_a_tenant_is_not_made_without_a_request_id(stack: Stack) -> None:
    """Its administrator's password is in the answer alone: were that lost, nobody could ever administer the tenant."""
    request = new_tenant(stack, request_id="")
    with pytest.raises(InvalidRequest) as refusal:
        await stack.admin().tenants("CreateTenant", request)

    assert [violation.field for violation in refusal.value.violations] == ["request_id"]
    assert await stack.sql("SELECT FROM tenant WHERE name = $1", request.name) == []


async def test_tenants_are_listed_by_name(stack: Stack) -> None:
    """In pages, from the default one on."""
    admin = stack.admin()
    await admin.tenants("CreateTenant", new_tenant(stack))
    names, token = [], ""
    while True:
        page = await admin.tenants("ListTenants", tenant_pb2.ListTenantsRequest(page_size=2, page_token=token))
        names += [tenant.name for tenant in page.tenants]
        if not (token := page.next_page_token):
            break

    assert names == sorted(names)
    assert "default" in names


async def audit(stack: Stack, *, client: Any = None, page_size: int = 100, page_token: str = "", **fields: Any) -> Any:
    """Read the audit log."""
    request = audit_pb2.ListAuditEventsRequest(page_size=page_size, page_token=page_token, **fields)
    return await (client or stack.admin()).audit(request)


async def test_the_audit_log_is_read_by_filters(stack: Stack) -> None:
    """By target, type, actor, outcome and time; newest first."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    await gather(stack.login(email, "wrong " + PASSWORD))
    await stack.login(email)

    events = (await audit(stack, target_id=user.id)).events
    assert [event.type for event in events] == ["login_succeeded", "login_failed", "user_created"]
    assert [event.id for event in events] == sorted((event.id for event in events), reverse=True)
    assert (events[1].outcome, events[1].details["why"], events[1].actor_type, events[0].actor_id) == (
        "failure",
        "wrong_password",
        "anonymous",
        user.id,
    )
    assert events[1].address.startswith("10.")
    UUID(events[1].request_id)

    async def types(**fields: Any) -> list[str]:
        return [event.type for event in (await audit(stack, target_id=user.id, **fields)).events]

    assert await types(type="login_failed") == ["login_failed"]
    assert await types(outcome="failure") == ["login_failed"]
    assert await types(actor_id=user.id) == ["login_succeeded"]
    assert await types(start_time=events[1].event_time) == ["login_succeeded", "login_failed"]
    assert await types(end_time=events[1].event_time) == ["user_created"]
    assert await types(type="' OR 1=1 --") == []


async def test_a_search_since_some_time_does_not_walk_the_whole_log(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare events of today are found without reading those of all years; also from a statement that has been planned for any values."""
    tenant, start, hour_ago = uuid4(), datetime.now(UTC), time.time_ns() - 3600 * 10**9
    await stack.sql(
        "INSERT INTO suite.audit_event SELECT id, $1, now() - interval '1 hour', '', 'common', 'success', '', '', '', '', '', '', '{}'"
        " FROM unnest($2::uuid[]) AS id",
        tenant,
        [new_id(nanoseconds=hour_ago) for _ in range(20_000)],
    )
    await stack.sql("ANALYZE suite.audit_event")
    admin, database, asked = stack.admin(tenant_id=str(tenant)), stack.identity.database, list[tuple[Any, ...]]()
    fetch = database.fetch

    async def note(*statement: Any) -> Any:
        asked.append(statement)
        return await fetch(*statement)

    monkeypatch.setattr(database, "fetch", note)
    assert (await audit(stack, client=admin, type="rare", start_time=start)).events == []

    ((sql, *values),) = [statement for statement in asked if "suite.audit_event" in statement[0]]
    connection = await asyncpg.connect(stack.settings.DATABASE_URL.reveal())
    for mode in ("force_custom_plan", "force_generic_plan"):
        await connection.execute(f"SET plan_cache_mode = {mode}")
        ((plan,),) = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *values)
        top = json.loads(plan)[0]["Plan"]
        assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 20, plan
    await connection.close()
    await stack.sql("DELETE FROM audit_unsealed WHERE tenant_id = $1", tenant)


async def test_an_event_whose_id_is_ahead_of_its_time_is_found_by_its_time(stack: Stack) -> None:
    """After a clock was set back by an hour, all ids are such for an hour."""
    tenant, now = uuid4(), datetime.now(UTC)
    event = "INSERT INTO suite.audit_event VALUES ($2, $1, $3, '', 'ahead', 'success', '', '', '', '', '', '', '{}')"
    await stack.sql(event, tenant, new_id(nanoseconds=time.time_ns() + 3600 * 10**9), now)

    second = timedelta(seconds=1)
    answer = await audit(stack, client=stack.admin(tenant_id=str(tenant)), start_time=now - second, end_time=now + second)

    assert [found.type for found in answer.events] == ["ahead"]


async def test_the_audit_log_is_read_in_pages(stack: Stack) -> None:
    """Each event once; a page token is good for its own filter and tenant only."""
    user = (await stack.account(password="")).user
    for _ in range(4):
        await stack.admin().users("UnlockUser", user_pb2.UnlockUserRequest(user_id=user.id))
    whole = [event.id for event in (await audit(stack, target_id=user.id)).events]

    first = await audit(stack, target_id=user.id, page_size=3)
    second = await audit(stack, target_id=user.id, page_size=3, page_token=first.next_page_token)

    assert [event.id for event in (*first.events, *second.events)] == whole
    assert second.next_page_token == ""
    others: list[dict[str, Any]] = [{}, {"target_id": user.id, "client": stack.admin(tenant_id=str(uuid4()))}]
    for arguments in others:
        with pytest.raises(PageTokenInvalid):
            await audit(stack, page_token=first.next_page_token, **arguments)


async def test_the_audit_log_is_for_auditors_of_its_tenant(stack: Stack) -> None:
    """And whoever is refused it is in it (A165)."""
    email = stack.email()
    user = (await stack.account(email=email)).user

    with pytest.raises(PermissionDenied):
        await audit(stack, client=await stack.session(email))
    assert (await audit(stack, client=stack.admin(tenant_id=str(uuid4())))).events == []

    denied = (await audit(stack, actor_id=user.id, type="access_denied")).events
    assert [event.target_id for event in denied] == ["/watchword.identity.v1.AuditService/ListAuditEvents"]


def first_admin(stack: Stack, email: str) -> Any:
    """Return settings that ask for a first administrator."""
    return replace(stack.settings, BOOTSTRAP_ADMIN_EMAIL=email, BOOTSTRAP_ADMIN_PASSWORD=Secret(PASSWORD))


async def test_the_first_administrator_is_made_once(stack: Stack) -> None:
    """Again, and several at once, change nothing; a password that was replaced stays replaced."""
    email = stack.email("first")

    words = await gather(*(bootstrap(first_admin(stack, email)) for _ in range(3)))

    assert sum("made" in word for word in words) == 1
    with pytest.raises(PasswordChangeRequired):
        await stack.login(email)
    user = (await stack.login(email, new_password=OTHER_PASSWORD)).user
    assert (user.tenant_id, user.email_verified) == (TENANT, True)
    assert stack.peers.bindings.bound[user.id].role_name == "watchword.admin"
    assert "already" in await bootstrap(first_admin(stack, email))
    await stack.login(email, OTHER_PASSWORD)


async def test_an_interrupted_bootstrap_is_carried_on(stack: Stack) -> None:
    """Killed, or out of patience, between account and role."""
    email = stack.email("first")
    stack.peers.bindings.is_down = True
    with pytest.raises(Unavailable):
        await bootstrap(first_admin(stack, email), patience=0)
    stack.peers.bindings.is_down = False

    await bootstrap(first_admin(stack, email))

    account = (await stack.sql("SELECT id FROM account WHERE email = $1", email))[0]["id"]
    assert str(account) in stack.peers.bindings.bound


async def test_bootstrap_waits_for_rbac(stack: Stack) -> None:
    """It runs while the stack comes up."""
    email = stack.email("first")
    stack.peers.bindings.is_down = True
    running = asyncio.create_task(bootstrap(first_admin(stack, email)))

    async def is_made() -> bool:
        return bool(await stack.sql("SELECT 1 FROM account WHERE email = $1", email))

    async with asyncio.timeout(10):
        while not await is_made():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    stack.peers.bindings.is_down = False
    assert "made" in await running


@asynccontextmanager
async def never_administered(stack: Stack) -> AsyncIterator[None]:
    """Let the default tenant be as on the first day while inside."""
    (before,) = await stack.sql("SELECT first_admin_id FROM tenant WHERE id = $1::uuid", TENANT)
    await stack.sql("UPDATE tenant SET first_admin_id = NULL WHERE id = $1::uuid", TENANT)
    yield
    await stack.sql("UPDATE tenant SET first_admin_id = coalesce($2, first_admin_id) WHERE id = $1::uuid", TENANT, before["first_admin_id"])


async def test_without_an_address_nobody_is_made(stack: Stack) -> None:
    """Most restarts of a deployment want none. The first one does."""
    async with never_administered(stack):
        with pytest.raises(NoAdministrator):
            await bootstrap(stack.settings)
        await bootstrap(first_admin(stack, stack.email("first")))
        assert "no first administrator" in await bootstrap(stack.settings)


async def test_an_address_that_somebody_registered_first_makes_no_administrator(stack: Stack) -> None:
    """He would have chosen the password. Nobody could administer the tenant then, so the run fails, and another address mends it."""
    email = stack.email("first")
    await stack.client().auth("Register", _register(email))
    async with never_administered(stack):
        with pytest.raises(NoAdministrator, match="BOOTSTRAP_ADMIN_EMAIL to another address"):
            await bootstrap(first_admin(stack, email))
        stranger = (await stack.sql("SELECT id FROM account WHERE email = $1", email))[0]["id"]
        assert str(stranger) not in stack.peers.bindings.bound

        assert "made" in await bootstrap(first_admin(stack, stack.email("first")))
        assert "already" in await bootstrap(first_admin(stack, email))


async def test_who_is_an_administrator_already_is_enough(stack: Stack) -> None:
    """However he became one; and an earlier run's administrator, whose role is not bound yet, is bound before the run ends well."""
    email, earlier = stack.email("first"), stack.email("first")
    user = (await stack.account(email=email)).user
    async with never_administered(stack):
        stack.peers.permissions.roles[user.id] = ["reader", "watchword.admin"]
        assert "already" in await bootstrap(first_admin(stack, email))
        stack.peers.permissions.roles[user.id] = ["reader"]
        stack.peers.bindings.is_down = True
        for wanted in (earlier, email):
            with pytest.raises(Unavailable):
                await bootstrap(first_admin(stack, wanted), patience=0)
        stack.peers.bindings.is_down = False

        assert "already" in await bootstrap(first_admin(stack, email))

        made = (await stack.sql("SELECT id FROM account WHERE email = $1", earlier))[0]["id"]
        assert str(made) in stack.peers.bindings.bound


async def test_the_command_says_why_and_exits_with_one(stack: Stack, service_keys: Keys, tmp_path: Path) -> None:
    """A deployment stops there, with words that say what to do."""
    email = stack.email("first")
    await stack.client().auth("Register", _register(email))
    wanted = {"BOOTSTRAP_ADMIN_EMAIL": email, "BOOTSTRAP_ADMIN_PASSWORD": PASSWORD}
    environment = {**os.environ, **process_environment(stack, service_keys, tmp_path), **wanted}

    async def run() -> tuple[int | None, str]:
        command = (sys.executable, "-m", "services.identity.bootstrap")
        running = await asyncio.create_subprocess_exec(*command, env=environment, stdout=PIPE, stderr=PIPE)
        out, err = await running.communicate()
        return running.returncode, (out + err).decode()

    async with never_administered(stack):
        code, words = await run()
        assert (code, "bootstrap failed: there is no administrator" in words, "Traceback" in words) == (1, True, False)
        assert email in words
        assert PASSWORD not in words
    await bootstrap(first_admin(stack, stack.email("first")))
    assert (await run())[0] == 0


def test_clients_scopes_are_those_that_rpcs_ask_for() -> None:
    """A new permission needs no second list."""
    scopes = client_scopes()

    assert {"tokens.verify", "tokens.introspect", "tokens.revoke", "permissions.check", "users.read", "roles.create"} <= scopes
    assert "account" not in scopes


async def test_the_process_serves_and_stops(stack: Stack, service_keys: Keys, tmp_path: Path) -> None:
    """`python -m services.identity`: ready, sends mail by itself, ends with 0 on SIGTERM."""
    email, mail = stack.email(), tmp_path / "mail"
    await stack.sql("DELETE FROM mail")
    with instance("services.identity", environment=process_environment(stack, service_keys, mail), log=tmp_path / "log") as (address, running):
        await serving(address, running, tmp_path / "log")
        await stack.client().auth("Register", _register(email))
        async with asyncio.timeout(10):
            while not list(mail.glob("*.eml")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait, 15) == 0
    assert PASSWORD not in (tmp_path / "log").read_text()


def process_environment(stack: Stack, service_keys: Keys, mail: Path) -> dict[str, str]:
    """Return what a process of identity reads to work beside the stack's instances."""
    return {
        "DATABASE_URL": stack.settings.DATABASE_URL.reveal(),
        "REDIS_URL": stack.settings.REDIS_URL.reveal(),
        "SECURITY_SALT": stack.settings.SECURITY_SALT.reveal(),
        "SERVICE_KEY": service_keys.private["identity"],
        "SERVICE_PUBLIC_KEYS": service_keys.public_json,
        "INTERNAL_GRPC_ADDRESS": stack.settings.INTERNAL_GRPC_ADDRESS,
        "BCRYPT_COST": "10",
        "MAIL_DIR": str(mail),
    }


def _register(email: str) -> Any:
    from watchword.identity.v1 import authentication_pb2

    return authentication_pb2.RegisterRequest(email=email, password=PASSWORD)


def test_the_default_tenant_is_the_one_that_all_contexts_know() -> None:
    """The migration writes its id out."""
    migration = Path("services/identity/migrations/0001_identity.sql").read_text()

    assert str(DEFAULT_TENANT) in migration
