"""The door to Postgres: its role's rights, its bounds, and what it says when Postgres is slow, full or gone."""

import asyncio
import contextlib
import random
import time
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.migrate import ROLES, migrate
from services.chassis.postgres import Change, Database, PoolTooLarge, SchemaBehind, bump
from services.chassis.pulse import SILENCE
from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import Stores, eventually, free_port
from tests.service.chassis.conftest import Configure, call_by, hold_the_loop
from tests.service.chassis.fault_proxy import FaultProxy
from watchword.errors import DependencyUnavailable, ResourceExhausted


def through(port: int, url: str) -> str:
    """Return `url` with a proxy's port."""
    return url.replace(f":{urlsplit(url).port}/", f":{port}/")


def proxied(url: str) -> "contextlib.AbstractAsyncContextManager[FaultProxy]":
    return FaultProxy.before("127.0.0.1", urlsplit(url).port or 0)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM identity.account",
        "SELECT * FROM rbac.role",
        "SELECT * FROM suite.audit_event",
        "DELETE FROM suite.audit_event",
        "UPDATE suite.audit_event SET type = ''",
        "UPDATE suite.tenant_revision SET revision = 0",
        "UPDATE suite.schema_migration SET version = 0",
        "CREATE TABLE token.mine (id int)",
        "DROP TABLE token.request",
        "TRUNCATE token.request",
    ],
)
async def test_a_contexts_role_reaches_its_own_rows_and_no_more(database: Database, statement: str) -> None:
    """An injected or mistaken statement reads no other context, and rewrites no history."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await database.execute(statement)


async def test_the_gateway_may_only_ask_for_the_schemas_version(configure: Configure) -> None:
    """It keeps no data, so it has no right to any."""
    async with Database.open(configure(), "gateway") as gateway:
        await gateway.fetch("SELECT version FROM suite.schema_migration")
        for statement in (
            "SELECT * FROM suite.tenant_revision",
            "INSERT INTO suite.audit_event DEFAULT VALUES",
            "SELECT suite.bump_revision(gen_random_uuid())",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await gateway.execute(statement)


async def test_revisions_count_without_gaps_or_doubles(database: Database) -> None:
    """Fifty changes at once each get their own; a change that fails takes none."""

    async def one(fails: bool) -> int:
        async with database.transaction() as connection:
            revision = await bump(connection, DEFAULT_TENANT)
            if fails:
                raise ZeroDivisionError
            return revision

    outcomes = await asyncio.gather(*(one(number % 5 == 0) for number in range(50)), return_exceptions=True)

    revisions = sorted(outcome for outcome in outcomes if isinstance(outcome, int))
    assert len(revisions) == 40
    assert revisions == list(range(revisions[0], revisions[0] + 40))


async def test_pools_that_postgres_could_not_feed_stop_start_up(configure: Configure) -> None:
    """Better now, in words, than under load, as refused connections. The name of the instance may be long."""
    name = "auth-server-identity-7d9f8b6c5d-abcde-12345-" * 2
    with pytest.raises(PoolTooLarge) as failure:
        async with Database.open(configure(DATABASE_POOL_SIZE=100, DATABASE_MAX_OVERFLOW=200, INSTANCE_ID=name), "token"):
            raise AssertionError("it must not open")
    assert all(word in str(failure.value) for word in ("DATABASE_POOL_SIZE", "DATABASE_MAX_OVERFLOW", "max_connections", "300"))


async def test_instances_with_long_names_are_each_counted(configure: Configure) -> None:
    """Postgres cuts application names at 63 bytes: what the check reads must stand before that."""
    names = [f"auth-server-identity-7d9f8b6c5d-abcde-in-a-long-namespace-{number}" for number in (1, 2)]
    big = {"DATABASE_POOL_SIZE": 90, "DATABASE_MAX_OVERFLOW": 30}
    async with Database.open(configure(INSTANCE_ID=names[0], **big), "identity"), Database.open(configure(INSTANCE_ID=names[1], **big), "identity"):
        with pytest.raises(PoolTooLarge):
            async with Database.open(configure(INSTANCE_ID="third", **big), "identity"):
                raise AssertionError("it must not open")


async def test_a_database_that_was_never_migrated_is_told_in_words(stores: Stores, configure: Configure) -> None:
    connection = await asyncpg.connect(stores.postgres)
    await connection.execute("CREATE DATABASE never_migrated")
    await connection.close()

    async with Database.open(configure(DATABASE_URL=stores.postgres.rpartition("/")[0] + "/never_migrated"), "token") as raw:
        with pytest.raises(SchemaBehind, match=r"services\.chassis\.migrate"):
            await raw.require_schema()


async def test_the_migrated_schema_is_accepted(database: Database) -> None:
    await database.require_schema()
    await database.ping()


async def test_a_full_pool_is_a_quick_refusal_and_recovers(configure: Configure) -> None:
    """RESOURCE_EXHAUSTED within the second: waiting longer would only pile up calls."""
    async with Database.open(configure(DATABASE_POOL_SIZE=1, DATABASE_MAX_OVERFLOW=0), "token") as narrow:
        async with narrow.connection():
            began = time.monotonic()
            with pytest.raises(ResourceExhausted):
                await narrow.fetch("SELECT 1")
            assert time.monotonic() - began < 1.5

        assert len(await narrow.fetch("SELECT 1")) == 1


async def test_postgres_that_is_gone_is_unavailable_within_the_deadline(configure: Configure) -> None:
    """Reads, changes and notes alike; a service may start without it."""
    async with Database.open(configure(DATABASE_URL=f"postgresql://a:b@127.0.0.1:{free_port()}/x"), "token", lazily=True) as gone:
        for attempt in (gone.fetch("SELECT 1"), gone.execute("SELECT 1"), gone.ping(), gone.note(Call("/test/Do"))):
            began = time.monotonic()
            with pytest.raises(DependencyUnavailable):
                await attempt
            assert time.monotonic() - began < 2.5


async def test_postgres_that_comes_back_is_used_at_once(configure: Configure, database_url: str) -> None:
    """A restart costs the calls that it meets, and no restart of ours."""
    async with proxied(database_url) as proxy, Database.open(configure(DATABASE_URL=through(proxy.port, database_url)), "token") as opened:
        assert len(await opened.fetch("SELECT 1")) == 1
        for _ in range(2):
            await proxy.cut()
            with pytest.raises(DependencyUnavailable):
                await opened.fetch("SELECT 1")
            await proxy.restore()
            assert len(await opened.fetch("SELECT 1")) == 1


async def test_a_read_survives_one_lost_connection(configure: Configure, database_url: str) -> None:
    """An idle connection that a firewall dropped is nobody's outage."""
    async with Database.open(configure(), "token") as opened:
        pid = (await opened.fetch("SELECT pg_backend_pid() AS pid"))[0]["pid"]
        connection = await asyncpg.connect(database_url)
        await connection.execute("SELECT pg_terminate_backend($1, 1000)", pid)
        await connection.close()

        assert len(await opened.fetch("SELECT 1")) == 1


