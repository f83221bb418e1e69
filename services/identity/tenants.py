"""Tenants, kept by administrators of the default tenant. A tenant begins with one administrator, who gets a one-time password."""

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.pages import Page, Pager
from services.chassis.postgres import Change, new_id
from services.chassis.tenancy import DEFAULT_TENANT, TenantId
from services.identity.accounts import Account, NewAccount, Tenant
from services.identity.names import NameUnusable, email_name
from services.identity.proof import Prover
from services.identity.registration import new_account
from services.identity.tasks import ADMINISTRATOR, Tasks, make_administrator
from watchword.errors import AlreadyExists, InvalidRequest, PermissionDenied

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.peers import RbacPeer
    from services.identity.store.accounts import AccountStore
    from services.identity.store.outbox import TaskStore
    from services.identity.store.tenants import TenantStore

ONE_TIME_BYTES = 18  # 24 characters


@dataclass(frozen=True, slots=True)
class Founded:
    """A new tenant, its administrator with the one-time password, and the task of giving them the administration."""

    tenant: Tenant
    admin_id: UUID
    task_id: UUID
    admin_password: str = field(repr=False)


class Tenants:
    """Keeps tenants."""

    def __init__(
        self,
        *,
        database: "Database",
        store: "TenantStore",
        accounts: "AccountStore",
        task_store: "TaskStore",
        tasks: Tasks,
        prover: Prover,
        rbac: "RbacPeer",
        pager: Pager,
        clock: Clock,
    ) -> None:
        self._database = database
        self._store = store
        self._accounts = accounts
        self._task_store = task_store
        self._tasks = tasks
        self._prover = prover
        self._rbac = rbac
        self._pager = pager
        self._clock = clock

    async def create(self, name: str, display_name: str, admin_email: str, call: Call) -> Founded:
        """Make a tenant. It, its administrator and the order to rbac are one transaction: a crash leaves all of them or none.

        Raises  PermissionDenied for other tenants' administrators, InvalidRequest, AlreadyExists, FanoutPending
        """
        _require_default_tenant(call)
        founded = await self._database.kept(call, Founded)
        if founded is None:
            founded = await self._create(name, display_name, admin_email, call)
        await self._tasks.settle(founded.task_id, call)
        return founded

    async def _create(self, name: str, display_name: str, admin_email: str, call: Call) -> Founded:
        now, password = self._clock.now(), secrets.token_urlsafe(ONE_TIME_BYTES)
        tenant = Tenant(TenantId(new_id()), name, display_name, now)
        admin = await self._administrator(tenant.id, admin_email, password, "admin_email", call)

        async def effect(change: Change) -> Founded:
            if not await self._store.insert(change, tenant):
                raise AlreadyExists("the name is taken")
            account = await self._accounts.insert(change, admin)
            assert account is not None, "a new tenant has no accounts"
            await self._store.note_first_administrator(change, tenant.id, account.id)
            change.audit(AuditEvent("tenant_created", "tenant", str(tenant.id), details={"name": name}))
            change.audit(AuditEvent("user_created", "user", str(account.id), tenant_id=tenant.id))
            return Founded(tenant, account.id, await self._task_store.insert(change, make_administrator(tenant.id, account.id)), password)

        return await self._database.change(call, Founded, effect)

    async def list(self, call: Call, *, page_size: int, page_token: str) -> Page[Tenant]:
        """Return a page of tenants, by name. Raises PermissionDenied for other tenants' administrators."""
        _require_default_tenant(call)
        query = ("tenants",)
        page = self._pager.read(page_size=page_size, page_token=page_token, tenant_id=DEFAULT_TENANT, query=query)
        rows = await self._store.list(after=page.after[0] if page.after else "", limit=page.size + 1)
        return self._pager.page(rows, page, key=lambda tenant: (tenant.name,), tenant_id=DEFAULT_TENANT, query=query)

    async def ensure_first_administrator(self, email: str, password: str, call: Call) -> tuple[UUID, bool]:
        """Return the account of `email` in the default tenant, and whether it was made now, as administrator with a one-time password.

        Whoever has the address already keeps password and roles. Raises InvalidRequest. `settle_administrator` must follow.
        """
        try:
            key = email_name(email).key
        except NameUnusable as error:
            raise InvalidRequest.of("BOOTSTRAP_ADMIN_EMAIL", str(error)) from None
        found = await self._accounts.find_by_login(DEFAULT_TENANT, key)
        if found is not None:
            return found.account.id, False
        made = await self._insert_administrator(email, password, call)
        if made is not None:
            return made.id, True
        return await self.ensure_first_administrator(email, password, call)  # another run was faster

    async def settle_administrator(self, account_id: UUID, call: Call) -> None:
        """Do what rbac must still do about an administrator, if anything. Raises what rbac raises."""
        await self._tasks.settle_all(DEFAULT_TENANT, account_id, call)

    async def has_administrator(self, account_id: UUID | None, call: Call) -> bool:
        """Return whether the default tenant has an administrator: it was given one before, or `account_id` is one. Raises what rbac raises.

        Rbac never takes the administration from the last who has it, so a tenant that ever had an administrator has one.
        """
        first = await self._store.find_first_administrator(DEFAULT_TENANT)
        if first is not None:
            await self.settle_administrator(first, call)
            return True
        return account_id is not None and ADMINISTRATOR in await self._rbac.role_names(DEFAULT_TENANT, account_id, call)

    async def _insert_administrator(self, email: str, password: str, call: Call) -> Account | None:
        admin = await self._administrator(DEFAULT_TENANT, email, password, "BOOTSTRAP_ADMIN_EMAIL", call)

        async def effect(change: Change) -> Account | None:
            account = await self._accounts.insert(change, admin)
            if account is not None:
                await self._store.note_first_administrator(change, DEFAULT_TENANT, account.id)
                await self._task_store.insert(change, make_administrator(DEFAULT_TENANT, account.id))
                change.audit(AuditEvent("user_created", "user", str(account.id), details={"by": "bootstrap"}))
            return account

        return await self._database.change(call, Account | None, effect)  # type: ignore[arg-type]  # mypy knows no type forms

    async def _administrator(self, tenant_id: TenantId, email: str, password: str, field_name: str, call: Call) -> NewAccount:
        """Return an administrator to be made. Who appoints them vouches for the address."""
        try:
            name = email_name(email)
        except NameUnusable as error:
            raise InvalidRequest.of(field_name, str(error)) from None
        password_hash = await self._prover.hash(password, call)
        return new_account(tenant_id, name, None, "", password_hash=password_hash, now=self._clock.now(), email_verified=True, is_one_time=True)


def _require_default_tenant(call: Call) -> None:
    if call.caller.tenant_id != DEFAULT_TENANT:
        raise PermissionDenied
