"""Access tokens that are asked for at the same time: signed together where that can be done, and each its asker's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.token.joint_signing import JointSigning
from tests.conftest import Keys, Stores, environment_of, free_port, instance, serving
from tests.service.token.conftest import TENANT
from watchword.token.v1 import key_pb2, key_pb2_grpc, token_pb2, token_pb2_grpc

AT_ONCE = 64
CALLS = 512


@dataclass
class One:
    """One instance."""

    stub: "token_pb2_grpc.TokenServiceAsyncStub"
    keys: "key_pb2_grpc.KeyServiceAsyncStub"
    metrics: str
    metadata: tuple[tuple[str, str], ...]

    async def issue(self, subject: str) -> str:
        """Return an access token without a session."""
        request = token_pb2.IssueTokenRequest(subject=subject, tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_CLIENT, scopes=["account"])
        return (await self.stub.IssueToken(request, metadata=self.metadata, timeout=10)).tokens.access_token

    async def issue_many(self, subjects: list[str]) -> list[str]:
        """Return a token for each, asked for `AT_ONCE` at a time."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(subject: str) -> str:
            async with room:
                return await self.issue(subject)

        return list(await asyncio.gather(*map(one, subjects)))

    async def status(self, token: str) -> str:
        """Return what the instance says of a token."""
        answer = await self.stub.VerifyToken(token_pb2.VerifyTokenRequest(token=token), metadata=self.metadata, timeout=10)
        return token_pb2.TokenStatus.Name(answer.status)

    async def signed(self) -> dict[str, float]:
        """Return how many tokens were signed in which way."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://{self.metrics}/metrics")).text
        families = [family for family in text_string_to_metric_families(text) if family.name == "watchword_token_signatures"]
        return {sample.labels["how"]: sample.value for family in families for sample in family.samples if sample.name.endswith("_total")}

    async def public_key(self) -> jwt.PyJWK:
        """Return the key that signs."""
        (key,) = jwt.PyJWKSet.from_json((await self.keys.GetJwks(key_pb2.GetJwksRequest(), timeout=10)).data.decode()).keys
        return key


@asynccontextmanager
async def running(stores: Stores, service_keys: Keys, home: Path, **settings: str) -> AsyncIterator[One]:
    """Run an instance of its own while inside."""
    metrics = f"127.0.0.1:{free_port()}"
    environment = {
        **environment_of("token", await stores.new_database(), stores, service_keys),
        "METRICS_ADDRESS": metrics,
        **settings,
    }
    with instance("services.token", environment=environment, log=home / "log") as (address, process):
        await serving(address, process, home / "log")
        async with grpc.aio.insecure_channel(address) as channel:
            stub, keys = token_pb2_grpc.TokenServiceStub(channel), key_pb2_grpc.KeyServiceStub(channel)
            yield One(stub, keys, metrics, service_keys.metadata("identity", to="token"))


@pytest.mark.parametrize("wanted", ["true", "false"])
async def test_each_of_many_gets_a_good_token_of_its_own(stores: Stores, service_keys: Keys, tmp_path: Path, wanted: str) -> None:
    """A signature that went to another's token would verify nothing; a token that went to another would speak for somebody else."""
    can = JointSigning.begin(is_wanted=True).is_available
    async with running(stores, service_keys, tmp_path, SIGN_TOGETHER=wanted) as one:
        subjects = [str(uuid4()) for _ in range(CALLS)]
        await one.issue(subjects[0])  # its caller is known from now on
        tokens = await one.issue_many(subjects)
        key, signed = await one.public_key(), await one.signed()

        claims = [jwt.decode(token, key, algorithms=["RS256"], audience="watchword") for token in tokens]
        assert [claim["sub"] for claim in claims] == subjects
        assert len({claim["jti"] for claim in claims}) == CALLS
        assert {await one.status(token) for token in tokens[:AT_ONCE]} == {"VALID"}
        assert sum(signed.values()) == CALLS + 1
        assert (signed["together"] > 0) == (can and wanted == "true")
