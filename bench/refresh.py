"""Refreshes: what a successor costs the instance of token, and what it costs the whole way from a session's owner."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median

import grpc

from bench.counters import answered
from bench.figures import Bench, Figure, beside
from bench.floor import echoing
from bench.lanes import instance, waiting
from bench.machine import cpu_nanoseconds
from bench.material import REVISION
from bench.people import people
from bench.slices import WARM_UP_SECONDS, Sample, Spread, raw
from bench.suite import Suite
from bench.workers import BenchError, Worker
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.token.v1 import token_pb2, token_pb2_grpc

CHAINS = 16  # sessions, each of which refreshes all the time
OWNERS = 4  # of the sessions of the whole way


@dataclass(frozen=True, slots=True)
class Refreshes:
    """One way of refreshing. `pids` are the processes on it, by name; `metrics` is where the calls of `method` are counted."""

    worker: Worker
    method: str
    authorization: Callable[[], str]
    pids: dict[str, int]
    metrics: str

    async def run(self, seconds: float) -> tuple[Sample, dict[str, int]]:
        """Refresh for `seconds`; return what it cost in all, and each process. Raises BenchError."""
        counted, before = await answered(self.metrics, self.method), self._cpu()
        told = await self.worker.ask(authorization=self.authorization(), revision=REVISION, seconds=seconds)
        cost = {name: cpu - before[name] for name, cpu in self._cpu().items()}
        if (own := await answered(self.metrics, self.method) - counted) != told["count"]:
            raise BenchError(f"the instance counted {own} calls of {self.method} that ended with OK, the load {told['count']}")
        return Sample(told["count"], sum(cost.values()), told["seconds"], told["p50"], told["p99"]), cost

    def _cpu(self) -> dict[str, int]:
        return {name: cpu_nanoseconds(pid) for name, pid in self.pids.items()}


async def refresh(bench: Bench) -> list[Figure]:
    """Measure both, beside an echo and a signature."""
    suite, extent, stack = await bench.suites.get(), bench.extent, bench.stack
    suite.arrange("token")
    rounds, seconds = (1, 0.6) if extent.quick else (3, 2.5)
    found: dict[str, list[Sample]] = {name: [] for name in ("RefreshToken", "RefreshSession", "echo", "sign")}
    costs: list[dict[str, int]] = []
    async with AsyncExitStack() as running:
        ways = [await running.enter_async_context(_way(bench, suite, method)) for method in ("RefreshToken", "RefreshSession")]
        load = await running.enter_async_context(stack.worker("bench.load"))
        echo = await running.enter_async_context(echoing(stack, instance(suite.one("token")), load, seconds / 2))
        sign = raw(await running.enter_async_context(stack.worker("bench.raw", str(stack.key_file), measured=True)), "sign", seconds / 3)
        for number in range(-1, rounds):
            for way in ways:
                sample, cost = await way.run(WARM_UP_SECONDS if number < 0 else seconds)
                if number >= 0:
                    found[way.method].append(sample)
                    bench.say(f"round {number + 1}/{rounds}  {way.method:<15} {sample.cost:7.1f} µs CPU, p50 {sample.p50 / 1000:.1f} ms")
                if number >= 0 and way.method == "RefreshSession":
                    costs.append(cost)
            for name, side in (("echo", echo), ("sign", sign)):
                sample = await side(number)
                if number >= 0:
                    found[name].append(sample)
    return _figures(found, costs)


def _figures(found: dict[str, list[Sample]], costs: list[dict[str, int]]) -> list[Figure]:
    floor = [echo.cost + sign.cost for echo, sign in zip(found["echo"], found["sign"], strict=True)]
    names = {
        "RefreshToken": "an instance of token alone, asked by identity",
        "RefreshSession": "identity, token, rbac and Envoy, asked by the session's owner",
    }
    shares = ", ".join(
        f"{name} {median(one[name] for one in costs) / 1000 / median(sample.units for sample in found['RefreshSession']):.0f}" for name in costs[0]
    )
    figures = []
    for method, whom in names.items():
        own = [one.cost for one in found[method]]
        waits = f"{CHAINS} sessions at once, {waiting(found[method])}"
        notes = (waits, f"µs: {shares}") if method == "RefreshSession" else (waits,)
        name = f"refresh.{'token' if method == 'RefreshToken' else 'session'}"
        figures.append(
            Figure(
                name,
                f"{method}, one transaction on disk: CPU of {whom}",
                "µs/call",
                Spread.of(own),
                beside("echo and signing", own, floor),
                None,
                notes,
            )
        )
    return figures


@asynccontextmanager
async def _way(bench: Bench, suite: Suite, method: str) -> AsyncIterator[Refreshes]:
    kept, token = bench.stack.home / f"{method}.tokens", suite.one("token")
    owners = [person.id for person in await people(suite, OWNERS)]
    kept.write_text("\n".join(await _sessions(suite, owners)), encoding="ascii")
    counted = suite.one("token" if method == "RefreshToken" else "identity")
    address = token.address if method == "RefreshToken" else suite.endpoints.grpc
    on_way = ("token",) if method == "RefreshToken" else ("identity", "token", "rbac", "envoy")
    pids = {name: suite.one(name).pid or 0 for name in on_way}
    async with bench.stack.worker("bench.refreshing", address, method, str(kept)) as worker:
        yield Refreshes(worker, method, lambda: suite.peer("identity", to="token"), pids, instance(counted).metrics or "")


async def _sessions(suite: Suite, owners: list[str]) -> list[str]:
    """Open sessions as identity does after a login; return their refresh tokens."""
    metadata = (("authorization", suite.peer("identity", to="token")),)
    async with grpc.aio.insecure_channel(suite.one("token").address) as channel:
        stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(channel)
        opened = []
        for number in range(CHAINS):
            request = token_pb2.IssueTokenRequest(
                subject=owners[number % len(owners)],
                tenant_id=str(DEFAULT_TENANT),
                type=token_pb2.PRINCIPAL_TYPE_USER,
                scopes=["account"],
                acr="pwd",
                with_refresh_token=True,
                revision=REVISION,
            )
            opened.append((await stub.IssueToken(request, metadata=metadata, timeout=10)).tokens.refresh_token)
    return opened
