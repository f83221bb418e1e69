"""Is it healthy yet? One probe per kind of server; each asks until the answer is yes."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.embedded import DATABASE

PAUSE_SECONDS = 0.05
ANSWER_SECONDS = 2.0

Probe = Callable[[], Awaitable[bool]]


async def until_healthy(probe: Probe) -> None:
    """Ask again and again until the probe says yes. Waits for ever: the caller bounds it."""
    while True:
        with suppress(OSError, TimeoutError, EOFError):
            if await asyncio.wait_for(probe(), ANSWER_SECONDS):
                return
        await asyncio.sleep(PAUSE_SECONDS)


def grpc_serving(host: str, port: int) -> Probe:
    """Probe a service by grpc.health.v1: the empty name means ready."""

    async def probe() -> bool:
        await _connect(host, port)  # a refused connection costs nothing, while a channel would back off for a second
        async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[no-untyped-call]
                    health_pb2.HealthCheckRequest(service=""), timeout=1.0
                )
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


def postgres_accepting(url: str) -> Probe:
    """Probe Postgres by logging in; makes the suite's database if there is none. `url` names the maintenance database."""

    async def probe() -> bool:
        try:
            connection = await asyncpg.connect(url, timeout=ANSWER_SECONDS)
        except (asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()
        return True

    return probe


def valkey_answering(host: str, port: int, password: str) -> Probe:
    """Probe Valkey by PING, which it refuses until its data is in memory."""
    question = f"AUTH {password}\r\nPING\r\n".encode()
    return lambda: _exchange(host, port, question, b"+OK\r\n+PONG\r\n")


def envoy_ready(host: str, port: int) -> Probe:
    """Probe Envoy's admin address: LIVE once its listeners are open and its clusters known."""
    question = f"GET /ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    return lambda: _exchange(host, port, question, b"HTTP/1.1 200")


async def _connect(host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()


async def _exchange(host: str, port: int, question: bytes, answer: bytes) -> bool:
    """Whether the server's first bytes after `question` are `answer`."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(question)
        return await reader.readexactly(len(answer)) == answer
    finally:
        writer.close()
