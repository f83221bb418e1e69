"""Attempts: every check of a secret is counted before it is made.

`reserve` is the one door to a comparison, for logins, password changes and client secrets alike. It counts first and atomically, on all instances
together, so no number of parallel guesses gets past the limit; what turns out right is given back. Three things are counted:

- the name as it was given, known or not, so that the refusal says nothing about accounts;
- the account, so that its two names do not double the guesses. Its back-off shows as an ordinary wrong password: a refusal here would say that two
  names belong together;
- the address, against guesses spread over many names.

Sources: OWASP ASVS 5.0 section 6.3.1, NIST SP 800-63B section 3.2.2, CVE-2024-4629 (counting after the comparison).
"""

import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.sealing import digest
from services.chassis.tenancy import TenantId
from services.identity.accounts import Account
from watchword.errors import RateLimited

if TYPE_CHECKING:
    from services.identity.store.attempts import AttemptStore


@dataclass(frozen=True, slots=True)
class Policy:
    """How many attempts are free, and how the pauses grow after that. All times are in seconds.

    window  for how long attempts are remembered, from the first, and after a pause
    """

    name: str
    free: int
    pause: int
    longest_pause: int
    window: int


# Ten free ones: a person who mistypes never meets the limit. The pauses end by themselves, at most after a quarter of an hour, so that a
# stranger cannot lock an owner out for good (ASVS 6.1.1).
NAME = Policy("name", free=10, pause=30, longest_pause=900, window=900)
ACCOUNT = Policy("account", free=10, pause=30, longest_pause=900, window=900)
CLIENT = Policy("client", free=10, pause=30, longest_pause=900, window=900)
ADDRESS = Policy("address", free=100, pause=900, longest_pause=900, window=900)  # NIST's 100, for one address over all names
MAIL = Policy("mail", free=10, pause=3600, longest_pause=3600, window=3600)  # nobody's mailbox is to be flooded by strangers


@dataclass(frozen=True, slots=True)
class Count:
    """What taking an attempt said: wait so long (0: go ahead), and the pause that this attempt began."""

    wait: timedelta
    pause: timedelta


@dataclass(frozen=True, slots=True)
class Key:
    """One counter."""

    policy: Policy
    digest: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """An attempt that may be made.

    is_barred  the account is in a pause: the secret must not be compared, though the same time must pass
    pause      that the account enters if the attempt fails; zero if it does not
    """

    subject_keys: tuple[Key, ...]
    address_key: Key | None
    is_barred: bool
    pause: timedelta


class Attempts:
    """Counts attempts."""

    def __init__(self, store: "AttemptStore", key: bytes, *, count_addresses: bool) -> None:
        self._store = store
        self._key = key
        self._count_addresses = count_addresses

    async def reserve_login(self, *, tenant: str, login: str, account_id: UUID | None, address: str) -> Reservation:
        """Count an attempt at a login, `account_id` None for one that nobody has. Raises RateLimited.

        tenant  the id of a known one, the name of an unknown one
        """
        name = self._of(NAME, tenant, login)
        account = self._of(ACCOUNT, str(account_id)) if account_id else self._of(ACCOUNT, "unknown", tenant, login)
        return await self._reserve(name, account, address)

    async def reserve_client(self, *, client_id: str, address: str) -> Reservation:
        """Count an attempt at a client's secret. Raises RateLimited.

        Counted per client and address: the secret is beyond guessing, so strangers elsewhere must not be able to keep a client out.
        """
        return await self._reserve(self._of(CLIENT, client_id, neighbourhood(address)), None, address)

    async def succeeded(self, reservation: Reservation) -> None:
        """Forget the failures of whom proved themselves; the address gets back this one attempt, so that one right guess does not excuse others."""
        await self._store.clear(reservation.subject_keys)
        if reservation.address_key is not None:
            await self._store.give_back(reservation.address_key)

    async def unused(self, reservation: Reservation) -> None:
        """Give back an attempt at which nothing was compared."""
        for key in (*reservation.subject_keys, reservation.address_key):
            if key is not None:
                await self._store.give_back(key)

    async def forget(self, account: Account) -> bool:
        """Forget the failures of an account under all its names. Return whether the shared counters could be reached."""
        logins = (key for key in (account.email_key, account.username_key) if key)
        names = [self._of(NAME, str(account.tenant_id), login) for login in logins]
        return await self._store.clear((self._of(ACCOUNT, str(account.id)), *names))

    async def may_mail(self, tenant_id: TenantId, recipient: str) -> bool:
        """Whether another mail may go to `recipient` now; counts it."""
        return not (await self._store.take(self._of(MAIL, str(tenant_id), recipient))).wait

    async def _reserve(self, name: Key, account: Key | None, address: str) -> Reservation:
        address_key = self._of(ADDRESS, neighbourhood(address)) if address and self._count_addresses else None
        if address_key is not None:
            self._refuse(await self._store.take(address_key))
        count = await self._store.take(name)
        if count.wait:
            if address_key is not None:
                await self._store.give_back(address_key)
            self._refuse(count)
        if account is None:
            return Reservation((name,), address_key, False, timedelta())
        own = await self._store.take(account)
        return Reservation((name, account), address_key, bool(own.wait), own.pause)

    @staticmethod
    def _refuse(count: Count) -> None:
        if count.wait:
            raise RateLimited(retry_after=count.wait)

    def _of(self, policy: Policy, *parts: str) -> Key:
        return Key(policy, digest(self._key, policy.name.encode(), *(part.encode() for part in parts)).hex()[:32])


def neighbourhood(address: str) -> str:
    """Return what counts as one address: an IPv6 customer has a /64 to choose from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
