"""Stores that can be killed, and instances that die where they are told to.

Postgres is a cluster of its own: a killed backend makes it recover, and the other tests' one must not. It writes as in production, but for fsync:
here processes die, and no machine. Instances are forks of one process. Calls between services go through a switch, which stands where Envoy's
internal listener does and knows only the standing instances.
"""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import msgspec

from services import embedded
from services.chassis import crashpoint
from services.chassis.ending import end
from services.chassis.migrate import migrate
from services.up.probes import grpc_serving, until_healthy
from tests.chaos.conftest import HALF
from tests.chaos.durable_zygote import News, Order
from tests.conftest import ROOT, SALT, Keys, free_port, process
from tests.service.token.fleet import Valkey
from watchword import status
from watchword.errors import DeadlineExceeded, ResourceExhausted, Unavailable, WatchwordError

CHANNEL = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
AGAIN = (Unavailable, DeadlineExceeded, ResourceExhausted)  # what says that the same request may be sent again
PATIENCE = 40.0  # seconds until a repeat must have been answered
STANDING = ("token", "token", "rbac", "rbac", "identity")  # instances that no crash point is armed in


class Postgres:
    """A cluster of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._password = secrets.token_hex(16)
        self._port = free_port()
        self._stack = AsyncExitStack()
        self._server: subprocess.Popen[bytes] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Postgres"]:
        """Serve while inside."""
        self._home.mkdir()
        (self._home / "password").write_text(self._password)
        embedded.create_cluster(self._home / "data", self._home / "password", durable=False)
        async with self._stack:
            await self.start()
            await self._prepare()
            yield self

    def url(self, database: str) -> str:
        """Return the address of a database."""
        return f"postgresql://{embedded.SUPERUSER}:{self._password}@127.0.0.1:{self._port}/{database}"

    async def start(self) -> None:
        """Serve, after recovering if need be; again and again as long as what was killed has processes left, beside which Postgres will not start."""
        command = [*embedded.postgres_command(self._home / "data", self._port, durable=True), "-c", "fsync=off"]
        async with asyncio.timeout(60):
            while not await self.accepts():
                if self._server is None or self._server.poll() is not None:
                    self._server = self._stack.enter_context(process(command, log=self._home / "log", stop=signal.SIGINT))
                await asyncio.sleep(0.02)

    async def accepts(self) -> bool:
        """Whether it can be asked."""
        try:
            await (await asyncpg.connect(self.url("postgres"), timeout=2)).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    async def kill(self) -> None:
        """End all of its processes at once."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait(5)

    async def _prepare(self) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        await connection.execute("CREATE DATABASE suite")
        await connection.close()
        await migrate(self.url("suite"))

    async def new_database(self) -> str:
        """Return the address of a new database with the suite's schemas."""
        name = f"d_{secrets.token_hex(4)}"
        connection = await asyncpg.connect(self.url("postgres"))
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE suite")
        await connection.close()
        copy = await asyncpg.connect(self.url(name))
        await copy.execute("UPDATE suite.deployment SET id = gen_random_uuid()")  # in Redis, deployments are told apart by it
        await copy.close()
        return self.url(name)


class Ports:
    """Loopback ports, each given once, below those that the system gives to connections: one of those could be taken before it is listened on.

    Halves of a run that are side by side have ranges of their own: where both took a port, an instance would be believed healthy for the other's.
    """

    def __init__(self) -> None:
        first, last = {1: (10_000, 18_000), 2: (19_000, 27_000)}.get(HALF, (10_000, 27_000))
        self._numbers = count(random.randrange(first, last))

    def take(self) -> int:
        """Return a port that nobody listens on."""
        for number in self._numbers:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", number))
                return number
        raise AssertionError


