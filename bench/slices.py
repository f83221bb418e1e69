"""Slices: short runs of each side in turn, A B C A B C, because a noisy machine is noisy to all of them for longer than a slice."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.counters import answered, believing, loaded
from bench.machine import cpu_nanoseconds
from bench.material import ServiceKeys
from bench.stack import Instance
from bench.workers import BenchError, Worker

CONCURRENCY = 32
WARM_UP_SECONDS = 0.5
ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """What one slice cost the process that is measured."""

    units: int
    cpu: int  # nanoseconds
    seconds: float
    p50: float = 0.0  # microseconds, as the load saw it
    p99: float = 0.0
    longest: float = 0.0

    @property
    def cost(self) -> float:
        """CPU microseconds a unit."""
        return self.cpu / 1000 / self.units

    @property
    def rate(self) -> float:
        """Units a second of CPU, which is a second of one core."""
        return self.units * 1e9 / self.cpu

    @property
    def busy(self) -> float:
        """Share of its core that was used."""
        return self.cpu / 1e9 / self.seconds


Side = Callable[[int], Awaitable[Sample]]  # round number, from 0; -1 is the warm-up


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum `values` up."""
        return cls(median(values), min(values), max(values))


async def interleaved(sides: Mapping[str, Side], rounds: int, say: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Return the samples of each side, by round, after a warm-up of all."""
    for side in sides.values():
        await side(-1)
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            sample = await side(number)
            samples[name].append(sample)
            say(f"round {number + 1}/{rounds}  {name:<28} {sample.cost:9.1f} µs CPU  {sample.rate:9.0f}/CPU s  core {sample.busy:4.0%} busy")
    return samples


@dataclass(frozen=True, slots=True)
class Load:
    """Calls to one instance, whose every answer must say `expected`.

    requests       a file of requests
    per_slice      each request once, this many a slice; None repeats the first `variety` of them for `seconds`
    units          what one request counts for
    cold           whether rbac must count a read of Postgres for each answer, or else none; None asks for neither
    rate           calls a second, whether others have answered or not
    authorization  made anew for each slice: service identities live for a minute
    """

    worker: Worker
    instance: Instance
    method: str
    requests: str
    expected: str
    authorization: Callable[[], str]
    seconds: float
    per_slice: int | None = None
    variety: int = 1
    units: int = 1
    concurrency: int = CONCURRENCY
    cold: bool | None = None
    rate: float | None = None

    async def __call__(self, number: int) -> Sample:
        """Run one slice, and again if it was not as `cold` says: whose lease ended on a busy machine, that instance reads once, and remembers again.

        Raises  BenchError if an answer is not the expected one, or the instance counted otherwise
        """
        for _ in range(ATTEMPTS):
            if self.cold is False and self.instance.metrics is not None:
                await believing(self.instance.metrics)
            before = await self._loaded()
            sample = await self._slice(number)
            loads = await self._loaded() - before
            if self.cold is None or self.instance.metrics is None or loads * self.units == sample.units * self.cold:
                return sample
        raise BenchError(f"{loads} reads of Postgres for {sample.units} answers to {self.method}, {ATTEMPTS} times; see {self.instance.log}")

    async def _slice(self, number: int) -> Sample:
        counted = await self._counted()
        before = cpu_nanoseconds(self.instance.pid)
        answer = await self.worker.ask(
            address=self.instance.address,
            method=self.method,
            requests=self.requests,
            authorization=self.authorization(),
            concurrency=self.concurrency,
            rate=self.rate,
            **self._extent(number),
        )
        cpu = cpu_nanoseconds(self.instance.pid) - before
        units = answer["answers"] * self.units
        if answer["outcomes"] != {self.expected: units}:
            raise BenchError(f"{self.method} answered {answer['outcomes']}, not {units} times {self.expected}; see {self.instance.log}")
        if self.instance.metrics is not None and (told := await self._counted() - counted) != answer["answers"]:
            raise BenchError(f"the instance counted {told} calls of {self.method} that ended with OK, the load {answer['answers']}")
        return Sample(units, cpu, answer["seconds"], answer["p50"], answer["p99"], answer["longest"])

    async def _counted(self) -> int:
        return 0 if self.instance.metrics is None else await answered(self.instance.metrics, self.method)

    async def _loaded(self) -> int:
        return 0 if self.instance.metrics is None or self.cold is None else await loaded(self.instance.metrics)

    def _extent(self, number: int) -> dict[str, float | None]:
        """The warm-up has requests of its own: the first ones of the file."""
        if self.per_slice is None:
            return {"first": 0, "count": self.variety, "seconds": WARM_UP_SECONDS if number < 0 else self.seconds}
        return {"first": (number + 1) * self.per_slice, "count": self.per_slice, "seconds": None}


def raw(worker: Worker, operation: str, seconds: float) -> Side:
    """Return a side that does nothing but `operation` ("sign", "verify")."""

    async def side(number: int) -> Sample:
        answer = await worker.ask(do=operation, seconds=WARM_UP_SECONDS if number < 0 else seconds)
        return Sample(**answer)

    return side


def service_authorization(keys: ServiceKeys, name: str, called: str = "token") -> Callable[[], str]:
    """Return what writes the authorization of service `name`, calling `called`."""
    identity = keys.identity(name)
    return lambda: f"Bearer {identity.token_for(called)}"
