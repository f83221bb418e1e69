"""Real stores and real instances, as processes on loopback ports of their own, in a home that is gone afterwards."""

import asyncio
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg

from bench.echo import AS_SERVICE
from bench.machine import Cores, pinned
from bench.material import AUDIENCE, ISSUER, KID, ServiceKeys, Signer
from bench.workers import ROOT, BenchError, Worker, worker
from services import embedded
from services.chassis.migrate import migrate
from services.up.child import Child, Command
from services.up.home import write_private
from services.up.ports import reserve_any
from services.up.probes import Probe, grpc_serving, postgres_accepting, until_healthy, valkey_answering

HOST = "127.0.0.1"
START_LIMIT = 60.0  # seconds
STOP_LIMIT = 10.0  # seconds
# Limits stay on and cost what they cost, but nobody runs into them.
SETTINGS = {
    "ACCESS_TOKEN_TTL": "3600",
    "BCRYPT_COST": "12",  # the default
    "DRAIN_TIMEOUT": "0",
    "HASH_WORKERS": "1",  # so that the ceiling of logins is what one core hashes, however many there are
    "RATE_LIMIT_READ": "100000000/60",
    "RATE_LIMIT_WRITE": "100000000/60",
    "RATE_LIMIT_CREDENTIAL": "100000000/60",
    "RATE_LIMIT_CHECK": "100000000/60",
}


