"""One context's Postgres: a bounded pool under the context's own role, and changes that happen once.

A change is one transaction: the effect, its audit row, and the record under its request_id, so that a repeat within 24 hours gets the first
result and causes nothing. Postgres refuses cross-context SQL, because the pool's sessions take the role `watchword_<context>`.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import count
from typing import Any, Protocol, TypeVar

import asyncpg
import msgspec
import uuid_utils.compat as uuid_utils

from services.chassis.audit import AuditEvent
from services.chassis.call import Call, Once
from services.chassis.crashpoint import crashpoint
from services.chassis.metrics import Histogram
from services.chassis.migrate import latest
from services.chassis.patience import patience
from services.chassis.pulse import SILENCE, Pulse
from services.chassis.sealing import Sealer, derive
from services.chassis.settings import ChassisSettings
from services.chassis.tenancy import TenantId
from watchword.errors import DependencyUnavailable, FanoutPending, IdempotencyConflict, NotFound, ResourceExhausted

T = TypeVar("T")
Row = asyncpg.Record
Connection = Any  # asyncpg.pool.PoolConnectionProxy: its methods are a Connection's

CONNECT_TIMEOUT = 2.0  # seconds
ACQUIRE_TIMEOUT = 1.0  # seconds; beyond it the caller is better served by a quick refusal
STATEMENT_TIMEOUT = 5.0  # seconds
BACK = 0.05  # seconds of a deadline kept for the answer's way back
RESERVED_CONNECTIONS = 10  # left for operators and backups
RECYCLE_AFTER = 3600.0  # seconds an idle connection lives
SWEPT_AT_ONCE = 10_000  # rows; a statement that deletes them stays far below its timeout
MOST_BATCHES = 50  # of one sweep; what is left then waits for the next
UNREACHABLE = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
# What a call meets whose session ended just then; the last when the farewell came in the middle of the next statement.
LOST = (*UNREACHABLE, asyncpg.InterfaceError, asyncpg.InternalClientError)

new_id = uuid_utils.uuid7


class SchemaBehind(Exception):
    """The migrations were not run."""


class PoolTooLarge(Exception):
    """The instances together could ask for more connections than Postgres has."""


class Silent(DependencyUnavailable):
    """Postgres answers nobody."""


@dataclass(slots=True)
class Change:
    """The transaction of a change, as its effect sees it."""

    connection: Connection
    call: Call
    events: list[AuditEvent] = field(default_factory=list)
    notices: list[tuple[str, bool]] = field(default_factory=list)
    is_settling: bool = False

    def audit(self, event: AuditEvent) -> None:
        """Add an audit row to this transaction."""
        self.events.append(event)

    def tell(self, notice: str, *, takes_away: bool = True) -> None:
        """Tell every instance of this context, once the transaction is committed.

        takes_away  the call is answered only when no instance can answer from before it; what only gives may arrive a moment later
        """
        self.notices.append((notice, takes_away))

    def settle(self) -> None:
        """Let the call be answered only when every instance knows all that was committed before.

        For an effect that takes away and finds it done: whoever did it may have been told FANOUT_PENDING, or may still be waiting.
        """
        self.is_settling = True


class Spreader(Protocol):
    """Makes committed changes known to all instances: services.chassis.fanout."""

    async def spread(self, posted: "Sequence[Posted]", *, budget: float) -> None:
        """Return when no instance answers from before `posted`. Raises FanoutPending."""

    async def settle(self, *, budget: float) -> None:
        """Return when nothing waits to be made known. Raises FanoutPending."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A change in the outbox."""

    id: int
    payload: str
    takes_away: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is deleted because its time is over: rows of `table` whose `column` lies before the instant `before`, the oldest first.

    before  in SQL, by Postgres's own clock: one host with a fast clock would otherwise delete what others need
    batch   how many rows one statement deletes
    """

    table: str
    column: str
    before: str = "now()"
    batch: int = SWEPT_AT_ONCE

    @property
    def sql(self) -> str:
        """The statement that deletes a batch.

        A row that somebody holds, and may be renewing, is left for the next time: a sweep waits for nobody.
        """
        # An index on `column` finds what lies before now(), not before clock_timestamp(), which is another at each row. The rows stay where they are
        # until they are deleted, for they are locked. An array of them is made once, whatever the plan.
        return f"""
            DELETE FROM {self.table} WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM {self.table} WHERE {self.column} < {self.before} ORDER BY {self.column} LIMIT {self.batch} FOR UPDATE SKIP LOCKED
            ))
        """  # noqa: S608


@dataclass(frozen=True, slots=True)
class Pool:
    """How many connections there are."""

    used: int
    idle: int
    most: int


@dataclass(slots=True)
class Use:
    """What was counted since the start: seconds waited for a connection and used it, seconds until changes were known everywhere."""

    waited: Histogram = field(default_factory=Histogram)
    used: Histogram = field(default_factory=Histogram)
    spread: Histogram = field(default_factory=Histogram)
    failures: int = 0
    pending: int = 0


class Database:
    """A context's door to Postgres. Every method raises DependencyUnavailable when Postgres does not answer."""

    def __init__(self, pool: asyncpg.Pool, *, schema: str, sealer: Sealer) -> None:
        self._pool = pool
        self._schema = schema
        self._sealer = sealer
        self._changes = asyncio.Semaphore(max(1, pool.get_max_size() // 2))
        self._spreader: Spreader | None = None
        self._pulse = Pulse(self._is_silent)
        self._answered = 0  # who borrowed a connection and got what he asked for
        self._releasing: set[asyncio.Task[None]] = set()
        self.use = Use()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ChassisSettings, schema: str, *, lazily: bool = False) -> AsyncIterator["Database"]:
        """Open a pool for `schema`; close it by force if it will not close in good time (asyncpg #1326, #1356).

        lazily  connect when first asked, so that start-up does not need Postgres
        Raises  PoolTooLarge, SchemaBehind, OSError if Postgres does not answer
        """
        size = settings.DATABASE_POOL_SIZE + settings.DATABASE_MAX_OVERFLOW
        try:
            pool = await asyncpg.create_pool(
                settings.DATABASE_URL.reveal(),
                min_size=0 if lazily else 1,
                max_size=size,
                timeout=CONNECT_TIMEOUT,
                command_timeout=STATEMENT_TIMEOUT,
                reset=_leave_session,
                max_inactive_connection_lifetime=RECYCLE_AFTER,
                statement_cache_size=settings.DATABASE_STATEMENT_CACHE_SIZE,
                server_settings={
                    "application_name": f"watchword/{schema} max={size} {settings.INSTANCE_ID[-36:]}",  # Postgres keeps 63 bytes
                    "role": f"watchword_{schema}",
                    "search_path": f"{schema},suite",
                    "lock_timeout": "1000",
                    "statement_timeout": str(int(STATEMENT_TIMEOUT * 1000)),
                    "idle_in_transaction_session_timeout": "10000",
                },
            )
        except asyncpg.InvalidParameterValueError:
            raise SchemaBehind(f"the role watchword_{schema} does not exist: run python -m services.chassis.migrate first") from None
        try:
            if not lazily:
                await _refuse_overcommitment(pool)
            yield cls(pool, schema=schema, sealer=Sealer(derive(settings.SECURITY_SALT.reveal(), f"once/{schema}")))
        finally:
            try:
                await asyncio.wait_for(pool.close(), 2.0)
            except (TimeoutError, *UNREACHABLE):
                pool.terminate()

    @property
    def schema(self) -> str:
        """The context's schema."""
        return self._schema

    @property
    def pool(self) -> Pool:
        """The connections as they are now."""
        open_, idle = self._pool.get_size(), self._pool.get_idle_size()
        return Pool(open_ - idle, idle, self._pool.get_max_size())

    async def require_schema(self, *schemas: str) -> None:
        """Return if `schemas` are what this code needs; if none is named, its own and the suite's. Raises SchemaBehind."""
        for schema in schemas or ("suite", self._schema):
            try:
                row = await self.fetch_row(f"SELECT max(version) AS version FROM {schema}.schema_migration")  # noqa: S608
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError):
                row = None  # never migrated
            if row is None or (row["version"] or 0) < latest(schema):
                raise SchemaBehind(f"the schema {schema} is not current: run python -m services.chassis.migrate first")

    async def ping(self) -> None:
        """Ask Postgres for nothing, and not for long. Raises DependencyUnavailable if it is gone or hangs, ResourceExhausted if it is busy."""
        await self._ask(SILENCE)

    async def clock(self) -> datetime:
        """Return the present instant by Postgres's clock."""
        (row,) = await self.fetch("SELECT clock_timestamp() AS now")
        now: datetime = row["now"]
        return now

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """Return all rows of one statement. A read that lost its connection is tried once more."""
        try:
            async with self.connection() as connection:
                return list(await connection.fetch(sql, *args))
        except DependencyUnavailable:
            async with self.connection() as connection:
                return list(await connection.fetch(sql, *args))

    async def fetch_row(self, sql: str, *args: object) -> Row | None:
        """Return the first row, or None."""
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def execute(self, sql: str, *args: object) -> None:
        """Run one statement that needs neither audit nor request_id."""
        async with self.connection() as connection:
            await connection.execute(sql, *args)

    async def sweep(self, sweep: Sweep) -> None:
        """Delete what `sweep` says, batch by batch while they are full, at most MOST_BATCHES of them."""
        for _ in range(MOST_BATCHES):
            async with self.connection() as connection:
                if await connection.execute(sweep.sql) != f"DELETE {sweep.batch}":
                    return

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection."""
        asked, use = time.monotonic(), self.use
        try:
            connection = await self._acquire()
        except Exception:
            use.failures += 1
            raise
        began = time.monotonic()
        use.waited.note(began - asked)
        is_given_up = False
        try:
            yield connection
            self._answered += 1
        except asyncio.CancelledError:
            is_given_up = True
            raise
        except asyncpg.DataError:
            connection.terminate()  # it was prepared and never run: Postgres would count the time until the next call's statement against that
            raise  # an argument that does not fit its column: our defect, although asyncpg counts it among its interface's errors
        except LOST as error:
            raise DependencyUnavailable from error
        except (asyncpg.ReadOnlySQLTransactionError, asyncpg.InsufficientResourcesError) as error:
            raise DependencyUnavailable("the database takes no changes now; try again") from error
        except (
            asyncpg.QueryCanceledError,
            asyncpg.LockNotAvailableError,
            asyncpg.SerializationError,
            asyncpg.DeadlockDetectedError,
        ) as error:
            raise DependencyUnavailable("the database is busy; try again") from error
        finally:
            if is_given_up:  # whose deadline passed must not wait for a Postgres that hangs
                self._leave(connection)
            else:
                await self._release(connection)
            use.used.note(time.monotonic() - began)

    async def _acquire(self) -> Connection:
        try:
            return await self._pool.acquire(timeout=ACQUIRE_TIMEOUT)
        except TimeoutError:
            raise self._exhausted() from None
        except LOST as error:
            raise DependencyUnavailable from error
        except asyncpg.TooManyConnectionsError:
            raise ResourceExhausted("no database connection is free; try again") from None

    async def _is_silent(self, seconds: float) -> bool:
        """Return whether Postgres leaves the simplest question unanswered for so long, and everybody else too.

        Not if a connection is broken: whoever has another one hears of it by himself.
        """
        try:
            await self._ask(seconds)
        except Silent:
            return True
        except (DependencyUnavailable, ResourceExhausted):
            return False
        return False

    async def _ask(self, seconds: float) -> None:
        """Ask Postgres the simplest question. Raises Silent if it answers neither this nor anybody else for so long.

        Raises DependencyUnavailable if a connection is broken, ResourceExhausted if none is free or much is to do.
        """
        is_asked, answered = False, self._answered
        try:
            async with patience(seconds), self.connection() as connection:
                is_asked = True
                await connection.fetchval("SELECT 1")
        except TimeoutError:
            if self._answered > answered or not (is_asked or isinstance(self._exhausted(), DependencyUnavailable)):
                raise ResourceExhausted("the database is busy; try again") from None
            raise Silent from None

    def _exhausted(self) -> Exception:
        """A full pool is the callers' doing; an empty one that cannot connect is Postgres's."""
        if self._pool.get_size() - self._pool.get_idle_size() >= self._pool.get_max_size():
            return ResourceExhausted("no database connection is free; try again")
        return DependencyUnavailable()

    def _leave(self, connection: Connection) -> None:
        releasing = asyncio.create_task(self._release(connection), name="release")
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)

    async def _release(self, connection: Connection) -> None:
        try:
            await self._pool.release(connection, timeout=1.0)
        except (TimeoutError, *LOST):
            with contextlib.suppress(asyncpg.InterfaceError):  # the pool has let go of it already
                connection.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Borrow a connection inside a transaction. Changes that wait for a lock leave half of the pool to the reads."""
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT):
                await self._changes.acquire()
        except TimeoutError:
            raise ResourceExhausted("too many changes at once; try again") from None
        try:
            async with self._pulse.felt(), self.connection() as connection, contextlib.AsyncExitStack() as work:
                await work.enter_async_context(connection.transaction())
                try:
                    yield connection
                except asyncio.CancelledError:
                    work.pop_all()  # rolled back when the connection is released, for which nobody waits
                    raise
        finally:
            self._changes.release()

    def spread_by(self, spreader: Spreader) -> None:
        """Make changes known through `spreader` from now on."""
        self._spreader = spreader

    async def change(self, call: Call, result: type[T], effect: Callable[[Change], Awaitable[T]]) -> T:
        """Run `effect` in one transaction with its audit rows; with a request_id, once in 24 hours. Return when every instance knows.

        result  type of what the effect returns, kept (sealed) for repeats: None, or what msgspec can encode
        Raises  IdempotencyConflict if the request_id was used for another request, FanoutPending
        """
        posted: list[Posted] = []
        crashpoint("change.before_begin")
        try:
            async with self.transaction() as connection:
                change = Change(connection, call)
                kept = None if call.once is None else await self._claim(connection, call, call.once)
                if kept is None:
                    outcome = await effect(change)
                    crashpoint("change.after_effect")
                    posted = await self.book(change, None if call.once is None else msgspec.json.encode(outcome))
                    crashpoint("change.before_commit")
        except NotFound:
            await self.settle(call)  # that it is gone is an answer too
            raise
        crashpoint("change.after_commit")
        if posted:
            await self._spread(posted, call)
        if kept is not None or change.is_settling:
            await self.settle(call)
        crashpoint("change.after_fanout")
        return outcome if kept is None else msgspec.json.decode(kept, type=result)

    async def _spread(self, posted: Sequence[Posted], call: Call) -> None:
        assert self._spreader is not None, "nobody tells the instances"
        began = time.monotonic()
        try:
            await self._spreader.spread(posted, budget=call.remaining - BACK)
        except FanoutPending:
            self.use.pending += 1
            raise
        finally:
            self.use.spread.note(time.monotonic() - began)

    async def settle(self, call: Call) -> None:
        """Return when every instance knows all that was committed before, to answer that nothing is left to do. Raises FanoutPending."""
        if self._spreader is None:
            return
        try:
            await self._spreader.settle(budget=call.remaining - BACK)
        except FanoutPending:
            self.use.pending += 1
            raise

    async def pages(self, sql: str, *args: object, size: int) -> AsyncIterator[list[Row]]:
        """Yield the rows of one statement, `size` at a time, all of one snapshot. For more rows than should be in memory at once."""
        async with self.connection() as connection, connection.transaction():
            cursor = await connection.cursor(sql, *args)
            while rows := await cursor.fetch(size):
                yield rows

    async def kept(self, call: Call, result: type[T]) -> T | None:
        """Return what an earlier call with this request_id got, or None: for changes whose preparation would fail after they were made.

        Raises  IdempotencyConflict if the request_id was used for another request
        """
        if call.once is None:
            return None
        row = await self.fetch_row(_KEPT_RECENTLY, call.caller.tenant_id, call.caller.id, call.once.request_id)
        if row is not None:
            await self.settle(call)
        return None if row is None else msgspec.json.decode(self._open(row, call, call.once), type=result)

    async def note(self, call: Call, *events: AuditEvent) -> None:
        """Write audit rows of something that changed nothing, such as a refusal."""
        async with self.transaction() as connection:
            await self.book(Change(connection, call, list(events)), None)

    async def _claim(self, connection: Connection, call: Call, once: Once) -> bytes | None:
        """Take the request_id for this call, or return what was kept under it. Waits for a running twin."""
        key = (call.caller.tenant_id, call.caller.id, once.request_id)
        taken = await connection.fetchrow(_CLAIM, *key, once.method, self._sealer.mark(once.fingerprint), datetime.now(UTC))
        if taken is not None:
            return None
        return self._open(await connection.fetchrow(_KEPT, *key), call, once)

    def _open(self, row: Row | None, call: Call, once: Once) -> bytes:
        if row is None or row["method"] != once.method or row["fingerprint"] != self._sealer.mark(once.fingerprint):
            raise IdempotencyConflict
        return self._sealer.open(row["result"], bound_to=_binding(call, once))

    async def book(self, change: Change, result: bytes | None) -> list[Posted]:
        """Write all that goes with an effect, in one statement: its audit rows, `result` under the request_id, and what instances must be told."""
        call, columns = change.call, list[object]()
        if change.events:
            columns += map(list, zip(*(_audit_row(self._schema, call, event) for event in change.events), strict=True))
        if result is not None:
            assert call.once is not None, "a result is kept under a request_id"
            sealed = self._sealer.seal(result, bound_to=_binding(call, call.once))
            columns += [call.caller.tenant_id, call.caller.id, call.once.request_id, sealed]
        if change.notices:
            columns += map(list, zip(*change.notices, strict=True))
        if not columns:
            return []
        booking = _booking(audits=bool(change.events), keeps=result is not None, posts=bool(change.notices))
        rows = await change.connection.fetch(booking, *columns)
        return [Posted(row["id"], *notice) for row, notice in zip(rows, change.notices, strict=True)] if change.notices else []

    FORGET_REQUESTS = Sweep("request", "create_time", before="now() - interval '24 hours'")

    async def forget_requests(self) -> None:
        """Delete request records older than 24 hours."""
        await self.sweep(self.FORGET_REQUESTS)


