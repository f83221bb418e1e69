"""Login: a password for a session."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import Change
from services.chassis.tenancy import DEFAULT_TENANT
from services.identity import names
from services.identity.accounts import Account, Credential
from services.identity.grants import Tokens, session_grant
from services.identity.passwords import require_size
from services.identity.proof import Claim, Prover
from watchword.errors import EmailNotVerified, InvalidCredentials, InvalidRequest, PasswordChangeRequired, PasswordRejected

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.peers import RbacPeer, TokenPeer
    from services.identity.store.accounts import AccountStore
    from services.identity.store.tenants import TenantStore


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """Who wants in, and with what. An empty tenant is the default one; `new_password` replaces a one-time password."""

    tenant: str
    login: str
    password: str
    new_password: str


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A session."""

    tokens: Tokens
    account: Account


class Logins:
    """Opens sessions."""

    def __init__(
        self,
        *,
        database: "Database",
        accounts: "AccountStore",
        tenants: "TenantStore",
        prover: Prover,
        token: "TokenPeer",
        rbac: "RbacPeer",
        clock: Clock,
        require_verified_email: bool,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._tenants = tenants
        self._prover = prover
        self._token = token
        self._rbac = rbac
        self._clock = clock
        self._require_verified_email = require_verified_email

    def require_room(self, call: Call) -> None:
        """Raise LoginCapacityExceeded if a login could not be served in time."""
        self._prover.require_room(call)

    async def login(self, request: LoginRequest, call: Call) -> LoggedIn:
        """Open a session for whoever proves a password.

        Raises  InvalidCredentials for every way to fail but those told only to who proved the password: PasswordChangeRequired,
                EmailNotVerified, InvalidRequest, PasswordRejected; RateLimited, LoginCapacityExceeded, DependencyUnavailable
        """
        require_size(request.password, field="password")
        require_size(request.new_password, field="new_password")
        auth_time = self._clock.now()
        with self._prover.admitted(call) as place:  # before anything is read: others may have come meanwhile
            claim = await self._claim(request)
            credential = await self._prover.prove(claim, request.password, place, call)
        crashpoint("login.after_proof")
        await self._require_ready(credential, request, call)
        account = credential.account
        roles = await self._rbac.role_names(account.tenant_id, account.id, call)
        if credential.is_one_time:
            await self._replace_one_time(credential, request, call)
        renewed = None if credential.is_one_time else await self._prover.renewed(credential, request.password, call)
        tokens = await self._token.issue(session_grant(credential, roles, auth_time), call)
        crashpoint("login.after_session")
        await self._note_success(credential, tokens.session_id, renewed, call)
        return LoggedIn(tokens, account)

    async def _claim(self, request: LoginRequest) -> Claim:
        """Find whom the login means; the same reads for a name that cannot exist."""
        key = names.login_key(request.login)
        tenant_id = await self._tenants.find_id(request.tenant)
        found = await self._accounts.find_by_login(tenant_id or DEFAULT_TENANT, key or "")
        usable = tenant_id is not None and key is not None
        return Claim(str(tenant_id) if tenant_id else request.tenant, key or request.login, tenant_id or DEFAULT_TENANT, found if usable else None)

    async def _require_ready(self, credential: Credential, request: LoginRequest, call: Call) -> None:
        """Raise what only who proved the password may learn."""
        if self._require_verified_email and not credential.account.email_verified:
            await self._note_refusal(credential, "email_not_verified", call)
            raise EmailNotVerified
        if credential.is_one_time and not request.new_password:
            await self._note_refusal(credential, "password_change_required", call)
            raise PasswordChangeRequired
        if request.new_password and not credential.is_one_time:
            raise InvalidRequest.of("new_password", "replaces one-time passwords only; use ChangePassword")

    async def _replace_one_time(self, credential: Credential, request: LoginRequest, call: Call) -> None:
        if request.new_password == request.password:
            raise PasswordRejected(violations=InvalidRequest.of("new_password", "must not be the one-time password").violations)
        password_hash = await self._prover.prepare(request.new_password, field="new_password", names=credential.account.names, call=call)

        async def effect(change: Change) -> None:
            if not await self._accounts.replace_password(change, credential, password_hash, self._clock.now()):
                raise InvalidCredentials  # somebody else used it up in between
            change.audit(_event("one_time_password_replaced", credential.account))

        await self._database.change(call, type(None), effect)

    async def _note_success(self, credential: Credential, session_id: str, renewed: str | None, call: Call) -> None:
        async def effect(change: Change) -> None:
            await self._accounts.note_login(change, credential, self._clock.now(), rehashed=renewed)
            change.audit(_event("login_succeeded", credential.account, session_id=session_id))
            if renewed:
                change.audit(_event("password_rehashed", credential.account))

        await self._database.change(call, type(None), effect)

    async def _note_refusal(self, credential: Credential, why: str, call: Call) -> None:
        account = credential.account
        await self._database.note(
            call, AuditEvent("login_failed", "user", str(account.id), "failure", {"why": why, "method": call.method}, tenant_id=account.tenant_id)
        )


def _event(kind: str, account: Account, **details: str) -> AuditEvent:
    """An event that the account's owner, now proved, is the actor of."""
    return AuditEvent(kind, "user", str(account.id), details=details, tenant_id=account.tenant_id, actor_type="user", actor_id=str(account.id))