@dataclass(frozen=True, slots=True)
class Instance:
    """A running server, and how long it took to be ready. `metrics` is host:port, None if it has none."""

    address: str
    pid: int
    log: Path
    start_seconds: float
    metrics: str | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """The stores of a run, its keys, and where its files are."""

    home: Path
    cores: Cores
    keys: ServiceKeys
    signer: Signer
    postgres_url: str  # of the maintenance database, as superuser
    redis_urls: tuple[str, ...]  # one logical database each, so that groups do not meet

    @property
    def key_file(self) -> Path:
        """Where the signing key is, for workers."""
        return self.home / "key.pem"

    @property
    def token_file(self) -> Path:
        """Where the tokens are that no server has seen, a line each."""
        return self.home / "tokens"

    async def new_database(self) -> str:
        """Return the URL of a new database with the suite's schemas."""
        name = f"bench_{secrets.token_hex(4)}"
        connection = await asyncpg.connect(self.postgres_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        url = self.postgres_url.rpartition("/")[0] + f"/{name}"
        await migrate(url)
        return url

    @asynccontextmanager
    async def token(self, database: str, *, redis: int = 0, core: int | None = None, **settings: str) -> AsyncIterator[Instance]:
        """Run an instance of token while inside."""
        own = {"JWT_PRIVATE_KEY": self.signer.pem, "JWT_KEY_ID": KID, "TOKEN_ISSUER": ISSUER, "TOKEN_AUDIENCE": AUDIENCE}
        async with self._service("token", {"DATABASE_URL": database, "REDIS_URL": self.redis_urls[redis], **own, **settings}, core) as instance:
            yield instance

    @asynccontextmanager
    async def rbac(self, database: str, token: Instance, *, redis: int = 0, core: int | None = None, **settings: str) -> AsyncIterator[Instance]:
        """Run an instance of rbac while inside, to which `token` says who calls."""
        own = {"DATABASE_URL": database, "REDIS_URL": self.redis_urls[redis], "INTERNAL_GRPC_ADDRESS": token.address}
        async with self._service("rbac", {**own, **settings}, core) as instance:
            yield instance

    @asynccontextmanager
    async def _service(self, service: str, settings: Mapping[str, str], core: int | None) -> AsyncIterator[Instance]:
        name, port = f"{service}-{secrets.token_hex(2)}", reserve_any()
        port.release()
        metrics = f"{HOST}:{port.port}"
        environment = {
            **_plain_environment(),
            "SECURITY_SALT": "a-salt-of-the-bench-0123456789-abcdefghijk",
            "SERVICE_KEY": self.keys.private[service],
            "SERVICE_PUBLIC_KEYS": self.keys.public_json,
            "INSTANCE_ID": name,
            "METRICS_ADDRESS": metrics,
            **SETTINGS,
            **settings,
        }
        async with self.server(name, [sys.executable, "-m", f"services.{service}"], environment, core=core) as instance:
            yield replace(instance, metrics=metrics)

    @asynccontextmanager
    async def echo(self, method: str, sample: Path, *, as_service: bool = False) -> AsyncIterator[Instance]:
        """Run the echo server of a method, on the measured core, while inside; `sample` holds the answer that it gives.

        as_service  not bare, but on the event loop and the threads of our services
        """
        command = [sys.executable, "-m", "bench.echo", method, str(sample)]
        environment = _plain_environment()
        if as_service:
            command.append(AS_SERVICE)
            environment["GRPC_EXPERIMENTS"] = os.environ["GRPC_EXPERIMENTS"]  # set by `services`
        async with self.server("echo", command, environment, core=self.cores.measured) as instance:
            yield instance

    @asynccontextmanager
    async def server(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, core: int | None) -> AsyncIterator[Instance]:
        """Run a gRPC server while inside; it reads its address from GRPC_ADDRESS."""
        port = reserve_any()
        address, log = f"{HOST}:{port.port}", self.home / f"{name}.log"
        child = Child(Command(command, {**environment, "GRPC_ADDRESS": address}, ROOT, signal.SIGKILL), log)  # nobody waits for what it would finish
        port.release()
        began = time.monotonic()
        async with _running(child, grpc_serving(HOST, port.port), core=core):
            assert child.pid is not None
            yield Instance(address, child.pid, log, time.monotonic() - began)

    @asynccontextmanager
    async def running(self, child: Child, healthy: Probe, *, core: int | None = None, stop_limit: float = STOP_LIMIT) -> AsyncIterator[None]:
        """Run any process while inside; enter once it is healthy. Raises BenchError."""
        async with _running(child, healthy, core=core, stop_limit=stop_limit):
            yield

    @asynccontextmanager
    async def worker(self, module: str, *arguments: str, measured: bool = False) -> AsyncIterator[Worker]:
        """Run a worker while inside, on the measured core or the other one."""
        core = self.cores.measured if measured else self.cores.others
        async with worker(module, *arguments, log=self.home / f"{module}.log", core=core) as running:
            yield running


def _plain_environment() -> dict[str, str]:
    """Return what every process needs, and nothing that could set a service or the bare echo otherwise."""
    return {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TMPDIR")}


@asynccontextmanager
async def running_stack() -> AsyncIterator[Stack]:
    """Run Postgres, whose writes reach the disk, and Valkey, both away from the measured core, while inside."""
    home = Path(tempfile.mkdtemp(prefix="watchword-bench-"))
    cores, password, signer = Cores.here(), secrets.token_hex(16), Signer.new()
    (home / "password").write_text(password)
    (home / "redis").mkdir()
    try:
        await asyncio.to_thread(embedded.create_cluster, home / "pg", home / "password", durable=True)
        async with AsyncExitStack() as stack:
            postgres, redis = reserve_any(), reserve_any()
            url = f"postgresql://{embedded.SUPERUSER}:{password}@{HOST}:{postgres.port}/postgres"
            plain = dict(embedded.SERVER_ENVIRONMENT)
            command = Command(embedded.postgres_command(home / "pg", postgres.port, durable=True), plain, home, signal.SIGINT, signal.SIGINT)
            postgres.release()
            await stack.enter_async_context(_running(Child(command, home / "postgres.log"), postgres_accepting(url), core=cores.others))
            command = Command(embedded.valkey_command(home / "redis", redis.port, password), plain, home)
            redis.release()
            await stack.enter_async_context(
                _running(Child(command, home / "valkey.log"), valkey_answering(HOST, redis.port, password), core=cores.others)
            )
            urls = tuple(f"redis://:{password}@{HOST}:{redis.port}/{number}" for number in range(10))
            running = Stack(home, cores, ServiceKeys.new(), signer, url, urls)
            write_private(running.key_file, signer.pem)
            yield running
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def lease_state(database: str) -> str:
    """Say whether the instances on `database` answer from memory or ask Postgres."""
    connection = await asyncpg.connect(database)
    try:
        modes = [row["mode"] for row in await connection.fetch("SELECT mode FROM token.instance ORDER BY mode")]
    except asyncpg.UndefinedTableError:
        modes = []
    finally:
        await connection.close()
    return f"instances: {', '.join(modes) or 'no lease, every read asks Postgres'}"


@asynccontextmanager
async def _running(child: Child, healthy: Probe, *, core: int | None, stop_limit: float = STOP_LIMIT) -> AsyncIterator[None]:
    """Run `child` while inside; enter once it is healthy. Raises BenchError with its last words if it ends before, or never is."""
    with pinned(core):
        await child.start()
    try:
        await _until_ready(child, healthy)
        yield
    finally:
        await child.stop(stop_limit)


async def _until_ready(child: Child, healthy: Probe) -> None:
    ready, ended = asyncio.ensure_future(until_healthy(healthy)), asyncio.ensure_future(child.ended())
    try:
        await asyncio.wait({ready, ended}, timeout=START_LIMIT, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise BenchError("\n".join(["a server did not become ready; its last words:", *child.tail()]))
        await ready
    finally:
        for task in (ready, ended):
            task.cancel()
