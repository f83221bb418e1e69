"""Guests: instances of one context that follow another's log, and hold a lease there like its own instances.

A guest writes nothing in that context but its row of the table `instance`, so that writers who cannot reach Redis know of it too. It loads no
snapshot of Postgres: what it holds are answers of that context's instances. Hence a question that those need not ask: what may an instance that
answers not have applied yet? A guest finds that out as a writer does who wants to say OK.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from structlog.contextvars import bound_contextvars

from services.chassis.coherence import LEASE, RENEW_EVERY, Coherence, Replica, now
from services.chassis.coherent import CALL_TIMEOUT, CONNECTIONS, failover_lag
from services.chassis.lease_log import LeaseLog, Standing
from services.chassis.outbox import GuestBook
from services.chassis.postgres import Database
from services.chassis.redis import Redis, RedisDown
from services.chassis.settings import ChassisSettings

NAME = "guest-"  # a guest's lease is known by it


class HostedLog(LeaseLog):
    """Another context's log, while at least one of that context's own instances follows it. Without them it is no log to a guest.

    Else guests would go on believing while all hosts are cut off from Redis: nobody could tell them anything, nor say OK without them.
    """

    async def standing(self) -> Standing:
        """Return how things stand. Raises RedisDown, also if no host has a lease."""
        return _hosted(await super().standing())

    async def rehearse(self) -> Standing:
        """Return how things stand, if a lease could be written. Raises RedisDown, also if no host has one."""
        return _hosted(await super().rehearse())

    async def renew(self, instance: str, epoch: str, applied: int) -> Standing:
        """Take or renew a lease. Raises RedisDown, also if no host has one: then it is not believed, whatever Redis says."""
        return _hosted(await super().renew(instance, epoch, applied))


def _hosted(standing: Standing) -> Standing:
    if all(name.startswith(NAME) for name in standing.leases):
        raise RedisDown
    return standing


class Guest:
    """What a guest knows of the log that it follows.

    settled_after  seconds for which an epoch must be known here before it is sure to name all leases that are believed
    """

    def __init__(self, coherence: Coherence, *, settled_after: float) -> None:
        self._coherence = coherence
        self._settled_after = settled_after

    @property
    def is_current(self) -> bool:
        """Whether every change that was acknowledged before this instant was applied here."""
        return self._coherence.is_current

    @property
    def unsettled(self) -> int | None:
        """How many of the last changes applied here could not be acknowledged yet, as far as is known; None while nothing is."""
        sightings, (epoch, applied) = self._coherence.sightings, self._coherence.position
        if sightings.epoch != epoch or now() - sightings.epoch_since < self._settled_after:
            return None
        return max(0, applied - sightings.floor)


@asynccontextmanager
async def guest_of(context: str, settings: ChassisSettings, database: Database, replica: Replica) -> AsyncIterator[Guest]:
    """Keep `replica` true to another context's changes while inside. Raises SchemaBehind.

    database  this context's own; its role has rights on the other's table `instance`
    """
    await database.require_schema(context)
    async with (
        Redis.open(settings, pool_size=CONNECTIONS, timeout=CALL_TIMEOUT, probe_every=RENEW_EVERY) as redis,
        AsyncExitStack() as stack,
    ):
        book = GuestBook(database, context)
        coherence = Coherence(HostedLog(redis, f"{context}:{await book.find_deployment()}"), book, replica, name=settings.INSTANCE_ID)
        coherence.instance = f"{NAME}{coherence.instance}"
        lag = failover_lag(settings.REDIS_URL.reveal()).total_seconds()
        with bound_contextvars(guest_of=context):  # so say the log lines of its tasks, beside those of this context's own coherence
            await stack.enter_async_context(coherence.running())
        yield Guest(coherence, settled_after=LEASE + lag)
