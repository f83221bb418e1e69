"""Envoy and instances with a defence taken away, for tests that must fail then: `python -m tests.chaos.without NAME,… MODULE` is such an instance.

Nothing here is reachable from what is shipped: each entry replaces a part of a process that the tests start.
"""

import asyncio
import os
import runpy
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis

from gateway.documents import Node, parsed, write
from services.chassis import clock, edge, health, postgres, server
from services.chassis import redis as chassis_redis
from services.chassis.fanout import Fanout
from services.chassis.postgres import Database, Posted
from services.chassis.skew import Skew
from services.identity.hash_queue import HashQueue
from services.identity.hashing import HashPool
from services.rbac.checker import Checker
from services.token.revocations import Revocations
from watchword import rules

NEVER = 10**9

# Envoy.


def without_retries(documents: Mapping[str, Node]) -> None:
    """A call that failed is not sent again."""
    for route in _nodes(documents["envoy.yaml"]):
        route.pop("retry_policy", None)


def without_try_timeout(documents: Mapping[str, Node]) -> None:
    """A try may last as long as the call."""
    for policy in _nodes(documents["envoy.yaml"]):
        policy.pop("per_try_timeout", None)


def without_budget(documents: Mapping[str, Node]) -> None:
    """Everything may be sent again."""
    for threshold in _nodes(documents["clusters.yaml"]):
        if threshold.pop("retry_budget", None):
            threshold["max_retries"] = NEVER


ENVOY: Mapping[str, Callable[[Mapping[str, Node]], None]] = {
    "retries": without_retries,
    "try-timeout": without_try_timeout,
    "budget": without_budget,
}


def weaken_envoy(directory: Path, missing: list[str]) -> None:
    """Take what is missing out of Envoy's configuration in `directory`."""
    wanted = [ENVOY[name] for name in missing if name in ENVOY]
    if not wanted:
        return
    documents = {name: parsed(directory / name) for name in ("envoy.yaml", "clusters.yaml")}
    for weaken in wanted:
        weaken(documents)
    for name, document in documents.items():
        write(directory / name, document)


def _nodes(node: object) -> Iterator[Node]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)


# Instances.


def put(owner: object, name: str, value: object) -> None:
    """Replace a part of this process."""
    setattr(owner, name, value)


class Always:
    """A lease that never ends."""

    is_current = True


class Never:
    """A lease that never begins."""

    is_current = False


def _lead(lease: object) -> None:
    """Have verifications and checks led by `lease`, while this instance itself goes on as it should."""
    for judge, made in ((Revocations, Revocations.__init__), (Checker, Checker.__init__)):

        def init(self: object, first: Any, memory: Any, *rest: Any, made: Callable[..., None] = made, **more: Any) -> None:
            made(self, first, memory, *rest[:-1], lease, **more)

        put(judge, "__init__", init)


def without_lease() -> None:
    """Memory is believed, lease or not."""
    _lead(Always())


def without_memory() -> None:
    """Memory is never believed."""
    _lead(Never())


def without_waiting() -> None:
    """A writer answers without waiting for who holds a lease."""
    shielded = Fanout.spread

    async def spread(self: Fanout, posted: list[Posted], *, budget: float = 0.0) -> None:
        task = asyncio.create_task(shielded(self, posted, budget=5.0))
        task.add_done_callback(lambda done: done.exception())

    put(Fanout, "spread", spread)


def without_epoch() -> None:
    """A writer believes a young Redis to know every lease."""
    made = Fanout.__init__

    def init(self: Fanout, *arguments: Any, **more: Any) -> None:
        made(self, *arguments, **more)
        self._settled_after = 0.0

    put(Fanout, "__init__", init)


def without_drain() -> None:
    """SIGTERM ends at once."""

    async def drain(*_: object) -> None: ...

    put(server, "_drain", drain)
    put(server, "STOP_GRACE", 0.0)


