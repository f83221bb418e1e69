"""Tasks: what other contexts must do because of a change here, such as refuse a disabled account's tokens.

A task is written in the transaction of the change, so it is never lost; it is done under its own id as request_id, so it is done once, however
often it is tried. The call that caused it tries first and answers OK only when it is done. If the other context does not answer, the caller hears
FanoutPending, any instance's relay goes on trying, and the same request_id asks again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from services.chassis.call import Call
from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import new_id
from services.chassis.tenancy import TenantId
from watchword.errors import FanoutPending, NotFound, WatchwordError

if TYPE_CHECKING:
    from services.identity.store.outbox import TaskStore

BATCH = 20  # tasks at once
ADMINISTRATOR = "watchword.admin"  # the role of the suite that may do everything in its tenant

log = structlog.get_logger()


class TaskKind(StrEnum):
    """What is to be done."""

    REVOKE_SUBJECT = "revoke_subject"
    REVOKE_SESSION = "revoke_session"
    REVOKE_CLIENT = "revoke_client"
    BIND_ROLE = "bind_role"


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    target_id    whose tokens, which session's or client's; or who gets the role
    is_disabled  the subject is disabled or deleted
    note         why, for the other context's audit log; of BIND_ROLE, the role's name
    """

    id: UUID
    kind: TaskKind
    tenant_id: TenantId
    target_id: UUID
    spared_session_id: UUID | None = None
    is_disabled: bool = False
    note: str = ""


def revoke_subject(tenant_id: TenantId, account_id: UUID, note: str, *, spared: UUID | None = None, is_disabled: bool = False) -> Task:
    """Return the task of ending an account's sessions, but for one if it is `spared`."""
    return Task(new_id(), TaskKind.REVOKE_SUBJECT, tenant_id, account_id, spared, is_disabled, note)


def revoke_session(tenant_id: TenantId, session_id: UUID, note: str) -> Task:
    """Return the task of ending one session."""
    return Task(new_id(), TaskKind.REVOKE_SESSION, tenant_id, session_id, note=note)


def revoke_client(tenant_id: TenantId, client_id: UUID, note: str) -> Task:
    """Return the task of refusing a client's tokens."""
    return Task(new_id(), TaskKind.REVOKE_CLIENT, tenant_id, client_id, note=note)


def make_administrator(tenant_id: TenantId, account_id: UUID) -> Task:
    """Return the task of giving an account its tenant's administration."""
    return Task(new_id(), TaskKind.BIND_ROLE, tenant_id, account_id, note=ADMINISTRATOR)


Performer = Callable[[Task, Call | None], Awaitable[str]]


class Tasks:
    """Does tasks."""

    def __init__(self, store: "TaskStore", *, revoke: Performer, bind: Performer) -> None:
        self._store = store
        self._revoke = revoke
        self._bind = bind

    async def settle(self, task_id: UUID, call: Call) -> str:
        """Return the consistency token of a task once it is done. Raises FanoutPending if it is not done yet."""
        found = await self._store.find(task_id)
        if found is None:
            return ""
        task, token = found
        return await self._do_now(task, call) if token is None else token

    @asynccontextmanager
    async def settled(self, target_id: UUID, call: Call) -> AsyncIterator[None]:
        """Let NotFound pass once all is done that was to be done when the account or client was deleted. Raises FanoutPending before that.

        For changes that take something away: who repeats one without its request_id must not hear that there is nothing, and take that for done.
        """
        try:
            yield
        except NotFound:
            for task in await self._store.list_open(call.caller.tenant_id, target_id):
                if task.kind is not TaskKind.BIND_ROLE:
                    await self._do_now(task, call)
            raise

    async def settle_all(self, tenant_id: TenantId, target_id: UUID, call: Call) -> None:
        """Do what is still to be done about an account. Raises what the peer raises."""
        for task in await self._store.list_open(tenant_id, target_id):
            await self._do(task, call)

    async def do_due(self) -> int:
        """Do the tasks that are due, a batch at a time; return how many were done.

        One that could not be done ends it: a peer that does not answer is left alone for a while.
        """
        total, done = 0, BATCH
        while done == BATCH:
            done = sum(await asyncio.gather(*(self._try(task) for task in await self._store.take_due(BATCH))))
            total += done
        return total

    async def _try(self, task: Task) -> bool:
        try:
            await self._do(task, None)
        except WatchwordError as error:
            log.warning("task_postponed", kind=task.kind, cause=error.reason)
            return False
        return True

    async def _do_now(self, task: Task, call: Call) -> str:
        try:
            return await self._do(task, call)
        except WatchwordError as error:
            log.warning("task_postponed", kind=task.kind, cause=error.reason)
            raise FanoutPending from error

    async def _do(self, task: Task, call: Call | None) -> str:
        perform = self._bind if task.kind is TaskKind.BIND_ROLE else self._revoke
        crashpoint("task.before_doing")
        token = await perform(task, call)
        crashpoint("task.after_doing")
        await self._store.finish(task.id, token)
        return token