async def test_postgres_that_accepts_and_is_silent_is_unavailable_within_the_deadline(configure: Configure, database_url: str) -> None:
    """A partition without a reset: the worst case of waiting."""
    async with (
        proxied(database_url) as proxy,
        Database.open(configure(DATABASE_URL=through(proxy.port, database_url)), "token", lazily=True) as opened,
    ):
        proxy.freeze()
        began = time.monotonic()
        with pytest.raises(DependencyUnavailable):
            await opened.fetch("SELECT 1")
        assert time.monotonic() - began < 2.5

        await proxy.restore()

        assert len(await opened.fetch("SELECT 1")) == 1


async def test_a_lock_that_is_not_given_is_unavailable_and_not_a_defect(database: Database, database_url: str) -> None:
    holder = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("LOCK TABLE token.effect")
        with pytest.raises(DependencyUnavailable):
            await database.execute("DELETE FROM effect")
    await holder.close()


async def test_an_argument_of_the_wrong_type_is_our_defect_and_not_an_outage(database: Database) -> None:
    """It would be retried for ever."""
    with pytest.raises(asyncpg.DataError):
        await database.fetch("SELECT * FROM effect WHERE id = $1", 5)


async def test_cancelled_calls_leave_no_connection_behind_and_no_strangers_answer(configure: Configure, database_url: str) -> None:
    """A145: 200 calls cancelled at random, then 500 checked ones, through a slow network."""
    chance = random.Random(145)
    async with proxied(database_url) as proxy, Database.open(configure(DATABASE_URL=through(proxy.port, database_url)), "token") as opened:
        proxy.delay = 0.001

        async def ask(number: int) -> bool:
            return bool((await opened.fetch("SELECT $1::int AS number", number))[0]["number"] == number)

        async def ask_and_leave(number: int) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0, 0.005)):
                    await ask(number)

        for start in range(0, 200, 20):
            await asyncio.gather(*(ask_and_leave(number) for number in range(start, start + 20)))
        proxy.delay = 0

        answers = [right for start in range(0, 500, 50) for right in await asyncio.gather(*(ask(number) for number in range(start, start + 50)))]
        assert answers == [True] * 500

        async def is_idle() -> bool:
            return opened._pool.get_idle_size() == opened._pool.get_size()

        await eventually(is_idle, within=2)


