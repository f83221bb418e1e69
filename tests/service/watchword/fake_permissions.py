"""PermissionService as a client sees it, with everything in the test's hands: when it answers and what, and which changes it tells of.

It speaks real gRPC through the generated service, so that calls are cancelled, expire and break as they do.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc

from tests.conftest import eventually
from watchword import Client, status
from watchword.errors import WatchwordError
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.staleness import Patience

QUICK = Patience(silence=0.4, first_pause=0.01, last_pause=0.05)

Context = grpc.aio.ServicerContext[Any, Any]
Question = permission_pb2.CheckPermissionRequest
Answer = permission_pb2.CheckPermissionResponse
Event = permission_pb2.WatchPermissionsResponse


def allow(**more: Any) -> Answer:
    """Return an ALLOW."""
    return Answer(**{"decision": permission_pb2.ALLOW, "reason": permission_pb2.GRANTED, **more})


def deny(**more: Any) -> Answer:
    """Return a DENY."""
    return Answer(**{"decision": permission_pb2.DENY, "reason": permission_pb2.NO_PERMISSION, **more})


@dataclass
class Stream:
    """One stream of a client, as the server sees it."""

    cursor: str
    arrived: float
    says: asyncio.Queue[Event | grpc.StatusCode] = field(default_factory=asyncio.Queue)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def checkpoint(self, state: str, *, elapsed: float | None = None) -> None:
        """Say that everything until now, or `elapsed` seconds after the stream began, was told; it leads to `state`."""
        event = Event(checkpoint=Event.Checkpoint(consistency_token=state), cursor=f"at-{state}")
        seconds = time.monotonic() - self.arrived if elapsed is None else elapsed
        event.checkpoint.elapsed.FromTimedelta(timedelta(seconds=seconds))
        self.says.put_nowait(event)

    def change(self, state: str, *users: str, all_subjects: bool = False, types: dict[str, int] | None = None) -> None:
        """Say that a change touched `users`, or subjects of other `types`."""
        kinds = {**dict.fromkeys(users, 1), **(types or {})}
        subjects = [rbac_pb2.Subject(type=rbac_pb2.SubjectType.ValueType(kind), id=name) for name, kind in kinds.items()]
        change = permission_pb2.PermissionChange(subjects=subjects, all_subjects=all_subjects, consistency_token=state)
        self.says.put_nowait(Event(change=change, cursor=f"at-{state}"))

    def reset(self) -> None:
        """Say that something may be missing."""
        self.says.put_nowait(Event(reset=Event.Reset(), cursor="at-reset"))

    def end(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """Break it off."""
        self.says.put_nowait(code)


@dataclass
class FakePermissions:
    """What clients call. `answer` is asked for each question; `gate` holds every call until it is open."""

    address: str = ""
    answer: Callable[[Question], Answer] = lambda _: deny()
    singles: list[Question] = field(default_factory=list)
    batches: list[permission_pb2.BatchCheckPermissionsRequest] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    failures: list[WatchwordError] = field(default_factory=list)  # one for each call to come
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    cancelled: int = 0
    shorten: bool = False  # whether batches are answered one short
    streams: list[Stream] = field(default_factory=list)
    state: str = "s0"  # what a new stream begins with; empty: the test itself says everything
    beats: bool = True  # whether streams get checkpoints by themselves

    async def CheckPermission(self, request: Question, context: Context) -> Answer:
        self.singles.append(request)
        await self._serve(context)
        return self.answer(request)

    async def BatchCheckPermissions(
        self, request: permission_pb2.BatchCheckPermissionsRequest, context: Context
    ) -> permission_pb2.BatchCheckPermissionsResponse:
        self.batches.append(request)
        await self._serve(context)
        answers = [self.answer(one) for one in request.requests]
        return permission_pb2.BatchCheckPermissionsResponse(responses=answers[:-1] if self.shorten else answers)

    async def _serve(self, context: Context) -> None:
        self.deadlines.append(context.time_remaining() or 0.0)
        self.tokens.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
        self.waiting += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        if self.failures:
            error = self.failures.pop(0)
            await context.abort(status.grpc_code(error), error.text, ((status.DETAILS_KEY, status.encode(error).SerializeToString()),))

    async def WatchPermissions(self, request: permission_pb2.WatchPermissionsRequest, context: Context) -> AsyncIterator[Event]:
        stream = Stream(request.cursor, time.monotonic())
        self.streams.append(stream)
        if self.state:
            stream.checkpoint(self.state)
        beating = asyncio.create_task(self._beat(stream))
        try:
            while not isinstance(event := await stream.says.get(), grpc.StatusCode):
                yield event
            await context.abort(event)
        finally:
            stream.ended.set()
            beating.cancel()

    async def _beat(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(0.05)
            if self.beats and self.state:
                stream.checkpoint(self.state)

    @property
    def stream(self) -> Stream:
        """The present stream."""
        return self.streams[-1]

    @property
    def asked(self) -> int:
        """How many questions arrived."""
        return len(self.singles) + sum(len(batch.requests) for batch in self.batches)

    async def opened(self, count: int) -> Stream:
        """Wait until so many streams were opened; return the last of them."""

        async def are_open() -> bool:
            return len(self.streams) >= count

        await eventually(are_open)
        return self.streams[count - 1]

    async def held(self, calls: int) -> None:
        """Wait until so many calls stand at the gate."""

        async def stand() -> bool:
            return self.waiting == calls

        await eventually(stand)

    def client(self, **options: Any) -> Client:
        """Return a client of this, not started."""
        return Client(self.address, **{"credentials": own_token, "patience": QUICK, **options})


async def own_token() -> str:
    """The token of the process that asks."""
    return "own"


@asynccontextmanager
async def fake_permissions() -> AsyncIterator[FakePermissions]:
    """Serve a fake on loopback until the block ends."""
    server, fake = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), FakePermissions()
    fake.gate.set()
    servicer: Any = permission_pb2_grpc.PermissionServiceServicer()  # type: ignore[abstract]
    for method in ("CheckPermission", "BatchCheckPermissions", "WatchPermissions"):
        setattr(servicer, method, getattr(fake, method))
    permission_pb2_grpc.add_PermissionServiceServicer_to_server(servicer, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)
