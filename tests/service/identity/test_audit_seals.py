"""The chain of the audit log: nothing is missing from it, and what is done to the log shows (D07).

Each test has a tenant of its own, so a chain of its own. What an intruder does, superuser does here: all but knowing the key.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.chassis.audit import AuditEvent
from services.chassis.migrate import migrate
from services.chassis.postgres import Change
from services.chassis.tenancy import TenantId
from services.identity.audit_seals import BATCH, ROUNDS
from tests.conftest import Stores, eventually
from tests.service.identity.conftest import Stack
from watchword.errors import DependencyUnavailable, InvalidRequest, PermissionDenied
from watchword.identity.v1 import audit_pb2, audit_pb2_grpc

INTACT, BROKEN = audit_pb2.AUDIT_LOG_STATE_INTACT, audit_pb2.AUDIT_LOG_STATE_BROKEN
CHANGED, MISSING = audit_pb2.AUDIT_LOG_BREACH_CHANGED, audit_pb2.AUDIT_LOG_BREACH_MISSING
REORDERED, TRUNCATED = audit_pb2.AUDIT_LOG_BREACH_REORDERED, audit_pb2.AUDIT_LOG_BREACH_TRUNCATED
AT_ONCE = 16
EVENTS = """
    INSERT INTO audit_event SELECT gen_random_uuid(), $1, now(), '', '', 'success', '', '', '', '', '', '', '{}' FROM generate_series(1, $2)
