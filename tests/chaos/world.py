"""A stack with faults: its instances, its wires, and what can be taken away from it."""

import asyncio
import contextlib
import json
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import redis.asyncio as aioredis

from services.top.scrape import Target, look
from services.up import control
from tests.chaos.without import ENVOY
from tests.conftest import eventually
from tests.suite.conftest import PORTS, Suite, started

SERVICES = ("token", "rbac", "identity", "gateway")
CHANNEL = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100))


@dataclass
class World(Suite):
    """A stack that `tests.chaos.stack` runs.

    starts        how many processes were started again
    false_starts  what was said of each try to start one that ended by itself
    """

    starts: int = 0
    false_starts: list[str] = field(default_factory=list)

    def channel(self, address: str = "") -> grpc.aio.Channel:
        """Return a channel to an instance, or to Envoy's internal listener, that comes back soon after it broke."""
        address = address or self.endpoints.grpc
        if address not in self.channels:
            self.channels[address] = grpc.aio.insecure_channel(address, CHANNEL)
        return self.channels[address]

    def pid(self, name: str) -> int:
        """Return the process id of one of them."""
        return next(one.pid for one in self.now() if one.name == name and one.pid)

    def names(self, *services: str) -> list[str]:
        """Return the names of the instances of services."""
        return [one.name for one in self.now() if one.service in services]

    def pair(self, service: str) -> tuple[str, str]:
        """Return the names of a service's two instances: a row before may have replaced those that there were."""
        one, other = sorted(self.names(service))
        return one, other

    async def tell(self, **command: Any) -> None:
        """Have the supervisor do something."""
        await asyncio.to_thread(control.tell, self.home, command)

    async def end(self, name: str, number: str = "KILL") -> None:
        """Signal a process, and wait for its end if the signal ends it."""
        await self.tell(stop=name, signal=number)

    async def begin(self, name: str) -> None:
        """Start a process again, and wait until it is healthy; again if it ended meanwhile, which grpc's own threads have made happen."""
        self.starts += 1
        for _ in range(3):
            failed = ""
            try:
                await self.tell(start=name)
            except control.ControlError as failure:
                failed = str(failure)
            if any(one.name == name and one.pid for one in self.now()):
                return
            self.false_starts.append(f"{name}: {failed}")
        raise AssertionError(f"{name} does not start: {failed}")

    async def wires(self, verb: str, store: str, *names: str, value: float = 0.0) -> None:
        """Do something to the wires between instances and a store; to all instances if none is named."""
        await self.tell(wires=[f"{name}:{store}" for name in names or self.names(*SERVICES)], do=verb, value=value)

    @asynccontextmanager
    async def without(self, *missing: str, of: tuple[str, ...] = ()) -> AsyncIterator[None]:
        """Run Envoy, and the instances or services `of` which it is missing, without a defence while inside."""
        path = self.home / "without.json"
        path.write_text(json.dumps(missing))
        try:
            await self.renew(*self._concerned(missing, of))
            yield
        finally:
            path.unlink()
            await self.renew(*self._concerned(missing, of))

    def _concerned(self, missing: tuple[str, ...], of: tuple[str, ...]) -> list[str]:
        names = [one.name for one in self.now() if one.name in of or one.service in of]
        return [*names, *(["envoy"] if any(name in ENVOY for name in missing) else [])]

    async def renew(self, *names: str) -> None:
        """Start processes anew, and wait until all is well."""
        await asyncio.gather(*(self.end(one.name, "TERM") for one in self.now() if one.name in names and one.pid))
        for service in ("envoy", *SERVICES):  # who is needed comes before who needs him
            await asyncio.gather(*(self.begin(name) for name in names if name.startswith(service)))
        await self.whole()

    async def mend(self) -> None:
        """Undo whatever a row left behind that ended in the middle."""
        for one in self.now():
            if one.pid is None:
                await self.begin(one.name)
            else:
                os.kill(one.pid, signal.SIGCONT)
        self.signal_postgres(signal.SIGCONT)
        for store in ("postgres", "redis"):
            await self.wires("restore", store)
        async with self.redis() as redis:
            await redis.execute_command("REPLICAOF", "NO", "ONE")
            await redis.config_set("maxmemory", 0)
            await redis.config_set("maxmemory-policy", "noeviction")
        if (left := self.home / "without.json").exists():
            left.unlink()
            await self.renew(*self.names(*SERVICES), "envoy")

    async def whole(self) -> None:
        """Return when Envoy gives calls to every instance, and every instance that can has a lease."""
        await eventually(self._is_whole, within=40)

    async def bury(self) -> None:
        """Strike instances off that were killed, as an operator does who knows: without Redis, changes would wait for them for five minutes."""
        async with self.sql() as connection:
            for service in ("token", "rbac"):
                await connection.execute(f"DELETE FROM {service}.instance WHERE seen_time < clock_timestamp() - interval '5 seconds'")

    async def _is_whole(self) -> bool:
        return await self.healthy() == {service: len(self.names(service)) for service in SERVICES} and await self.are_leased()

    async def healthy(self) -> dict[str, int]:
        """Return to how many instances of each service Envoy gives calls."""
        try:
            async with httpx.AsyncClient(timeout=2) as client:
                lines = (await client.get(f"http://{self.endpoints.envoy_admin}/clusters")).text.splitlines()
        except httpx.HTTPError:
            return {}
        flags = [line.split("::") for line in lines]
        return {
            service: sum(flag[0] == service and flag[2:] == ["health_flags", "healthy"] for flag in flags if len(flag) > 3) for service in SERVICES
        }

    async def statistic(self, name: str) -> int:
        """Return one of Envoy's numbers."""
        async with httpx.AsyncClient(timeout=2) as client:
            text = (await client.get(f"http://{self.endpoints.envoy_admin}/stats?filter=^{name}$")).text
        return int(text.rpartition(":")[2])

    async def are_leased(self) -> bool:
        """Whether every instance of token and rbac answers from memory."""
        return set((await self._of_leases("watchword_lease_current")).values()) == {1}

    async def loads(self) -> dict[str, float]:
        """Return how often each instance of token and rbac has loaded its memory."""
        return await self._of_leases("watchword_lease_loads_total")

    async def _of_leases(self, metric: str) -> dict[str, float]:
        told = await look([Target(one.name, one.metrics) for one in self.now() if one.service in ("token", "rbac")])
        return {one.target.name: one.sum(metric) if one.is_up else math.nan for one in told}  # who says nothing equals nothing

    @asynccontextmanager
    async def sql(self) -> AsyncIterator[Any]:
        """Speak with Postgres past all wires."""
        connection = await asyncpg.connect(self.endpoints.database_url, timeout=5)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[Any]:
        """Speak with Redis past all wires."""
        client: Any = aioredis.Redis.from_url(self.endpoints.redis_url, decode_responses=True, protocol=2)
        try:
            yield client
        finally:
            await client.aclose()

    def signal_postgres(self, number: signal.Signals) -> None:
        """Signal Postgres and all its backends."""
        postmaster = self.pid("postgres")
        for pid in (postmaster, *children(postmaster)):
            with contextlib.suppress(ProcessLookupError):  # a backend that has just ended
                os.kill(pid, number)


def children(parent: int) -> Iterator[int]:
    """Yield the processes that a process has started and that still run."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            yield int(entry.name)


@contextmanager
def world(home: Path, *options: str) -> Iterator[World]:
    """Run a stack with faults while inside. Postgres writes to disk before it answers, as it does in production."""
    with started(home, *PORTS, *options, module="tests.chaos.stack") as endpoints:
        yield World(home, endpoints)