@dataclass(eq=False)
class Instance:
    """An instance, and where it listens."""

    service: str
    address: str
    control: str
    log: Path
    pid: int
    ended: "asyncio.Future[int]"
    channel: grpc.aio.Channel = field(repr=False)

    async def arm(self, point: str, *, backend: bool = False) -> None:
        """Let the process, or the backend of its session, die at `point`, which may be NAME:N."""
        assert await self._tell(f"{'backend' if backend else 'process'} {point}") == "armed"

    async def was_hit(self) -> bool:
        """Whether a backend was killed since."""
        return await self._tell("was hit") == "yes"

    async def _tell(self, line: str) -> str:
        reader, writer = await asyncio.open_unix_connection(self.control)
        writer.write(f"{line}\n".encode())
        answer = (await reader.readline()).decode().strip()
        writer.close()
        return answer

    async def ask(self, stub: Callable[..., Any], method: str, request: Any, metadata: tuple[tuple[str, str], ...], *, timeout: float = 5.0) -> Any:
        """Return the answer, or raise the failure as its class."""
        try:
            return await getattr(stub(self.channel), method)(request, metadata=metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from error

    def kill(self) -> None:
        """End it, unless it has ended."""
        if not self.ended.done():
            os.kill(self.pid, signal.SIGKILL)


class Zygote:
    """The process that instances are forks of."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self._running = running
        self._started: list[asyncio.Future[int]] = []
        self._ended: dict[int, asyncio.Future[int]] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls, log: Path) -> AsyncIterator["Zygote"]:
        """Fork while inside."""
        with log.open("ab") as out:
            command = (sys.executable, "-m", "tests.chaos.durable_zygote")
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
            pipe = asyncio.subprocess.PIPE
            running = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=out, cwd=ROOT, env=environment)
        zygote = cls(running)
        listening = asyncio.create_task(zygote._listen())
        yield zygote
        assert running.stdin is not None
        running.stdin.close()
        await running.wait()
        await listening

    async def start(self, order: Order) -> "tuple[int, asyncio.Future[int]]":
        """Start an instance; return its process id, and what will hold its exit code."""
        assert self._running.stdin is not None
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._started.append(started)
        self._running.stdin.write(msgspec.json.encode(order) + b"\n")
        pid = await started
        return pid, self._ended[pid]

    async def _listen(self) -> None:
        assert self._running.stdout is not None
        async for line in self._running.stdout:
            news = msgspec.json.decode(line, type=News)
            if news.ended is None:
                self._ended[news.pid] = asyncio.get_running_loop().create_future()
                self._started.pop(0).set_result(news.pid)
            else:
                self._ended.pop(news.pid).set_result(news.ended)


class Switch(grpc.GenericRpcHandler):
    """Passes calls on to the first standing instance of the context that they are for."""

    def __init__(self) -> None:
        self.standing: dict[str, list[Instance]] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return what passes a call on."""
        return grpc.unary_unary_rpc_method_handler(partial(self._pass, details.method))

    async def _pass(self, method: str, request: bytes, context: Any) -> bytes:
        channel = self.standing[method.split(".")[1]][0].channel
        metadata = [(key, value) for key, value in context.invocation_metadata() if key in ("authorization", "x-request-id")]
        try:
            passing: Any = channel.unary_unary(method)  # of bytes: no message is made of them here
            answer: bytes = await passing(request, metadata=tuple(metadata), timeout=context.time_remaining())
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            raise AssertionError from error
        return answer


@dataclass
class Suite:
    """Standing instances of all services on one database, and what makes more."""

    home: Path
    url: str
    valkey: Valkey
    postgres: Postgres
    keys: Keys
    zygote: Zygote
    switch: Switch
    internal: str
    ports: Ports
    sql: Any = None
    standing: list[Instance] = field(default_factory=list)
    _numbers: Any = field(default_factory=lambda: count(1))

    def of(self, service: str) -> list[Instance]:
        """Return the standing instances of a service."""
        return [one for one in self.standing if one.service == service]

    async def stand(self, services: Sequence[str], *, without: tuple[str, ...] = ()) -> None:
        """Start the standing instances."""
        self.standing = list(await asyncio.gather(*(self.start(service, without=without) for service in services)))
        self.switch.standing = {service: self.of(service) for service in services}

    async def start(self, service: str, environment: Mapping[str, str] | None = None, *, without: tuple[str, ...] = ()) -> Instance:
        """Start one more instance, with an environment of its own beyond the usual, and return it once it serves."""
        name = f"{service}-{next(self._numbers)}-{secrets.token_hex(2)}"
        address, log, control = f"127.0.0.1:{self.ports.take()}", self.home / f"{name}.log", str(self.home / f"{name}.sock")
        order = Order(service, {**self._environment(service, name, address), **(environment or {})}, str(log), control, without)
        pid, ended = await self.zygote.start(order)
        host, _, port = address.rpartition(":")
        healthy = asyncio.create_task(until_healthy(grpc_serving(host, int(port))))
        waited: set[asyncio.Future[Any]] = {healthy, ended}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        is_healthy = healthy.done() and not ended.done()
        await end([healthy])
        assert is_healthy, log.read_text()
        return Instance(service, address, control, log, pid, ended, grpc.aio.insecure_channel(address, CHANNEL))

    async def end_of(self, service: str, point: str, environment: Mapping[str, str], *, without: tuple[str, ...] = ()) -> int:
        """Start an instance that dies at `point`, as the variable says that names it; return its exit code."""
        name = f"{service}-{next(self._numbers)}-{secrets.token_hex(2)}"
        own = {**self._environment(service, name, f"127.0.0.1:{self.ports.take()}"), **environment, crashpoint.VARIABLE: point}
        _, ended = await self.zygote.start(Order(service, own, str(self.home / f"{name}.log"), str(self.home / f"{name}.sock"), without))
        return await asyncio.wait_for(asyncio.shield(ended), PATIENCE)

    def _environment(self, service: str, name: str, address: str) -> dict[str, str]:
        return {
            "GRPC_ADDRESS": address,
            "INTERNAL_GRPC_ADDRESS": self.internal,
            "INSTANCE_ID": name,
            "DATABASE_URL": self.url,
            "DATABASE_POOL_SIZE": "8",
            "DATABASE_MAX_OVERFLOW": "0",
            "REDIS_URL": f"redis://:{self.valkey.password}@127.0.0.1:{self.valkey.port}/0",
            "SECURITY_SALT": SALT,
            "SERVICE_KEY": self.keys.private[service],
            "SERVICE_PUBLIC_KEYS": self.keys.public_json,
            "JWT_ALGORITHM": "Ed25519",
            "ACCESS_TOKEN_TTL": "3600",
            "HASH_WORKERS": "2",
            "MAIL_DIR": str(self.home / "mail"),
            "AUTH_RATE_LIMIT_ENABLED": "false",
        }

    async def restart(self) -> None:
        """Let everything die at once, Redis with all it knew, and start it again."""
        services = [one.service for one in self.standing]
        for one in self.standing:
            one.kill()
        self.valkey.kill()
        await self.postgres.kill()
        await self.sql.expire_connections()
        await self.postgres.start()
        await self.valkey.start(empty=True)
        await self.stand(services)

    async def ask(self, sql: str, *arguments: object) -> Any:
        """Return one value of the database, as superuser; after a crash, once it answers again."""
        async with asyncio.timeout(20):
            while True:
                try:
                    return await self.sql.fetchval(sql, *arguments)
                except (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
                    await asyncio.sleep(0.05)

    def peer(self, *, to: str) -> tuple[tuple[str, str], ...]:
        """Return metadata of identity, calling `to`."""
        return self.keys.metadata("identity", to=to)


@dataclass
class House:
    """What suites share: the stores, and the process that instances are forks of."""

    home: Path
    postgres: Postgres
    valkey: Valkey
    keys: Keys
    zygote: Zygote
    ports: Ports = field(default_factory=Ports)

    @asynccontextmanager
    async def suite(self, *, standing: Sequence[str] = STANDING, without: tuple[str, ...] = ()) -> AsyncIterator[Suite]:
        """Run a suite on a new database while inside."""
        switch, server = Switch(), grpc.aio.server()
        server.add_generic_rpc_handlers((switch,))
        internal = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        url = await self.postgres.new_database()
        suite = Suite(self.home, url, self.valkey, self.postgres, self.keys, self.zygote, switch, internal, self.ports)
        async with asyncpg.create_pool(url, min_size=0, max_size=8) as suite.sql:
            await suite.stand(standing, without=without)
            yield suite
            for one in suite.standing:
                one.kill()
                await one.channel.close()
        await server.stop(None)


@asynccontextmanager
async def housed(home: Path, keys: Keys) -> AsyncIterator[House]:
    """Run the stores and the zygote while inside."""
    async with (
        Postgres(home / "postgres").running() as postgres,
        Valkey(home / "valkey").running() as valkey,
        Zygote.running(home / "zygote.log") as zygote,
    ):
        yield House(home, postgres, valkey, keys, zygote)


async def outcome(doing: Awaitable[Any]) -> Any:
    """Return the answer, or the failure."""
    try:
        return await doing
    except WatchwordError as failure:
        return failure


async def answered(doing: Callable[[], Awaitable[Any]]) -> Any:
    """Do it again until it is neither unavailable nor late nor too much. Raises any other failure."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await doing()
            except AGAIN:
                await asyncio.sleep(0.05)
