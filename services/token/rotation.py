"""The life of signing keys: made, published, signed with once everybody who verifies knows them, and kept until the last token is over.

Every step follows from what is stored and from Postgres's clock, by one pure function, and is taken in one transaction under a lock. So it does not
matter which instance takes it, whether several try, or where one dies: the next look goes on from there. docs/decisions/0009 says why so.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import structlog

from services.chassis.call import Call, Caller, CallerKind
from services.chassis.crashpoint import crashpoint
from services.chassis.ending import end
from services.token.key_pairs import KeyPair, UnusableKey, generate
from services.token.keys import KeyRing, KeyState, Snapshot, StoredKey
from services.token.sessions import MAX_ACCESS_LIFE
from services.token.vault import NewKey, Vault
from watchword.errors import WatchwordError

if TYPE_CHECKING:
    from services.token.store.keys import KeyStore, ListedKey

MAX_STEPS = 16  # taken in one look; more would mean that two steps undo each other
LOOK_EVERY = 1.0  # seconds, at most
LISTED_FOR = timedelta(days=1)  # how long a retired key is still listed

log = structlog.get_logger()


class Move(StrEnum):
    """What can happen to the ring by itself."""

    MAKE = "make"
    PUBLISH = "publish"
    NOTE_HELD = "note_held"
    PROMOTE = "promote"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Step:
    """One move, of one key. A promotion is `early` when somebody who verifies has not reported the key, and the limit is over."""

    move: Move
    kid: str = ""
    early: bool = False


MOST_KEYS = 90  # beside a retiring key, no new one: a key set holds 100, and a withdrawal needs room


@dataclass(frozen=True, slots=True)
class Policy:
    """When keys change.

    period   between two promotions; zero: only when asked
    max_age  how long others may keep the key set
    limit    how long a promotion waits, beyond twice `max_age`, for those who have not reported the key
    """

    algorithm: str
    period: timedelta
    max_age: timedelta
    limit: timedelta

    @property
    def lead(self) -> timedelta:
        """How long before its promotion a key is made."""
        return 2 * self.max_age + self.limit


def next_step(ring: Snapshot, policy: Policy) -> Step | None:
    """Return what is due, or None. Of several things the one that verification waits for comes first."""
    return next(_due(ring, policy), None)


def _due(ring: Snapshot, policy: Policy) -> Iterator[Step]:
    active = next(iter(_in(ring, KeyState.ACTIVE)), None)
    coming = _in(ring, KeyState.PUBLISHED)
    yield from (Step(Move.PUBLISH, key.kid) for key in _in(ring, KeyState.PENDING))
    if active is None:  # nobody can sign, and nobody waits for a token of ours
        yield Step(Move.PROMOTE, coming[0].kid) if coming else Step(Move.MAKE)
        return
    yield from (Step(Move.NOTE_HELD, key.kid) for key in coming if key.held_time is None and key.kid in ring.held)
    if coming:
        yield from _promotion(coming[0], active, ring, policy)
    yield from (Step(Move.RETIRE, key.kid) for key in _in(ring, KeyState.RETIRING) if key.state_time + MAX_ACCESS_LIFE <= ring.now)
    if not coming and policy.period and len(ring.keys) < MOST_KEYS and active.state_time + policy.period - policy.lead <= ring.now:
        yield Step(Move.MAKE)


def _promotion(key: StoredKey, active: StoredKey, ring: Snapshot, policy: Policy) -> Iterator[Step]:
    """Promote a key that all have held for twice the age of a key set: every copy of an older set is over by then."""
    if not key.is_asked and policy.period and ring.now < active.state_time + policy.period:
        return
    if key.kid in ring.held and key.held_time is not None and key.held_time + 2 * policy.max_age <= ring.now:
        yield Step(Move.PROMOTE, key.kid)
    elif key.state_time + policy.lead <= ring.now:
        yield Step(Move.PROMOTE, key.kid, early=True)


def _in(ring: Snapshot, state: KeyState) -> list[StoredKey]:
    return sorted((key for key in ring.keys if key.state is state), key=lambda key: key.state_time)


class Rotation:
    """Moves the ring on, by the clock and when asked."""

    def __init__(self, store: "KeyStore", ring: KeyRing, vault: Vault, policy: Policy) -> None:
        self._store = store
        self._ring = ring
        self._vault = vault
        self._policy = policy

    async def begin(self, given: KeyPair | None) -> None:
        """Make sure that the ring can sign: with the environment's key pair, or one made now. Enter the environment's if it is new.

        Raises  UnusableKey if a stored key does not open, or the given one is in the ring under another name, or another key under its name
        """
        snapshot = await self._ring.load()
        if any(self._vault.renewed(key.kid, key.sealed_private) for key in snapshot.keys):
            await self._store.renew_seals(_call("renew_seals"), self._vault.renewed)
        if given is not None:
            await self._admit(given)
        if not self._ring.can_sign:
            await self.advance()
        if not self._ring.can_sign:
            raise UnusableKey("the ring has no active key")

    async def advance(self) -> None:
        """Take every step that is due. Raises DependencyUnavailable, UnusableKey."""
        for _ in range(MAX_STEPS):
            snapshot = await self._ring.load()
            step = next_step(snapshot, self._policy)
            if step is None:
                return
            fresh = await self._make() if step.move is Move.MAKE else None
            taken = await self._store.take(_call("advance"), step, lambda ring: next_step(ring, self._policy), fresh)
            if taken:
                self._report(step)
                crashpoint("keys.between_steps")
        log.error("keys_never_settle")

    async def rotate(self, call: Call) -> "ListedKey":
        """Make the next key, or hasten the one that is on its way; return it."""
        key = await self._store.publish_next(call, await self._make())
        await self._ring.load()
        log.info("key_asked_for", kid=key.kid)
        return key

    async def revoke(self, call: Call, kid: str) -> "ListedKey":
        """Withdraw a key: when this returns, every instance refuses its tokens. Raises NotFound, DependencyUnavailable, FanoutPending."""
        fresh = await self._make()
        snapshot = await self._ring.load()
        signs = any(key.kid == kid and key.state is KeyState.ACTIVE for key in snapshot.keys)
        if signs and not _in(snapshot, KeyState.PUBLISHED):
            # Its successor is published in a change of its own, so that instances know it before they meet its first token.
            await self._store.publish_next(_call("revoke"), fresh, is_urgent=True)
            fresh = await self._make()
        try:
            key = await self._store.revoke(call, kid, fresh)
        finally:
            await self._ring.load()
        log.warning("key_revoked", kid=kid)
        return key

    async def list(self) -> "list[ListedKey]":
        """Return the keys, oldest first; retired ones for a day."""
        return await self._store.list(LISTED_FOR)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look after the ring while inside."""
        task = asyncio.create_task(self._look_after(), name="keys")
        try:
            yield
        finally:
            await end([task])

    async def _look_after(self) -> None:
        pause = min(LOOK_EVERY, self._policy.max_age.total_seconds() / 2)
        while True:
            await self._ring.wait_for_news(pause)
            try:
                await self.advance()
            except WatchwordError as error:
                log.warning("key_tending_failed", reason=error.reason, cause=error.text)
                await asyncio.sleep(pause)
            except Exception:  # a defect must not end it: a retired key would go on verifying
                log.exception("key_tending_failed")
                await asyncio.sleep(pause)

    async def _admit(self, given: KeyPair) -> None:
        new = self._vault.seal(given)
        state = await self._store.find_admitted(new) or await self._store.admit(_call("admit"), new)
        if state is KeyState.RETIRED:
            log.warning("environment_key_is_retired", kid=given.kid, why="it signs no more; remove JWT_PRIVATE_KEY or give another")

    async def _make(self) -> NewKey:
        """Make a key beside the event loop: other calls go on meanwhile."""
        return self._vault.seal(await asyncio.to_thread(generate, self._policy.algorithm))

    @staticmethod
    def _report(step: Step) -> None:
        if step.early:
            log.warning("key_promoted_before_all_reported", kid=step.kid)
        else:
            log.info("key_moved", move=step.move.value, kid=step.kid)


def _call(name: str) -> Call:
    """Return the call of something that nobody asked for, so that it is audited like any other change."""
    return Call(f"keys/{name}", Caller(CallerKind.SERVICE, "token"))
