"""A process that asks for permissions, run as a worker: many callers at once, each in a loop, as the handlers of a server are."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import grpc

from bench.workers import Answer, BenchError, work
from watchword import Client, Subject
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc

PERMISSION = "users.read"
CALL_LIMIT = 10.0  # seconds

Ask = Callable[[], Awaitable[bool]]


class Asking:
    """What the worker can be asked to do."""

    def __init__(self, ways: dict[str, Ask]) -> None:
        self._ways = ways

    async def do(self, job: Answer) -> Answer:
        """Have `callers` ask for `seconds` in one of the ways; every answer must be yes."""
        self._ask = self._ways[job["way"]]
        self._nanoseconds: list[int] = []
        began, before = time.monotonic(), time.process_time_ns()
        await asyncio.gather(*(self._call(began + job["seconds"]) for _ in range(job["callers"])))
        cpu, seconds = time.process_time_ns() - before, time.monotonic() - began
        took = sorted(self._nanoseconds)
        p50, p99 = (took[int(len(took) * share)] / 1000 for share in (0.5, 0.99))
        return {"units": len(took), "cpu": cpu, "seconds": seconds, "p50": p50, "p99": p99}

    async def _call(self, until: float) -> None:
        while time.monotonic() < until:
            began = time.perf_counter_ns()
            if not await self._ask():
                raise BenchError("the subject may not what it may")
            self._nanoseconds.append(time.perf_counter_ns() - began)


async def main(address: str, token: str, user: str) -> None:
    """Work."""
    subject = Subject.parse(f"user:{user}")
    question = permission_pb2.CheckPermissionRequest(subject=subject.wire, permission=PERMISSION)
    metadata = (("authorization", f"Bearer {token}"),)

    async def own() -> str:
        return token

    async with (
        grpc.aio.insecure_channel(address) as channel,
        Client(address, credentials=own) as together,
        Client(address, credentials=own, cache_size=1000) as remembering,
    ):
        stub: permission_pb2_grpc.PermissionServiceAsyncStub = permission_pb2_grpc.PermissionServiceStub(channel)

        async def alone() -> bool:
            return (await stub.CheckPermission(question, metadata=metadata, timeout=CALL_LIMIT)).decision == permission_pb2.ALLOW

        async def batched() -> bool:
            return (await together.check(subject, PERMISSION)).allowed

        async def remembered() -> bool:
            return (await remembering.check(subject, PERMISSION)).allowed

        await work(Asking({"alone": alone, "batched": batched, "remembered": remembered}).do)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
