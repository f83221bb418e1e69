"""The load: a closed loop of calls on one channel, run as a worker. Each answer is read, and counted under what it says."""

import asyncio
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from bench.workers import Answer, work
from watchword.token.v1 import token_pb2

SERVICE = "/watchword.token.v1.TokenService/"
CALL_LIMIT = 10.0  # seconds

Reading = Callable[[Any], Iterator[str]]


def _verified(answer: token_pb2.VerifyTokenResponse) -> Iterator[str]:
    yield token_pb2.TokenStatus.Name(answer.status)


def _all_verified(answer: token_pb2.BatchVerifyTokensResponse) -> Iterator[str]:
    for one in answer.responses:
        yield from _verified(one)


def _issued(answer: token_pb2.IssueTokenResponse) -> Iterator[str]:
    kind = "ACCESS_AND_REFRESH" if answer.tokens.refresh_token else "ACCESS"
    yield kind if answer.tokens.access_token else "NOTHING"


ANSWERS: dict[str, tuple[Any, Reading]] = {
    "VerifyToken": (token_pb2.VerifyTokenResponse, _verified),
    "BatchVerifyTokens": (token_pb2.BatchVerifyTokensResponse, _all_verified),
    "IssueToken": (token_pb2.IssueTokenResponse, _issued),
}


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
    """One slice of load: for some seconds over and over, or each request once."""

    def __init__(self, job: Answer) -> None:
        self._requests = read_requests(job["requests"])[job["first"] : job["first"] + job["count"]]
        self._seconds: float | None = job["seconds"]
        self._metadata = (("authorization", job["authorization"]),)
        self._next = 0
        self._deadline = 0.0
        self.outcomes: Counter[str] = Counter()
        self.nanoseconds: list[int] = []

    async def run(self, channel: grpc.aio.Channel, method: str, concurrency: int) -> float:
        """Make the calls; return the seconds that they took."""
        answer_class, reading = ANSWERS[method]
        rpc = channel.unary_unary(SERVICE + method, request_serializer=bytes, response_deserializer=answer_class.FromString)
        began = time.monotonic()
        self._deadline = began + (self._seconds or 0)
        await asyncio.gather(*(self._call_on(rpc, reading) for _ in range(concurrency)))
        return time.monotonic() - began

    async def _call_on(self, rpc: Any, reading: Reading) -> None:
        while (request := self._take()) is not None:
            started = time.perf_counter_ns()
            try:
                answer = await rpc(request, metadata=self._metadata, timeout=CALL_LIMIT)
            except grpc.aio.AioRpcError as error:
                self.outcomes[f"{error.code().name} {error.details()}"] += 1
                continue
            self.nanoseconds.append(time.perf_counter_ns() - started)
            self.outcomes.update(reading(answer))

    def _take(self) -> bytes | None:
        if self._seconds is not None:
            if time.monotonic() >= self._deadline:
                return None
        elif self._next >= len(self._requests):
            return None
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        return request


async def main() -> None:
    """Work; channels stay open from slice to slice."""
    channels: dict[str, grpc.aio.Channel] = {}

    async def run(job: Answer) -> Answer:
        address = job["address"]
        if address not in channels:
            channels[address] = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        one = Slice(job)
        seconds = await one.run(channels[address], job["method"], job["concurrency"])
        ordered = sorted(one.nanoseconds) or [0]
        at = {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 for name, share in (("p50", 0.5), ("p99", 0.99))}
        return {"outcomes": one.outcomes, "answers": len(one.nanoseconds), "seconds": seconds, **at}

    await work(run)
    for channel in channels.values():
        await channel.close()


if __name__ == "__main__":
    asyncio.run(main())
