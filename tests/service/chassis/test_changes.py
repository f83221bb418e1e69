"""A change happens once, with its audit row, or not at all."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.chassis import postgres
from services.chassis.audit import AuditEvent
from services.chassis.postgres import Change, Database, new_id
from services.chassis.tenancy import TenantId
from tests.service.chassis.conftest import call_by
from watchword.errors import DependencyUnavailable, IdempotencyConflict

CANARY = "canary-of-a-client-secret"


@dataclass(frozen=True, slots=True)
class Made:
    """What an effect returns."""

    id: UUID
    secret: str


async def make(change: Change) -> Made:
    """Insert a row and audit it."""
    made = Made(uuid4(), CANARY)
    await change.connection.execute("INSERT INTO effect (id, note) VALUES ($1, $2)", made.id, change.call.request_id)
    change.audit(AuditEvent("thing_made", "thing", str(made.id), details={"kind": "test"}))
    return made


class Ledger:
    """What a call left in the database, as an operator sees it."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def rows(self, sql: str, *args: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._url)
        try:
            return list(await connection.fetch(sql, *args))
        finally:
            await connection.close()

    async def left_by(self, call_id: str, request_id: str = "") -> tuple[int, int, int]:
        """Return how many effects, audit rows and kept results there are."""
        effects = await self.rows("SELECT 1 FROM token.effect WHERE note = $1", call_id)
        events = await self.rows("SELECT 1 FROM suite.audit_event WHERE request_id = $1", call_id)
        kept = await self.rows("SELECT 1 FROM token.request WHERE request_id::text = $1", request_id)
        return len(effects), len(events), len(kept)


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    return Ledger(database_url)


async def test_a_repeat_gets_the_first_result_and_causes_nothing(database: Database, ledger: Ledger) -> None:
    """A client that lost the reply may ask again without a second thing being made."""
    request_id = str(uuid4())
    first, again = call_by(request_id=request_id), call_by(request_id=request_id)

    made = await database.change(first, Made, make)

    assert await database.change(again, Made, make) == made
    assert await database.kept(again, Made) == made
    assert await ledger.left_by(first.request_id, request_id) == (1, 1, 1)
    assert await ledger.left_by(again.request_id) == (0, 0, 0)


async def test_a_request_id_is_good_for_one_request(database: Database) -> None:
    """A client that uses one id for all would otherwise get somebody's first answer for ever."""
    request_id = str(uuid4())
    await database.change(call_by(request_id=request_id), Made, make)

    for other in (call_by(request_id=request_id, request=b"other"), call_by(request_id=request_id, method="/test/Undo")):
        with pytest.raises(IdempotencyConflict):
            await database.change(other, Made, make)
        with pytest.raises(IdempotencyConflict):
            await database.kept(other, Made)


async def test_a_request_id_belongs_to_its_caller_and_tenant(database: Database) -> None:
    """Nobody reads another's result by guessing an id."""
    request_id = str(uuid4())
    mine = await database.change(call_by("identity", request_id=request_id), Made, make)
    elsewhere = call_by("identity", request_id=request_id)
    elsewhere.caller = type(elsewhere.caller)(elsewhere.caller.kind, "identity", TenantId(uuid4()))

    theirs = await database.change(call_by("rbac", request_id=request_id), Made, make)
    foreign = await database.change(elsewhere, Made, make)

    assert len({mine.id, theirs.id, foreign.id}) == 3


async def test_without_a_request_id_every_call_counts(database: Database) -> None:
    assert await database.change(call_by(), Made, make) != await database.change(call_by(), Made, make)
    assert await database.kept(call_by(), Made) is None


async def test_of_twenty_twins_at_once_one_acts_and_all_get_its_result(database: Database, ledger: Ledger) -> None:
    """Look-then-insert would let several through."""
    request_id = str(uuid4())
    twins = [call_by(request_id=request_id) for _ in range(20)]

    made = await asyncio.gather(*(database.change(twin, Made, make) for twin in twins))

    assert len(set(made)) == 1
    left = [await ledger.left_by(twin.request_id) for twin in twins]
    assert sorted(left) == [(0, 0, 0)] * 19 + [(1, 1, 0)]


async def test_a_failure_before_commit_leaves_nothing_and_the_id_is_good_again(database: Database, ledger: Ledger) -> None:
    request_id = str(uuid4())
    failed, call = call_by(request_id=request_id), call_by(request_id=request_id)

    async def fail(change: Change) -> Made:
        await make(change)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.change(failed, Made, fail)

    assert await ledger.left_by(failed.request_id, request_id) == (0, 0, 0)
    assert await database.kept(call, Made) is None
    await database.change(call, Made, make)
    assert await ledger.left_by(call.request_id, request_id) == (1, 1, 1)


async def test_a_cancelled_change_leaves_nothing(database: Database, ledger: Ledger) -> None:
    """A deadline that passes in the middle."""
    request_id, acted = str(uuid4()), asyncio.Event()
    call = call_by(request_id=request_id)

    async def wait(change: Change) -> Made:
        await make(change)
        acted.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody wakes it")

    task = asyncio.create_task(database.change(call, Made, wait))
    await acted.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

    assert await ledger.left_by(call.request_id, request_id) == (0, 0, 0)


