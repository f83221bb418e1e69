"""The sessions of an account, as administrators see them. Token keeps them; who may act upon whose is decided here."""

from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.pages import Page
from services.chassis.postgres import Change
from services.identity.grants import OpenSession
from services.identity.registration import Began
from services.identity.tasks import Tasks, revoke_session
from services.identity.users import Users
from watchword.errors import NotFound

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.peers import SessionPeer
    from services.identity.store.outbox import TaskStore


class UserSessions:
    """Lists and ends sessions of accounts."""

    def __init__(self, *, database: "Database", users: Users, task_store: "TaskStore", tasks: Tasks, sessions: "SessionPeer") -> None:
        self._database = database
        self._users = users
        self._task_store = task_store
        self._tasks = tasks
        self._sessions = sessions

    async def list(self, account_id: UUID, call: Call, *, page_size: int, page_token: str) -> Page[OpenSession]:
        """Return a page of an account's live sessions, latest first. Raises NotFound, InvalidRequest, PageTokenInvalid."""
        account = await self._users.get(account_id, call)
        return await self._sessions.list(account.tenant_id, account.id, call, page_size=page_size, page_token=page_token)

    async def revoke(self, account_id: UUID, session_id: UUID, call: Call) -> str:
        """End one session of an account; return a consistency token.

        One that is over already is ended again: the call may repeat one that was not confirmed everywhere.
        Raises  NotFound, also for a session of somebody else; PermissionDenied, FanoutPending
        """
        async with self._tasks.settled(account_id, call):
            return await self._revoke(account_id, session_id, call)

    async def _revoke(self, account_id: UUID, session_id: UUID, call: Call) -> str:
        account = await self._users.require_authority(account_id, call)
        kept = await self._database.kept(call, Began)
        if kept is not None:
            return await self._tasks.settle(kept.task_id, call)
        if not await self._sessions.exists(account.tenant_id, account.id, session_id, call):
            raise NotFound

        async def effect(change: Change) -> Began:
            change.audit(AuditEvent("user_session_revoked", "user", str(account.id), details={"session_id": str(session_id)}))
            return Began(await self._task_store.insert(change, revoke_session(account.tenant_id, session_id, "revoked_by_administrator")))

        began = await self._database.change(call, Began, effect)
        return await self._tasks.settle(began.task_id, call)