_CLAIM = """
    INSERT INTO request AS r (tenant_id, caller_id, request_id, method, fingerprint, create_time)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (tenant_id, caller_id, request_id) DO UPDATE
        SET method = excluded.method, fingerprint = excluded.fingerprint, create_time = excluded.create_time, result = NULL
        WHERE r.create_time < excluded.create_time - interval '24 hours'
    RETURNING 1
"""
_KEPT = "SELECT method, fingerprint, result FROM request WHERE tenant_id = $1 AND caller_id = $2 AND request_id = $3"
_KEPT_RECENTLY = f"{_KEPT} AND create_time > now() - interval '24 hours'"
_AUDIT_COLUMNS = {
    "id": "uuid",
    "tenant_id": "uuid",
    "event_time": "timestamptz",
    "context": "text",
    "type": "text",
    "outcome": "text",
    "actor_type": "text",
    "actor_id": "text",
    "target_type": "text",
    "target_id": "text",
    "address": "text",
    "request_id": "text",
    "details": "jsonb",
}


@cache
def _booking(*, audits: bool, keeps: bool, posts: bool) -> str:
    """Return the statement that writes what goes with an effect. It returns the ids of what is posted, in the order of the notices."""
    numbers, parts = count(1), list[str]()
    if audits:
        arrays = ", ".join(f"${next(numbers)}::{kind}[]" for kind in _AUDIT_COLUMNS.values())
        parts.append(f"audited AS (INSERT INTO suite.audit_event ({', '.join(_AUDIT_COLUMNS)}) SELECT * FROM unnest({arrays}))")  # noqa: S608
    if keeps:
        key = " AND ".join(f"{column} = ${next(numbers)}" for column in ("tenant_id", "caller_id", "request_id"))
        parts.append(f"kept AS (UPDATE request SET result = ${next(numbers)} WHERE {key})")  # noqa: S608
    if posts:
        notices = f"unnest(${next(numbers)}::text[], ${next(numbers)}::boolean[]) WITH ORDINALITY AS notice (payload, takes_away, place)"
        parts.append(
            f"posted AS (INSERT INTO change (payload, takes_away) SELECT payload, takes_away FROM {notices} ORDER BY place RETURNING id)"  # noqa: S608
        )
    return f"WITH {', '.join(parts)} SELECT {'id FROM posted ORDER BY id' if posts else '1'}"  # noqa: S608  (of words that are written here)


