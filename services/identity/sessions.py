"""What a person does with sessions they have: carry on, log out, change the password."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call, CallerKind
from services.chassis.clock import Clock
from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import Change
from services.identity.accounts import Account, Credential
from services.identity.grants import Tokens
from services.identity.passwords import require_size
from services.identity.proof import Claim, Prover
from services.identity.registration import Began
from services.identity.tasks import Task, Tasks, revoke_session, revoke_subject
from watchword.errors import InvalidCredentials, PermissionDenied, TokenInvalid

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.peers import RbacPeer, TokenPeer
    from services.identity.store.accounts import AccountStore
    from services.identity.store.outbox import TaskStore


class Sessions:
    """Carries sessions on, and ends them."""

    def __init__(
        self,
        *,
        database: "Database",
        accounts: "AccountStore",
        task_store: "TaskStore",
        tasks: Tasks,
        prover: Prover,
        token: "TokenPeer",
        rbac: "RbacPeer",
        clock: Clock,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._task_store = task_store
        self._tasks = tasks
        self._prover = prover
        self._token = token
        self._rbac = rbac
        self._clock = clock

    async def refresh(self, refresh_token: str, call: Call) -> Tokens:
        """Trade a refresh token for its successor, with the account's roles as they are now; the same request_id gets the same one.

        Raises  TokenInvalid, RefreshTokenReused, IdempotencyConflict
        """
        request_id = call.once.request_id if call.once else None
        found = await self._token.introspect(refresh_token, call)
        if found is None:
            # It redeems nothing any more: a repeat gets the first answer again; else it is a copy of a used one, and presenting it ends its session.
            return await self._token.refresh(refresh_token, client_id=None, roles=(), revision=0, request_id=request_id, call=call)
        if found.token_use != "refresh_token" or found.client_id is not None:  # noqa: S105
            raise TokenInvalid
        credential = await self._accounts.find_credential(found.tenant_id, found.subject)
        if credential is None or not credential.account.is_active:
            raise TokenInvalid
        roles = await self._rbac.role_names(found.tenant_id, found.subject, call)
        return await self._token.refresh(
            refresh_token, client_id=None, roles=roles, revision=credential.tenant_revision, request_id=request_id, call=call
        )

    async def me(self, call: Call) -> Account:
        """Return the caller's own account. Raises PermissionDenied for a client."""
        account = await self._accounts.find(call.caller.tenant_id, _person(call))
        if account is None:
            raise TokenInvalid
        return account

    async def log_out(self, call: Call) -> str:
        """End the caller's session; return a consistency token. Raises FanoutPending."""
        account_id, session_id = _person(call), call.caller.session_id
        if session_id is None:
            raise PermissionDenied("the token belongs to no session")
        return await self._end(call, "logged_out", account_id, revoke_session(call.caller.tenant_id, session_id, "logged_out"))

    async def log_out_all(self, call: Call) -> str:
        """End all sessions of the caller's account; return a consistency token. Raises FanoutPending."""
        account_id = _person(call)
        return await self._end(call, "logged_out_everywhere", account_id, revoke_subject(call.caller.tenant_id, account_id, "logged_out_everywhere"))

    async def _end(self, call: Call, kind: str, account_id: UUID, task: Task) -> str:
        async def effect(change: Change) -> Began:
            change.audit(AuditEvent(kind, "user", str(account_id)))
            return Began(await self._task_store.insert(change, task))

        began = await self._database.change(call, Began, effect)
        return await self._tasks.settle(began.task_id, call)

    async def change_password(self, current: str, new: str, call: Call) -> str:
        """Replace the caller's password and end the account's other sessions; return a consistency token.

        Raises  InvalidCredentials if `current` is wrong, counted like a failed login; PasswordRejected, RateLimited, FanoutPending
        """
        account_id = _person(call)
        began = await self._database.kept(call, Began)
        if began is None:
            began = await self._change_password(account_id, current, new, call)
        return await self._tasks.settle(began.task_id, call)

    async def _change_password(self, account_id: UUID, current: str, new: str, call: Call) -> Began:
        require_size(current, field="current_password")
        require_size(new, field="new_password")
        found = await self._accounts.find_credential(call.caller.tenant_id, account_id)
        if found is None or not found.account.is_active:
            raise TokenInvalid
        account = found.account
        claim = Claim(str(account.tenant_id), account.email_key, account.tenant_id, found)
        with self._prover.admitted(call) as place:
            credential = await self._prover.prove(claim, current, place, call)
        password_hash = await self._prover.prepare(new, field="new_password", names=account.names, call=call)
        task = revoke_subject(account.tenant_id, account.id, "password_changed", spared=call.caller.session_id)
        return await self._database.change(call, Began, self._replacing(credential, password_hash, task))

    def _replacing(self, credential: Credential, password_hash: str, task: Task) -> Callable[[Change], Awaitable[Began]]:
        async def effect(change: Change) -> Began:
            if not await self._accounts.replace_password(change, credential, password_hash, self._clock.now()):
                raise InvalidCredentials  # it was replaced in between: what was proved is the password no more
            crashpoint("password.after_replace")
            await self._accounts.delete_codes(change, credential.account.id)
            change.audit(AuditEvent("password_changed", "user", str(credential.account.id)))
            return Began(await self._task_store.insert(change, task))

        return effect


def _person(call: Call) -> UUID:
    if call.caller.kind is not CallerKind.USER:
        raise PermissionDenied("only a person has an account")
    return call.caller.uuid
