"""Defences that a test takes away in its own processes, to see that it would notice: no switch in the product does this."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from services.chassis.call import Call
from services.chassis.coherence import Coherence
from services.chassis.crashpoint import crashpoint
from services.chassis.fanout import Fanout
from services.chassis.postgres import Change, Connection, Database
from services.identity.codes import CodeKind, Redeemed
from services.identity.store.accounts import AccountStore
from services.identity.store.outbox import TaskStore
from services.identity.tasks import Task
from services.token.sessions import Outcome
from services.token.store import keys
from services.token.store.sessions import SessionStore
from watchword.errors import DependencyUnavailable

T = TypeVar("T")


def keep_the_books_apart(*, audit: bool, request: bool) -> None:
    """Write the audit rows, or the record under the request_id, in a transaction of their own, once the effect is committed."""

    async def change(self: Database, call: Call, result: type[T], effect: Callable[[Change], Awaitable[T]]) -> T:
        kept = await self.kept(call, result)
        if kept is not None:
            return kept
        async with self.transaction() as connection:
            inside = Change(connection, call)
            outcome = await effect(inside)
            await _book(self, connection, inside, outcome, audit=not audit, request=not request)
            posted = await self.book(Change(connection, call, notices=inside.notices), None)
        crashpoint("change.after_commit")
        async with self.transaction() as connection:
            await _book(self, connection, inside, outcome, audit=audit, request=request)
        if posted:
            await self._spread(posted, call)
        return outcome

    Database.change = change  # type: ignore[method-assign]


async def _book(database: Database, connection: Connection, change: Change, outcome: object, *, audit: bool, request: bool) -> None:
    call = change.call
    if request and call.once is not None:
        await database._claim(connection, call, call.once)
    kept = msgspec.json.encode(outcome) if request and call.once is not None else None
    await database.book(Change(connection, call, change.events if audit else []), kept)


def believe_lost_commits() -> None:
    """Answer with what the effect returned, also when the database has not said that it is committed."""
    honest = Database.change

    async def change(self: Database, call: Call, result: type[T], effect: Callable[[Change], Awaitable[T]]) -> T:
        seen: list[T] = []

        async def noted(inside: Change) -> T:
            seen.append(await effect(inside))
            return seen[-1]

        try:
            return await honest(self, call, result, noted)
        except DependencyUnavailable:
            if not seen:
                raise
            return seen[-1]

    Database.change = change  # type: ignore[method-assign]


def lose_the_outbox() -> None:
    """Let nobody pass on what its writer did not."""

    async def nothing(*_: object, **__: object) -> None:
        await asyncio.sleep(0)

    async def never(self: Fanout) -> None:
        await asyncio.Event().wait()

    Fanout._relay = never  # type: ignore[method-assign]
    Fanout.settle = nothing  # type: ignore[method-assign]
    Coherence._publish_leftovers = nothing  # type: ignore[method-assign]


def remember_tasks() -> None:
    """Keep what token must still be told in memory, instead of in the transaction that makes it necessary."""
    remembered: dict[UUID, Task] = {}

    async def insert(self: TaskStore, change: Change, task: Task) -> UUID:
        remembered[task.id] = task
        return task.id

    async def find(self: TaskStore, task_id: UUID) -> tuple[Task, str | None] | None:
        task = remembered.pop(task_id, None)
        return None if task is None else (task, None)

    TaskStore.insert = insert  # type: ignore[method-assign]
    TaskStore.find = find  # type: ignore[method-assign]


def burn_codes_first() -> None:
    """Use up a code before the transaction of what it is good for has ended."""

    async def redeem_code(self: AccountStore, change: Change, code_digest: bytes, kind: CodeKind, now: datetime) -> Redeemed | None:
        row = await self._database.fetch_row(self._REDEEM_CODE, code_digest, kind, now)
        crashpoint("code.after_redeem")
        return Redeemed(row["account_id"], row["tenant_id"], row["email_key"]) if row else None

    AccountStore.redeem_code = redeem_code  # type: ignore[method-assign]


def look_before_redeeming() -> None:
    """Read whether a code is good, and delete it once what it is good for is done, in another transaction."""
    find = "SELECT c.account_id, a.tenant_id, c.email_key FROM code c JOIN account a ON a.id = c.account_id WHERE c.digest = $1 AND c.kind = $2"

    async def redeem_code(self: AccountStore, change: Change, code_digest: bytes, kind: CodeKind, now: datetime) -> Redeemed | None:
        row = await self._database.fetch_row(find, code_digest, kind)
        crashpoint("code.after_redeem")
        return Redeemed(row["account_id"], row["tenant_id"], row["email_key"]) if row else None

    AccountStore.redeem_code = redeem_code  # type: ignore[method-assign]


def use_refresh_tokens_first() -> None:
    """Mark a refresh token as used in one transaction, and make its successor in another."""
    honest = SessionStore.redeem

    async def redeem(self: SessionStore, call: Call, digest: bytes, client_id: UUID | None, *, now: datetime, **more: Any) -> Outcome:
        if await self._database.kept(call, Outcome) is None:
            used = await self._database.fetch_row(self._REDEEM, digest, now, client_id)
            crashpoint("refresh.after_use")
            if used is not None:
                await self._database.execute("UPDATE refresh_token SET used_time = NULL WHERE digest = $1", digest)
        return await honest(self, call, digest, client_id, now=now, **more)

    SessionStore.redeem = redeem  # type: ignore[method-assign]


def supersede_first() -> None:
    """Commit that the present key signs no more before another one may."""
    honest = keys._promote

    async def promote(change: Change, kid: str, former: str | None, *, early: bool = False) -> None:
        if former is not None:
            await change.connection.execute(keys._MOVE, former, "RETIRING")
            await change.connection.execute("COMMIT; BEGIN")
            crashpoint("keys.after_superseding")
        await honest(change, kid, None, early=early)

    keys._promote = promote


SABOTAGE: dict[str, Callable[[], None]] = {
    "audit in the transaction": lambda: keep_the_books_apart(audit=True, request=False),
    "request record in the transaction": lambda: keep_the_books_apart(audit=False, request=True),
    "all in one transaction": lambda: keep_the_books_apart(audit=True, request=True),
    "word of the commit": believe_lost_commits,
    "outbox": lose_the_outbox,
    "task in the transaction": remember_tasks,
    "code in the transaction": burn_codes_first,
    "code by one statement": look_before_redeeming,
    "refresh by one transaction": use_refresh_tokens_first,
    "promotion by one transaction": supersede_first,
}