def without_second_try() -> None:
    """A read that lost its connection fails."""

    async def fetch(self: Database, sql: str, *args: object) -> list[Any]:
        async with self.connection() as connection:
            return list(await connection.fetch(sql, *args))

    put(Database, "fetch", fetch)


def without_bounds() -> None:
    """Whoever waits for Postgres waits."""
    put(postgres, "ACQUIRE_TIMEOUT", 60.0)
    put(postgres, "STATEMENT_TIMEOUT", 60.0)
    _without_deadlines()


def _without_deadlines() -> None:
    counted = edge._call_of

    def call_of(*arguments: Any) -> Any:
        call = counted(*arguments)
        call.deadline += 60.0
        return call

    put(edge, "_call_of", call_of)


def without_breaker() -> None:
    """Whoever asks Redis waits for it."""
    made, client = chassis_redis.Redis.__init__, chassis_redis._client

    def init(self: Any, made_of: Any, **known: Any) -> None:
        made(self, made_of, **{**known, "timeout": 10.0})

    put(chassis_redis.Redis, "__init__", init)
    put(chassis_redis, "_client", lambda url, size, _timeout: client(url, size, 10.0))
    put(chassis_redis, "FAILURES_TO_OPEN", NEVER)


def without_indifference() -> None:
    """Health depends on Redis."""
    watched, url = health.watched, os.environ["REDIS_URL"]

    def watching(told: health.Health, probe: Callable[[], Awaitable[None]]) -> AbstractAsyncContextManager[None]:
        async def probe_both() -> None:
            await probe()
            await aioredis.Redis.from_url(url, socket_timeout=0.2).ping()

        return watched(told, probe_both)

    put(server, "watched", watching)


def without_leeway() -> None:
    """Clocks are taken to agree."""
    put(rules, "LEEWAY", 0)


def without_priority() -> None:
    """Whoever wants the processor has it first."""
    os.nice(19)
    if (group := Path("/proc/self/autogroup")).exists():  # Linux shares the processor among sessions, and only then among their processes
        group.write_text("19")


def without_admission() -> None:
    """Every login waits for its hash, however many do."""
    asked = HashPool.require_room
    put(HashPool, "require_room", lambda self, **_: asked(self, remaining=1e9))
    put(HashPool, "is_too_late", lambda *_: False)
    put(HashQueue, "_refuse", lambda *_: None)


def without_answers() -> None:
    """SIGUSR1: every call is answered UNAVAILABLE, and health says nothing of it; SIGUSR2: no more."""
    activities: list[edge.Activity] = []
    made = edge.Activity.__init__

    def init(self: edge.Activity) -> None:
        made(self)
        activities.append(self)

    def close(number: int, _frame: object) -> None:
        for activity in activities:
            activity.closed = number == signal.SIGUSR1

    put(edge.Activity, "__init__", init)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, close)


def without_comparison() -> None:
    """The clock is not compared with Postgres's."""
    put(Skew, "is_tolerable", True)


def skew(ahead: float) -> None:
    """The clock is ahead."""
    put(clock.Clock, "seconds", lambda _: time.time() + ahead)


INSTANCES: Mapping[str, Callable[[], None]] = {
    "lease": without_lease,
    "memory": without_memory,
    "waiting": without_waiting,
    "epoch": without_epoch,
    "drain": without_drain,
    "second-try": without_second_try,
    "bounds": without_bounds,
    "breaker": without_breaker,
    "indifference": without_indifference,
    "leeway": without_leeway,
    "comparison": without_comparison,
    "priority": without_priority,
    "admission": without_admission,
    "answers": without_answers,
}


def weaken(name: str) -> None:
    """Take a defence away from this process; `clock+2` sets its clock two seconds ahead, `cost12` has it hash as production does."""
    if name.startswith("clock"):
        skew(float(name.removeprefix("clock")))
    elif name.startswith("cost"):
        os.environ["BCRYPT_COST"] = name.removeprefix("cost")
    elif name in INSTANCES:
        INSTANCES[name]()


if __name__ == "__main__":
    names, module = sys.argv[1:]
    for missing in names.split(","):
        weaken(missing)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__")
