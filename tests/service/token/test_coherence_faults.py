"""The failure contract (docs/failure-contract.md), line by line: three instances, each with its own wires to Postgres and to a Redis of the fleet."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import grpc
import pytest
import redis.asyncio as aioredis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services import embedded
from tests.conftest import SALT, Keys, Stores, eventually, free_port, instance, process, serving
from tests.service.chassis.fault_proxy import FaultProxy
from tests.service.token.conftest import TENANT
from watchword.token.v1 import token_pb2, token_pb2_grpc

COUNT = 3
Answer = str | grpc.StatusCode


@dataclass
class Fleet:
    """Instances, their wires, and their Redis."""

    stubs: "list[token_pb2_grpc.TokenServiceAsyncStub]"
    channels: list[grpc.aio.Channel]
    processes: "list[Popen[bytes]]"
    postgres: list[FaultProxy]
    redis: list[FaultProxy]
    valkey: "Popen[bytes]"
    store: Any
    url: str
    keys: Keys

    @property
    def identity(self) -> tuple[tuple[str, str], ...]:
        return self.keys.metadata("identity", to="token")

    async def issue(self, at: int = 0) -> token_pb2.TokenSet:
        request = token_pb2.IssueTokenRequest(
            subject=str(uuid4()), tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_USER, with_refresh_token=True, revision=10**9
        )
        return (await self.stubs[at].IssueToken(request, metadata=self.identity)).tokens

    async def verify(self, text: str, at: int) -> Answer:
        """Return what one instance says, or the code of its failure."""
        try:
            answer = await self.stubs[at].VerifyToken(token_pb2.VerifyTokenRequest(token=text), metadata=self.identity, timeout=3)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return token_pb2.TokenStatus.Name(answer.status)

    async def verify_all(self, text: str) -> list[Answer]:
        return list(await asyncio.gather(*(self.verify(text, at) for at in range(COUNT))))

    async def revoke(self, tokens: token_pb2.TokenSet, at: int = 0) -> None:
        """Revoke until it is acknowledged: the same request_id asks again."""
        request = token_pb2.RevokeTokenRequest(token=tokens.access_token, request_id=str(uuid4()))
        async with asyncio.timeout(15):
            while True:
                try:
                    await self.stubs[at].RevokeToken(request, metadata=self.identity, timeout=5)
                    return
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise

    async def modes(self) -> list[str]:
        """Return what each live instance says of itself."""
        connection = await asyncpg.connect(self.url)
        try:
            rows = await connection.fetch("SELECT mode FROM token.instance WHERE seen_time > clock_timestamp() - interval '3 seconds'")
        finally:
            await connection.close()
        return [row["mode"] for row in rows]

    async def are(self, mode: str) -> bool:
        return (await self.modes()).count(mode) == COUNT

    async def heal(self) -> None:
        """Mend everything, and wait until all answer from memory."""
        for running in (self.valkey, *self.processes):
            running.send_signal(signal.SIGCONT)
        for proxy in (*self.postgres, *self.redis):
            await proxy.restore()
        await eventually(lambda: self.are("leased"), within=15)


@pytest.fixture(scope="module")
async def running(stores: Stores, service_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """The fleet."""
    home, password, port = tmp_path_factory.mktemp("fleet"), secrets.token_hex(8), free_port()
    (home / "redis").mkdir()
    url = await stores.new_database()
    parts = urlsplit(url)
    async with AsyncExitStack() as stack:
        valkey = stack.enter_context(process(embedded.valkey_command(home / "redis", port, password), log=home / "valkey.log"))
        postgres = [await stack.enter_async_context(FaultProxy.before("127.0.0.1", parts.port or 0)) for _ in range(COUNT)]
        redis = [await stack.enter_async_context(FaultProxy.before("127.0.0.1", port)) for _ in range(COUNT)]
        started = []
        for number in range(COUNT):
            environment = {
                "DATABASE_URL": url.replace(f":{parts.port}/", f":{postgres[number].port}/"),
                "REDIS_URL": f"redis://:{password}@127.0.0.1:{redis[number].port}/0",
                "SECURITY_SALT": SALT,
                "SERVICE_KEY": service_keys.private["token"],
                "SERVICE_PUBLIC_KEYS": service_keys.public_json,
                "TOKEN_ISSUER": "https://auth.test",
                "DRAIN_TIMEOUT": "1",
            }
            log: Path = home / f"token-{number}.log"
            address, one = stack.enter_context(instance("services.token", environment=environment, log=log))
            await serving(address, one, log)
            started.append((address, one))
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address)) for address, _ in started]
        store = aioredis.from_url(f"redis://:{password}@127.0.0.1:{port}/0")
        stubs = [token_pb2_grpc.TokenServiceStub(channel) for channel in channels]
        yield Fleet(stubs, channels, [one for _, one in started], postgres, redis, valkey, store, url, service_keys)
        await store.aclose()


@pytest.fixture
async def fleet(running: Fleet) -> AsyncIterator[Fleet]:
    """The fleet, whole and answering from memory, before and after."""
    await running.heal()
    yield running
    await running.heal()


async def refused_after_ok(fleet: Fleet, rounds: int) -> None:
    """Revoke at each in turn, and fail on anybody who accepts afterwards."""
    for number in range(rounds):
        tokens = await fleet.issue(number % COUNT)
        assert "REVOKED" not in await fleet.verify_all(tokens.access_token)
        await fleet.revoke(tokens, number % COUNT)
        assert "VALID" not in await fleet.verify_all(tokens.access_token)


async def test_redis_flushed_again_and_again(fleet: Fleet) -> None:
    """Whatever Redis knew of leases and changes is gone each time, a moment before the revocation."""
    for number in range(4):
        tokens = await fleet.issue()
        assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
        await fleet.store.flushall()
        await fleet.revoke(tokens, number % COUNT)
        assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def test_the_log_lost_its_changes_and_kept_its_leases(fleet: Fleet) -> None:
    """Eviction of the stream alone: numbers are dense, so who reads on sees the gap."""
    for key in [key async for key in fleet.store.scan_iter("watchword:*:log")]:
        await fleet.store.delete(key)
    await refused_after_ok(fleet, 3)


async def test_a_stranger_wrote_under_our_keys(fleet: Fleet) -> None:
    """Wrong types and nonsense entries cost a new beginning, no answer."""
    for kind in ("state", "log"):
        for key in [key async for key in fleet.store.scan_iter(f"watchword:*:{kind}")]:
            await fleet.store.delete(key)
            await fleet.store.set(key, "nonsense")
        await refused_after_ok(fleet, 2)


async def test_redis_silent(fleet: Fleet) -> None:
    """It accepts and does not answer. Verification goes on throughout; revocations are acknowledged, through Postgres."""
    tokens = await fleet.issue()
    fleet.valkey.send_signal(signal.SIGSTOP)
    assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}

    await fleet.revoke(tokens)

    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}
    await eventually(lambda: fleet.are("direct"))
    await refused_after_ok(fleet, 3)


async def test_redis_cut_off_from_all(fleet: Fleet) -> None:
    """As if it were dead. What was acknowledged meanwhile is still refused once memory answers again."""
    tokens = await fleet.issue()
    for proxy in fleet.redis:
        await proxy.cut()
    await fleet.revoke(tokens)
    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}

    await fleet.heal()

    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def test_an_instance_that_hung_is_right_from_its_first_answer(fleet: Fleet) -> None:
    """It slept through the revocation, and through its lease."""
    tokens = await fleet.issue()
    assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
    os.kill(fleet.processes[2].pid, signal.SIGSTOP)

    await fleet.revoke(tokens)
    late = asyncio.create_task(fleet.verify(tokens.access_token, 2))
    await asyncio.sleep(0.1)  # the question lies in its socket when it wakes
    os.kill(fleet.processes[2].pid, signal.SIGCONT)

    assert await late == "REVOKED"


async def test_an_instance_cut_off_from_redis_asks_postgres(fleet: Fleet) -> None:
    await fleet.redis[1].cut()
    await refused_after_ok(fleet, 3)


async def test_an_instance_cut_off_from_postgres_answers_from_memory_and_changes_nothing(fleet: Fleet) -> None:
    """Old tokens and new ones; it hears of others' revocations; its own are UNAVAILABLE within about a second."""
    tokens, other = await fleet.issue(), await fleet.issue()
    await fleet.postgres[1].cut()

    assert [await fleet.verify(one.access_token, 1) for one in (tokens, other)] == ["VALID", "VALID"]
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fleet.stubs[1].RevokeToken(token_pb2.RevokeTokenRequest(token=other.access_token), metadata=fleet.identity, timeout=5)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began < 2.5

    await fleet.revoke(tokens, 0)
    assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def test_an_instance_cut_off_from_both_answers_nothing_and_leaves(fleet: Fleet) -> None:
    """UNAVAILABLE, never VALID; and its health says so, for Envoy to take it out."""
    tokens = await fleet.issue()
    await fleet.postgres[1].cut()
    await fleet.redis[1].cut()

    await fleet.revoke(tokens, 0)

    assert (await fleet.verify_all(tokens.access_token))[1] in (grpc.StatusCode.UNAVAILABLE, "REVOKED")
    health: Any = health_pb2_grpc.HealthStub(fleet.channels[1])  # type: ignore[no-untyped-call]

    async def has_left() -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest())
        return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

    await eventually(has_left)
    assert await fleet.verify(tokens.access_token, 1) is grpc.StatusCode.UNAVAILABLE


async def test_a_writer_cut_off_from_redis_is_helped_by_the_others(fleet: Fleet) -> None:
    """They hold leases and cannot be told by it: one of them finds the change in the outbox and passes it on."""
    await fleet.redis[0].cut()
    for _ in range(2):
        tokens = await fleet.issue(1)
        assert set(await fleet.verify_all(tokens.access_token)) == {"VALID"}
        await fleet.revoke(tokens, 0)
        assert set(await fleet.verify_all(tokens.access_token)) == {"REVOKED"}


async def test_postgres_gone_for_all(fleet: Fleet) -> None:
    """Nothing can be changed, so memory is right: what was valid is, what was revoked is not."""
    good, bad = await fleet.issue(), await fleet.issue()
    await fleet.revoke(bad)
    for proxy in fleet.postgres:
        await proxy.cut()

    for _ in range(20):
        assert set(await fleet.verify_all(good.access_token)) == {"VALID"}
        assert set(await fleet.verify_all(bad.access_token)) == {"REVOKED"}
