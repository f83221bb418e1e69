"""`watchword.Client`: what many callers at once cost the process that asks and the instance that answers, beside a call for each check."""

from contextlib import AsyncExitStack
from statistics import median
from uuid import uuid4

import grpc

from bench.counters import answered
from bench.deciding import deciders
from bench.figures import Bench, Figure, at_least, beside, circumstances
from bench.machine import cpu_nanoseconds
from bench.slices import WARM_UP_SECONDS, Sample, Side, Spread, interleaved
from bench.stack import Instance, Stack
from bench.workers import BenchError, Worker
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.rbac.v1 import rbac_pb2, rbac_pb2_grpc

CALLERS = 64
# The worker's way of asking, and how many callers do so at once.
WAYS = {"alone": ("alone", CALLERS), "batched": ("batched", CALLERS), "one": ("batched", 1), "remembered": ("remembered", CALLERS)}


async def client(bench: Bench) -> list[Figure]:
    """Measure checks that travel together, checks that travel alone, and checks that stay at home."""
    callers, servers, carried = await _samples(bench)
    rates = {way: [sample.rate for sample in samples] for way, samples in callers.items()}
    served = {way: [sample.rate for sample in samples] for way, samples in servers.items()}
    seconds = {way: [sample.units / sample.seconds for sample in samples] for way, samples in callers.items()}
    gain = at_least(3, of_ratio=True)
    notes = circumstances(callers["batched"])
    return [
        Figure(
            "client.batched.caller",
            f"Client.check, {CALLERS} callers at once: the process that asks",
            "/CPU s",
            Spread.of(rates["batched"]),
            beside("a call each", rates["batched"], rates["alone"]),
            gain,
            notes,
        ),
        Figure(
            "client.batched.server",
            f"Client.check, {CALLERS} callers at once: the instance of rbac",
            "/CPU s",
            Spread.of(served["batched"]),
            beside("a call each", served["batched"], served["alone"]),
            gain,
            (f"{carried:.0f} checks a call",),
        ),
        Figure(
            "client.batched.rate",
            f"Client.check, {CALLERS} callers at once",
            "/s",
            Spread.of(seconds["batched"]),
            beside("a call each", seconds["batched"], seconds["alone"]),
        ),
        Figure(
            "client.one", "Client.check, one caller: the process that asks", "/CPU s", Spread.of(rates["one"]), None, None, _waits(callers["one"])
        ),
        Figure("client.remembered", "Client.check, remembered", "/CPU s", Spread.of(rates["remembered"]), None, at_least(200_000)),
    ]


async def _samples(bench: Bench) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]], float]:
    """Return what the process that asks cost, and what the instance cost, by way; and how many checks a call carried, by the instance's count."""
    stack, servers, carried, user = bench.stack, dict[str, list[Sample]](), dict[str, list[float]](), str(uuid4())
    access = stack.signer.client_token("permissions.check")
    async with AsyncExitStack() as running:
        [rbac] = await running.enter_async_context(deciders(stack, await stack.new_database(), core=stack.cores.measured))
        await _bind(stack, rbac, user)
        asking = await running.enter_async_context(stack.worker("bench.asking", rbac.address, access, user))

        def side(name: str, way: str, callers: int) -> Side:
            async def ask(number: int) -> Sample:
                calls, before = await _calls(rbac), cpu_nanoseconds(rbac.pid)
                sample = await _ask(asking, way, callers, WARM_UP_SECONDS if number < 0 else bench.extent.seconds)
                cost, calls = cpu_nanoseconds(rbac.pid) - before, await _calls(rbac) - calls
                if way == "alone" and calls != sample.units:
                    raise BenchError(f"the instance counted {calls} calls, the callers {sample.units}")
                if number >= 0:
                    servers.setdefault(name, []).append(Sample(sample.units, max(1, cost), sample.seconds))
                    carried.setdefault(name, []).append(sample.units / max(1, calls))
                return sample

            return ask

        samples = await interleaved({name: side(name, *way) for name, way in WAYS.items()}, bench.extent.rounds, bench.say)
    return samples, servers, median(carried["batched"])


async def _calls(rbac: Instance) -> int:
    """Return how many calls with checks the instance has answered."""
    return await answered(rbac.metrics or "", "CheckPermission") + await answered(rbac.metrics or "", "BatchCheckPermissions")


async def _ask(worker: Worker, way: str, callers: int, seconds: float) -> Sample:
    return Sample(**await worker.ask(way=way, callers=callers, seconds=seconds))


async def _bind(stack: Stack, rbac: Instance, user: str) -> None:
    """Give a user a role, as identity does."""
    metadata = (("authorization", f"Bearer {stack.keys.identity('identity').token_for('rbac')}"),)
    subject = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=user)
    async with grpc.aio.insecure_channel(rbac.address) as channel:
        stub: rbac_pb2_grpc.RoleBindingServiceAsyncStub = rbac_pb2_grpc.RoleBindingServiceStub(channel)
        for role in ("watchword.admin", "watchword.user-manager"):
            request = rbac_pb2.CreateRoleBindingRequest(subject=subject, role_name=role, tenant_id=str(DEFAULT_TENANT))
            await stub.CreateRoleBinding(request, metadata=metadata, timeout=10)


def _waits(samples: list[Sample]) -> tuple[str, ...]:
    return circumstances(samples)[1:]
