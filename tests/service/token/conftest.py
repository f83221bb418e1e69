"""Three instances of token on one Postgres, with a signing key that the tests hold too."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import Keys, Stores, environment_of, instance, serving
from watchword.token.v1 import key_pb2_grpc, token_pb2, token_pb2_grpc

KID = "key-of-the-tests"
ISSUER = "https://auth.test"
TENANT = str(DEFAULT_TENANT)


@dataclass(frozen=True)
class TokenInstances:
    """The instances, and what the tests need to speak with them."""

    stubs: "list[token_pb2_grpc.TokenServiceAsyncStub]"
    key_stubs: "list[key_pb2_grpc.KeyServiceAsyncStub]"
    addresses: list[str]
    pids: list[int]
    private_key: rsa.RSAPrivateKey
    keys: Keys
    database_url: str

    @property
    def identity(self) -> tuple[tuple[str, str], ...]:
        """Metadata of identity, calling token."""
        return self.keys.metadata("identity", to="token")

    async def issue(self, *, at: int = 0, subject: str = "", **fields: Any) -> token_pb2.TokenSet:
        """Open a session at an instance."""
        defaults: dict[str, Any] = {
            "tenant_id": TENANT,
            "type": token_pb2.PRINCIPAL_TYPE_USER,
            "with_refresh_token": True,
            "scopes": ["account", "tokens.verify"],
        }
        request = token_pb2.IssueTokenRequest(**{**defaults, "subject": subject or str(uuid4()), "revision": await self.revision(), **fields})
        return (await self.stubs[at].IssueToken(request, metadata=self.identity)).tokens

    async def revision(self) -> int:
        """Return the default tenant's revision, as identity reads it beside an account."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetchval("SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1", DEFAULT_TENANT) or 0
        finally:
            await connection.close()

    async def status(self, token: str, *, at: int = 0, **fields: Any) -> str:
        """Return what an instance says of a token."""
        answer = await self.stubs[at].VerifyToken(token_pb2.VerifyTokenRequest(token=token, **fields), metadata=self.identity)
        return token_pb2.TokenStatus.Name(answer.status)


@pytest.fixture(scope="session")
async def token(stores: Stores, service_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TokenInstances]:
    """Three token instances."""
    home = tmp_path_factory.mktemp("token")
    private = rsa.generate_private_key(65537, 2048)
    url = await stores.new_database()
    environment = {
        **environment_of("token", url, stores, service_keys),
        "JWT_PRIVATE_KEY": private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "JWT_KEY_ID": KID,
        "TOKEN_ISSUER": ISSUER,
    }
    with ExitStack() as stack:
        running = [stack.enter_context(instance("services.token", environment=environment, log=home / f"token-{n}.log")) for n in (1, 2, 3)]
        for number, (address, process) in enumerate(running, 1):
            await serving(address, process, home / f"token-{number}.log")
        channels = [grpc.aio.insecure_channel(address) for address, _ in running]
        yield TokenInstances(
            stubs=[token_pb2_grpc.TokenServiceStub(channel) for channel in channels],
            key_stubs=[key_pb2_grpc.KeyServiceStub(channel) for channel in channels],
            addresses=[address for address, _ in running],
            pids=[process.pid for _, process in running],
            private_key=private,
            keys=service_keys,
            database_url=url,
        )
        for channel in channels:
            await channel.close()
