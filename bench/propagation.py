"""How long a revocation takes: for the caller who revokes, and until a verifier in another process refuses.

Three instances, and one local verifier that hangs on the first of them; revocations arrive at each instance in turn. All processes read one clock:
CLOCK_MONOTONIC is the same for all of a Linux system.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg
import grpc

from bench.figures import Bench, Figure, at, at_most, percentiles
from bench.material import REVISION
from bench.slices import Spread, service_authorization
from bench.stack import Instance, lease_state
from bench.workers import BenchError, Worker
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.token.v1 import token_pb2, token_pb2_grpc

EVERY = 0.04  # seconds between revocations: a modest rate
INSTANCES = 3
INSERT_REVOCATION = """
    INSERT INTO token.revocation (tenant_id, key, kind, revision, spared_revision, is_disabled, revoke_time, expire_time)
    VALUES ($1, $2, 'token', $3, 0, false, now(), now() + interval '1 hour')
"""


@dataclass(slots=True)
class Record:
    """What happened, in milliseconds."""

    answered: list[float] = field(default_factory=list)  # RevokeToken, as its caller sees it
    refused: list[float] = field(default_factory=list)  # from its OK until the local verifier refuses; below nought: before its OK
    asked: int = 0
    accepted: int = 0  # by an instance that was asked after the OK


async def propagation(bench: Bench) -> list[Figure]:
    """Revoke on three instances and on one, and commit as much to Postgres alone."""
    transaction = await _transactions(await bench.stack.new_database(), bench.extent.revocations)
    one, _ = await _revoke(bench, instances=1)
    several, leases = await _revoke(bench, instances=INSTANCES)
    wait = [at(several.answered, share) - at(one.answered, share) for share in (0.5, 0.99)]
    extra = "What the revoking caller waits longer for two more instances"
    after = f"Acceptances among {several.asked:,} VerifyToken calls that began on all {INSTANCES} instances after RevokeToken's OK"
    return [
        *percentiles("floor.transaction", "One INSERT and its commit in Postgres, alone", transaction),
        *percentiles("revoke.1", "RevokeToken, one instance", one.answered, transaction),
        *percentiles(f"revoke.{INSTANCES}", f"RevokeToken, {INSTANCES} instances", several.answered, transaction, notes=(leases,)),
        *(Figure(f"revoke.wait.{name}", extra, "ms", Spread.of([value])) for name, value in zip(("p50", "p99"), wait, strict=True)),
        Figure("revoke.accepted", after, "calls", Spread.of([several.accepted]), None, at_most(0)),
        *percentiles("propagation", "From RevokeToken's OK to the refusal by a local verifier", several.refused, target=at_most(100)),
    ]


async def _transactions(database: str, count: int) -> list[float]:
    connection, took = await asyncpg.connect(database), []
    try:
        for _ in range(count):
            began = time.monotonic_ns()
            async with connection.transaction():
                await connection.execute(INSERT_REVOCATION, DEFAULT_TENANT, uuid4(), REVISION)
            took.append((time.monotonic_ns() - began) / 1e6)
    finally:
        await connection.close()
    return took


async def _revoke(bench: Bench, *, instances: int) -> tuple[Record, str]:
    """Revoke one token after another; return what happened, and what the instances held."""
    record, stack, database = Record(), bench.stack, await bench.stack.new_database()
    async with AsyncExitStack() as running:
        started = [await running.enter_async_context(stack.token(database, redis=5)) for _ in range(instances)]
        stubs = [await running.enter_async_context(_stub(instance)) for instance in started]
        access = stack.signer.client_token("tokens.verify")
        verifier = await running.enter_async_context(stack.worker("bench.local", started[0].address, access))
        authorization, round_of = service_authorization(stack.keys, "identity"), Round(stubs, verifier, record)
        next_at = time.monotonic()
        for number in range(bench.extent.revocations):
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at = max(next_at, time.monotonic() - EVERY) + EVERY
            await round_of.run(number, stack.signer.user_token(), (("authorization", authorization()),))
        state = await lease_state(database)
    bench.say(
        f"{instances} instance(s): RevokeToken p50 {at(record.answered, 0.5):.1f} ms, refused p99 {at(record.refused, 0.99):.1f} ms after its OK"
    )
    return record, state


@dataclass(frozen=True, slots=True)
class Round:
    """One revocation after another, on these instances and this verifier."""

    stubs: "Sequence[token_pb2_grpc.TokenServiceAsyncStub]"
    verifier: Worker
    record: Record

    async def run(self, number: int, token: str, metadata: tuple[tuple[str, str], ...]) -> None:
        """Revoke `token` at one instance while the local verifier asks about it without end; then ask all instances."""
        if not (await self.verifier.ask(do="accept", token=token))["accepted"]:
            raise BenchError("the local verifier refused a token that was not revoked")
        refusal = asyncio.create_task(self.verifier.ask(do="await refusal", token=token))
        began = time.monotonic_ns()
        await self.stubs[number % len(self.stubs)].RevokeToken(token_pb2.RevokeTokenRequest(token=token, request_id=str(uuid4())), metadata=metadata)
        done = time.monotonic_ns()
        request = token_pb2.VerifyTokenRequest(token=token)
        answers = await asyncio.gather(*(stub.VerifyToken(request, metadata=metadata) for stub in self.stubs))
        refused = await refusal
        if not refused["refused"]:
            raise BenchError("the local verifier went on accepting a revoked token")
        self.record.answered.append((done - began) / 1e6)
        self.record.refused.append((refused["refused_at"] - done) / 1e6)
        self.record.asked += len(answers)
        self.record.accepted += sum(answer.status == token_pb2.VALID for answer in answers)


@asynccontextmanager
async def _stub(instance: Instance) -> "AsyncIterator[token_pb2_grpc.TokenServiceAsyncStub]":
    async with grpc.aio.insecure_channel(instance.address) as channel:
        yield token_pb2_grpc.TokenServiceStub(channel)