async def test_sessions_that_are_terminated_are_an_outage_and_not_a_defect(configure: Configure, stores: Stores) -> None:
    """F08: whatever a call is doing when its session ends, it fails as when Postgres is gone, so that it is tried again."""
    url = await stores.new_database()
    failures: list[BaseException] = []
    done = asyncio.Event()
    async with Database.open(configure(DATABASE_URL=url, DATABASE_STATEMENT_CACHE_SIZE=0), "token") as opened:

        async def ask(number: int) -> None:
            while not done.is_set():
                try:
                    assert len(await opened.fetch(f"SELECT $1::int AS asked, '{uuid4()}' AS words", number)) == 1
                except DependencyUnavailable:
                    await asyncio.sleep(0.001)
                except Exception as failure:
                    failures.append(failure)

        asking = [asyncio.create_task(ask(number)) for number in range(16)]
        operator = await asyncpg.connect(url)
        for _ in range(60):
            await operator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            await asyncio.sleep(0.05)  # so that all have sessions again, in all states
        done.set()
        await asyncio.gather(*asking)
        await operator.close()

    assert [repr(failure) for failure in failures] == []


async def test_who_gives_up_does_not_wait_for_a_postgres_that_hangs(configure: Configure, database_url: str) -> None:
    """F06: a deadline that passed is answered then, not a second later; and what was begun is rolled back once Postgres goes on."""
    async with proxied(database_url) as proxy, Database.open(configure(DATABASE_URL=through(proxy.port, database_url)), "token") as opened:
        key = uuid4()

        async def read() -> None:
            await opened.fetch("SELECT pg_sleep(0)")

        async def change() -> None:
            async with opened.transaction() as connection:
                await connection.execute("INSERT INTO effect (id, note) VALUES ($1, 'half')", key)
                proxy.freeze()
                await connection.execute("SELECT 1")

        for call in (change, read):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await call()
            assert time.monotonic() - began < 0.9  # without it, a second at least
        await proxy.restore()

        async def is_whole() -> bool:
            with contextlib.suppress(DependencyUnavailable):
                return await opened.fetch("SELECT 1 FROM effect WHERE id = $1", key) == [] and opened.pool.used == 0
            return False

        await eventually(is_whole)


async def test_a_change_does_not_wait_for_a_postgres_that_hangs(configure: Configure, database_url: str) -> None:
    """Whatever its deadline: it hears of it within about a second."""
    async with proxied(database_url) as proxy, Database.open(configure(DATABASE_URL=through(proxy.port, database_url)), "token") as opened:

        async def effect(change: Change) -> None:
            proxy.freeze()
            await change.connection.execute("SELECT 1")

        began = time.monotonic()
        with pytest.raises(DependencyUnavailable):
            await opened.change(Call("/test/Do"), type(None), effect)
        assert time.monotonic() - began < 2.5


async def test_a_probe_finds_out_a_postgres_that_hangs_and_a_pool_that_is_full(configure: Configure, database_url: str) -> None:
    """Both in less than a second: readiness turns on the first and not on the second."""
    narrow = {"DATABASE_POOL_SIZE": 1, "DATABASE_MAX_OVERFLOW": 0}
    async with (
        proxied(database_url) as proxy,
        Database.open(configure(DATABASE_URL=through(proxy.port, database_url), **narrow), "token") as opened,
    ):
        async with opened.connection():
            with pytest.raises(ResourceExhausted):
                await asyncio.wait_for(opened.ping(), 1)
        proxy.freeze()
        with pytest.raises(DependencyUnavailable):
            await asyncio.wait_for(opened.ping(), 1)


async def test_a_process_that_stood_still_does_not_take_postgres_for_hanging(database: Database) -> None:
    """Its answer has arrived meanwhile."""
    await database.ping()

    asking = asyncio.create_task(database.ping())
    await asyncio.sleep(0)
    hold_the_loop(2 * SILENCE)

    await asking