def _binding(call: Call, once: Once) -> bytes:
    return b"|".join((call.caller.tenant_id.bytes, call.caller.id.encode(), once.request_id.bytes))


def _audit_row(context: str, call: Call, event: AuditEvent) -> tuple[object, ...]:
    event_time = datetime.now(UTC)  # before the id is made: whoever looks for events since a time begins at its ids
    return (
        new_id(),
        event.tenant_id or call.caller.tenant_id,
        event_time,
        context,
        event.type,
        event.outcome,
        event.actor_type or call.caller.kind.value,
        event.actor_id or call.caller.id,
        event.target_type,
        event.target_id,
        call.address,
        call.request_id,
        msgspec.json.encode(event.details).decode(),
    )


async def bump(connection: Connection, tenant_id: TenantId) -> int:
    """Return the tenant's next revision. Call it late: it makes the tenant's changes wait for one another until commit."""
    revision: int = await connection.fetchval("SELECT suite.bump_revision($1)", tenant_id)
    return revision


async def _leave_session(_connection: Connection) -> None:
    """Spare the round trip that resets a session: nothing here sets session state, and asyncpg itself ends an open transaction."""


async def _refuse_overcommitment(pool: asyncpg.Pool) -> None:
    """Every session says in its application_name how large its pool may grow; the sum must fit. Raises PoolTooLarge."""
    async with pool.acquire() as connection:
        limit = int(await connection.fetchval("SHOW max_connections"))
        names = await connection.fetch("SELECT DISTINCT application_name AS name FROM pg_stat_activity WHERE application_name LIKE 'watchword/%'")
    wanted = sum(int(match[1]) for row in names if (match := re.match(r"watchword/\w+ max=(\d+) ", row["name"])))
    if wanted > limit - RESERVED_CONNECTIONS:
        raise PoolTooLarge(
            f"the instances' pools may take {wanted} connections, Postgres has {limit} and keeps {RESERVED_CONNECTIONS} for operators:"
            " lower DATABASE_POOL_SIZE or DATABASE_MAX_OVERFLOW, run fewer instances, or raise max_connections"
        )
