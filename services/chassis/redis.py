"""Redis: shared, fast, and never the only copy of anything. Every failure is one exception, RedisDown, and a breaker keeps failures cheap.

REDIS_URL forms: redis:// and rediss:// (single), redis+sentinel://host:port,host:port/NAME, redis+cluster://host:port,host:port.
Calls have 100 ms, if not said otherwise. After five failures in a row the breaker opens: calls fail at once, and Redis is asked beside them, once a
second at most, or every `probe_every` seconds, whether it is back, so that no caller waits for one that hangs. A cancelled call drops its connection,
so that no reply can reach a stranger (CVE-2023-28858).
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from services.chassis.absent import absent
from services.chassis.metrics import Histogram
from services.chassis.patience import patience
from services.chassis.settings import ChassisSettings

with absent("opentelemetry.metrics", "opentelemetry.sdk.metrics"):  # 5 MB and 40 ms, for numbers that are counted here
    import redis.asyncio as aioredis
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, RedisClusterException, RedisError

CALL_TIMEOUT = 0.1  # seconds
FAILURES_TO_OPEN = 5
PROBE_EVERY = 1.0  # seconds
SENTINELS = 4  # into how many parts a call's time is cut for asking them
FAULTS = (RedisError, RedisClusterException, OSError, TimeoutError)  # redis-py does not count the second among the first


class OneAtATime(Sentinel):
    """Sentinel, asked once at a time: redis-py swaps the one that answered with the first, and of two that do so at once one is lost for good."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._asking = asyncio.Lock()

    async def discover_master(self, service_name: str) -> Any:
        """Return host and port of the primary."""
        async with self._asking:
            return await super().discover_master(service_name)


class RedisDown(Exception):
    """Redis did not answer, or answered nonsense."""


@dataclass(frozen=True)
class Script:
    """A Lua script: atomic, one round trip."""

    source: str

    @property
    def sha(self) -> str:
        """The name that Redis knows it by."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Redis:
    """A client that fails fast and always the same way."""

    def __init__(self, client: Any, *, turns: int = 1, timeout: float = CALL_TIMEOUT, probe_every: float = PROBE_EVERY) -> None:
        self._client = client
        self._timeout = timeout
        self._probe_every = probe_every
        self._turns = asyncio.Semaphore(turns)
        self._failures = 0
        self._present = 0
        self.turns = turns
        self.failures = 0
        self.taken = Histogram()
        self._probe_at = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._shas: dict[Script, str] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: ChassisSettings, *, pool_size: int = 0, timeout: float = CALL_TIMEOUT, probe_every: float = PROBE_EVERY
    ) -> AsyncIterator["Redis"]:
        """Make the client; connections are made when needed, so a dead Redis does not stop start-up.

        pool_size    connections at most; 0 means REDIS_POOL_SIZE
        timeout      seconds that a call may take
        probe_every  seconds between two questions whether a Redis that is down is back
        """
        size = pool_size or settings.REDIS_POOL_SIZE
        client = _client(settings.REDIS_URL.reveal(), size, timeout)
        redis = cls(client, turns=max(1, size - 1), timeout=timeout, probe_every=probe_every)  # one connection is left for pings
        try:
            yield redis
        finally:
            if redis._probe is not None:
                redis._probe.cancel()
            with contextlib.suppress(*FAULTS):  # by TLS, a silent one would not let go for half a minute
                async with patience(timeout):
                    await client.aclose()

    @property
    def in_use(self) -> int:
        """Connections that calls have now."""
        return min(self._present, self.turns)

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return self._present - self.in_use

    @property
    def is_down(self) -> bool:
        """Whether the breaker is open."""
        return self._failures >= FAILURES_TO_OPEN

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run `script`. Raises RedisDown."""
        sha = self._shas.setdefault(script, script.sha)
        try:
            return await self.call("EVALSHA", sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self.call("EVAL", script.source, len(keys), *keys, *args)

    async def call(self, *command: Any, wait: float = 0.0) -> Any:
        """Run one command. Raises RedisDown. Waiting for one's turn is our own congestion and does not count against Redis.

        wait  seconds that the command asks Redis to wait
        """
        self._present += 1
        try:
            async with self._turns:
                return await self._call(*command, seconds=self._timeout + wait)
        finally:
            self._present -= 1

    async def _call(self, *command: Any, seconds: float) -> Any:
        now = time.monotonic()
        if self.is_down:
            if now >= self._probe_at:
                self._probe_at = now + self._probe_every
                self._probe = asyncio.create_task(self._look_again(), name="redis-probe")
            raise RedisDown
        try:
            async with patience(seconds):
                reply = await self._client.execute_command(*command)
        except NoScriptError:
            self._failures = 0  # it answers: a Redis that was restarted knows no script, and is told it next
            raise
        except FAULTS as error:
            self._failures += 1
            self.failures += 1
            self._probe_at = now + self._probe_every
            raise RedisDown from error
        self._failures = 0
        self.taken.note(time.monotonic() - now)
        return reply

    async def _look_again(self) -> None:
        with contextlib.suppress(RedisDown):
            await self.ping()

    async def ping(self) -> None:
        """Ask Redis whether it is there, breaker or not. Raises RedisDown."""
        try:
            async with patience(self._timeout):
                await self._client.execute_command("PING")
        except FAULTS as error:
            raise RedisDown from error
        self._failures = 0


def _client(url: str, pool_size: int, timeout: float) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": None,  # whoever calls is patient for so long, and no longer
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
        "protocol": 2,
    }
    parts = urlsplit(url)
    if parts.scheme == "redis+sentinel":
        credentials = {"username": unquote(parts.username or "") or None, "password": unquote(parts.password or "") or None}
        make: Any = OneAtATime
        share = timeout / SENTINELS  # one that hangs leaves time to ask the next
        each = {"socket_timeout": share, "socket_connect_timeout": share, "retry": options["retry"], "protocol": 2}
        sentinel = make(_hosts(parts.netloc, 26379), sentinel_kwargs=each, **options)
        return sentinel.master_for(parts.path.strip("/") or "mymaster", max_connections=pool_size, **credentials, **options)
    if parts.scheme == "redis+cluster":
        from redis.asyncio.cluster import ClusterNode, RedisCluster  # noqa: PLC0415  (40 ms that single instances need not pay)

        nodes = [ClusterNode(host, port) for host, port in _hosts(parts.netloc, 6379)]
        return RedisCluster(startup_nodes=nodes, password=unquote(parts.password or "") or None, max_connections=pool_size, decode_responses=True)
    pool = aioredis.BlockingConnectionPool.from_url(url, max_connections=pool_size, timeout=timeout, **options)
    return aioredis.Redis(connection_pool=pool)


def _hosts(netloc: str, port: int) -> list[tuple[str, int]]:
    pairs = (item.rpartition(":") if ":" in item else (item, "", str(port)) for item in netloc.rpartition("@")[2].split(","))
    return [(host, int(number)) for host, _, number in pairs]
