"""WatchRevocations: the feed, as protobuf."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Protocol
from uuid import UUID

from services.chassis.call import Call, Caller
from services.chassis.coherence import now
from services.token.feed import Feed, Place
from services.token.keys import KeyRing
from services.token.revocations import Revocation, RevokedKind
from watchword.errors import DeadlineExceeded
from watchword.token.v1 import token_pb2

CHECKPOINT_EVERY = 0.8  # seconds
FIRST_WITHIN = 5.0  # seconds until the first message
CHUNK = 500  # revocations in one message, of a snapshot as many or some more
LOOKED_THROUGH = 4096  # parts of memory at most for one message: about a millisecond, where a million are not of the tenant
_KINDS = {kind: token_pb2.RevokedKind.Value(f"REVOKED_KIND_{kind.name}") for kind in RevokedKind}

Response = token_pb2.WatchRevocationsResponse


class Authenticator(Protocol):
    """Says whether a caller's token is still good."""

    async def authenticate(self, token: str) -> Caller:
        """Raises TokenInvalid."""


class Watch:
    """Serves WatchRevocations."""

    def __init__(self, feed: Feed, ring: KeyRing, authenticator: Authenticator) -> None:
        self._feed = feed
        self._ring = ring
        self._authenticator = authenticator

    async def watch(self, requests: AsyncIterator[token_pb2.WatchRevocationsRequest], call: Call) -> AsyncIterator[Response]:
        """Stream what is revoked from the first request's cursor on, while the caller's own token is good."""
        with self._feed.admitted():
            first = await _first(requests)
            if first is None:
                return
            watcher = Watcher(self._feed, self._ring, call)
            watcher.report(first)
            listener = asyncio.create_task(_listen(requests, watcher), name="watch-reports")
            try:
                async for response in watcher.responses(Place.read(first.cursor)):
                    yield response
                    if response.HasField("checkpoint") and not call.caller.is_peer:
                        await self._authenticator.authenticate(call.caller.token)
                    if listener.done() and (error := listener.exception()) is not None:
                        raise error
            finally:
                listener.cancel()
                self._feed.forget(watcher)


class Watcher:
    """One stream, from its first message on."""

    def __init__(self, feed: Feed, ring: KeyRing, call: Call) -> None:
        self._feed = feed
        self._ring = ring
        self._began = now()
        self._tenants: frozenset[UUID] | None = None if call.caller.is_peer else frozenset({call.caller.tenant_id})
        self._jwks = b""

    def report(self, request: token_pb2.WatchRevocationsRequest) -> None:
        """Note which keys this one can verify with."""
        self._feed.report(self, frozenset(request.key_ids))

    async def responses(self, place: Place | None) -> AsyncIterator[Response]:
        """Yield what happened since `place`, for ever."""
        told_at = float("-inf")
        while True:
            happened = None if place is None else self._feed.since(place, self._tenants)
            if happened is None:
                snapshot = self._feed.snapshot(self._tenants)
                if snapshot is None:  # memory is not complete now, and says nothing
                    await self._feed.wait(CHECKPOINT_EVERY)
                    continue
                place, revocations = snapshot
                async for response in self._reset(revocations):
                    yield response
                continue
            place = happened.place
            is_due = happened.at is not None and now() - told_at >= CHECKPOINT_EVERY
            if happened.revocations or is_due or self._ring.jwks != self._jwks:
                for chunk in _chunks(happened.revocations):
                    yield Response(revocations=chunk)
                yield self._step(place, happened.at)
                if not happened.is_all:
                    await asyncio.sleep(0)  # others have their turn while a whole tenant is told
                    continue
                told_at = now()
            await self._feed.wait(max(0.0, told_at + CHECKPOINT_EVERY - now()) if happened.at is not None else CHECKPOINT_EVERY)

    async def _reset(self, parts: Iterator[list[Revocation]]) -> AsyncIterator[Response]:
        yield Response(reset=True, jwks=self._new_jwks())
        messages = _messages(parts)
        while (message := await self._feed.paced(lambda: next(messages, None))) is not None:
            if message.revocations:
                yield message

    def _step(self, place: Place, at: float | None) -> Response:
        response = Response(jwks=self._new_jwks(), cursor=place.cursor)
        if at is not None:
            response.checkpoint.elapsed.FromNanoseconds(max(0, int((at - self._began) * 1e9)))
        return response

    def _new_jwks(self) -> str:
        """Return the key set if it is new to this stream."""
        if self._ring.jwks == self._jwks:
            return ""
        self._jwks = self._ring.jwks
        return self._jwks.decode()


async def _first(requests: AsyncIterator[token_pb2.WatchRevocationsRequest]) -> token_pb2.WatchRevocationsRequest | None:
    """Return the first message, or None if there will be none. Raises DeadlineExceeded if it does not come: who says nothing holds a place."""
    try:
        async with asyncio.timeout(FIRST_WITHIN):
            return await anext(requests, None)
    except TimeoutError:
        raise DeadlineExceeded from None


async def _listen(requests: AsyncIterator[token_pb2.WatchRevocationsRequest], watcher: Watcher) -> None:
    async for request in requests:
        watcher.report(request)


def _chunks(revocations: Iterable[Revocation]) -> Iterator[list[token_pb2.Revocation]]:
    left = iter(revocations)
    while chunk := [_revocation(one) for one in islice(left, CHUNK)]:
        yield chunk


def _messages(parts: Iterator[list[Revocation]]) -> Iterator[Response]:
    """Yield a snapshot's messages; one without anything where much was looked through in vain."""
    ended = False
    while not ended:
        found: list[Revocation] = []
        looked = 0
        while not ended and looked < LOOKED_THROUGH and len(found) < CHUNK:
            part = next(parts, None)
            ended, looked = part is None, looked + 1
            found += part or ()
        yield Response(revocations=[_revocation(one) for one in found])


def _revocation(revocation: Revocation) -> token_pb2.Revocation:
    message = token_pb2.Revocation(
        kind=_KINDS[revocation.kind],
        tenant_id=str(revocation.tenant_id),
        key=str(revocation.key),
        revision=revocation.revision,
        spared_revision=revocation.spared_revision,
        spared_session_id=str(revocation.spared_session_id or ""),
        subject_disabled=revocation.is_disabled,
    )
    message.expire_time.FromDatetime(revocation.expire_time)
    if revocation.issued_before is not None:
        message.issued_before.FromDatetime(revocation.issued_before)
    return message