async def test_a_killed_session_leaves_nothing_and_is_told_as_unavailable(database: Database, ledger: Ledger) -> None:
    """Postgres was restarted between the effect and the commit."""
    request_id = str(uuid4())
    call = call_by(request_id=request_id)

    async def die(change: Change) -> Made:
        made = await make(change)
        await ledger.rows("SELECT pg_terminate_backend($1)", await change.connection.fetchval("SELECT pg_backend_pid()"))
        return made

    with pytest.raises(DependencyUnavailable):
        await database.change(call, Made, die)

    assert await ledger.left_by(call.request_id, request_id) == (0, 0, 0)
    await database.change(call_by(request_id=request_id), Made, make)


async def test_no_change_without_its_audit_row(database: Database, ledger: Ledger) -> None:
    """D06: what cannot be logged does not happen."""
    call = call_by()

    async def unspeakable(change: Change) -> Made:
        made = await make(change)
        change.audit(AuditEvent("thing_made", outcome="perhaps"))  # type: ignore[arg-type]
        return made

    with pytest.raises(asyncpg.CheckViolationError):
        await database.change(call, Made, unspeakable)

    assert await ledger.left_by(call.request_id) == (0, 0, 0)


async def test_an_audit_row_says_who_did_what_from_where(database: Database, ledger: Ledger) -> None:
    call = call_by()
    made = await database.change(call, Made, make)

    (row,) = await ledger.rows("SELECT * FROM suite.audit_event WHERE request_id = $1", call.request_id)

    assert (row["context"], row["type"], row["outcome"], row["address"]) == ("token", "thing_made", "success", "192.0.2.1")
    assert (row["actor_type"], row["actor_id"], row["target_type"], row["target_id"]) == ("service", "identity", "thing", str(made.id))
    assert row["tenant_id"] == call.caller.tenant_id


async def test_no_event_is_later_than_its_id_says(database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for events since a time begins at its ids: one that is held up here between the two would be missed."""

    def slow() -> UUID:
        made = new_id()
        while time.time_ns() // 10**6 == made.int >> 80:
            pass
        return made

    monkeypatch.setattr(postgres, "new_id", slow)
    call = call_by()

    await database.note(call, AuditEvent("access_denied", outcome="failure"))

    (row,) = await ledger.rows("SELECT id, event_time FROM suite.audit_event WHERE request_id = $1", call.request_id)
    assert (row["id"].int >> 80) >= int(row["event_time"].timestamp() * 1000)


async def test_a_refusal_is_noted_without_a_change(database: Database, ledger: Ledger) -> None:
    call = call_by()
    await database.note(call, AuditEvent("access_denied", outcome="failure"), AuditEvent("account_locked", outcome="failure"))
    assert await ledger.left_by(call.request_id) == (0, 2, 0)


async def test_a_kept_result_is_sealed(database: Database, ledger: Ledger) -> None:
    """Results hold tokens and client secrets; a dump of the database must not."""
    request_id = str(uuid4())
    made = await database.change(call_by(request_id=request_id), Made, make)

    rows = await ledger.rows("SELECT * FROM token.request WHERE request_id::text = $1", request_id)

    assert len(rows) == 1
    plain = b"".join(value if isinstance(value, bytes) else str(value).encode() for value in rows[0].values())
    assert CANARY.encode() not in plain
    assert str(made.id).encode() not in plain
    assert b"request" not in rows[0]["fingerprint"]


async def test_a_result_that_was_moved_to_another_request_does_not_open(database: Database, ledger: Ledger) -> None:
    """Whoever can write rows must not be able to hand one caller's result to another."""
    victim, thief = str(uuid4()), str(uuid4())
    await database.change(call_by("identity", request_id=victim), Made, make)
    await database.change(call_by("rbac", request_id=thief), Made, make)
    move = "UPDATE token.request SET result = (SELECT result FROM token.request WHERE request_id::text = $1) WHERE request_id::text = $2"
    await ledger.rows(move, victim, thief)

    with pytest.raises(ValueError):  # noqa: PT011  (the class is the promise)
        await database.kept(call_by("rbac", request_id=thief), Made)


async def test_a_request_id_is_free_again_after_a_day(database: Database, ledger: Ledger) -> None:
    """The record is moved into the past instead of waiting for it."""
    request_id, swept = str(uuid4()), str(uuid4())
    first = await database.change(call_by(request_id=request_id), Made, make)
    await database.change(call_by(request_id=swept), Made, make)
    age = "UPDATE token.request SET create_time = create_time - $1::interval WHERE request_id::text = ANY($2)"

    await ledger.rows(age, timedelta(hours=23, minutes=59), [request_id, swept])
    assert await database.change(call_by(request_id=request_id), Made, make) == first

    await ledger.rows(age, timedelta(minutes=2), [request_id, swept])
    assert await database.kept(call_by(request_id=request_id), Made) is None
    assert await database.change(call_by(request_id=request_id, request=b"other"), Made, make) != first

    await database.forget_requests()
    assert (await ledger.left_by("", swept))[2] == 0
    assert (await ledger.left_by("", request_id))[2] == 1


async def test_a_change_may_return_nothing(database: Database) -> None:
    """And its repeat still acts once."""
    request_id, acted = str(uuid4()), list[int]()

    async def effect(_change: Change) -> None:
        acted.append(1)

    for _ in range(2):
        await database.change(call_by(request_id=request_id), type(None), effect)

    assert acted == [1]
