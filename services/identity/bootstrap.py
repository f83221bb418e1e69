"""The first administrator: `python -m services.identity.bootstrap`, run once everything is up; again, it finds nothing to do.

BOOTSTRAP_ADMIN_EMAIL gets an account with BOOTSTRAP_ADMIN_PASSWORD as a one-time password, and the administration of the default tenant. Account and
order to rbac are one transaction, so a run that was killed is carried on by the next one, or by identity's relay. It exits with 1, and says why, when
the tenant is left without an administrator: then nobody could ever make one.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from msgspec.structs import replace

from services.chassis import telemetry
from services.chassis.call import Call, Caller, CallerKind
from services.chassis.postgres import SchemaBehind
from services.chassis.settings import SettingsError, load
from services.identity.service import Identity, assembled
from services.identity.settings import IdentitySettings
from watchword.errors import DeadlineExceeded, Unavailable, WatchwordError

T = TypeVar("T")
PATIENCE = 20.0  # seconds for the other services to answer
RETRY_EVERY = 0.25  # seconds


class NoAdministrator(Exception):
    """The default tenant is left without anybody who may administer it."""


async def bootstrap(settings: IdentitySettings, *, patience: float = PATIENCE) -> str:
    """Make the first administrator if there is none of that address; return what was done, in words. Raises NoAdministrator, WatchwordError."""
    email, password = settings.BOOTSTRAP_ADMIN_EMAIL, settings.BOOTSTRAP_ADMIN_PASSWORD.reveal()
    async with assembled(replace(settings, CALLER_MEMORY=0)) as identity:  # nobody calls it
        await identity.database.require_schema()
        if not email or not password:
            await _require_administrator(identity, None, _UNWANTED, patience)
            return "no first administrator is wanted: BOOTSTRAP_ADMIN_EMAIL and BOOTSTRAP_ADMIN_PASSWORD are not both set"
        account_id, made = await identity.tenants.ensure_first_administrator(email, password, _call())
        await _patiently(lambda: identity.tenants.settle_administrator(account_id, _call()), patience)
        if not made:
            await _require_administrator(identity, account_id, _TAKEN.format(email=email), patience)
    return f"made {email} the first administrator, with a one-time password" if made else f"{email} has an account already"


_UNWANTED = "there is no administrator, and none is wanted: set BOOTSTRAP_ADMIN_EMAIL and BOOTSTRAP_ADMIN_PASSWORD, and run this again"
_TAKEN = (
    "there is no administrator, and the account of {email} was not made here: somebody registered that address before."
    " Its password is not the one that is set here, so it is not made an administrator."
    " Set BOOTSTRAP_ADMIN_EMAIL to another address, and run this again"
)


async def _require_administrator(identity: Identity, account_id: UUID | None, otherwise: str, patience: float) -> None:
    if not await _patiently(lambda: identity.tenants.has_administrator(account_id, _call()), patience):
        raise NoAdministrator(otherwise)


async def _patiently(ask: Callable[[], Awaitable[T]], patience: float) -> T:
    """Return what the other services answer, once they do."""
    give_up_at = time.monotonic() + patience
    while True:
        try:
            return await ask()
        except (Unavailable, DeadlineExceeded):
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(RETRY_EVERY)


def _call() -> Call:
    return Call("bootstrap", Caller(CallerKind.SERVICE, "identity"), deadline=time.monotonic() + 10)


def main() -> int:
    """Make the first administrator."""
    try:
        settings = load(IdentitySettings)
        telemetry.configure(settings, "identity")
        print(asyncio.run(bootstrap(settings)))
    except (SettingsError, SchemaBehind, NoAdministrator, WatchwordError, OSError) as error:
        violations = getattr(error, "violations", ())
        print(f"bootstrap failed: {error}", *(f"{each.field} {each.description}" for each in violations), sep="\n  ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
