"""Proof of a password: the one way from a password to "yes, it is theirs".

Count, compare, and only then look at the account. Every way to fail takes the same steps and ends in the same answer: an unknown name is compared
with a dummy, and so is an account in a pause, whose password is then not tried at all.
"""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.postgres import Change
from services.chassis.tenancy import TenantId
from services.identity.accounts import Credential
from services.identity.attempts import Attempts, Reservation
from services.identity.hashing import HashPool, Place
from services.identity.passwords import Passwords, Strength, prepared
from watchword.errors import InvalidCredentials, LoginCapacityExceeded

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.store.accounts import AccountStore


@dataclass(frozen=True, slots=True)
class Claim:
    """Whom a caller claims to be.

    tenant      the id of a known one, the name of an unknown one
    tenant_id   where a failure is written down
    credential  None if nobody has that name
    """

    tenant: str
    login: str
    tenant_id: TenantId
    credential: Credential | None


class Prover:
    """Checks passwords, and makes new ones ready to be kept."""

    def __init__(
        self,
        *,
        database: "Database",
        accounts: "AccountStore",
        attempts: Attempts,
        passwords: Passwords,
        strength: Strength,
        pool: HashPool,
        clock: Clock,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._attempts = attempts
        self._passwords = passwords
        self._strength = strength
        self._pool = pool
        self._clock = clock

    def admitted(self, call: Call) -> AbstractContextManager[Place]:
        """Hold a place in the hash pool's queue while inside. Raises LoginCapacityExceeded at once if `call` would end before its hash."""
        return self._pool.admitted(remaining=call.remaining)

    def require_room(self, call: Call) -> None:
        """Raise LoginCapacityExceeded if `call` would end before its hash."""
        self._pool.require_room(remaining=call.remaining)

    async def prove(self, claim: Claim, password: str, place: Place, call: Call) -> Credential:
        """Return the claimed credential if `password` is its own and the account may log in; the failures are forgotten then.

        Raises  InvalidCredentials for every other case, RateLimited before anything is compared, LoginCapacityExceeded
        """
        credential = claim.credential
        account_id = credential.account.id if credential else None
        familiar = credential.familiar_places if credential else ()
        reservation = await self._attempts.reserve_login(
            tenant=claim.tenant, login=claim.login, account_id=account_id, familiar=familiar, address=call.address
        )
        barred = reservation.is_barred or (self._is_locked(credential) and not reservation.is_familiar)
        kept = "" if barred or credential is None else credential.password_hash
        try:
            matched = await place.run(partial(self._passwords.matches, password, kept))
        except (LoginCapacityExceeded, asyncio.CancelledError) as error:
            if isinstance(error, LoginCapacityExceeded) or not place.has_begun:
                await self._attempts.unused(reservation)
            raise
        if credential is not None and matched and credential.account.is_active:
            await self._attempts.succeeded(reservation)
            return replace(credential, place=reservation.place)
        why = _why(credential, barred=barred, matched=matched)
        await self._note_failure(claim, reservation, why, call)
        raise InvalidCredentials

    async def prepare(self, password: str, *, field: str, names: tuple[str, ...], call: Call) -> str:
        """Return the form in which a new password is kept. Raises PasswordRejected for `field`, LoginCapacityExceeded."""
        work = partial(prepared, self._passwords, self._strength, password, field=field, names=names)
        return await self._pool.run(work, remaining=call.remaining)

    async def hash(self, password: str, call: Call) -> str:
        """Return the form in which a password is kept that need not be judged."""
        return await self._pool.run(partial(self._passwords.hash, password), remaining=call.remaining)

    async def renewed(self, credential: Credential, password: str, call: Call) -> str | None:
        """Return a proved password hashed anew, if it is kept in an outdated form and there is time."""
        if not self._passwords.is_outdated(credential.password_hash):
            return None
        try:
            return await self.hash(password, call)
        except LoginCapacityExceeded:
            return None  # another login will do

    def _is_locked(self, credential: Credential | None) -> bool:
        until = credential.account.locked_until if credential else None
        return until is not None and until > self._clock.now()

    async def _note_failure(self, claim: Claim, reservation: Reservation, why: str, call: Call) -> None:
        """Write the failure down before it is answered, and the pause that it begins, where a loss of Redis does not undo it."""
        account = claim.credential.account if claim.credential else None
        target = str(account.id) if account else ""
        failed = AuditEvent("login_failed", "user", target, "failure", {"why": why, "method": call.method}, tenant_id=claim.tenant_id)

        async def effect(change: Change) -> None:
            change.audit(failed)
            if account is not None and reservation.pause > timedelta() and not reservation.is_barred:
                await self._accounts.set_lock(change, account.id, self._clock.now() + reservation.pause)
                facts = {"seconds": str(int(reservation.pause.total_seconds()))}
                change.audit(AuditEvent("account_locked", "user", target, details=facts, tenant_id=claim.tenant_id))

        await self._database.change(_without_request_id(call), type(None), effect)


def _why(credential: Credential | None, *, barred: bool, matched: bool) -> str:
    if credential is None:
        return "unknown_account"
    if barred:
        return "locked"
    if not credential.password_hash:
        return "no_password"
    return "disabled" if matched else "wrong_password"


def _without_request_id(call: Call) -> Call:
    """A failure is not the result of the caller's request_id: the same id may still succeed."""
    return Call(call.method, call.caller, call.request_id, call.address, call.user_agent, call.deadline)