"""
WAITING = "FROM pg_locks WHERE relation = 'suite.audit_seal'::regclass AND NOT granted"  # sessions that cannot seal now


async def write(stack: Stack, tenant: UUID, *, at: int = 0) -> None:
    """Make a change that does nothing but tell of itself."""

    async def effect(change: Change) -> None:
        change.audit(AuditEvent("tried", "thing", "1", details={"b": "2", "a": "1"}, tenant_id=TenantId(tenant)))

    await stack.instances[at].identity.database.change(stack.call("10.0.0.1"), type(None), effect)


async def sealed(stack: Stack, count: int) -> UUID:
    """Return a tenant with so many sealed events."""
    tenant = uuid4()
    for _ in range(count):
        await write(stack, tenant)
    await stack.identity.audit_seals.seal_due()
    return tenant


async def verify(stack: Stack, tenant: UUID, *, client: Any = None, **fields: Any) -> Any:
    """Ask as an auditor of the tenant."""
    client = client or stack.admin(tenant_id=str(tenant))
    return await client.ask(audit_pb2_grpc.AuditServiceStub, "VerifyAuditLog", audit_pb2.VerifyAuditLogRequest(**fields))


async def found(stack: Stack, tenant: UUID, **fields: Any) -> tuple[int, int]:
    """Return where a broken chain breaks, and how."""
    answer = await verify(stack, tenant, **fields)
    assert answer.state == BROKEN
    assert (answer.verified_count, answer.next_sequence) == (answer.head.sequence, 0)
    return answer.broken_sequence, answer.breach


@asynccontextmanager
async def sealing(stack: Stack) -> AsyncIterator[None]:
    """Let both instances seal without a pause while inside."""

    async def go_on(at: int) -> None:
        while True:
            await stack.instances[at].identity.audit_seals.seal_due()
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(go_on(at)) for at in range(2)]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_every_event_of_many_at_once_is_sealed_once(stack: Stack) -> None:
    """500 changes on two instances, both sealing: no gap, and no event is in the chain twice or not at all."""
    tenant, room = uuid4(), asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with room:
            await write(stack, tenant, at=number % 2)

    async with sealing(stack):
        await asyncio.gather(*(one(number) for number in range(500)))
        await eventually(lambda: all_sealed(stack, tenant))

    rows = await stack.sql("SELECT sequence, event_id FROM audit_seal WHERE tenant_id = $1 ORDER BY sequence", tenant)
    events = await stack.sql("SELECT id FROM audit_event WHERE tenant_id = $1", tenant)
    assert [row["sequence"] for row in rows] == list(range(1, 501))
    assert {row["event_id"] for row in rows} == {row["id"] for row in events}
    first = await verify(stack, tenant)
    assert (first.state, first.verified_count, first.next_sequence) == (INTACT, 500, 501)
    last = await verify(stack, tenant, start_sequence=501, expected_head=first.head)
    assert (last.state, last.verified_count, last.next_sequence, last.head) == (INTACT, 0, 0, first.head)


async def all_sealed(stack: Stack, tenant: UUID) -> bool:
    return await stack.sql("SELECT 1 FROM audit_unsealed WHERE tenant_id = $1", tenant) == []


@asynccontextmanager
async def held_up(stack: Stack) -> AsyncIterator["asyncio.Task[int]"]:
    """Hold a sealer up while inside, between taking the events from the queue and sealing them."""
    holder = await asyncpg.connect(stack.settings.DATABASE_URL.reveal())
    async with holder.transaction():
        await holder.execute("LOCK TABLE suite.audit_seal IN EXCLUSIVE MODE")
        sealer = asyncio.create_task(stack.identity.audit_seals.seal_due())
        await eventually(lambda: some(stack, f"SELECT 1 {WAITING}"))
        yield sealer
    await holder.close()


async def test_a_sealer_that_dies_leaves_nothing_half_done(stack: Stack) -> None:
    """Its Postgres backend ends between taking the events from the queue and sealing them."""
    tenant = await sealed(stack, 2)
    await write(stack, tenant)
    async with held_up(stack) as dying:
        assert await some(stack, f"SELECT pg_terminate_backend(pid) {WAITING}")
        with pytest.raises(DependencyUnavailable):
            await dying
    waiting = await verify(stack, tenant)

    await stack.instances[1].identity.audit_seals.seal_due()

    assert (waiting.state, waiting.verified_count, waiting.unsealed_count) == (INTACT, 2, 1)
    after = await verify(stack, tenant, expected_head=waiting.head)
    assert (after.state, after.verified_count, after.unsealed_count) == (INTACT, 3, 0)


async def test_while_one_seals_a_tenant_another_leaves_it_alone(stack: Stack) -> None:
    """Both would put their events behind the same head."""
    tenant = await sealed(stack, 2)
    await write(stack, tenant)
    async with held_up(stack) as sealer:
        await write(stack, tenant)
        assert await asyncio.wait_for(stack.instances[1].identity.audit_seals.seal_due(), 0.8) == 0  # less than the time that a lock is waited for
    assert await sealer == 1
    assert await stack.instances[1].identity.audit_seals.seal_due() == 1

    after = await verify(stack, tenant)
    assert (after.state, after.verified_count, after.unsealed_count) == (INTACT, 4, 0)


async def test_a_tenant_that_cannot_be_sealed_holds_up_no_other(stack: Stack) -> None:
    """Somebody has made its last link the last that there can be."""
    bad, others = await sealed(stack, 1), [uuid4() for _ in range(8)]
    await stack.sql("UPDATE audit_seal SET sequence = 9223372036854775807 WHERE tenant_id = $1", bad)
    for tenant in (bad, *others):
        await write(stack, tenant)

    with pytest.raises(OverflowError):
        await stack.identity.audit_seals.seal_due()
    assert [await all_sealed(stack, tenant) for tenant in (bad, *others)] == [False, *[True] * len(others)]

    await stack.sql("UPDATE audit_seal SET sequence = 1 WHERE tenant_id = $1", bad)
    await stack.identity.audit_seals.seal_due()
    assert (await verify(stack, bad)).state == INTACT


async def test_a_long_queue_of_one_tenant_hides_no_other(stack: Stack) -> None:
    """It cannot be sealed, so it grows, and stands before all that came later."""
    bad, others = await sealed(stack, 1), [uuid4() for _ in range(3)]
    await stack.sql("UPDATE audit_seal SET sequence = 9223372036854775807 WHERE tenant_id = $1", bad)
    await stack.sql(EVENTS, bad, 10_500)
    for tenant in others:
        await write(stack, tenant)

    try:
        with pytest.raises(OverflowError):
            await stack.identity.audit_seals.seal_due()
        assert [await all_sealed(stack, tenant) for tenant in (bad, *others)] == [False, True, True, True]
    finally:
        await stack.sql("DELETE FROM audit_unsealed WHERE tenant_id = $1", bad)


async def test_a_long_queue_is_sealed_although_postgres_took_it_for_empty(stack: Stack) -> None:
    """It is empty as a rule when Postgres counts it. Planned for that, each row was compared with each, for longer than a statement may take."""
    tenant = await sealed(stack, 1)
    while await stack.identity.audit_seals.seal_due():
        pass
    await stack.sql("ANALYZE audit_unsealed")
    await stack.sql(EVENTS, tenant, 12_000)

    assert await stack.identity.audit_seals.seal_due() == ROUNDS * BATCH
    assert await stack.identity.audit_seals.seal_due() == 12_000 - ROUNDS * BATCH


async def some(stack: Stack, statement: str) -> bool:
    return bool(await stack.sql(statement))


async def test_a_change_to_any_column_shows(stack: Stack) -> None:
    """Every column that the table has: one that is added later and not sealed fails here."""
    columns = await stack.sql(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'suite' AND table_name = 'audit_event'"
    )
    others = {"uuid": "gen_random_uuid()", "timestamp with time zone": "{} + interval '1 microsecond'", "text": "{} || 'x'"}
    details = '{} || \'{{"a": "0"}}\''
    assert len(columns) > 12

    for column, kind in columns:
        tenant = await sealed(stack, 3)
        new = "'failure'" if column == "outcome" else others.get(kind, details).format(column)
        await stack.sql(
            f"UPDATE audit_event SET {column} = {new} WHERE id = (SELECT event_id FROM audit_seal WHERE tenant_id = $1 AND sequence = 2)",
            tenant,
        )
        # Who has a new id is another event: the one that was sealed is gone.
        assert (column, *await found(stack, tenant)) == (column, 2, MISSING if column == "id" else CHANGED)


@pytest.mark.parametrize(
    ("statement", "breach"),
    [
        ("UPDATE audit_seal SET hash = sha256('x') WHERE tenant_id = $1 AND sequence = 3", (3, CHANGED)),
        (
            "UPDATE audit_event SET event_time = 'infinity' WHERE id = (SELECT event_id FROM audit_seal WHERE tenant_id = $1 AND sequence = 3)",
            (3, CHANGED),
        ),
        ("UPDATE audit_seal SET seal_time = 'infinity' WHERE tenant_id = $1 AND sequence = 3", (3, CHANGED)),
        ("UPDATE audit_seal SET seal_time = seal_time - interval '1 day' WHERE tenant_id = $1 AND sequence = 3", (3, CHANGED)),
        ("DELETE FROM audit_event WHERE id = (SELECT event_id FROM audit_seal WHERE tenant_id = $1 AND sequence = 3)", (3, MISSING)),
        ("DELETE FROM audit_seal WHERE tenant_id = $1 AND sequence = 1", (1, MISSING)),
        ("DELETE FROM audit_seal WHERE tenant_id = $1 AND sequence = 3", (3, MISSING)),
        ("DELETE FROM audit_seal WHERE tenant_id = $1 AND sequence > 3", (4, MISSING)),
        ("DELETE FROM audit_seal WHERE tenant_id = $1", (1, MISSING)),
        (
            "WITH gone AS (DELETE FROM audit_seal WHERE tenant_id = $1 AND sequence = 3 RETURNING event_id)"
            " DELETE FROM audit_event WHERE id IN (SELECT event_id FROM gone)",
            (3, MISSING),
        ),
    ],
)
async def test_what_is_done_to_the_log_shows(stack: Stack, statement: str, breach: tuple[int, int]) -> None:
    """At the first place, with how."""
    tenant = await sealed(stack, 5)

    await stack.sql(statement, tenant)

    assert await found(stack, tenant) == breach


@pytest.mark.parametrize("columns", ["event_id", "event_id, hash, seal_time"])
async def test_swapped_seals_show(stack: Stack, columns: str) -> None:
    """Be it that the events change places, or whole seals."""
    tenant = await sealed(stack, 5)
    taken = await stack.sql(f"SELECT sequence, {columns} FROM audit_seal WHERE tenant_id = $1 AND sequence IN (2, 4) ORDER BY sequence", tenant)
    places = ", ".join(f"${number}" for number in range(3, 3 + len(taken[0]) - 1))

    await stack.sql("UPDATE audit_seal SET event_id = gen_random_uuid() WHERE tenant_id = $1 AND sequence IN (2, 4)", tenant)
    for row, place in zip(taken, (4, 2), strict=True):
        await stack.sql(f"UPDATE audit_seal SET ({columns}) = ROW({places}) WHERE tenant_id = $1 AND sequence = $2", tenant, place, *row[1:])

    assert await found(stack, tenant) == (2, REORDERED)


async def test_a_cut_tail_shows_to_whoever_kept_the_head(stack: Stack) -> None:
    """The chain is sound in itself, also when it has grown again since: only a head that was kept elsewhere tells."""
    tenant = await sealed(stack, 5)
    kept = (await verify(stack, tenant)).head
    assert (await verify(stack, tenant, expected_head=kept)).state == INTACT

    cut = (
        "WITH gone AS (DELETE FROM audit_seal WHERE tenant_id = $1 AND sequence > 3 RETURNING event_id)"
        " DELETE FROM audit_event WHERE id IN (SELECT event_id FROM gone)"
    )
    await stack.sql(cut, tenant)
    assert (await verify(stack, tenant)).state == INTACT
    assert (await verify(stack, tenant, expected_head=kept)).breach == TRUNCATED
    assert await found(stack, tenant, expected_head=kept) == (4, TRUNCATED)

    for _ in range(2):
        await write(stack, tenant)
    await stack.identity.audit_seals.seal_due()
    assert (await verify(stack, tenant)).head.sequence == 5
    assert await found(stack, tenant, expected_head=kept) == (5, TRUNCATED)


async def test_events_that_pass_by_the_queue_show(stack: Stack) -> None:
    """One that was never queued, and one that was deleted while it waited."""
    tenant, other = await sealed(stack, 2), await sealed(stack, 2)
    for each in (tenant, other):
        await write(stack, each)

    await stack.sql("DELETE FROM audit_unsealed WHERE tenant_id = $1", tenant)
    await stack.sql("DELETE FROM audit_event WHERE id = (SELECT event_id FROM audit_unsealed WHERE tenant_id = $1)", other)
    await stack.identity.audit_seals.seal_due()

    assert await found(stack, tenant) == (3, MISSING)
    assert await found(stack, other) == (3, MISSING)


async def test_events_from_before_the_chain_are_queued_by_its_migration(stores: Stores) -> None:
    """A log that exists already is sealed as it is found, and nothing that is written meanwhile is missed."""
    url = await stores.new_database()
    connection = await asyncpg.connect(url)
    await connection.execute(
        "DROP TRIGGER queue_for_sealing ON suite.audit_event; DROP FUNCTION suite.queue_audit_event;"
        "DROP TABLE suite.audit_seal, suite.audit_unsealed; DELETE FROM suite.schema_migration WHERE version >= 3"
    )
    event = "INSERT INTO suite.audit_event SELECT gen_random_uuid(), gen_random_uuid(), now(), '', '', 'success', '', '', '', '', '', '', '{}'"
    await connection.execute(event)

    await migrate(url)
    await connection.execute(event)

    missed = "SELECT id FROM suite.audit_event EXCEPT SELECT event_id FROM suite.audit_unsealed"
    assert await connection.fetch(missed) == []
    assert await connection.fetchval("SELECT count(*) FROM suite.audit_unsealed") == 2
    await connection.close()


async def test_an_event_in_the_queue_again_is_sealed_once(stack: Stack) -> None:
    """As after a restore of the data alone: it must not stop the chain."""
    tenant = await sealed(stack, 3)
    await stack.sql("INSERT INTO audit_unsealed SELECT tenant_id, event_id FROM audit_seal WHERE tenant_id = $1", tenant)
    await write(stack, tenant)

    await stack.identity.audit_seals.seal_due()

    answer = await verify(stack, tenant)
    assert (answer.state, answer.verified_count, answer.unsealed_count) == (INTACT, 4, 0)


async def test_the_chain_is_for_auditors_of_its_tenant(stack: Stack) -> None:
    """Nobody learns of another tenant's log, nor can without the permission."""
    tenant, other = await sealed(stack, 3), await sealed(stack, 1)
    kept = (await verify(stack, tenant)).head
    stranger = stack.client(token=stack.peers.token.grant(str(uuid4()), tenant_id=str(tenant)))

    with pytest.raises(PermissionDenied):
        await verify(stack, tenant, client=stranger)
    assert (await verify(stack, other)).verified_count == 1
    assert await found(stack, other, expected_head=kept) == (2, TRUNCATED)
    assert (await verify(stack, uuid4())).head == audit_pb2.AuditLogHead()


