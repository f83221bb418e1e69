"""What an instance is, and how its stores, its lease and its readiness are at the moment of the asking: sources of metrics for every service."""

import platform
from collections.abc import Iterator

import grpc

from services.chassis.callers import TokenAuthenticator
from services.chassis.coherence import Coherence
from services.chassis.edge import Activity
from services.chassis.health import Health
from services.chassis.lease_log import Entry
from services.chassis.metrics import Family, LoopLag, Sample, Source, counter, gauge, histogram
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.settings import ChassisSettings
from services.chassis.skew import Skew


def build(settings: ChassisSettings) -> Source:
    """Which program this is, and a digest of the settings that all instances of a context must share."""
    versions = {"version": settings.APP_VERSION, "python": platform.python_version(), "grpc": grpc.__version__}
    labels = {"instance_id": settings.INSTANCE_ID, "environment": settings.APP_ENV, **versions}
    fingerprint = settings.fingerprint()

    def source() -> Iterator[Family]:
        yield gauge("watchword_build_info", "Which program this is; always 1.", 1, **labels)
        yield gauge("watchword_settings_info", "A keyed digest of what all instances must share; always 1.", 1, fingerprint=fingerprint)

    return source


def serving(health: Health, activity: Activity, lag: LoopLag) -> Source:
    """Whether the instance can answer, and how busy it is."""

    def source() -> Iterator[Family]:
        yield gauge("watchword_ready", "Whether this instance says that it can answer.", health.is_ready)
        yield gauge("watchword_draining", "Whether this instance is about to stop.", health.is_draining)
        yield gauge("watchword_calls_in_flight", "Unary calls that wait for something.", activity.in_flight)
        yield gauge("watchword_streams", "Streams that are open.", len(activity.streams))
        yield histogram("watchword_event_loop_lag_seconds", "Seconds by which the event loop runs late.", lag.late)

    return source


def database(database: Database) -> Source:
    """The pool of connections, what statements wait and take, and what a change waits until every instance knows of it."""

    def source() -> Iterator[Family]:
        pool, use = database.pool, database.use
        states = [Sample(pool.used, {"state": "used"}), Sample(pool.idle, {"state": "idle"})]
        yield Family("watchword_database_connections", "gauge", "Connections to Postgres, by what they do.", states)
        yield gauge("watchword_database_connections_max", "Connections that the pool may open.", pool.most)
        yield histogram("watchword_database_wait_seconds", "Seconds until a connection was free.", use.waited)
        yield histogram("watchword_database_use_seconds", "Seconds that a connection was used for one statement or transaction.", use.used)
        yield counter("watchword_database_failures_total", "Times that Postgres was not to be had, or the pool was empty.", use.failures)
        yield histogram("watchword_propagation_seconds", "Seconds from commit until no instance answered from before it.", use.spread)
        yield counter("watchword_fanout_pending_total", "Changes not known everywhere when their caller had to be answered.", use.pending)

    return source


def clock(skew: Skew) -> Source:
    """Whether this host's clock is right."""

    def source() -> Iterator[Family]:
        yield gauge(
            "watchword_clock_skew_seconds", "Seconds by which this host's clock is at least ahead of Postgres's; below 0: behind.", skew.seconds
        )

    return source


def redis(redis: Redis) -> Source:
    """The connections, how long calls take, and whether Redis answers."""

    def source() -> Iterator[Family]:
        yield Family("watchword_redis_connections", "gauge", "Connections to Redis, by what they do.", [Sample(redis.in_use, {"state": "used"})])
        yield gauge("watchword_redis_connections_max", "Connections that may be used at once.", redis.turns)
        yield gauge("watchword_redis_waiting", "Calls that wait for a connection.", redis.waiting)
        yield gauge("watchword_redis_up", "Whether Redis answered the last calls; 0 while the breaker is open.", not redis.is_down)
        yield histogram("watchword_redis_call_seconds", "Seconds that a call took.", redis.taken)
        yield counter("watchword_redis_failures_total", "Calls that Redis did not answer.", redis.failures)

    return source


def callers(authenticator: TokenAuthenticator) -> Source:
    """How many callers are remembered, whether they are believed, and how often token had to be asked who calls."""

    def source() -> Iterator[Family]:
        yield counter("watchword_callers_asked_total", "Calls whose caller token was asked about.", authenticator.asked)
        if (known := authenticator.known) is not None:
            yield gauge("watchword_callers_held", "Callers that this instance remembers as proved.", len(known))
            yield gauge("watchword_callers_current", "Whether remembered callers are believed: every revocation has come here.", known.is_current)

    return source


def lease(coherence: Coherence) -> Source:
    """Whether memory may answer, how far it is, and how often it had to be loaded anew."""
    counts = {"loads": 0, "changes": 0}

    def step(_epoch: str, entry: Entry | None) -> None:
        counts["loads" if entry is None else "changes"] += 1

    coherence.on_step(step)

    def source() -> Iterator[Family]:
        yield gauge("watchword_lease_current", "Whether memory holds every acknowledged change, and so may answer.", coherence.is_current)
        yield gauge("watchword_lease_position", "Number of the last change in memory; numbers begin anew with each epoch.", coherence.position[1])
        yield counter("watchword_lease_loads_total", "Times that memory was loaded: after the first, a lease was lost.", counts["loads"])
        yield counter("watchword_lease_changes_total", "Changes applied to memory.", counts["changes"])

    return source
