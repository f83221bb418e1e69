"""Opening an account, and proving to read its mail. No answer here says whether an account exists.

User names are public by nature: they are shown to others, and a registration must say that one is taken. So a name asked for together with an address
that has an account already is held as if the account had been made; otherwise asking for the name again would say what the first answer did not.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.postgres import Change, new_id
from services.chassis.tenancy import TenantId
from services.identity import names
from services.identity.accounts import NewAccount
from services.identity.codes import CodeKind, digest_of
from services.identity.mail import MailKind
from services.identity.names import Name, NameUnusable
from services.identity.passwords import require_size
from services.identity.proof import Prover
from services.identity.tasks import Tasks, revoke_subject
from watchword.errors import AlreadyExists, CodeInvalid, InvalidRequest, Violation

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.attempts import Attempts
    from services.identity.store.accounts import AccountStore
    from services.identity.store.outbox import MailStore, TaskStore
    from services.identity.store.tenants import TenantStore

NOTHING = type(None)


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """An account that somebody wants. An empty tenant is the default one."""

    tenant: str
    email: str
    username: str
    display_name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Began:
    """A change that another context must follow: the task's id."""

    task_id: UUID


class Registrations:
    """Opens accounts, verifies addresses, resets passwords."""

    def __init__(
        self,
        *,
        database: "Database",
        accounts: "AccountStore",
        tenants: "TenantStore",
        mail: "MailStore",
        task_store: "TaskStore",
        tasks: Tasks,
        attempts: "Attempts",
        prover: Prover,
        clock: Clock,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._tenants = tenants
        self._mail = mail
        self._task_store = task_store
        self._tasks = tasks
        self._attempts = attempts
        self._prover = prover
        self._clock = clock

    async def register(self, request: RegisterRequest, call: Call) -> None:
        """Open an account and send a mail, or only send a mail to an address that has one.

        Raises  InvalidRequest for names or a tenant that cannot be, PasswordRejected, AlreadyExists for the user name
        """
        require_size(request.password, field="password")
        email, username = parse_names(request.email, request.username)
        tenant_id = await self._tenants.find_id(request.tenant)
        if tenant_id is None:
            raise InvalidRequest.of("tenant", "is not known")
        given = tuple(name for name in (request.email, request.username, request.display_name) if name)
        password_hash = await self._prover.prepare(request.password, field="password", names=given, call=call)
        new = new_account(tenant_id, email, username, request.display_name, password_hash=password_hash, now=self._clock.now())

        async def effect(change: Change) -> None:
            if new.username_key is not None and await self._accounts.is_username_taken(change, tenant_id, new.username_key):
                raise AlreadyExists("the user name is taken")
            account = await self._accounts.insert(change, new)
            if account is None:
                await self._repeat(change, new)
                return
            await self._mail.insert(change, tenant_id, MailKind.VERIFICATION, new.email_key)
            change.audit(_own("account_registered", account.id, tenant_id))

        await self._database.change(call, NOTHING, effect)

    async def _repeat(self, change: Change, new: NewAccount) -> None:
        if not await self._accounts.is_email_taken(change, new.tenant_id, new.email_key):
            raise AlreadyExists("the user name is taken")  # in this very moment
        if new.username_key is not None:
            await self._accounts.hold_username(change, new.tenant_id, new.username_key)
        await self._mail.insert(change, new.tenant_id, MailKind.ALREADY_REGISTERED, new.email_key)
        change.audit(AuditEvent("registration_repeated", "user", outcome="failure", tenant_id=new.tenant_id))

    async def request_mail(self, kind: MailKind, *, tenant: str, email: str, call: Call) -> None:
        """Order a mail to an address, whether or not it has an account. Raises InvalidRequest for what is no address."""
        name, _ = parse_names(email, "")
        tenant_id = await self._tenants.find_id(tenant)
        if tenant_id is None:
            return
        known: TenantId = tenant_id

        async def effect(change: Change) -> None:
            await self._mail.insert(change, known, kind, name.key)
            change.audit(AuditEvent(f"{kind}_requested", "user", tenant_id=known))

        await self._database.change(call, NOTHING, effect)

    async def verify_email(self, code: str, call: Call) -> None:
        """Take an address as verified. Raises CodeInvalid."""
        now = self._clock.now()

        async def effect(change: Change) -> None:
            redeemed = await self._accounts.redeem_code(change, digest_of(code), CodeKind.EMAIL_VERIFICATION, now)
            if redeemed is None or not await self._accounts.verify_email(change, redeemed, now):
                raise CodeInvalid
            change.audit(_own("email_verified", redeemed.account_id, redeemed.tenant_id))

        try:
            await self._database.change(call, NOTHING, effect)
        except CodeInvalid:
            await self._note_refusal(call)
            raise

    async def reset_password(self, code: str, password: str, call: Call) -> None:
        """Set a new password for whom a code was sent to, and end all their sessions. Raises CodeInvalid, PasswordRejected, FanoutPending."""
        began = await self._database.kept(call, Began)
        if began is None:
            began = await self._reset(code, password, call)
        await self._tasks.settle(began.task_id, call)

    async def _reset(self, code: str, password: str, call: Call) -> Began:
        require_size(password, field="new_password")
        account = await self._accounts.find_by_code(digest_of(code), CodeKind.PASSWORD_RESET, self._clock.now())
        if account is None:
            await self._note_refusal(call)
            raise CodeInvalid
        password_hash = await self._prover.prepare(password, field="new_password", names=account.names, call=call)
        now = self._clock.now()

        async def effect(change: Change) -> Began:
            redeemed = await self._accounts.redeem_code(change, digest_of(code), CodeKind.PASSWORD_RESET, now)
            if redeemed is None or not await self._accounts.reset_password(change, redeemed, password_hash, now):
                raise CodeInvalid
            await self._accounts.delete_codes(change, account.id)
            change.audit(_own("password_reset", account.id, account.tenant_id))
            return Began(await self._task_store.insert(change, revoke_subject(account.tenant_id, account.id, "password_reset")))

        began = await self._database.change(call, Began, effect)
        await self._attempts.forget(account)
        return began

    async def _note_refusal(self, call: Call) -> None:
        await self._database.note(call, AuditEvent("code_refused", "user", outcome="failure", details={"method": call.method}))


def parse_names(email: str, username: str, *, prefix: str = "") -> tuple[Name, Name | None]:
    """Return the names of an account to be, None for no user name. Raises InvalidRequest with what is wrong with each."""
    violations: list[Violation] = []
    parsed: list[Name | None] = []
    for field_name, text, parse in (("email", email, names.email_name), ("username", username, names.username)):
        try:
            parsed.append(parse(text) if text or field_name == "email" else None)
        except NameUnusable as error:
            violations.append(Violation(prefix + field_name, str(error)))
    if violations or parsed[0] is None:
        raise InvalidRequest(violations=violations)
    return parsed[0], parsed[1]


def new_account(
    tenant_id: TenantId,
    email: Name,
    username: Name | None,
    display_name: str,
    *,
    password_hash: str,
    now: datetime,
    email_verified: bool = False,
    is_one_time: bool = False,
) -> NewAccount:
    """Return an account to be made, with an id of its own."""
    return NewAccount(
        id=new_id(),
        tenant_id=tenant_id,
        email=email.given,
        email_key=email.key,
        email_verified=email_verified,
        username=username.given if username else "",
        username_key=username.key if username else None,
        display_name=display_name,
        password_hash=password_hash,
        is_one_time=is_one_time,
        create_time=now,
    )


def _own(kind: str, account_id: UUID, tenant_id: TenantId) -> AuditEvent:
    """An event that the account's owner is the actor of."""
    return AuditEvent(kind, "user", str(account_id), tenant_id=tenant_id, actor_type="user", actor_id=str(account_id))
