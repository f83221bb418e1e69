"""Puts coherence together: one context's memory, kept true while inside."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from services.chassis.coherence import RENEW_EVERY, Coherence, Replica
from services.chassis.fanout import Fanout
from services.chassis.lease_log import LeaseLog
from services.chassis.outbox import Outbox
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.settings import ChassisSettings

CONNECTIONS = 4  # one waits for changes, one is left for pings
CALL_TIMEOUT = 0.15  # seconds


@asynccontextmanager
async def coherent(
    settings: ChassisSettings, database: Database, replica: Replica, *, holds: Callable[[], Sequence[str]] = tuple
) -> AsyncIterator[Coherence]:
    """Keep `replica` coherent while inside, and make the changes of `database` known to every instance."""
    async with Redis.open(settings, pool_size=CONNECTIONS, timeout=CALL_TIMEOUT, probe_every=RENEW_EVERY) as redis:
        outbox = Outbox(database)
        lease_log = LeaseLog(redis, f"{database.schema}:{await outbox.find_deployment()}")
        coherence = Coherence(lease_log, outbox, replica, name=settings.INSTANCE_ID, holds=holds)
        fanout = Fanout(lease_log, outbox, replica, coherence, lag=failover_lag(settings.REDIS_URL.reveal()))
        database.spread_by(fanout)
        async with coherence.running(), fanout.running():
            yield coherence


def failover_lag(redis_url: str) -> timedelta:
    """Return how long the old primary of a failover may go on granting leases: `min-replicas-max-lag`, of which 10 s is the default."""
    return timedelta(seconds=10) if redis_url.startswith(("redis+sentinel://", "redis+cluster://")) else timedelta()
