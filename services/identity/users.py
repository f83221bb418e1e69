"""Accounts as administrators see them. Everything here is about the caller's own tenant; another tenant's account does not exist."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.crashpoint import crashpoint
from services.chassis.pages import Page, Pager
from services.chassis.postgres import Change
from services.identity import names
from services.identity.accounts import Account, AccountState
from services.identity.mail import MailKind
from services.identity.passwords import require_size
from services.identity.proof import Prover
from services.identity.registration import Began, new_account, parse_names
from services.identity.tasks import Tasks, revoke_subject
from watchword.errors import AlreadyExists, DependencyUnavailable, EtagMismatch, InvalidRequest, NotFound, PermissionDenied, PreconditionFailed

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.attempts import Attempts
    from services.identity.peers import RbacPeer
    from services.identity.store.accounts import AccountStore
    from services.identity.store.outbox import MailStore, TaskStore

FIELDS = ("email", "username", "display_name")  # what may be changed; all else has RPCs of its own, or none


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """An account that an administrator wants. Without a password, its owner gets a mail to set one."""

    email: str
    username: str
    display_name: str
    email_verified: bool
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """New values, and which of them to take; an empty mask takes those that are not empty."""

    account_id: UUID
    email: str
    username: str
    display_name: str
    mask: tuple[str, ...] | None
    etag: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields to change. Raises InvalidRequest for those that may not be."""
        if self.mask is None:
            return tuple(name for name in FIELDS if getattr(self, name))
        strangers = [path for path in self.mask if path not in FIELDS]
        if strangers:
            raise InvalidRequest.of("update_mask", f"may name {', '.join(FIELDS)} only")
        return self.mask


@dataclass(frozen=True, slots=True)
class Disabled:
    """A disabled account, and the task of refusing its tokens."""

    account: Account
    task_id: UUID


