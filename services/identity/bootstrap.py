"""The first administrator: `python -m services.identity.bootstrap`, run once everything is up; again, it finds nothing to do.

BOOTSTRAP_ADMIN_EMAIL gets an account with BOOTSTRAP_ADMIN_PASSWORD as a one-time password, and the administration of the default tenant. Account and
order to rbac are one transaction, so a run that was killed is carried on by the next one, or by identity's relay.
"""

import asyncio
import sys
import time
from uuid import UUID

from services.chassis import telemetry
from services.chassis.call import Call, Caller, CallerKind
from services.chassis.settings import SettingsError, load
from services.identity.service import Identity, assembled
from services.identity.settings import IdentitySettings
from watchword.errors import DeadlineExceeded, Unavailable, WatchwordError

PATIENCE = 20.0  # seconds for the other services to answer
RETRY_EVERY = 0.25  # seconds


async def bootstrap(settings: IdentitySettings, *, patience: float = PATIENCE) -> str:
    """Make the first administrator if there is none of that address; return what was done, in words. Raises WatchwordError."""
    email, password = settings.BOOTSTRAP_ADMIN_EMAIL, settings.BOOTSTRAP_ADMIN_PASSWORD.get_secret_value()
    if not email or not password:
        return "no first administrator is wanted: BOOTSTRAP_ADMIN_EMAIL and BOOTSTRAP_ADMIN_PASSWORD are not both set"
    async with assembled(settings.model_copy(update={"CALLER_MEMORY": 0})) as identity:  # nobody calls it
        await identity.database.require_schema()
        account_id, made = await identity.tenants.ensure_first_administrator(email, password, _call())
        await _settle(identity, account_id, patience)
    return f"made {email} the first administrator, with a one-time password" if made else f"{email} has an account already"


async def _settle(identity: Identity, account_id: UUID, patience: float) -> None:
    give_up_at = time.monotonic() + patience
    while True:
        try:
            return await identity.tenants.settle_administrator(account_id, _call())
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
    except (SettingsError, WatchwordError, OSError) as error:
        violations = getattr(error, "violations", ())
        print(f"bootstrap failed: {error}", *(f"{each.field} {each.description}" for each in violations), sep="\n  ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
