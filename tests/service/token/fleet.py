"""Three token instances, each with wires of its own to Postgres and to a Redis that can die, hang, forget and go back to what it was."""

import asyncio
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import grpc
import redis.asyncio as aioredis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import RedisError

from services import embedded
from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import ROOT, SALT, Keys, Stores, eventually, free_port, process, serving
from tests.service.chassis.fault_proxy import FaultProxy
from watchword.token.v1 import key_pb2_grpc, token_pb2, token_pb2_grpc

TENANT = str(DEFAULT_TENANT)
ISSUER = "https://auth.test"
PATIENCE = 3.0  # seconds that a caller waits for an answer
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)  # codes after which the same request is sent again
CHANNEL = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300))
Answer = str | grpc.StatusCode


class Valkey:
    """A Redis of the tests' own."""

    def __init__(self, home: Path, *, password: str = "") -> None:
        home.mkdir()
        self.port = free_port()
        self.password = password or secrets.token_hex(16)
        self._dump = home / "dump.rdb"
        self._log = home / "log"
        # No append-only file: a restart finds what was last saved, and a test chooses how old that is.
        self._command = [*embedded.valkey_command(home, self.port, self.password), "--appendonly", "no"]
        self._command += ["--masterauth", self.password, "--repl-diskless-sync-delay", "0"]
        self._stack = AsyncExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Any = aioredis.Redis(port=self.port, password=self.password, decode_responses=True, protocol=2)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Valkey"]:
        """Serve while inside, and as long as no test kills it."""
        async with self._stack:
            await self.start()
            yield self
            self.resume()
            await self.client.aclose()

    async def start(self, *, empty: bool = False) -> None:
        """Serve what was saved last, or nothing."""
        if empty:
            self._dump.unlink(missing_ok=True)
        self._process = self._stack.enter_context(process(self._command, log=self._log))
        await eventually(self._answers)

    async def _answers(self) -> bool:
        try:
            return bool(await self.client.ping())
        except (RedisError, OSError):
            return False

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)
            self._process = None

    def pause(self) -> None:
        """Let it hang."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def follow(self, other: "Valkey") -> None:
        """Become a replica, and return once everything is copied."""
        await self.client.replicaof("127.0.0.1", other.port)
        await eventually(self._is_synced)

    async def lead(self) -> None:
        """Be a primary."""
        await self.client.replicaof("NO", "ONE")

    async def _is_synced(self) -> bool:
        return bool((await self.client.info("replication")).get("master_link_status") == "up")

    async def mend(self) -> None:
        """Be alive, and nobody's replica."""
        self.resume()
        if self._process is None:
            await self.start()
        await self.lead()
        await self.client.config_set("maxmemory", 0)


