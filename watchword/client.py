"""Ask who may do what: concurrent checks travel together, and may be remembered until something changes.

    async with Client("auth.example:9090", credentials=ClientCredentials(id, secret), tls=...) as client:
        decision = await client.check(Subject.parse("user:0198..."), "invoices.pay", "folder/a")
        if decision:
            ...

What was asked in one turn of the event loop is one call (questions.py). With a cache, what was answered before is answered from memory
(decision_cache.py), as long as memory is no staler than allowed (changes.py); else PermissionService is asked.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from watchword.changes import Changes
from watchword.credentials import ClientCredentials, OwnToken, TokenSource
from watchword.decision_cache import DecisionCache, Key
from watchword.decisions import Decision, Subject, decision_from
from watchword.errors import InvalidRequest, RevisionUnavailable, Unavailable
from watchword.questions import Line, Question, Questions
from watchword.staleness import Patience, now

DEADLINE = 2.0  # seconds
MAX_CONTEXT = 8 * 1024  # bytes of a context, encoded
START_WITHIN = timedelta(seconds=10)
CHANNEL_OPTIONS = (
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
)

log = logging.getLogger("watchword")


class Connection:
    """A channel and a token of one's own. Open between `start` and `stop`."""

    def __init__(self, target: str, credentials: ClientCredentials | TokenSource, tls: grpc.ChannelCredentials | None) -> None:
        self._target = target
        self._credentials = credentials
        self._tls = tls
        self._open: tuple[grpc.aio.Channel, OwnToken] | None = None

    def start(self) -> None:
        """Open the channel. It connects when it is used."""
        if self._tls is None:
            channel = grpc.aio.insecure_channel(self._target, CHANNEL_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(self._target, self._tls, CHANNEL_OPTIONS)
        self._open = (channel, OwnToken(self._credentials, channel))

    async def stop(self) -> None:
        """Close it."""
        if self._open is not None:
            (channel, _), self._open = self._open, None
            await channel.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel. Raises Unavailable while it is not open."""
        return self._parts[0]

    @property
    def own(self) -> OwnToken:
        """The token that this process calls with. Raises Unavailable while the channel is not open."""
        return self._parts[1]

    @property
    def _parts(self) -> tuple[grpc.aio.Channel, OwnToken]:
        if self._open is None:
            raise Unavailable("this client is not started")
        return self._open


class Client:
    """Asks PermissionService.

    to             host:port of the suite's internal gRPC listener; or a started TokenVerifier, whose channel and credentials are then used
    credentials    of an OAuth client with the scope permissions.check, or a coroutine function that returns an access token of one
    tls            None speaks in plain text: for loopback and meshes that encrypt
    cache_size     how many decisions to remember, of about 1 KB each; 0 asks each time
    max_staleness  a change acknowledged longer ago than that is never missed by what is remembered
    """

    def __init__(
        self,
        to: str | Line,
        *,
        credentials: ClientCredentials | TokenSource | None = None,
        tls: grpc.ChannelCredentials | None = None,
        cache_size: int = 0,
        max_staleness: timedelta = timedelta(seconds=5),
        patience: Patience | None = None,
        clock: Callable[[], float] = now,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._connection: Connection | None = None
        if isinstance(to, str):
            if credentials is None:
                raise TypeError("credentials are needed, unless a verifier is given")
            to = self._connection = Connection(to, credentials, tls)
        self._questions = Questions(to)
        self._max_staleness = max_staleness.total_seconds()
        self._clock = clock
        self._cache = DecisionCache(cache_size, clock=clock, wall=wall) if cache_size else None
        self._changes = Changes(to, self._cache, patience=patience or Patience(), clock=clock) if self._cache is not None else None
        self._task: asyncio.Task[None] | None = None

    async def start(self, within: timedelta = START_WITHIN) -> None:
        """Connect. With a cache, wait for the first word of the stream that keeps it true; if none comes in time, go on, and ask each time."""
        if self._connection is not None:
            self._connection.start()
        if self._changes is None:
            return
        self._task = asyncio.create_task(self._changes.run(), name="watchword-permissions")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changes.first_checkpoint.wait(), within.total_seconds())
        if not self._changes.first_checkpoint.is_set():
            log.warning("changes of permissions cannot be watched yet; nothing is remembered")

    async def stop(self) -> None:
        """Disconnect. Who still waits for an answer gets Unavailable."""
        self._questions.stop()
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._connection is not None:
            await self._connection.stop()

    async def __aenter__(self) -> "Client":
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def staleness(self) -> timedelta:
        """How old what is remembered is at most; `timedelta.max` without a cache, and before the first checkpoint."""
        through = float("-inf") if self._changes is None else self._changes.through
        return timedelta.max if through == float("-inf") else timedelta(seconds=max(0.0, self._clock() - through))

    async def check(
        self,
        subject: Subject | str,
        permission: str,
        resource: str = "",
        *,
        context: Mapping[str, Any] | None = None,
        acr: str = "",
        auth_time: datetime | int | None = None,
        at_least_as_fresh: str = "",
        timeout: float = DEADLINE,
    ) -> Decision:
        """Return whether `subject` may do `permission` to `resource`.

        subject            a Subject, or `user:ID`, `client:ID`, `group:ID`, `*`
        permission         `type.verb`
        resource           `type/id`; empty: in the whole tenant
        context            what conditions may look at; what JSON can say, at most 8 KiB
        acr, auth_time     of the subject's login; an aware datetime, or seconds since 1970 (0: not known)
        at_least_as_fresh  a consistency token: ask, and have no answer from before that change
        timeout            seconds
        Raises             InvalidRequest if the question is not well formed; DeadlineExceeded, Unavailable if there is no answer in time;
                           Unauthenticated, PermissionDenied, ResourceExhausted if this process itself is refused
        """
        who, key = _subject(subject), (permission, resource, acr, auth_time)
        if self._cache is None or at_least_as_fresh:
            question = _question(who, key, context)
            return decision_from(await self._questions.ask(question, demand=at_least_as_fresh, timeout=timeout))
        known = self._recall(self._cache, who, key)
        return await self._learn(self._cache, who, key, context, timeout) if known is None else known

    def recall(
        self, subject: Subject | str, permission: str, resource: str = "", *, acr: str = "", auth_time: datetime | int | None = None
    ) -> Decision | None:
        """Return what is remembered of a question, if memory is fresh enough. From memory, in any thread, without waiting."""
        return None if self._cache is None else self._recall(self._cache, _subject(subject), (permission, resource, acr, auth_time))

    def _recall(self, cache: DecisionCache, subject: Subject, key: Key) -> Decision | None:
        assert self._changes is not None
        # The order matters: first how fresh memory is, then what is in it. The other way round a pause of this thread would hide a change.
        is_fresh = self._clock() - self._changes.through <= self._max_staleness
        return cache.find(subject, key) if is_fresh else None

    async def _learn(self, cache: DecisionCache, subject: Subject, key: Key, context: Mapping[str, Any] | None, timeout: float) -> Decision:
        """Ask for the last state that was told, and remember. Who asked did not demand that state: if it cannot be had, any will do for him."""
        mark, until = cache.mark(), self._clock() + timeout
        question = _question(subject, key, context)
        try:
            decision = decision_from(await self._questions.ask(question, demand=mark.demand, timeout=timeout))
        except (RevisionUnavailable, InvalidRequest):
            if not mark.demand:
                raise
            return decision_from(await self._questions.ask(question, demand="", timeout=max(0.0, until - self._clock())))
        cache.keep(subject, key, decision, asked=mark)
        return decision


def _subject(subject: Subject | str) -> Subject:
    return Subject.parse(subject) if isinstance(subject, str) else subject


def _question(subject: Subject, key: Key, context: Mapping[str, Any] | None) -> Question:
    """Return the question for the wire. Raises InvalidRequest for what the wire does not take."""
    permission, resource, acr, auth_time = key
    try:
        question = Question(subject=subject.wire, permission=permission, resource=resource, acr=acr)
    except (TypeError, ValueError):
        raise InvalidRequest.of("permission", "and subject, resource and acr must be text") from None
    if auth_time:
        question.auth_time.CopyFrom(_timestamp(auth_time))
    if context is not None:
        question.context.CopyFrom(_struct(context))
    return question


def _timestamp(instant: datetime | int) -> Timestamp:
    """Return an instant for the wire. Raises InvalidRequest."""
    stamp = Timestamp()
    try:
        if isinstance(instant, datetime):
            if instant.tzinfo is None:
                raise ValueError
            stamp.FromDatetime(instant)
        else:
            stamp.FromSeconds(instant)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest.of("auth_time", "must be an aware datetime, or seconds since 1970") from None
    return stamp


def _struct(context: Mapping[str, Any]) -> Struct:
    """Return a context for the wire. Raises InvalidRequest for what JSON cannot say, or too much of it."""
    struct = Struct()
    try:
        struct.update(context)
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise InvalidRequest.of("context", "must hold what JSON can say") from None
    if struct.ByteSize() > MAX_CONTEXT:
        raise InvalidRequest.of("context", f"must be at most {MAX_CONTEXT} bytes")
    return struct
