"""What is revoked and which keys are good, kept up to date by TokenService.WatchRevocations.

How stale that is at most is known without comparing two hosts' clocks. When a stream is opened, the time is noted by this host's own clock, just
before the first message leaves. A checkpoint says "e seconds after your first message arrived I had sent you everything": that message arrived after
the time noted, so everything acknowledged up to that time plus e is here. A checkpoint that lingers on its way makes nothing look younger, for e was
fixed when it was sent. Two clocks also run at slightly different speeds: e is taken for a little less than it is, and a stream is used for no longer
than a few minutes, so that the difference cannot add up.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from typing import TypeVar
from uuid import UUID

import grpc

from watchword import status
from watchword.credentials import OwnToken
from watchword.errors import Unauthenticated, WatchwordError
from watchword.keyset import Key, KeySetInvalid, read
from watchword.revoked import Revoked
from watchword.rules import EVERYWHERE, Revocation, RevokedKind
from watchword.token.v1 import token_pb2, token_pb2_grpc
from watchword.tokens import Malformed, parse, split

DRIFT = 0.001  # Linux slews a clock by at most 500 ppm; two of them, apart
_KINDS = {
    token_pb2.REVOKED_KIND_TOKEN: RevokedKind.TOKEN,
    token_pb2.REVOKED_KIND_SESSION: RevokedKind.SESSION,
    token_pb2.REVOKED_KIND_SUBJECT: RevokedKind.SUBJECT,
    token_pb2.REVOKED_KIND_CLIENT: RevokedKind.CLIENT,
    token_pb2.REVOKED_KIND_TENANT: RevokedKind.TENANT,
    token_pb2.REVOKED_KIND_KEY: RevokedKind.KEY,
}
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

T = TypeVar("T")
Call = grpc.aio.StreamStreamCall[token_pb2.WatchRevocationsRequest, token_pb2.WatchRevocationsResponse]

log = logging.getLogger("watchword")


def now() -> float:
    """Return seconds of a clock that nobody sets and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(_BOOT_CLOCK)


class FeedBroken(Exception):
    """The stream says what this verifier does not understand, or says nothing: it is opened anew."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds.

    silence      without a message, a stream is taken for dead: the server sends a checkpoint every second
    stream       a stream is opened anew, so that clocks cannot drift apart
    first_pause  before the second attempt; each further pause may be twice as long, up to last_pause, and is shortened at random
    """

    silence: float = 2.5
    stream: float = 300.0
    first_pause: float = 0.05
    last_pause: float = 2.0


@dataclass(frozen=True, slots=True)
class View:
    """What is known.

    tenant_id  of whose tokens it is, as text; empty while that is not known
    through    everything that was acknowledged until then, by `now()`, is in it
    """

    keys: Mapping[str, Key]
    revoked: Revoked
    tenant_id: str
    through: float


