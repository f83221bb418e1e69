"""Lanes: one question asked in one way, timed from outside, with what it cost each process on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from bench.counters import answered
from bench.machine import cpu_nanoseconds, family
from bench.stack import Instance
from bench.workers import BenchError, Worker
from services.up.endpoints import RunningInstance

CALL_LIMIT = 10.0  # seconds
CALLERS = 32
TRIES = 3
NOTHING = {"count": 0, "p50": 0.0, "p95": 0.0, "p99": 0.0}


class Waits(Protocol):
    """Whatever was timed, in microseconds."""

    @property
    def p50(self) -> float: ...

    @property
    def p99(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Timed:
    """What a slice of a lane was like. Times are in microseconds.

    late      the p99 of the load's own lateness
    cpu       nanoseconds by process
    failed    answers that were not the expected one, by what they said
    repeated  how often the slice was run before without avail
    """

    answers: int
    seconds: float
    p50: float
    p95: float
    p99: float
    late: float
    cpu: Mapping[str, int]
    failed: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds

    def cost(self, *names: str) -> float:
        """CPU microseconds an answer, of these processes or of all."""
        return sum(self.cpu[name] for name in names or self.cpu) / 1000 / self.answers


@dataclass(frozen=True, slots=True)
class Lane:
    """A question and the way it goes.

    address        host:port for gRPC, a URL for REST
    requests       a file of requests, which are asked in turn
    expected       what every answer must say
    authorization  made anew for each slice: service identities live for a minute
    member         of the JSON that a REST answer is: what it says
    pids           the processes on the way, by name; those that they started count with them
    may_fail       other answers are counted; else a slice that has one is run again, as on a machine so busy that Envoy took an instance for dead
    counted        host:port of the metrics of each instance that answers: what they counted must be what was answered
    """

    worker: Worker
    address: str
    method: str
    requests: Path
    expected: str
    authorization: Callable[[], str] = lambda: ""
    member: str = ""
    pids: Mapping[str, int] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    may_fail: bool = False

    async def closed(self, seconds: float | None, *, callers: int = CALLERS, **more: int) -> Timed:
        """Ask as fast as answers come; without `seconds`, each request once. Raises BenchError."""
        return await self._slice(seconds=seconds, callers=callers, **more)

    async def paced(self, rate: float, seconds: float, *, seed: int) -> Timed:
        """Ask at a rate, whatever becomes of it. Raises BenchError."""
        return await self._slice(seconds=seconds, rate=rate, seed=seed)

    def job(self, **more: Any) -> dict[str, Any]:
        """Return what the worker is told."""
        told = {"address": self.address, "method": self.method, "requests": str(self.requests), "member": self.member, "limit": CALL_LIMIT}
        return {**told, "authorization": self.authorization(), **more}

    async def _slice(self, **more: Any) -> Timed:
        for repeated in range(TRIES):
            timed = await self._once(**more)
            if not timed.failed or self.may_fail:
                return replace(timed, repeated=repeated)
        raise BenchError(f"{self.method} answered {dict(timed.failed)} beside {timed.answers} {self.expected}, {TRIES} times over")

    async def _once(self, **more: Any) -> Timed:
        counted, before = await self._count(), self._cpu()
        answer = await self.worker.ask(**self.job(**more))
        after, told = self._cpu(), answer["told"]
        right = told.pop(self.expected, NOTHING)
        failed = {outcome: one["count"] for outcome, one in told.items()}
        if self.counted and not failed and (own := await self._count() - counted) != right["count"]:
            raise BenchError(f"the instances counted {own} calls of {self.method} that ended with OK, the load {right['count']}")
        if any(before[name].keys() - after[name].keys() for name in after):
            raise BenchError("a process ended while its CPU was measured")
        cost = {name: sum(now - before[name].get(pid, 0) for pid, now in pids.items()) for name, pids in after.items()}
        times = {name: right[name] for name in ("p50", "p95", "p99")}
        return Timed(right["count"], answer["seconds"], **times, late=answer["late"], cpu=cost, failed=failed)

    async def _count(self) -> int:
        return sum([await answered(metrics, self.method) for metrics in self.counted])

    def _cpu(self) -> dict[str, dict[int, int]]:
        return {name: {each: cpu_nanoseconds(each) for each in family(pid)} for name, pid in self.pids.items()}


def waiting(slices: Sequence[Waits]) -> str:
    """Say how long answers took."""
    return f"answers p50 {median(one.p50 for one in slices) / 1000:,.1f} ms, p99 {median(one.p99 for one in slices) / 1000:,.1f} ms"


def instance(one: RunningInstance) -> Instance:
    """Return a suite's instance as what the bench calls one."""
    if one.pid is None:
        raise BenchError(f"{one.name} does not run")
    return Instance(one.address, one.pid, Path(one.log), 0.0, one.metrics.removeprefix("http://").removesuffix("/metrics"))
