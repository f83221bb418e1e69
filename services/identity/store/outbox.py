"""The two outboxes in Postgres: mail to be sent, and tasks for other contexts.

Both are taken by lease: a short statement moves what is due into the future and returns it, so no transaction is open while a mail server or a
peer is asked, and a killed instance's work comes up again by itself. Due times are Postgres's own, which all instances share.
"""

from uuid import UUID

from services.chassis.postgres import Change, Connection, Database, Row, Sweep, new_id
from services.chassis.sealing import Sealer
from services.chassis.tenancy import TenantId
from services.identity.accounts import Account
from services.identity.mail import MailKind, MailOrder, UnreadableMail
from services.identity.store.accounts import read_account
from services.identity.tasks import Task, TaskKind

BACKOFF = "least(power(2, attempts), 900) * interval '1 second'"  # doubles to a quarter of an hour
TASK_COLUMNS = "id, kind, tenant_id, target_id, spared_session_id, is_disabled, note"


class MailStore:
    """Mail to be sent. Recipients are sealed: an address for which there is no account need not lie about in clear."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    _INSERT = "INSERT INTO mail (id, tenant_id, kind, recipient, attempts, next_attempt_time, create_time) VALUES ($1, $2, $3, $4, 0, now(), now())"

    async def insert(self, change: Change, tenant_id: TenantId, kind: MailKind, recipient_key: str) -> None:
        """Ask for a mail to whoever has the address `recipient_key`."""
        mail_id = new_id()
        sealed = self._sealer.seal(recipient_key.encode(), bound_to=mail_id.bytes)
        await change.connection.execute(self._INSERT, mail_id, tenant_id, kind, sealed)

    _TAKE_DUE = f"""
        UPDATE mail SET attempts = attempts + 1, next_attempt_time = now() + interval '30 seconds' + {BACKOFF}
        WHERE id = (SELECT id FROM mail WHERE next_attempt_time <= now() ORDER BY next_attempt_time, id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING id, tenant_id, kind, recipient, attempts, create_time
    """  # noqa: S608

    async def take_due(self) -> MailOrder | UnreadableMail | None:
        """Take the mail that is due first, None if none is; it comes up again, later and later, unless it is deleted."""
        row = await self._database.fetch_row(self._TAKE_DUE)
        return None if row is None else self._order(row)

    _POSTPONE = f"UPDATE mail SET next_attempt_time = now() + {BACKOFF} WHERE id = $1"  # noqa: S608

    async def postpone(self, mail_id: UUID) -> None:
        """Let a mail that failed come up again after its back-off."""
        await self._database.execute(self._POSTPONE, mail_id)

    _DELETE = "DELETE FROM mail WHERE id = $1"

    async def delete(self, mail_id: UUID) -> None:
        """Forget a mail that was sent, or never will be."""
        await self._database.execute(self._DELETE, mail_id)

    async def find_recipient(self, connection: Connection, order: MailOrder) -> Account | None:
        """Return the account that a mail is about, inside a transaction."""
        return await read_account(connection, order.tenant_id, order.recipient_key)

    def _order(self, row: Row) -> MailOrder | UnreadableMail:
        try:
            recipient = self._sealer.open(row["recipient"], bound_to=row["id"].bytes).decode()
            return MailOrder(row["id"], TenantId(row["tenant_id"]), MailKind(row["kind"]), recipient, row["attempts"], row["create_time"])
        except ValueError as error:
            return UnreadableMail(row["id"], row["create_time"], str(error))


class TaskStore:
    """Tasks for other contexts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _INSERT = """
        INSERT INTO task (id, kind, tenant_id, target_id, spared_session_id, is_disabled, note, attempts, next_attempt_time, create_time,
                          consistency_token)
        VALUES ($1, $2, $3, $4, $5, $6, $7, 0, now() + interval '1 second', now(), '')
    """

    async def insert(self, change: Change, task: Task) -> UUID:
        """Write down a task. The caller's own instance tries first: a relay waits a second."""
        await change.connection.execute(
            self._INSERT, task.id, task.kind, task.tenant_id, task.target_id, task.spared_session_id, task.is_disabled, task.note
        )
        return task.id

    _FIND = f"SELECT {TASK_COLUMNS}, done_time IS NOT NULL AS is_done, consistency_token FROM task WHERE id = $1"  # noqa: S608

    async def find(self, task_id: UUID) -> tuple[Task, str | None] | None:
        """Return a task, and the consistency token that it ended with, None if it has not ended."""
        row = await self._database.fetch_row(self._FIND, task_id)
        return (_task(row), row["consistency_token"] if row["is_done"] else None) if row else None

    _FIND_OPEN = f"SELECT {TASK_COLUMNS} FROM task WHERE tenant_id = $1 AND target_id = $2 AND done_time IS NULL ORDER BY id"  # noqa: S608

    async def list_open(self, tenant_id: TenantId, target_id: UUID) -> list[Task]:
        """Return the tasks about an account or client that are still to be done."""
        return [_task(row) for row in await self._database.fetch(self._FIND_OPEN, tenant_id, target_id)]

    # An array is made once, whatever the plan: some plans look for those that are due anew for each row, and take more than the limit.
    _TAKE_DUE = f"""
        UPDATE task SET attempts = attempts + 1, next_attempt_time = now() + {BACKOFF}
        WHERE id = ANY(ARRAY(
            SELECT id FROM task WHERE done_time IS NULL AND next_attempt_time <= now() ORDER BY next_attempt_time LIMIT $1 FOR UPDATE SKIP LOCKED
        ))
        RETURNING {TASK_COLUMNS}
    """  # noqa: S608

    async def take_due(self, limit: int) -> list[Task]:
        """Take tasks that are due; each comes up again, later and later, until it is finished."""
        return [_task(row) for row in await self._database.fetch(self._TAKE_DUE, limit)]

    _FINISH = "UPDATE task SET done_time = now(), consistency_token = $2 WHERE id = $1 AND done_time IS NULL"

    async def finish(self, task_id: UUID, consistency_token: str) -> None:
        """Note that a task is done."""
        await self._database.execute(self._FINISH, task_id, consistency_token)

    SWEEP = Sweep("task", "done_time", before="now() - interval '25 hours'")

    async def sweep(self) -> None:
        """Delete tasks that were done more than a day ago: nobody can ask for them by request_id any more."""
        await self._database.sweep(self.SWEEP)


def _task(row: Row) -> Task:
    return Task(
        id=row["id"],
        kind=TaskKind(row["kind"]),
        tenant_id=TenantId(row["tenant_id"]),
        target_id=row["target_id"],
        spared_session_id=row["spared_session_id"],
        is_disabled=row["is_disabled"],
        note=row["note"],
    )