async def test_a_change_that_takes_long_is_no_postgres_that_hangs(configure: Configure) -> None:
    """An import may take seconds, while others are answered."""

    async def effect(change: Change) -> None:
        await change.connection.execute("SELECT pg_sleep(1.5)")

    async with Database.open(configure(), "token") as opened:
        await opened.change(Call("/test/Do"), type(None), effect)


async def test_what_was_prepared_and_not_run_leaves_no_clock_behind(configure: Configure) -> None:
    """An argument that does not fit stops the call after Postgres has begun to count: five seconds later it would end whatever runs there then."""
    async with Database.open(configure(DATABASE_POOL_SIZE=1, DATABASE_MAX_OVERFLOW=0), "token") as opened:
        (before,) = await opened.fetch("SELECT pg_backend_pid() AS pid")

        with pytest.raises(asyncpg.DataError):
            await opened.fetch("SELECT $1::int", "no number")

        (after,) = await opened.fetch("SELECT pg_backend_pid() AS pid")
        assert after["pid"] != before["pid"]


async def test_changes_that_wait_for_a_lock_leave_half_the_pool_to_the_reads(stores: Stores, configure: Configure) -> None:
    """One lock that somebody holds too long must not stop VerifyToken and CheckPermission. Further changes hear so within the second."""
    url = await stores.new_database()
    holder = await asyncpg.connect(url)
    async with Database.open(configure(DATABASE_URL=url, DATABASE_POOL_SIZE=4, DATABASE_MAX_OVERFLOW=0), "token") as opened, holder.transaction():
        await holder.execute("LOCK TABLE token.request")

        async def change() -> None:
            async with opened.transaction() as connection:
                await connection.execute("SET LOCAL lock_timeout = '4s'; DELETE FROM request")

        changes = [asyncio.create_task(change()) for _ in range(8)]
        await eventually(lambda: _waiting_for_locks(url, 2), within=5)
        for _ in range(20):
            began = time.monotonic()
            assert len(await opened.fetch("SELECT 1")) == 1
            assert time.monotonic() - began < 0.9  # without it, a second at least

        done, waiting = await asyncio.wait(changes, timeout=1.5)
        assert len(waiting) == 2, "half of the pool"
        assert {type(task.exception()) for task in done} == {ResourceExhausted}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await holder.close()


async def _waiting_for_locks(url: str, count: int) -> bool:
    connection = await asyncpg.connect(url)
    try:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return bool(await connection.fetchval(waiting) >= count)
    finally:
        await connection.close()


async def test_a_database_that_takes_no_changes_is_unavailable_for_changes_only(stores: Stores, configure: Configure) -> None:
    """A standby, or a disk that is nearly full: reads go on; changes are told to come back, and are no defect of ours."""
    url = await stores.new_database()
    connection = await asyncpg.connect(url)
    await connection.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} SET default_transaction_read_only = on")
    await connection.close()

    async with Database.open(configure(DATABASE_URL=url), "token") as opened:
        assert len(await opened.fetch("SELECT * FROM request")) == 0
        with pytest.raises(DependencyUnavailable):
            await opened.execute("DELETE FROM request")
        with pytest.raises(DependencyUnavailable):
            await opened.note(call_by(), AuditEvent("access_denied", outcome="failure"))
        with pytest.raises(DependencyUnavailable):
            await opened.change(call_by(request_id=str(uuid4())), int, _nothing)


async def _nothing(change: Change) -> int:
    change.audit(AuditEvent("thing_made"))
    return 1


async def test_an_owner_who_is_no_superuser_migrates(stores: Stores, configure: Configure) -> None:
    """Managed servers give nobody a superuser. An administrator made the roles and granted them; the owner does the rest, also a second time."""
    name, administrator = f"owned_{uuid4().hex[:8]}", await asyncpg.connect(stores.postgres)
    await administrator.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'plain-owner' NOSUPERUSER NOCREATEROLE")
    await administrator.execute(f"CREATE DATABASE {name} OWNER {name}")
    for role in ROLES:
        await administrator.execute(f"GRANT {role} TO {name}")
    await administrator.close()
    url = f"postgresql://{name}:plain-owner@127.0.0.1:{urlsplit(stores.postgres).port}/{name}"

    assert await migrate(url)
    assert await migrate(url) == []

    async with Database.open(configure(DATABASE_URL=url), "token") as opened:
        await opened.require_schema()
        await opened.note(call_by(), AuditEvent("access_denied", outcome="failure"))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await opened.execute("DELETE FROM suite.audit_event")