class Users:
    """Administers accounts."""

    def __init__(
        self,
        *,
        database: "Database",
        accounts: "AccountStore",
        mail: "MailStore",
        task_store: "TaskStore",
        tasks: Tasks,
        attempts: "Attempts",
        prover: Prover,
        rbac: "RbacPeer",
        pager: Pager,
        clock: Clock,
    ) -> None:
        self._database = database
        self._rbac = rbac
        self._accounts = accounts
        self._mail = mail
        self._task_store = task_store
        self._tasks = tasks
        self._attempts = attempts
        self._prover = prover
        self._pager = pager
        self._clock = clock

    async def create(self, request: CreateRequest, call: Call) -> Account:
        """Make an account. Raises InvalidRequest, PasswordRejected, AlreadyExists."""
        require_size(request.password, field="password")
        email, username = parse_names(request.email, request.username)
        given = tuple(name for name in (request.email, request.username, request.display_name) if name)
        password_hash = await self._prover.prepare(request.password, field="password", names=given, call=call) if request.password else ""
        new = new_account(
            call.caller.tenant_id,
            email,
            username,
            request.display_name,
            password_hash=password_hash,
            now=self._clock.now(),
            email_verified=request.email_verified,
        )

        async def effect(change: Change) -> Account:
            account = await self._accounts.insert(change, new)
            if account is None:
                raise AlreadyExists("the e-mail address or user name is taken")
            crashpoint("account.after_insert")
            if not password_hash:
                await self._mail.insert(change, new.tenant_id, MailKind.INVITATION, new.email_key)
            elif not new.email_verified:
                await self._mail.insert(change, new.tenant_id, MailKind.VERIFICATION, new.email_key)
            change.audit(AuditEvent("user_created", "user", str(account.id)))
            return account

        return await self._database.change(call, Account, effect)

    async def get(self, account_id: UUID, call: Call) -> Account:
        """Return an account. Raises NotFound."""
        return _found(await self._accounts.find(call.caller.tenant_id, account_id))

    async def list(self, call: Call, *, login: str, state: AccountState | None, page_size: int, page_token: str) -> Page[Account]:
        """Return a page of accounts, oldest first. A login that no account can have finds none."""
        tenant_id, query = call.caller.tenant_id, ("users", login, state or "")
        page = self._pager.read(page_size=page_size, page_token=page_token, tenant_id=tenant_id, query=query)
        key = names.login_key(login) if login else None
        if login and key is None:
            return Page([], "")
        after = UUID(page.after[0]) if page.after else None
        rows = await self._accounts.list(tenant_id, after=after, login=key, state=state, limit=page.size + 1)
        return self._pager.page(rows, page, key=lambda account: (str(account.id),), tenant_id=tenant_id, query=query)

    async def update(self, request: UpdateRequest, call: Call) -> Account:
        """Change names of an account. A new address is not verified, and gets a mail.

        Raises  InvalidRequest, NotFound, EtagMismatch, AlreadyExists
        """
        fields = request.fields
        await self.require_authority(request.account_id, call)

        async def effect(change: Change) -> Account:
            before = _found(await self._accounts.lock(change, call.caller.tenant_id, request.account_id))
            _require_etag(before, request.etag)
            wanted = _changed(before, request, fields)
            after = await self._accounts.update_names(change, wanted, self._clock.now())
            if after is None:
                raise AlreadyExists("the e-mail address or user name is taken")
            if after.email_key != before.email_key:
                await self._accounts.delete_codes(change, after.id)
                await self._mail.insert(change, after.tenant_id, MailKind.VERIFICATION, after.email_key)
            change.audit(AuditEvent("user_updated", "user", str(after.id), details={"fields": ",".join(fields)}))
            return after

        return await self._database.change(call, Account, effect)

    async def disable(self, account_id: UUID, call: Call) -> tuple[Account, str]:
        """Keep an account out; return it with a consistency token. Raises NotFound, PreconditionFailed, FanoutPending."""
        _refuse_self(account_id, call)
        async with self._tasks.settled(account_id, call):
            return await self._disable(account_id, call)

    async def _disable(self, account_id: UUID, call: Call) -> tuple[Account, str]:
        await self.require_authority(account_id, call)

        async def effect(change: Change) -> Disabled:
            account = _found(await self._accounts.lock(change, call.caller.tenant_id, account_id))
            disabled = await self._accounts.set_state(change, account, AccountState.DISABLED, self._clock.now())
            await self._accounts.delete_codes(change, account_id)
            change.audit(AuditEvent("user_disabled", "user", str(account_id)))
            task = revoke_subject(account.tenant_id, account_id, "user_disabled", is_disabled=True)
            return Disabled(disabled, await self._task_store.insert(change, task))

        disabled = await self._database.change(call, Disabled, effect)
        return disabled.account, await self._tasks.settle(disabled.task_id, call)

    async def enable(self, account_id: UUID, call: Call) -> Account:
        """Let an account in again; its old tokens stay refused. Raises NotFound, PermissionDenied."""
        await self.require_authority(account_id, call)

        async def effect(change: Change) -> Account:
            account = _found(await self._accounts.lock(change, call.caller.tenant_id, account_id))
            change.audit(AuditEvent("user_enabled", "user", str(account_id)))
            return await self._accounts.set_state(change, account, AccountState.ACTIVE, self._clock.now())

        return await self._database.change(call, Account, effect)

    async def unlock(self, account_id: UUID, call: Call) -> Account:
        """Forget an account's failed logins. Raises NotFound, DependencyUnavailable while the shared counters cannot be reached."""
        await self.require_authority(account_id, call)

        async def effect(change: Change) -> Account:
            account = _found(await self._accounts.lock(change, call.caller.tenant_id, account_id))
            await self._accounts.set_lock(change, account_id, None)
            change.audit(AuditEvent("user_unlocked", "user", str(account_id)))
            return replace(account, locked_until=None)

        account = await self._database.change(call, Account, effect)
        if not await self._attempts.forget(account):
            raise DependencyUnavailable
        return account

    async def delete(self, account_id: UUID, etag: str, call: Call) -> str:
        """Delete an account with all its roles; its names become free. Return a consistency token.

        Its roles go first: a crash in between leaves an account that may do nothing, and the call can be repeated. So the etag is judged before;
        whoever changes the account after that changes one that is being deleted.
        Raises  NotFound, EtagMismatch, PreconditionFailed, PermissionDenied, LastAdministrator, FanoutPending
        """
        _refuse_self(account_id, call)
        async with self._tasks.settled(account_id, call):
            return await self._delete(account_id, etag, call)

    async def _delete(self, account_id: UUID, etag: str, call: Call) -> str:
        kept = await self._database.kept(call, Began)
        if kept is not None:
            return await self._tasks.settle(kept.task_id, call)
        _require_etag(await self.require_authority(account_id, call), etag)
        await self._rbac.delete_subject(call, account_id)

        async def effect(change: Change) -> Began:
            account = _found(await self._accounts.lock(change, call.caller.tenant_id, account_id))
            await self._accounts.delete(change, account)
            change.audit(AuditEvent("user_deleted", "user", str(account_id)))
            task = revoke_subject(account.tenant_id, account_id, "user_deleted", is_disabled=True)
            return Began(await self._task_store.insert(change, task))

        began = await self._database.change(call, Began, effect)
        return await self._tasks.settle(began.task_id, call)

    async def revoke_tokens(self, account_id: UUID, call: Call) -> str:
        """End all sessions of an account; return a consistency token. Raises NotFound, PermissionDenied, FanoutPending."""
        async with self._tasks.settled(account_id, call):
            return await self._revoke_tokens(account_id, call)

    async def _revoke_tokens(self, account_id: UUID, call: Call) -> str:
        await self.require_authority(account_id, call)

        async def effect(change: Change) -> Began:
            account = _found(await self._accounts.lock(change, call.caller.tenant_id, account_id))
            change.audit(AuditEvent("user_tokens_revoked", "user", str(account_id)))
            return Began(await self._task_store.insert(change, revoke_subject(account.tenant_id, account_id, "revoked_by_administrator")))

        began = await self._database.change(call, Began, effect)
        return await self._tasks.settle(began.task_id, call)

    async def require_authority(self, account_id: UUID, call: Call) -> Account:
        """Return the account if the caller may act upon it: whoever may do less than its owner may not. Raises NotFound, PermissionDenied."""
        account = _found(await self._accounts.find(call.caller.tenant_id, account_id))
        try:
            await self._rbac.require_authority(call, target=account_id)
        except PermissionDenied as denied:
            await self._database.note(
                call, AuditEvent("access_denied", "user", str(account_id), "failure", {"method": call.method, "why": denied.text})
            )
            raise
        return account


def _found(account: Account | None) -> Account:
    if account is None:
        raise NotFound
    return account


def _require_etag(account: Account, etag: str) -> None:
    if etag and etag != account.etag:
        raise EtagMismatch


def _refuse_self(account_id: UUID, call: Call) -> None:
    """Nobody shuts himself out: the last administrator would."""
    if call.caller.id == str(account_id):
        raise PreconditionFailed("an account cannot disable or delete itself")


def _changed(account: Account, request: UpdateRequest, fields: tuple[str, ...]) -> Account:
    email_text = request.email if "email" in fields else account.email
    username_text = request.username if "username" in fields else account.username
    email, username = parse_names(email_text, username_text, prefix="user.")
    return replace(
        account,
        email=email.given,
        email_key=email.key,
        email_verified=account.email_verified and email.key == account.email_key,
        username=username.given if username else "",
        username_key=username.key if username else None,
        display_name=request.display_name if "display_name" in fields else account.display_name,
    )