class Feed:
    """Keeps a view up to date. `view` is replaced as a whole, and may be read by any thread."""

    def __init__(
        self,
        stub: "token_pb2_grpc.TokenServiceAsyncStub",
        own: OwnToken,
        *,
        tenant_id: UUID | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = now,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._stub = stub
        self._own = own
        self._tenant_id = tenant_id
        self._patience = patience or Patience()
        self._clock = clock
        self._wall = wall
        self._cursor = ""
        self._draft: Revoked | None = None
        self._jwks = ""
        self._got_checkpoint = False
        self._has_keys = False
        self.first_checkpoint = asyncio.Event()
        self.view = View({}, Revoked(), str(tenant_id or ""), float("-inf"))

    async def run(self) -> None:
        """Follow the stream until cancelled, whatever happens to it."""
        pause = self._patience.first_pause
        while True:
            self._got_checkpoint = False
            try:
                await self._follow()
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                self._note(status.decode(error) if isinstance(error, grpc.RpcError) else error)
            except (WatchwordError, FeedBroken, KeySetInvalid, TimeoutError) as error:
                self._note(error)
            except Exception:  # whatever a foreign token source raises must not end the feed
                log.exception("the revocation feed failed")
            pause = self._patience.first_pause if self._got_checkpoint else min(2 * pause, self._patience.last_pause)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311  (spreads a crowd; no secret)

    def _note(self, error: Exception) -> None:
        log.warning("the revocation feed ended, and is opened again: %s", error or type(error).__name__)
        if isinstance(error, Unauthenticated):
            self._own.forget()

    async def _follow(self) -> None:
        """Open one stream and apply it until it ends or has lasted long enough."""
        await self._learn_tenant()
        self._draft = None if self._cursor else Revoked()
        self._has_keys = False
        metadata = await self._own.metadata()
        began = self._clock()  # before anything of this stream can have arrived anywhere
        call: Call = self._stub.WatchRevocations(metadata=metadata)
        try:
            await self._soon(call.write(self._report(self._cursor)))
            while self._draft is not None or (self._clock() - began < self._patience.stream and not self._own.is_due):
                message = await self._soon(call.read())
                if not isinstance(message, token_pb2.WatchRevocationsResponse):  # grpc.aio.EOF
                    raise FeedBroken("the stream ended")
                if self._apply(message, began):
                    await self._soon(call.write(self._report("")))
        finally:
            call.cancel()

    async def _soon(self, waiting: Awaitable[T]) -> T:
        async with asyncio.timeout(self._patience.silence):
            return await waiting

    async def _learn_tenant(self) -> None:
        """The stream tells of the caller's own tenant: that of the token that this process calls with. What is said of another would be missed."""
        try:
            own: UUID | None = parse(split(await self._own.get())[1]).tenant_id
        except Malformed:
            own = self._tenant_id
        if own is None:
            raise FeedBroken("this process calls with a token that does not say its tenant: give tenant_id")
        if self._tenant_id not in (None, own):
            raise FeedBroken("this process calls with a token of another tenant than the one whose tokens it verifies")
        self._tenant_id = own

    def _report(self, cursor: str) -> token_pb2.WatchRevocationsRequest:
        return token_pb2.WatchRevocationsRequest(cursor=cursor, key_ids=list(self.view.keys))

    def _apply(self, message: token_pb2.WatchRevocationsResponse, began: float) -> bool:
        """Take one message in, and return whether the keys changed. A snapshot takes the place of what was held when its first checkpoint comes."""
        if message.reset:
            self._draft = Revoked()
        target = self.view.revoked if self._draft is None else self._draft
        for revocation in message.revocations:
            self._add(revocation, target)
        keys = self._keys(message.jwks)
        self._has_keys = self._has_keys or bool(message.jwks)
        if message.HasField("checkpoint") and not self._has_keys:
            raise FeedBroken("the stream began without the key set")
        revoked, through = self.view.revoked, self.view.through
        if message.HasField("checkpoint"):
            revoked, self._draft = target, None
            elapsed = message.checkpoint.elapsed.ToTimedelta().total_seconds()
            through = max(through, min(began + elapsed * (1 - DRIFT), self._clock()))
        if keys is not self.view.keys or revoked is not self.view.revoked or through != self.view.through:
            self.view = View(keys, revoked, str(self._tenant_id or ""), through)
        if message.cursor and self._draft is None:
            self._cursor = message.cursor
        if message.HasField("checkpoint"):
            self._tend()
        return bool(message.jwks)

    def _tend(self) -> None:
        self._got_checkpoint = True
        self.first_checkpoint.set()
        if not self.view.revoked.sweep(self._wall()):
            self._cursor = ""
            raise FeedBroken("this host's clock was set back: what it forgot too early is fetched again")

    def _keys(self, jwks: str) -> Mapping[str, Key]:
        """Return the keys of a key set; those that are held if it says nothing new."""
        if not jwks or jwks == self._jwks:
            return self.view.keys
        keys = read(jwks)
        self._jwks = jwks
        return keys

    def _add(self, told: token_pb2.Revocation, target: Revoked) -> None:
        """What is not understood might refuse a token: then nothing may be believed to be complete."""
        kind = _KINDS.get(told.kind)
        with suppress(ValueError, OverflowError):
            tenant_id, key = UUID(told.tenant_id), UUID(told.key)
            if kind is not None and told.HasField("expire_time"):
                if tenant_id in (self._tenant_id, EVERYWHERE):
                    target.add(_revocation(kind, tenant_id, key, told))
                return
        raise FeedBroken("the stream tells of a revocation of a kind or form that this verifier does not know")


def _revocation(kind: RevokedKind, tenant_id: UUID, key: UUID, told: token_pb2.Revocation) -> Revocation:
    return Revocation(
        tenant_id=tenant_id,
        kind=kind,
        key=key,
        revision=told.revision,
        expire_time=told.expire_time.ToDatetime(UTC),
        spared_revision=told.spared_revision,
        spared_session_id=UUID(told.spared_session_id) if told.spared_session_id else None,
        is_disabled=told.subject_disabled,
        issued_before=told.issued_before.ToDatetime(UTC) if told.HasField("issued_before") else None,
    )
