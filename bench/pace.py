"""Load of two kinds, run as a worker: a closed loop finds out how much is answered at most, an open one how long answers take at a given rate.

The open loop follows a schedule that was drawn before: calls are due at random moments, as those of many callers who do not know of each other, and
each is timed from the moment when it was due. So a server, or a load, that is late for one call is late for all that were due meanwhile: nothing
is omitted, in Gil Tene's words, by waiting together with the server.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle

import grpc

from bench.alarm import BILLION, Alarm
from bench.calls import Call, Grpc, Rest
from bench.load import read_requests
from bench.workers import Answer, BenchError, work

MOST_OUT = 5_000  # calls under way: with more, the rate is far beyond what can be answered
SHARES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


class Times:
    """What became of calls, and how long each kind of answer took."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._nanoseconds: dict[str, list[int]] = {}

    def note(self, outcome: str, nanoseconds: int) -> None:
        """Count one."""
        self.outcomes[outcome] += 1
        self._nanoseconds.setdefault(outcome, []).append(nanoseconds)

    def told(self) -> Answer:
        """Return counts and microseconds, by outcome."""
        return {outcome: {"count": len(took), **percentiles(took)} for outcome, took in self._nanoseconds.items()}


def percentiles(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Return p50, p95 and p99 in microseconds."""
    ordered = sorted(nanoseconds)
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 for name, share in SHARES}


async def closed(call: Call, requests: Sequence[bytes], *, callers: int, seconds: float | None, times: Times) -> None:
    """Have `callers` call one after another, for `seconds`, or each request once."""
    until, left = time.monotonic() + (seconds or 0), iter(requests)

    def following() -> Iterator[bytes]:
        """Yield what one caller asks."""
        if seconds is None:
            yield from left
        for request in cycle(requests):
            if seconds is None or time.monotonic() >= until:
                return
            yield request

    async def go_on() -> None:
        for request in following():
            began = time.monotonic_ns()
            times.note(await call(request), time.monotonic_ns() - began)

    await asyncio.gather(*(go_on() for _ in range(callers)))


def schedule(rate: float, seconds: float, seed: int) -> list[int]:
    """Return when calls are due, in nanoseconds from the beginning: at random, `rate` a second in the mean."""
    drawn = random.Random(seed)
    gaps = (drawn.expovariate(rate) for _ in range(int(rate * seconds)))
    return [int(moment * BILLION) for moment in accumulate(gaps)]


class Paced:
    """An open loop: makes each call when it is due, whether or not others were answered. What is due after `split` seconds is noted in `later`."""

    def __init__(self, call: Call, requests: Sequence[bytes], times: Times, *, later: Times | None = None, split: float = 0.0) -> None:
        self._call = call
        self._requests = requests
        self._times, self._later = times, later or times
        self._split = int(split * BILLION)
        self._out: set[asyncio.Task[None]] = set()
        self._late: list[int] = []

    async def run(self, due: Sequence[int]) -> float:
        """Make a call for each moment of `due`; return the p99 of how many microseconds the load itself was late. Raises BenchError."""
        begin, left, done = time.monotonic_ns() + BILLION // 100, iter(enumerate(due)), asyncio.Event()
        pending = next(left, None)

        def ring() -> None:
            nonlocal pending
            now = time.monotonic_ns()
            while pending is not None and begin + pending[1] <= now:
                self._begin(pending[0], begin + pending[1], now, self._times if pending[1] < self._split else self._later)
                pending = next(left, None)
            if pending is None or len(self._out) > MOST_OUT:
                done.set()
            else:
                alarm.set(begin + pending[1])

        alarm = Alarm(ring)
        try:
            alarm.set(begin)
            await done.wait()
            if pending is not None:
                raise BenchError(f"{len(self._out)} calls are under way: more is asked than can be answered")
            await asyncio.gather(*self._out)
        finally:
            alarm.close()
        return percentiles(self._late)["p99"]

    def _begin(self, number: int, due: int, now: int, times: Times) -> None:
        self._late.append(now - due)
        task = asyncio.ensure_future(self._make(self._requests[number % len(self._requests)], due, times))
        self._out.add(task)
        task.add_done_callback(self._out.discard)

    async def _make(self, request: bytes, due: int, times: Times) -> None:
        times.note(await self._call(request), time.monotonic_ns() - due)


class Jobs:
    """What the worker can be asked to do. Channels and connections stay open from job to job."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._rest: dict[tuple[str, str], Rest] = {}

    async def do(self, job: Answer) -> Answer:
        """Make the calls of one job."""
        requests, times, later = read_requests(job["requests"]), Times(), Times()
        requests = requests[job.get("first", 0) :][: job.get("count") or None]
        call, late, began = self._call(job), 0.0, time.monotonic()
        if rate := job.get("rate"):
            paced = Paced(call, requests, times, later=later if "split" in job else None, split=job.get("split", 0.0))
            late = await paced.run(schedule(rate, job["seconds"], job["seed"]))
        else:
            await closed(call, requests, callers=job["callers"], seconds=job["seconds"], times=times)
        return {"told": times.told(), "later": later.told(), "seconds": time.monotonic() - began, "late": late}

    def _call(self, job: Answer) -> Call:
        address, authorization = job["address"], job["authorization"]
        if not address.startswith("http"):
            if address not in self._channels:
                self._channels[address] = grpc.aio.insecure_channel(address)
            return Grpc(self._channels[address], job["method"], authorization, job["limit"])
        if (address, authorization) not in self._rest:
            self._rest[address, authorization] = Rest(address, authorization, job["member"])
        return self._rest[address, authorization]

    async def close(self) -> None:
        """Close what is open."""
        for channel in self._channels.values():
            await channel.close()
        for rest in self._rest.values():
            rest.close()


async def main() -> None:
    """Work."""
    jobs = Jobs()
    await work(jobs.do)
    await jobs.close()


if __name__ == "__main__":
    asyncio.run(main())
