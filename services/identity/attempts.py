"""Attempts: every check of a secret is counted before it is made.

`reserve` is the one door to a comparison, for logins, password changes and client secrets alike. It counts first and atomically, on all instances
together, so no number of parallel guesses gets past the limit; what turns out right is given back. Counted are:

- the name as it was given, known or not, so that the refusal says nothing about accounts: strictly from one address, loosely from all together;
- the account, so that its two names do not double the guesses, in the same two ways. Its back-off shows as an ordinary wrong password: a refusal
  here would say that two names belong together;
- the address, against guesses spread over many names.

So a stranger who keeps guessing keeps himself waiting, and not the owner. Only strangers at many addresses get past the strict limits, and meet the
loose ones; those are not asked where the owner has logged in before, so that the owner is not kept out by any number of them.

Sources: OWASP ASVS 5.0 section 6.3.1, NIST SP 800-63B section 3.2.2, CVE-2024-4629 (counting after the comparison), OWASP's device cookies.
"""

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


# Ten free ones: a person who mistypes never meets the limit. The pauses end by themselves, at most after a quarter of an hour (ASVS 6.1.1).
NAME_HERE = Policy("name-here", free=10, pause=30, longest_pause=900, window=900)
ACCOUNT_HERE = Policy("account-here", free=10, pause=30, longest_pause=900, window=900)
NAME = Policy("name", free=100, pause=30, longest_pause=900, window=3600)  # NIST's 100, from wherever
ACCOUNT = Policy("account", free=100, pause=30, longest_pause=900, window=3600)
CLIENT = Policy("client", free=10, pause=30, longest_pause=900, window=900)
ADDRESS = Policy("address", free=100, pause=900, longest_pause=900, window=900)  # NIST's 100, for one address over all names
# Nobody's mailbox is to be flooded by strangers. Each kind has a budget of its own: else who asks for other mails uses up the resets. Resets that
# strangers ask for reach the owner too, and the last one is good until another is sent or its hour is over, when the pause is over as well.
MAIL = Policy("mail", free=5, pause=3600, longest_pause=3600, window=3600)
UNLOCKED_FOR = timedelta(days=1)  # longer than any counter lives


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

    taken        the counters that it was counted in and that a success forgets
    is_barred    the account is in a pause: the secret must not be compared, though the same time must pass
    pause        that the account enters, from wherever, if the attempt fails; zero if it does not
    place        where it is made, for the record of a success: a keyed digest of account and address
    is_familiar  whether the owner has logged in from there before
    """

    taken: tuple[Key, ...]
    address_key: Key | None
    is_barred: bool = False
    pause: timedelta = timedelta()
    place: bytes = b""
    is_familiar: bool = False


class Attempts:
    """Counts attempts."""

    def __init__(self, store: "AttemptStore", key: bytes, *, count_addresses: bool) -> None:
        self._store = store
        self._key = key
        self._count_addresses = count_addresses

    async def reserve_login(self, *, tenant: str, login: str, account_id: UUID | None, familiar: Sequence[bytes], address: str) -> Reservation:
        """Count an attempt at a login, `account_id` None for one that nobody has. Raises RateLimited.

        tenant    the id of a known one, the name of an unknown one
        familiar  the places that the account's owner has logged in from
        """
        owner = (str(account_id),) if account_id else ("unknown", tenant, login)
        near = neighbourhood(address)
        place = bytes.fromhex(self._digest("place", *owner, near))
        since = await self._store.find(self._unlocking(*owner))
        is_familiar = place in familiar
        names = [self._of(NAME_HERE, tenant, login, near, since)]
        accounts = [self._of(ACCOUNT_HERE, *owner, near, since)]
        if not is_familiar:
            names.append(self._of(NAME, tenant, login))
            accounts.append(self._of(ACCOUNT, *owner))
        reservation = await self._reserve(names, address)
        return await self._with_account(replace(reservation, place=place, is_familiar=is_familiar), accounts)

    async def reserve_client(self, *, client_id: str, address: str) -> Reservation:
        """Count an attempt at a client's secret. Raises RateLimited.

        Counted per client and address: the secret is beyond guessing, so strangers elsewhere must not be able to keep a client out.
        """
        return await self._reserve([self._of(CLIENT, client_id, neighbourhood(address))], address)

    async def succeeded(self, reservation: Reservation) -> None:
        """Forget the failures of whom proved themselves; the address gets back this one attempt, so that one right guess does not excuse others.

        What strangers did elsewhere is not forgotten for a success at a familiar place: it was not asked there.
        """
        await self._store.clear(reservation.taken)
        if reservation.address_key is not None:
            await self._store.give_back(reservation.address_key)

    async def unused(self, reservation: Reservation) -> None:
        """Give back an attempt at which nothing was compared."""
        for key in (*reservation.taken, reservation.address_key):
            if key is not None:
                await self._store.give_back(key)

    async def forget(self, account: Account) -> bool:
        """Forget the failures of an account under all its names, at all addresses. Return whether the shared counters could be reached."""
        logins = (key for key in (account.email_key, account.username_key) if key)
        names = [self._of(NAME, str(account.tenant_id), login) for login in logins]
        # Nobody knows at which addresses: those counters are named after the last unlocking, and begin anew by it.
        is_told = await self._store.remember(self._unlocking(str(account.id)), secrets.token_hex(8), UNLOCKED_FOR)
        return await self._store.clear((self._of(ACCOUNT, str(account.id)), *names)) and is_told

    async def may_mail(self, tenant_id: TenantId, recipient: str, kind: str) -> bool:
        """Whether another mail of this kind may go to `recipient` now; counts it."""
        return not (await self._store.take(self._of(MAIL, str(tenant_id), recipient, kind))).wait

    async def _reserve(self, keys: Sequence[Key], address: str) -> Reservation:
        """Count an attempt in the address's counter and in `keys`, or in none if one of them refuses."""
        address_key = self._of(ADDRESS, neighbourhood(address)) if address and self._count_addresses else None
        taken: list[Key] = []
        for key in keys if address_key is None else (address_key, *keys):
            count = await self._store.take(key)
            if count.wait:
                for earlier in taken:
                    await self._store.give_back(earlier)
                raise RateLimited(retry_after=count.wait)
            taken.append(key)
        return Reservation(tuple(key for key in taken if key is not address_key), address_key)

    async def _with_account(self, reservation: Reservation, keys: Sequence[Key]) -> Reservation:
        """Count an attempt in the account's counters too, which bar and do not refuse."""
        taken, pause = list(reservation.taken), timedelta()
        for key in keys:
            count = await self._store.take(key)
            if count.wait:
                return replace(reservation, taken=tuple(taken), is_barred=True)
            taken.append(key)
            pause = count.pause if key.policy is ACCOUNT else pause
        return replace(reservation, taken=tuple(taken), pause=pause)

    def _unlocking(self, *owner: str) -> str:
        return self._digest("unlocking", *owner)

    def _of(self, policy: Policy, *parts: str) -> Key:
        return Key(policy, self._digest(policy.name, *parts))

    def _digest(self, *parts: str) -> str:
        return digest(self._key, *(part.encode() for part in parts)).hex()[:32]


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
