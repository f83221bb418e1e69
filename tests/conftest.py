"""What all tests share: real Postgres and a real Redis-protocol server, started once, and processes that end with the tests."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from services import embedded
from services.chassis.migrate import migrate
from services.chassis.service_identity import ServiceIdentity
from services.up.probes import grpc_serving, until_healthy

ROOT = Path(__file__).parent.parent
CONTEXTS = ("identity", "token", "rbac", "gateway")
SALT = "a-salt-of-the-tests-0123456789-abcdefghij"


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def eventually(question: Callable[[], Awaitable[bool]], *, within: float = 10.0) -> None:
    """Ask until the answer is yes; fail when it is not within that many seconds."""
    async with asyncio.timeout(within):
        while not await question():  # noqa: ASYNC110  (the question may be about another process)
            await asyncio.sleep(0.02)


@contextmanager
def process(
    command: list[str], *, log: Path, environment: Mapping[str, str] | None = None, stop: int = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while inside."""
    with log.open("ab") as out:
        running = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(stop)
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait(5)


@dataclass(frozen=True)
class Stores:
    """The servers that hold data."""

    postgres: str  # URL of the maintenance database, as superuser
    redis: str

    async def new_database(self) -> str:
        """Return the URL of a new database with the suite's schemas."""
        name = f"t_{secrets.token_hex(6)}"
        connection = await asyncpg.connect(self.postgres)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        url = self.postgres.rpartition("/")[0] + f"/{name}"
        await migrate(url)
        return url


@pytest.fixture(scope="session")
async def stores(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stores]:
    """Postgres without fsync, and Valkey."""
    home = tmp_path_factory.mktemp("stores")
    password = secrets.token_hex(16)
    (home / "password").write_text(password)
    (home / "redis").mkdir()
    embedded.create_cluster(home / "pg", home / "password", durable=False)
    postgres_port, redis_port = free_port(), free_port()
    with (
        process(embedded.postgres_command(home / "pg", postgres_port, durable=False), log=home / "postgres.log", stop=signal.SIGINT),
        process(embedded.valkey_command(home / "redis", redis_port, password), log=home / "valkey.log"),
    ):
        url = f"postgresql://{embedded.SUPERUSER}:{password}@127.0.0.1:{postgres_port}/postgres"

        async def accepts() -> bool:
            try:
                await (await asyncpg.connect(url, timeout=2)).close()
            except (OSError, asyncpg.PostgresError):
                return False
            return True

        await eventually(accepts)
        yield Stores(url, f"redis://:{password}@127.0.0.1:{redis_port}/0")


@dataclass(frozen=True)
class Keys:
    """Service keys of all contexts."""

    private: Mapping[str, str]
    public_json: str

    def identity(self, name: str) -> ServiceIdentity:
        """Return the identity of a service."""
        return ServiceIdentity.load(name, self.private[name], self.public_json)

    def metadata(self, name: str, *, to: str) -> tuple[tuple[str, str], ...]:
        """Return call metadata that proves service `name` to service `to`."""
        return (("authorization", f"Bearer {self.identity(name).token_for(to)}"),)


@pytest.fixture(scope="session")
def service_keys() -> Keys:
    """A key for each service."""
    import json

    private, public = {}, {}
    for name in CONTEXTS:
        key = Ed25519PrivateKey.generate()
        private[name] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        public[name] = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return Keys(private, json.dumps(public))


@dataclass
class Instance:
    """A running service instance."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path
    channel: grpc.aio.Channel = field(repr=False)


def environment_of(service: str, url: str, stores: Stores, keys: Keys) -> dict[str, str]:
    """Return what an instance of `service` needs to know; `url` is of its database."""
    return {
        "DATABASE_URL": url,
        "REDIS_URL": stores.redis,
        "SECURITY_SALT": SALT,
        "SERVICE_KEY": keys.private[service],
        "SERVICE_PUBLIC_KEYS": keys.public_json,
    }


@contextmanager
def instance(module: str, *, environment: Mapping[str, str], log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `python -m module` on a free port while inside; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    full = {**os.environ, **environment, "GRPC_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    with process([sys.executable, "-m", module], log=log, environment=full) as running:
        yield address, running


async def serving(address: str, running: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the instance at `address` is ready; fail with its log if it ends before."""
    host, _, port = address.rpartition(":")
    task = asyncio.create_task(until_healthy(grpc_serving(host, int(port))))

    async def ready_or_dead() -> bool:
        assert running.poll() is None, log.read_text()  # noqa: ASYNC240
        return task.done()

    await eventually(ready_or_dead, within=20)
