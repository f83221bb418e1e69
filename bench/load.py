"""The load, run as a worker: calls on one channel, each answer read and counted under what it says.

A closed loop makes the next call when one has answered, and so shows what a call costs. At a fixed rate calls come as they would from outside,
whether others have answered or not; each is timed from when it was due, so that whoever is held up shows in full.
"""

import asyncio
import struct
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from bench.methods import METHODS, Method
from bench.workers import Answer, work

CALL_LIMIT = 10.0  # seconds


def write_requests(path: Path, requests: Sequence[bytes]) -> None:
    """Write serialized requests to where `read_requests` finds them."""
    path.write_bytes(b"".join(struct.pack(">I", len(request)) + request for request in requests))


@cache
def read_requests(path: str) -> list[bytes]:
    """Return the requests of a file."""
    raw, found, at = Path(path).read_bytes(), [], 0
    while at < len(raw):
        (size,) = struct.unpack_from(">I", raw, at)
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return found


class Slice:
    """One slice of load: for some seconds over and over, at a rate or as fast as answers come; or each request once."""

    def __init__(self, job: Answer) -> None:
        self._requests = read_requests(job["requests"])[job["first"] : job["first"] + job["count"]]
        self._seconds: float | None = job["seconds"]
        self._every = 0 if job["rate"] is None else int(1e9 / job["rate"])  # nanoseconds
        self._metadata = (("authorization", job["authorization"]),)
        self._next = 0
        self.outcomes: Counter[str] = Counter()
        self.nanoseconds: list[int] = []

    async def run(self, channel: grpc.aio.Channel, method: Method, concurrency: int) -> float:
        """Make the calls; return the seconds that they took."""
        rpc = channel.unary_unary(method.path, request_serializer=bytes, response_deserializer=method.answer.FromString)
        self._began = time.perf_counter_ns()
        await asyncio.gather(*(self._call_on(rpc, method) for _ in range(concurrency)))
        return (time.perf_counter_ns() - self._began) / 1e9

    async def _call_on(self, rpc: Any, method: Method) -> None:
        while (request := self._take()) is not None:
            started = await self._due()
            try:
                answer = await rpc(request, metadata=self._metadata, timeout=CALL_LIMIT)
            except grpc.aio.AioRpcError as error:
                self.outcomes[f"{error.code().name} {error.details()}"] += 1
                continue
            self.nanoseconds.append(time.perf_counter_ns() - started)
            self.outcomes.update(method.reading(answer))

    def _take(self) -> bytes | None:
        if self._seconds is not None:
            now = self._began + self._next * self._every if self._every else time.perf_counter_ns()
            if now - self._began >= self._seconds * 1e9:
                return None
        elif self._next >= len(self._requests):
            return None
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        return request

    async def _due(self) -> int:
        """Wait until the call that was taken is due; return when that was."""
        if not self._every:
            return time.perf_counter_ns()
        due = self._began + (self._next - 1) * self._every
        await asyncio.sleep(max(0, due - time.perf_counter_ns()) / 1e9)
        return due


async def main() -> None:
    """Work; channels stay open from slice to slice."""
    channels: dict[str, grpc.aio.Channel] = {}

    async def run(job: Answer) -> Answer:
        address = job["address"]
        if address not in channels:
            channels[address] = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        one = Slice(job)
        seconds = await one.run(channels[address], METHODS[job["method"]], job["concurrency"])
        ordered = sorted(one.nanoseconds) or [0]
        shares = {"p50": 0.5, "p99": 0.99, "longest": 1.0}
        at = {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 for name, share in shares.items()}
        return {"outcomes": one.outcomes, "answers": len(one.nanoseconds), "seconds": seconds, **at}

    await work(run)
    for channel in channels.values():
        await channel.close()


if __name__ == "__main__":
    asyncio.run(main())
