"""Token looks after its store by itself, whatever goes wrong in between."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import ROOT, Keys, Stores, environment_of, eventually, free_port, instance, process, serving
from watchword.token.v1 import token_pb2, token_pb2_grpc

_INSERT = """
    INSERT INTO token.revocation (tenant_id, key, kind, revision, spared_revision, is_disabled, revoke_time, expire_time)
    VALUES ($1, $1, 'token', 1, 0, false, $2, $2)
"""
_INSERT_REQUEST = """
    INSERT INTO token.request (tenant_id, caller_id, request_id, method, fingerprint, create_time)
    VALUES (gen_random_uuid(), 'identity', gen_random_uuid(), '', '', $1)
"""


_FAST = """
import time
real = time.time
time.time = lambda: real() + 7200
"""


async def test_a_clock_that_is_fast_revives_nothing(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    """One host, two hours ahead: what is revoked stays so for everybody, and it says that it is not ready, and issues nothing."""
    url, live, expired = await stores.new_database(), uuid4(), uuid4()
    (tmp_path / "sitecustomize.py").write_text(_FAST)
    environment = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        **environment_of("token", url, stores, service_keys),
    }
    address, log, connection = f"127.0.0.1:{free_port()}", tmp_path / "log", await asyncpg.connect(url)
    await connection.execute(_INSERT, live, datetime.now(UTC) + timedelta(hours=1))
    await connection.execute(_INSERT, expired, datetime.now(UTC) - timedelta(hours=1))

    async def left() -> list[UUID]:
        return [row["key"] for row in await connection.fetch("SELECT key FROM token.revocation")]

    async def is_swept() -> bool:
        return expired not in await left()

    async def is_not_ready() -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

    command = [sys.executable, "-m", "services.token"]
    with process(command, log=log, environment={**environment, "GRPC_ADDRESS": address}):
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            issuing: Any = token_pb2_grpc.TokenServiceStub(channel)
            await eventually(is_swept, within=30)
            assert await left() == [live]
            assert await is_not_ready()
            request = token_pb2.IssueTokenRequest(subject=str(uuid4()), tenant_id=str(DEFAULT_TENANT), type=token_pb2.PRINCIPAL_TYPE_USER)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await issuing.IssueToken(request, metadata=service_keys.metadata("identity", to="token"), timeout=10)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    await connection.close()


async def test_the_tending_outlives_every_failure(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    """A table that is missing for a while stands for any defect: if it ended the tending, nothing that expired would ever go.

    And as long as it is missing, whatever else is over goes.
    """
    url = await stores.new_database()
    environment = environment_of("token", url, stores, service_keys)
    connection = await asyncpg.connect(url)
    log, expired = tmp_path / "log", datetime.now(UTC) - timedelta(hours=1)

    async def has_failed() -> bool:
        return "tending_failed" in log.read_text()

    async def is_swept() -> bool:
        return not await connection.fetchval("SELECT count(*) FROM token.revocation WHERE key = $1", swept)

    async def is_forgotten() -> bool:
        return not await connection.fetchval("SELECT count(*) FROM token.request")

    with instance("services.token", environment=environment, log=log) as (address, running):
        await serving(address, running, log)
        await connection.execute("ALTER TABLE token.revocation RENAME TO lost")
        await connection.execute(_INSERT_REQUEST, expired - timedelta(days=1))
        await eventually(has_failed, within=15)
        await eventually(is_forgotten, within=15)
        await connection.execute("ALTER TABLE token.lost RENAME TO revocation")
        swept: UUID = uuid4()
        await connection.execute(_INSERT, swept, expired)

        await eventually(is_swept, within=15)
        assert running.poll() is None
    await connection.close()