@dataclass(eq=False)
class Member:
    """An instance, its wires, and how to speak with it."""

    name: str
    address: str
    log: Path
    environment: dict[str, str]
    redis: FaultProxy
    postgres: FaultProxy
    channel: grpc.aio.Channel
    stack: AsyncExitStack
    process: "subprocess.Popen[bytes] | None" = None
    stub: "token_pb2_grpc.TokenServiceAsyncStub" = field(init=False)
    keys: "key_pb2_grpc.KeyServiceAsyncStub" = field(init=False)

    def __post_init__(self) -> None:
        self.stub = token_pb2_grpc.TokenServiceStub(self.channel)
        self.keys = key_pb2_grpc.KeyServiceStub(self.channel)

    async def start(self) -> None:
        """Serve, at the address that it always has."""
        command = [sys.executable, "-m", "services.token"]
        self.process = self.stack.enter_context(process(command, log=self.log, environment=self.environment))
        await serving(self.address, self.process, self.log)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(5)
            self.process = None

    def pause(self) -> None:
        """Let it hang."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    async def mend(self) -> None:
        """Be alive and awake, with all wires whole."""
        for wire in (self.redis, self.postgres):
            await wire.restore()
        self.resume()
        if self.process is None:
            await self.start()

    async def is_ready(self) -> bool:
        """Whether its health says SERVING."""
        health: Any = health_pb2_grpc.HealthStub(self.channel)  # type: ignore[no-untyped-call]
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass
class Fleet:
    """The instances and their stores."""

    members: list[Member]
    valkey: Valkey
    url: str
    keys: Keys
    sql: Any  # a superuser's pool, past all wires

    @property
    def identity(self) -> tuple[tuple[str, str], ...]:
        """Metadata of identity, calling token."""
        return self.keys.metadata("identity", to="token")

    async def issue(self, at: int = 0, **fields: Any) -> token_pb2.TokenSet:
        """Open a session."""
        defaults: dict[str, Any] = {"subject": str(uuid4()), "tenant_id": TENANT, "type": token_pb2.PRINCIPAL_TYPE_USER, "with_refresh_token": True}
        known = {**defaults, **fields}
        revision = await self.sql.fetchval("SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1", known["tenant_id"]) or 0
        request = token_pb2.IssueTokenRequest(**known, revision=revision)
        return (await self.members[at].stub.IssueToken(request, metadata=self.identity, timeout=PATIENCE)).tokens

    async def verify(self, text: str, at: int) -> Answer:
        """Return what one instance says, or the code of its failure."""
        request = token_pb2.VerifyTokenRequest(token=text)
        try:
            answer = await self.members[at].stub.VerifyToken(request, metadata=self.identity, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return token_pb2.TokenStatus.Name(answer.status)

    async def accept_otherwise(self, text: str) -> bool:
        """Return whether any instance accepts a token in a batch, or by introspection."""
        batch = token_pb2.BatchVerifyTokensRequest(requests=[token_pb2.VerifyTokenRequest(token=text)])
        question = token_pb2.IntrospectTokenRequest(token=text)
        stubs = [member.stub for member in self.members]
        asked: list[Any] = [stub.BatchVerifyTokens(batch, metadata=self.identity, timeout=PATIENCE) for stub in stubs]
        asked += [stub.IntrospectToken(question, metadata=self.identity, timeout=PATIENCE) for stub in stubs]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        said = [answer for answer in answers if not isinstance(answer, BaseException)]
        return any(answer.active if hasattr(answer, "active") else answer.responses[0].status == token_pb2.VALID for answer in said)

    async def verify_all(self, text: str) -> list[Answer]:
        """Return what each instance says, asked all at once."""
        return list(await asyncio.gather(*(self.verify(text, at) for at in range(len(self.members)))))

    async def revoke(self, tokens: token_pb2.TokenSet, at: int = 0) -> None:
        """Revoke until it is acknowledged: the same request_id asks again."""
        request = token_pb2.RevokeTokenRequest(token=tokens.access_token, request_id=str(uuid4()))
        async with asyncio.timeout(15):
            while True:
                try:
                    await self.members[at].stub.RevokeToken(request, metadata=self.identity, timeout=5)
                    return
                except grpc.aio.AioRpcError as error:
                    if error.code() not in AGAIN:
                        raise

    async def keys_of(self, kind: str) -> list[str]:
        """Return the names of what coherence keeps in Redis: `state` or `log`."""
        return [key async for key in self.valkey.client.scan_iter(f"watchword:*:{kind}")]

    async def epoch(self) -> str:
        """Return the present epoch; empty if there is none."""
        return "".join([await self.valkey.client.hget(key, "epoch") or "" for key in await self.keys_of("state")])

    async def number(self) -> int:
        """Return the number of the last change in the log."""
        return int("".join([await self.valkey.client.hget(key, "seq") or "0" for key in await self.keys_of("state")]) or 0)

    _MODES = """
        SELECT DISTINCT ON (name) id, mode, seen_time > clock_timestamp() - interval '3 seconds' AS is_alive
        FROM token.instance ORDER BY name, seen_time DESC
    """

    async def are(self, mode: str) -> bool:
        """Whether every instance says so of itself."""
        rows = await self.sql.fetch(self._MODES)
        return [row["mode"] for row in rows if row["is_alive"]] == [mode] * len(self.members)

    async def are_leased(self) -> bool:
        """Whether every instance has a lease."""
        try:
            held = "".join([str(await self.valkey.client.hgetall(key)) for key in await self.keys_of("state")])
        except (RedisError, OSError):
            return False
        return await self.are("leased") and all(row["id"].hex in held for row in await self.sql.fetch(self._MODES))

    async def heal(self) -> None:
        """Mend everything, and wait until all answer from memory."""
        await self.valkey.mend()
        for member in self.members:
            await member.mend()
        await eventually(self.are_leased, within=15)


@asynccontextmanager
async def running_fleet(stores: Stores, keys: Keys, home: Path, *, size: int = 3) -> AsyncIterator[Fleet]:
    """Run a fleet while inside."""
    url = await stores.new_database()
    async with AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(Valkey(home / "valkey").running())
        sql = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=4))
        fleet = Fleet([], valkey, url, keys, sql)
        for number in range(1, size + 1):
            member = await _member(fleet, f"token-{number}", home, stack)
            await member.start()
            fleet.members.append(member)
        yield fleet
        for member in fleet.members:
            member.kill()  # a drain would take seconds, and is another test


async def _member(fleet: Fleet, name: str, home: Path, stack: AsyncExitStack) -> Member:
    parts = urlsplit(fleet.url)
    postgres = await stack.enter_async_context(FaultProxy.before("127.0.0.1", parts.port or 0))
    redis = await stack.enter_async_context(FaultProxy.before("127.0.0.1", fleet.valkey.port))
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "PYTHONPATH": str(ROOT),
        "GRPC_ADDRESS": address,
        "INSTANCE_ID": name,
        "DATABASE_URL": fleet.url.replace(f":{parts.port}/", f":{postgres.port}/"),
        "REDIS_URL": f"redis://:{fleet.valkey.password}@127.0.0.1:{redis.port}/0",
        "SECURITY_SALT": SALT,
        "SERVICE_KEY": fleet.keys.private["token"],
        "SERVICE_PUBLIC_KEYS": fleet.keys.public_json,
        "TOKEN_ISSUER": ISSUER,
        "JWT_ALGORITHM": "Ed25519",
        "ACCESS_TOKEN_TTL": "3600",
    }
    channel = grpc.aio.insecure_channel(address, CHANNEL)
    stack.push_async_callback(partial(channel.close))
    member = Member(name, address, home / f"{name}.log", environment, redis, postgres, channel, stack)
    stack.callback(member.resume)  # who is stopped cannot end
    return member
