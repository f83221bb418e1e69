"""Subscribers: many WatchRevocations streams from one process, run as a worker. They listen and do nothing."""

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc

from bench.workers import Answer, work
from watchword.token.v1 import token_pb2, token_pb2_grpc

Stream = Any  # grpc.aio.StreamStreamCall, whose types want subscripts that it does not take at run time

PER_CHANNEL = 500  # streams; a server takes a limited number on a connection
AT_ONCE = 50  # streams being opened


class Subscribers:
    """The streams."""

    def __init__(self, address: str, authorization: str, running: AsyncExitStack) -> None:
        self._address = address
        self._metadata = (("authorization", authorization),)
        self._running = running
        self._stubs: list[token_pb2_grpc.TokenServiceAsyncStub] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._opening = asyncio.Semaphore(AT_ONCE)
        self.messages = 0

    @property
    def alive(self) -> int:
        """How many go on."""
        return sum(not task.done() for task in self._tasks)

    async def grow(self, count: int) -> None:
        """Open streams until there are `count`; return once each has its snapshot and first checkpoint, or has failed."""
        current: list[asyncio.Future[None]] = []
        while len(self._tasks) < count:
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            stub = await self._stub(len(self._tasks) // PER_CHANNEL)
            self._tasks.append(asyncio.create_task(self._listen(stub, ready)))
            current.append(ready)
        await asyncio.gather(*current)

    async def _stub(self, number: int) -> "token_pb2_grpc.TokenServiceAsyncStub":
        if number == len(self._stubs):
            options = [("grpc.use_local_subchannel_pool", 1)]  # else all channels share one connection
            channel = await self._running.enter_async_context(grpc.aio.insecure_channel(self._address, options=options))
            self._stubs.append(token_pb2_grpc.TokenServiceStub(channel))
        return self._stubs[number]

    async def _listen(self, stub: "token_pb2_grpc.TokenServiceAsyncStub", ready: "asyncio.Future[None]") -> None:
        try:
            async with self._opening:
                call = stub.WatchRevocations(metadata=self._metadata)
                await call.write(token_pb2.WatchRevocationsRequest())
                while not (await self._next(call)).HasField("checkpoint"):
                    pass
            ready.set_result(None)
            while True:
                await self._next(call)
        except (grpc.aio.AioRpcError, EOFError) as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            if not ready.done():
                ready.set_result(None)

    async def _next(self, call: Stream) -> token_pb2.WatchRevocationsResponse:
        message = await call.read()
        if not isinstance(message, token_pb2.WatchRevocationsResponse):
            raise EOFError("the stream ended")
        self.messages += 1
        return message

    def close(self) -> None:
        """End all streams."""
        for task in self._tasks:
            task.cancel()


async def main(address: str, authorization: str) -> None:
    """Work: `count` grows the crowd, and every job answers how it is."""
    async with AsyncExitStack() as running:
        crowd = Subscribers(address, authorization, running)
        running.callback(crowd.close)

        async def run(job: Answer) -> Answer:
            began = time.monotonic()
            await crowd.grow(job["count"])
            return {"alive": crowd.alive, "messages": crowd.messages, "seconds": time.monotonic() - began}

        await work(run)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
