"""Verify access tokens in your own process: from memory, and never staler than you allow.

    async with TokenVerifier("auth.example:9090", credentials=ClientCredentials(id, secret), issuer=..., audience=..., tls=...) as verifier:
        principal = await verifier.check(token)

What decides is held in memory: the key set and what is revoked in the verifier's tenant, both streamed (feed.py). Whatever cannot be known is refused
or asked, never accepted. The rules are those of the suite's own instances (tokens.py, rules.py).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from types import TracebackType
from typing import NamedTuple
from uuid import UUID

import grpc

from watchword import feed as feeds
from watchword import status
from watchword.credentials import ClientCredentials, OwnToken, TokenSource
from watchword.errors import InsufficientScope, WatchwordError
from watchword.feed import Feed, Patience, View
from watchword.keyset import Key
from watchword.principal import Principal, principal_from, principal_of
from watchword.refusals import REFUSALS, KeyUnknown, SignatureInvalid, TokenExpired, TokenMalformed, VerificationStale
from watchword.revoked import Revoked
from watchword.rules import VALID, judge
from watchword.token.v1 import token_pb2, token_pb2_grpc
from watchword.tokens import Claims, Malformed, parse, split

ASK_DEADLINE = 2.0  # seconds
UNKNOWN_KEYS_PER_SECOND = 10.0  # questions that tokens of unknown keys may cause: anybody can make such tokens
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


class WhenStale(Enum):
    """What to do about a token when memory is staler than allowed."""

    ASK = "ask VerifyToken"
    REFUSE = "refuse"


class _Known(NamedTuple):
    """A token that a key of the key set signed."""

    claims: Claims
    principal: Principal
    kid: str


@dataclass(slots=True)
class _Cache:
    """Known tokens of one key set, by their exact text: the younger half and the older. What is used again becomes young again."""

    keys: object
    half: int
    young: dict[str, _Known] = field(default_factory=dict)
    old: dict[str, _Known] = field(default_factory=dict)

    def add(self, token: str, known: _Known) -> None:
        if len(self.young) >= self.half:
            self.old, self.young = self.young, {}
        self.young[token] = known


@dataclass(slots=True)
class _Budget:
    """At most so many a second, and as many at once."""

    per_second: float
    clock: Callable[[], float]
    left: float = 0.0
    at: float = float("-inf")

    def take(self) -> bool:
        now = self.clock()
        self.left, self.at = min(self.per_second, self.left + (now - self.at) * self.per_second), now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class TokenVerifier:
    """Says whom tokens speak for.

    target         host:port of the suite's internal gRPC listener
    credentials    of an OAuth client with the scope tokens.verify, or a coroutine function that returns an access token of one
    issuer         what `iss` must be: the suite's TOKEN_ISSUER
    audience       what `aud` must be, exactly; the suite's own by default
    max_staleness  a revocation acknowledged longer ago than that is never missed
    when_stale     what `check` does beyond it
    tls            None speaks in plain text: for loopback and meshes that encrypt
    tenant_id      only if the credentials' tokens do not say it; tokens of other tenants are unknown here
    cache_size     tokens remembered once their signature was verified, of some 4 KB each
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: ClientCredentials | TokenSource,
        issuer: str,
        audience: str = "watchword",
        max_staleness: timedelta = timedelta(seconds=5),
        when_stale: WhenStale = WhenStale.ASK,
        tls: grpc.ChannelCredentials | None = None,
        tenant_id: str = "",
        cache_size: int = 10_000,
        patience: Patience | None = None,
        clock: Callable[[], float] = feeds.now,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._issuer = issuer
        self._audience = audience
        self._max_staleness = max_staleness.total_seconds()
        self._when_stale = when_stale
        self._tls = tls
        self._tenant_id = UUID(tenant_id) if tenant_id else None
        self._half = max(1, cache_size // 2)
        self._patience = patience
        self._clock = clock
        self._wall = wall
        self._budget = _Budget(UNKNOWN_KEYS_PER_SECOND, clock)
        self._cache = _Cache(None, self._half)
        self._channel: grpc.aio.Channel | None = None
        self._feed: Feed | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, within: timedelta = START_WITHIN) -> None:
        """Open the feed and wait for its first checkpoint. If none comes in time, go on: until one comes, every token is asked about or refused."""
        self._channel = (
            grpc.aio.secure_channel(self._target, self._tls, CHANNEL_OPTIONS)
            if self._tls
            else grpc.aio.insecure_channel(self._target, CHANNEL_OPTIONS)
        )
        self._own = OwnToken(self._credentials, self._channel)
        self._stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(self._channel)
        self._feed = Feed(self._stub, self._own, tenant_id=self._tenant_id, patience=self._patience, clock=self._clock, wall=self._wall)
        self._task = asyncio.create_task(self._feed.run(), name="watchword-revocations")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._feed.first_checkpoint.wait(), within.total_seconds())
        if not self._feed.first_checkpoint.is_set():
            log.warning("the revocation feed has not begun yet; tokens are %s", "asked about" if self._asks else "refused")

    async def stop(self) -> None:
        """Close the feed. Whatever is verified afterwards becomes stale."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def __aenter__(self) -> "TokenVerifier":
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the suite, for further questions. Only while started."""
        if self._channel is None:
            raise RuntimeError("the verifier is not started")
        return self._channel

    @property
    def own(self) -> OwnToken:
        """The token that this process calls with. Only while started."""
        assert self.channel
        return self._own

    @property
    def staleness(self) -> timedelta:
        """How old what is held is at most; `timedelta.max` before the first checkpoint."""
        through = self._view().through
        return timedelta.max if through == float("-inf") else timedelta(seconds=max(0.0, self._clock() - through))

    def verify(self, token: str, *, audience: str = "", scopes: Collection[str] = ()) -> Principal:
        """Return whom `token` speaks for. From memory, in any thread, without waiting.

        audience  instead of the verifier's
        scopes    that the token must carry, all of them
        Raises    TokenRefused (a leaf of refusals.py), InsufficientScope; VerificationStale if memory is staler than allowed
        Cost      one signature check, or under 5 µs for a token seen before
        """
        view = self._view()
        cache = self._cache
        if cache.keys is not view.keys:  # another key set: nothing that was verified with the former one counts
            cache = self._cache = _Cache(view.keys, self._half)
        known = cache.young.get(token)
        if known is None:
            known = cache.old.get(token) or self._read(token, view)
            cache.add(token, known)
        # The order matters: first how fresh memory is, then what is in it. The other way round a pause of this thread would hide a revocation.
        is_stale = self._clock() - view.through > self._max_staleness
        claims = known.claims
        verdict = judge(claims, issuer=self._issuer, audience=audience or self._audience, now=self._wall())
        if verdict is not VALID:
            raise REFUSALS[verdict]
        if claims.exp < view.revoked.horizon:
            raise TokenExpired
        verdict = view.revoked.verdict(claims, known.principal, known.kid)
        if verdict is not VALID:
            raise REFUSALS[verdict]
        if is_stale:
            raise VerificationStale
        if scopes and not known.principal.scopes.issuperset(scopes):
            raise InsufficientScope(metadata={"scope": " ".join(scopes)})
        return known.principal

    async def check(self, token: str, *, audience: str = "", scopes: Collection[str] = ()) -> Principal:
        """Return whom `token` speaks for: as `verify`, and what memory cannot know is asked, if `when_stale` says so.

        Raises  TokenRefused, InsufficientScope; VerificationStale if it can neither be known nor asked
        """
        try:
            return self.verify(token, audience=audience, scopes=scopes)
        except VerificationStale:
            if not self._asks:
                raise
        except KeyUnknown:
            if not (self._asks and self._budget.take()):
                raise
        return await self.ask(token, audience=audience, scopes=scopes)

    async def ask(self, token: str, *, audience: str = "", scopes: Collection[str] = ()) -> Principal:
        """Return whom `token` speaks for, by asking VerifyToken whatever memory says. Raises TokenRefused, InsufficientScope, VerificationStale."""
        if self._channel is None:
            raise VerificationStale
        question = token_pb2.VerifyTokenRequest(token=token, audience=audience or self._audience, required_scopes=scopes)
        try:
            answer = await self._stub.VerifyToken(question, metadata=await self._own.metadata(), timeout=ASK_DEADLINE)
        except grpc.aio.AioRpcError as error:
            self._note(status.decode(error))
            raise VerificationStale from None
        except WatchwordError as error:  # of this process's own credentials: no fault of the token
            self._note(error)
            raise VerificationStale from None
        return self._answer(answer, scopes)

    @property
    def _asks(self) -> bool:
        return self._when_stale is WhenStale.ASK

    def _note(self, error: WatchwordError) -> None:
        log.warning("a token could not be asked about: %s", error.reason)

    def _answer(self, answer: token_pb2.VerifyTokenResponse, scopes: Collection[str]) -> Principal:
        if answer.status == token_pb2.VALID:
            return principal_from(answer)
        if answer.status == token_pb2.INSUFFICIENT_SCOPE:
            raise InsufficientScope(metadata={"scope": " ".join(scopes)})
        raise _REFUSALS.get(answer.status, VerificationStale)  # what a later release says is not understood, and no yes

    def _view(self) -> View:
        return self._feed.view if self._feed is not None else _NOTHING

    def _read(self, token: str, view: View) -> _Known:
        """Return what a token says that a key of the key set signed. Raises TokenRefused, VerificationStale."""
        try:
            header, body, signed, signature = split(token)
            key = self._key(header.kid, view)
            if header.alg != key.algorithm or not key.verifies(signed, signature):
                raise SignatureInvalid
            claims = parse(body)
        except Malformed:
            raise TokenMalformed from None
        principal = principal_of(claims)
        if principal.tenant_id != view.tenant_id:  # of whose revocations nothing is known here
            raise KeyUnknown
        return tuple.__new__(_Known, (claims, principal, header.kid))  # as in principal_of

    def _key(self, kid: str, view: View) -> Key:
        key = view.keys.get(kid)
        if key is not None:
            return key
        if self._clock() - view.through > self._max_staleness:
            raise VerificationStale  # the key set may have grown since
        raise KeyUnknown


_REFUSALS = {token_pb2.TokenStatus.Value(verdict.value): refusal for verdict, refusal in REFUSALS.items()}
_NOTHING = View({}, Revoked(), "", float("-inf"))
