"""Checks on their way: those of one turn of the event loop travel together, without being asked to.

A question waits for the end of the turn in which it was asked, no longer. What was asked with the same demand of freshness until then becomes one
BatchCheckPermissions, in the order of asking; one alone becomes a CheckPermission. Nobody who waits can hurt another: each has its own future and
its own deadline, and a batch ends early only when nobody waits for it any more.
"""

import asyncio
import contextvars
import logging
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import grpc

from watchword import status
from watchword.common.v1 import consistency_pb2
from watchword.credentials import OwnToken
from watchword.errors import DeadlineExceeded, Unavailable, WatchwordError
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc

MAX_QUESTIONS = 1000  # in a batch: BatchCheckPermissions takes no more
MAX_BYTES = 512 * 1024  # of a batch: rbac takes messages of 1 MiB

Question = permission_pb2.CheckPermissionRequest
Answer = permission_pb2.CheckPermissionResponse

log = logging.getLogger("watchword")


class Line(Protocol):
    """A way to the suite, such as a started TokenVerifier."""

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel."""

    @property
    def own(self) -> OwnToken:
        """The token that this process calls with."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a question ended in. Each who waits raises a copy, so that tracebacks do not mix."""

    error: WatchwordError


@dataclass(eq=False, slots=True)
class _Asked:
    """A question, and who waits for its answer."""

    question: Question
    answer: "asyncio.Future[Answer | _Failed]"
    timeout: float
    batch: "_Batch | None" = None

    def settle(self, answer: Answer | _Failed) -> None:
        """Answer, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)


@dataclass(eq=False, slots=True)
class _Batch:
    """What travels together."""

    asked: list[_Asked]
    demand: str
    task: "asyncio.Task[None] | None" = None

    def leave(self) -> None:
        """Somebody waits no more: without anybody there is no need to go on."""
        if self.task is not None and all(one.answer.done() for one in self.asked):
            self.task.cancel()


class Questions:
    """Sends questions on `line`. Of one event loop; may be made outside of it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._channel: grpc.aio.Channel | None = None
        self._gathered: dict[str, list[_Asked]] = {}
        self._batches: set[_Batch] = set()
        self._context = contextvars.copy_context()  # whoever asks first in a turn must not lend a batch his

    async def ask(self, question: Question, *, demand: str, timeout: float) -> Answer:
        """Return the answer.

        demand   a consistency token that the answer must be at least as fresh as; empty for none
        timeout  seconds
        Raises   what the call failed by; DeadlineExceeded; Unavailable after `stop`
        """
        loop = asyncio.get_running_loop()
        if not self._gathered:
            loop.call_soon(self._send, context=self._context)
        asked = _Asked(question, loop.create_future(), timeout)
        self._gathered.setdefault(demand, []).append(asked)
        try:
            answer = await asked.answer
        except asyncio.CancelledError:
            if asked.batch is not None:
                asked.batch.leave()
            raise
        if isinstance(answer, _Failed):
            raise copy(answer.error)
        return answer

    def stop(self) -> None:
        """Fail whatever is on its way."""
        for asked in [one for gathered in self._gathered.values() for one in gathered]:
            asked.settle(_Failed(Unavailable()))
        for batch in self._batches:
            assert batch.task is not None
            batch.task.cancel()
            for asked in batch.asked:  # a task that has not begun yet ends without a word
                asked.settle(_Failed(Unavailable()))
        self._batches.clear()

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, {}
        loop = asyncio.get_running_loop()
        for demand, asked in gathered.items():
            for batch in _batches(asked, demand):
                batch.task = loop.create_task(self._deliver(batch), name="watchword-checks", context=self._context)
                self._batches.add(batch)

    async def _deliver(self, batch: _Batch) -> None:
        """Settle every question of a batch, whatever happens."""
        longest = max(one.timeout for one in batch.asked)
        timers = list(_timers(batch, longest))
        answers: Sequence[Answer | _Failed] = [_Failed(Unavailable())] * len(batch.asked)
        try:
            async with asyncio.timeout(longest):
                answers = await self._exchange(batch, asyncio.get_running_loop().time() + longest)
        except TimeoutError:
            answers = [_Failed(DeadlineExceeded())] * len(batch.asked)
        except WatchwordError as error:
            answers = [_Failed(error)] * len(batch.asked)
        except (grpc.aio.UsageError, asyncio.InvalidStateError):  # the channel was closed
            pass
        except Exception:  # whatever a foreign token source raises
            log.exception("permissions could not be asked for")
        finally:
            self._batches.discard(batch)
            for timer in timers:
                timer.cancel()
            for asked, answer in zip(batch.asked, answers, strict=True):
                asked.settle(answer)

    async def _exchange(self, batch: _Batch, until: float) -> Sequence[Answer]:
        """A token may be over before its time: it is forgotten, and the batch sent once more. Raises WatchwordError."""
        try:
            return await self._call(batch, until)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise status.decode(error) from None
        self._line.own.forget()
        try:
            return await self._call(batch, until)
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from None

    async def _call(self, batch: _Batch, until: float) -> Sequence[Answer]:
        metadata = await self._line.own.metadata()
        timeout = max(0.0, until - asyncio.get_running_loop().time())
        consistency = consistency_pb2.Consistency(at_least_as_fresh=batch.demand) if batch.demand else None
        if len(batch.asked) == 1:
            question = _with(batch.asked[0].question, consistency)
            return [await self._stub.CheckPermission(question, metadata=metadata, timeout=timeout)]
        request = permission_pb2.BatchCheckPermissionsRequest(requests=[one.question for one in batch.asked], consistency=consistency)
        answers = (await self._stub.BatchCheckPermissions(request, metadata=metadata, timeout=timeout)).responses
        if len(answers) != len(batch.asked):
            raise Unavailable("the answer is not understood")
        return answers

    @property
    def _stub(self) -> "permission_pb2_grpc.PermissionServiceAsyncStub":
        """A stub of the line's present channel; making one takes longer than a question."""
        channel = self._line.channel
        if channel is not self._channel:
            self._made: permission_pb2_grpc.PermissionServiceAsyncStub = permission_pb2_grpc.PermissionServiceStub(channel)
            self._channel = channel
        return self._made


def _batches(asked: Iterable[_Asked], demand: str) -> Iterator[_Batch]:
    """Divide what somebody still waits for into batches of a size that the server takes, in its order."""
    batch, size = _Batch([], demand), 0
    for one in asked:
        if one.answer.done():
            continue
        length = one.question.ByteSize()
        if batch.asked and (len(batch.asked) == MAX_QUESTIONS or size + length > MAX_BYTES):
            yield batch
            batch, size = _Batch([], demand), 0
        batch.asked.append(one)
        one.batch, size = batch, size + length
    if batch.asked:
        yield batch


def _with(question: Question, consistency: consistency_pb2.Consistency | None) -> Question:
    """Return a question with its demand; in a batch, the demand is the batch's."""
    if consistency is None:
        return question
    demanding = Question()
    demanding.CopyFrom(question)
    demanding.consistency.CopyFrom(consistency)
    return demanding


def _timers(batch: _Batch, longest: float) -> Iterator[asyncio.TimerHandle]:
    """The batch itself takes as long as the most patient; the others have timers."""
    for timeout in {one.timeout for one in batch.asked} - {longest}:
        yield asyncio.get_running_loop().call_later(timeout, _expire, batch, timeout)


def _expire(batch: _Batch, timeout: float) -> None:
    for one in batch.asked:
        if one.timeout == timeout:
            one.settle(_Failed(DeadlineExceeded()))
    batch.leave()
