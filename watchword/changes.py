"""What changes of permissions are told by PermissionService.WatchPermissions, applied to a cache of decisions.

`through` says until when everything that was acknowledged has been applied, by this host's own clock (staleness.py).
"""

import asyncio
import logging
import random
from collections.abc import Callable

import grpc

from watchword import status
from watchword.decision_cache import DecisionCache
from watchword.decisions import Subject, SubjectType
from watchword.errors import Unauthenticated, WatchwordError
from watchword.questions import Line
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.staleness import FeedBroken, Patience, known_through

_TYPES = {rbac_pb2.SUBJECT_TYPE_USER: SubjectType.USER, rbac_pb2.SUBJECT_TYPE_CLIENT: SubjectType.CLIENT}
_NEVER = float("-inf")

Response = permission_pb2.WatchPermissionsResponse

log = logging.getLogger("watchword")


class Changes:
    """Follows the stream, and lets the cache forget what changed."""

    def __init__(self, line: Line, cache: DecisionCache, *, patience: Patience, clock: Callable[[], float]) -> None:
        self._line = line
        self._cache = cache
        self._patience = patience
        self._clock = clock
        self._cursor = ""
        self._got_checkpoint = False
        self.first_checkpoint = asyncio.Event()
        self.through = _NEVER

    async def run(self) -> None:
        """Follow the stream until cancelled, whatever happens to it."""
        pause = self._patience.first_pause
        while True:
            self._got_checkpoint = False
            try:
                await self._follow()
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                self._note(status.decode(error) if isinstance(error, grpc.RpcError) else error)
            except (WatchwordError, FeedBroken, TimeoutError) as error:
                self._note(error)
            except Exception:  # whatever a foreign token source raises must not end this
                log.exception("watching permissions failed")
            pause = self._patience.first_pause if self._got_checkpoint else min(2 * pause, self._patience.last_pause)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311  (spreads a crowd; no secret)

    def _note(self, error: Exception) -> None:
        log.warning("the stream of changed permissions ended, and is opened again: %s", error or type(error).__name__)
        if isinstance(error, Unauthenticated):
            self._line.own.forget()

    async def _follow(self) -> None:
        """Open one stream and apply it until it ends or has lasted long enough."""
        stub: permission_pb2_grpc.PermissionServiceAsyncStub = permission_pb2_grpc.PermissionServiceStub(self._line.channel)
        metadata = await self._line.own.metadata()
        began = self._clock()  # before anything of this stream can have arrived anywhere
        call = stub.WatchPermissions(permission_pb2.WatchPermissionsRequest(cursor=self._cursor), metadata=metadata)
        try:
            while self._clock() - began < self._patience.stream and not self._line.own.is_due:
                async with asyncio.timeout(self._patience.silence):
                    message = await call.read()
                if not isinstance(message, Response):  # grpc.aio.EOF
                    raise FeedBroken("the stream ended")
                self._apply(message, began)
        finally:
            call.cancel()

    def _apply(self, message: Response, began: float) -> None:
        """Take one message in. What is not understood might concern anybody: then nothing is believed to be complete from then on."""
        event = message.WhichOneof("event")
        if event == "change":
            self._forget(message.change)
        elif event == "reset":
            self._cache.forget_all("")
        elif event == "checkpoint" and message.checkpoint.HasField("elapsed"):
            self._believe(message.checkpoint, began)
        else:
            raise FeedBroken("the stream tells what this release does not know")
        self._cursor = message.cursor

    def _forget(self, change: permission_pb2.PermissionChange) -> None:
        types = {subject.type for subject in change.subjects}
        if change.all_subjects or not types <= _TYPES.keys():  # everybody, or somebody of a kind that is not known
            self._cache.forget_all(change.consistency_token)
        else:
            self._cache.forget([Subject(_TYPES[subject.type], subject.id) for subject in change.subjects], change.consistency_token)

    def _believe(self, checkpoint: Response.Checkpoint, began: float) -> None:
        elapsed = checkpoint.elapsed.ToTimedelta().total_seconds()
        self._cache.believe(checkpoint.consistency_token)
        self.through = max(self.through, known_through(began, elapsed, self._clock()))
        self._got_checkpoint = True
        self.first_checkpoint.set()