@pytest.mark.parametrize("fields", [{"start_sequence": -1}, {"expected_head": {"sequence": -1}}, {"expected_head": {"hash": "x"}}])
async def test_what_is_no_place_in_a_chain_is_refused(stack: Stack, fields: dict[str, Any]) -> None:
    """With the name of the field."""
    with pytest.raises(InvalidRequest):
        await verify(stack, uuid4(), **fields)


async def test_contexts_may_only_append(stack: Stack) -> None:
    """Who takes over a context's connection can neither unseal nor rewrite; only identity seals."""
    statements = (
        "UPDATE suite.audit_seal SET sequence = 1",
        "DELETE FROM suite.audit_seal",
        "UPDATE suite.audit_unsealed SET tenant_id = tenant_id",
        "INSERT INTO suite.audit_unsealed VALUES (gen_random_uuid(), gen_random_uuid())",
        "UPDATE suite.audit_event SET type = type",
        "DELETE FROM suite.audit_event",
    )
    of_others = ("SELECT 1 FROM suite.audit_seal", "SELECT 1 FROM suite.audit_unsealed", "DELETE FROM suite.audit_unsealed")
    for role, refused in (("identity", statements), ("token", statements + of_others), ("rbac", statements + of_others)):
        for statement in refused:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await as_role(stack, f"watchword_{role}", statement)


async def as_role(stack: Stack, role: str, statement: str) -> None:
    connection = await asyncpg.connect(stack.settings.DATABASE_URL.reveal(), server_settings={"role": role})
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
