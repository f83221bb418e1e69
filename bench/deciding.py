"""Instances of rbac that are asked, with an instance of token beside them that tells them who asks; and loads of questions to them."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from google.protobuf.message import Message

from bench.figures import Bench
from bench.load import write_requests
from bench.slices import Load
from bench.stack import Instance, Stack
from bench.workers import Worker
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.rbac.v1 import permission_pb2

MEMORY = "64"  # MiB, of POLICY_MEMORY: the default
SMALL_MEMORY = "1"  # of a hundred subjects in turn, each is forgotten before it comes again
COLD_AT_ONCE = 4
REDIS = 9  # of all groups of rbac: their databases are of different deployments, which do not meet there


@asynccontextmanager
async def deciders(stack: Stack, database: str, *memories: str, core: int | None = None) -> AsyncIterator[list[Instance]]:
    """Run an instance of rbac for each of `memories`, its POLICY_MEMORY, while inside, and beside them one of token."""
    async with AsyncExitStack() as running:
        token = await running.enter_async_context(stack.token(database, redis=REDIS, core=stack.cores.others))
        yield [await running.enter_async_context(stack.rbac(database, token, redis=REDIS, core=core, POLICY_MEMORY=memory)) for memory in memories]


def client_of(stack: Stack) -> Callable[[], str]:
    """Return what writes the authorization of a client that may check."""
    bearer = f"Bearer {stack.signer.client_token('permissions.check')}"
    return lambda: bearer


def asking(bench: Bench, worker: Worker, instance: Instance, method: str, name: str, requests: Iterable[Message]) -> Load:
    """Return the load of a client that puts `requests` over and over; each must be answered with ALLOW, from memory."""
    file, encoded = bench.stack.home / name, [request.SerializeToString() for request in requests]
    write_requests(file, encoded)
    client, seconds = client_of(bench.stack), bench.extent.policy_seconds
    return Load(worker, instance, method, str(file), "ALLOW", client, seconds, variety=len(encoded), cold=False)


def asking_the_forgetful(bench: Bench, load: Load, instance: Instance, questions: Sequence[Message]) -> Load:
    """Return the load of the same client that goes through `questions` in a circle, which `instance` must have forgotten when they come again."""
    file, count = Path(f"{load.requests}.cold"), bench.extent.cold_checks
    encoded = [question.SerializeToString() for question in questions]
    write_requests(file, list(islice(cycle(encoded), count * (bench.extent.rounds + 1))))
    return replace(load, instance=instance, requests=str(file), cold=True, per_slice=count, concurrency=COLD_AT_ONCE)


def stated(request: permission_pb2.CheckPermissionRequest) -> permission_pb2.CheckPermissionRequest:
    """Return a question as services of the suite put it: they say of which tenant."""
    request.tenant_id = str(DEFAULT_TENANT)
    return request
