"""The life of signing keys with the clock in our hands, and the ring of keys in memory."""

import asyncio
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.token.key_pairs import KeyPair, UnusableKey, generate
from services.token.keys import STALE_AFTER, KeyRing, KeyState, Snapshot, StoredKey
from services.token.notices import KeyNotice
from services.token.rotation import Move, Policy, Rotation, Step, next_step
from services.token.sessions import MAX_ACCESS_LIFE
from services.token.vault import Vault
from watchword.errors import DependencyUnavailable

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
POLICY = Policy("Ed25519", period=30 * DAY, max_age=300 * SECOND, limit=600 * SECOND)
VAULT = Vault([bytes(range(32))])
PAIRS = [generate("Ed25519") for _ in range(3)]


def stored(pair: KeyPair, state: KeyState, *, since: datetime = NOW, held: datetime | None = None, is_asked: bool = False) -> StoredKey:
    new = VAULT.seal(pair)
    return StoredKey(new.kid, new.algorithm, state, new.public_pem, new.sealed_private, since, since, held, is_asked)


def ring_at(after: timedelta, *keys: StoredKey, held: Iterable[str] = ()) -> Snapshot:
    return Snapshot(NOW + after, keys, frozenset(held))


ACTIVE = stored(PAIRS[0], KeyState.ACTIVE)
NEXT = PAIRS[1].kid


def coming(**fields: object) -> StoredKey:
    return replace(stored(PAIRS[1], KeyState.PUBLISHED), **fields)  # type: ignore[arg-type]


# The pure decision.


@pytest.mark.parametrize(
    ("ring", "due"),
    [
        (ring_at(DAY), Step(Move.MAKE)),  # nobody can sign
        (ring_at(DAY, stored(PAIRS[1], KeyState.PENDING)), Step(Move.PUBLISH, NEXT)),
        (ring_at(0 * DAY, coming()), Step(Move.PROMOTE, NEXT)),  # the first key has nobody to wait for
        (ring_at(DAY, ACTIVE), None),
        (ring_at(30 * DAY - 1201 * SECOND, ACTIVE), None),
        (ring_at(30 * DAY - 1200 * SECOND, ACTIVE), Step(Move.MAKE)),  # early enough for two key sets and the limit
        (ring_at(40 * DAY, ACTIVE, *[stored(PAIRS[1], KeyState.RETIRING, since=NOW + 40 * DAY)] * 89), None),  # a key set would not hold them
        (ring_at(40 * DAY, ACTIVE, stored(PAIRS[1], KeyState.PENDING)), Step(Move.PUBLISH, NEXT)),
        (ring_at(40 * DAY, ACTIVE, coming(state_time=NOW + 40 * DAY)), None),  # one on its way is enough
        (ring_at(DAY, ACTIVE, coming(), held=[NEXT]), Step(Move.NOTE_HELD, NEXT)),
    ],
)
def test_what_is_due_follows_from_what_is_stored(ring: Snapshot, due: Step | None) -> None:
    """So a kill between any two steps costs nothing: the next look finds the same step."""
    assert next_step(ring, POLICY) == due


@pytest.mark.parametrize("after", [0, 1, 599])
def test_a_key_signs_only_when_all_have_held_it_for_two_key_sets(after: int) -> None:
    """T22: somebody may still hold the key set from before it."""
    key = coming(held_time=NOW + 100 * SECOND, is_asked=True)

    assert next_step(ring_at((100 + after) * SECOND, ACTIVE, key, held=[NEXT]), POLICY) is None
    assert next_step(ring_at(700 * SECOND, ACTIVE, key, held=[NEXT]), POLICY) == Step(Move.PROMOTE, NEXT)


def test_a_key_that_somebody_lost_waits_for_him_until_the_limit() -> None:
    key = coming(held_time=NOW, is_asked=True)

    assert next_step(ring_at(601 * SECOND, ACTIVE, key), POLICY) is None
    assert next_step(ring_at(1199 * SECOND, ACTIVE, key), POLICY) is None
    assert next_step(ring_at(1200 * SECOND, ACTIVE, key), POLICY) == Step(Move.PROMOTE, NEXT, early=True)


def test_a_key_that_nobody_asked_for_waits_for_its_day() -> None:
    held = 29 * DAY

    key = coming(held_time=NOW + held, state_time=NOW + held)

    assert next_step(ring_at(30 * DAY - SECOND, ACTIVE, key, held=[NEXT]), POLICY) is None
    assert next_step(ring_at(30 * DAY, ACTIVE, key, held=[NEXT]), POLICY) == Step(Move.PROMOTE, NEXT)
    assert next_step(ring_at(held + 600 * SECOND, ACTIVE, replace(key, is_asked=True), held=[NEXT]), POLICY) == Step(Move.PROMOTE, NEXT)


def test_without_a_period_keys_change_only_when_asked() -> None:
    still = replace(POLICY, period=0 * DAY)

    assert next_step(ring_at(9999 * DAY, ACTIVE), still) is None
    assert next_step(ring_at(601 * SECOND, ACTIVE, coming(held_time=NOW, is_asked=True), held=[NEXT]), still) == Step(Move.PROMOTE, NEXT)


def test_a_key_verifies_until_the_last_token_it_signed_is_over() -> None:
    former = stored(PAIRS[1], KeyState.RETIRING)

    assert next_step(ring_at(MAX_ACCESS_LIFE - SECOND, ACTIVE, former), POLICY) is None
    assert next_step(ring_at(MAX_ACCESS_LIFE, ACTIVE, former), POLICY) == Step(Move.RETIRE, NEXT)


@dataclass
class Life:
    """The ring, lived through: what the store does, without a store; and what others saw."""

    policy: Policy
    now: datetime = NOW
    keys: dict[str, StoredKey] = field(default_factory=dict)
    made: int = 0
    held_since: dict[str, datetime] = field(default_factory=dict)
    last_signed: dict[str, datetime] = field(default_factory=dict)
    early: set[str] = field(default_factory=set)

    @property
    def active(self) -> list[str]:
        return [key.kid for key in self.keys.values() if key.state is KeyState.ACTIVE]

    def look(self, held: frozenset[str]) -> None:
        while step := next_step(Snapshot(self.now, tuple(self.keys.values()), held), self.policy):
            self.take(step)

    def take(self, step: Step) -> None:
        if step.move is Move.MAKE:
            self.made += 1
            self.keys[f"key-{self.made}"] = StoredKey(f"key-{self.made}", "Ed25519", KeyState.PENDING, "", b"", self.now, self.now)
        elif step.move is Move.NOTE_HELD:
            self.keys[step.kid] = replace(self.keys[step.kid], held_time=self.now)
        elif step.move is Move.PROMOTE:
            for kid in self.active:
                self.move(kid, KeyState.RETIRING)
            self.early |= {step.kid} if step.early or not self.last_signed else set()
            self.move(step.kid, KeyState.ACTIVE)
        else:
            self.move(step.kid, KeyState.PUBLISHED if step.move is Move.PUBLISH else KeyState.RETIRED)

    def move(self, kid: str, state: KeyState) -> None:
        self.keys[kid] = replace(self.keys[kid], state=state, state_time=self.now)


@pytest.mark.parametrize("seed", range(10))
def test_through_twenty_periods_no_key_signs_unpublished_nor_vanishes_under_its_tokens(seed: int) -> None:
    """Looks come late and irregularly, and instances hold a key some time after it was published, or for a while not at all."""
    chance = random.Random(seed)
    life = Life(Policy("Ed25519", period=7200 * SECOND, max_age=60 * SECOND, limit=300 * SECOND))
    end = NOW + 20 * life.policy.period

    while life.now < end:
        published = frozenset(kid for kid, key in life.keys.items() if key.state is KeyState.PUBLISHED)
        held = frozenset(kid for kid in published if chance.random() < 0.7)
        for kid in held:
            life.held_since.setdefault(kid, life.now)
        life.look(held)

        assert len(life.active) == 1
        [signer] = life.active
        life.last_signed[signer] = life.now
        assert signer in life.early or life.held_since[signer] + 2 * life.policy.max_age <= life.now
        assert all(life.keys[kid].state.verifies for kid, at in life.last_signed.items() if at > life.now - MAX_ACCESS_LIFE)
        life.now += chance.random() * 30 * SECOND

    assert 18 <= life.made <= 21
    assert any(key.state is KeyState.RETIRED for key in life.keys.values())


# The ring in memory.


@dataclass
class Table:
    """Where the ring is kept."""

    keys: list[StoredKey] = field(default_factory=list)
    reads: int = 0
    is_down: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def read(self) -> Snapshot:
        """Return what the table holds when the read begins; the answer comes when the gate is open."""
        self.reads += 1
        snapshot = Snapshot(NOW, tuple(key for key in self.keys if key.state is not KeyState.RETIRED))
        await self.gate.wait()
        if self.is_down:
            raise DependencyUnavailable
        return snapshot


@dataclass
class FakeLease:
    """A lease that the test takes and gives."""

    is_current: bool = True


@dataclass
class Memory:
    """A ring with its table, its lease and its clock."""

    table: Table
    ring: KeyRing
    lease: FakeLease
    time: list[float]

    @classmethod
    async def of(cls, *keys: StoredKey) -> "Memory":
        table, lease, time = Table(list(keys)), FakeLease(), [1000.0]
        ring = KeyRing(table, VAULT, monotonic=lambda: time[0])
        ring.trust(lease)
        await ring.load()
        return cls(table, ring, lease, time)

    @property
    def kids(self) -> set[str]:
        return {key["kid"] for key in json.loads(self.ring.jwks)["keys"]}


def notice(pair: KeyPair, state: KeyState) -> KeyNotice:
    return KeyNotice(pair.kid, pair.algorithm, state.value, pair.public_pem)


async def test_a_promotion_that_was_told_signs_at_once() -> None:
    """The private part is there already, and the predecessor still verifies."""
    memory = await Memory.of(ACTIVE, coming())
    version = memory.ring.version

    memory.ring.apply(notice(PAIRS[1], KeyState.ACTIVE))
    memory.ring.apply(notice(PAIRS[0], KeyState.RETIRING))

    assert memory.ring.signing.kid == NEXT
    assert memory.kids == {PAIRS[0].kid, NEXT}
    assert memory.ring.version > version


async def test_notices_may_come_in_any_order_and_twice() -> None:
    """They are relayed after a crash, and read by whoever joins."""
    notices = [notice(PAIRS[1], state) for state in (KeyState.PUBLISHED, KeyState.ACTIVE, KeyState.RETIRING)] + [notice(PAIRS[0], KeyState.RETIRED)]
    for seed in range(20):
        memory = await Memory.of(ACTIVE, coming())
        shuffled = [*notices, *notices]
        random.Random(seed).shuffle(shuffled)

        for one in shuffled:
            memory.ring.apply(one)

        assert memory.kids == {NEXT}
        assert memory.ring.peek(PAIRS[0].kid) is None


async def test_a_notice_that_comes_late_takes_nothing_back() -> None:
    """A relay tells again what a dead instance had to tell, after others have read the ring."""
    memory = await Memory.of(ACTIVE, stored(PAIRS[1], KeyState.RETIRING))
    version = memory.ring.version

    memory.ring.apply(notice(PAIRS[0], KeyState.PUBLISHED))
    memory.ring.apply(notice(PAIRS[1], KeyState.ACTIVE))
    memory.ring.apply(notice(PAIRS[2], KeyState.RETIRED))

    assert memory.ring.signing.kid == PAIRS[0].kid
    assert memory.kids == {PAIRS[0].kid, NEXT}
    assert memory.ring.version == version


async def test_a_retired_key_neither_verifies_nor_signs_from_the_notice_on() -> None:
    """RevokeSigningKey: before anything is read."""
    memory = await Memory.of(ACTIVE)
    etag = memory.ring.etag

    memory.ring.apply(notice(PAIRS[0], KeyState.RETIRED))

    assert await memory.ring.find(PAIRS[0].kid) is None
    assert memory.kids == set()
    assert memory.ring.etag != etag
    with pytest.raises(DependencyUnavailable):
        _ = memory.ring.signing


async def test_a_read_that_began_before_a_notice_does_not_undo_it() -> None:
    memory = await Memory.of(ACTIVE, coming())
    memory.table.gate.clear()
    loading = asyncio.create_task(memory.ring.load())
    await asyncio.sleep(0)

    memory.ring.apply(notice(PAIRS[1], KeyState.ACTIVE))
    memory.ring.apply(notice(PAIRS[0], KeyState.RETIRED))
    memory.table.gate.set()
    await loading

    assert memory.ring.signing.kid == NEXT
    assert memory.kids == {NEXT}


async def test_a_told_key_is_fetched_from_postgres_and_never_from_the_notice() -> None:
    """Whoever can write to Redis must not thereby be able to sign: the public part in a notice is not believed."""
    memory = await Memory.of(ACTIVE)
    forged = generate("Ed25519")

    memory.ring.apply(notice(forged, KeyState.PUBLISHED))
    memory.ring.apply(KeyNotice(PAIRS[0].kid, "Ed25519", "ACTIVE", forged.public_pem))
    await memory.ring.settle()

    assert await memory.ring.find(forged.kid) is None
    key = await memory.ring.find(PAIRS[0].kid)
    assert key is not None
    assert key.jwk()["x"] == json.loads(memory.ring.jwks)["keys"][0]["x"]
    assert memory.kids == {PAIRS[0].kid}


async def test_a_told_key_verifies_from_the_notice_on_whatever_was_asked_before() -> None:
    """An acknowledged key is found even if unknown kids have used up the reloads."""
    memory = await Memory.of(ACTIVE)
    await memory.ring.find("nobody")
    memory.table.keys.append(coming())

    memory.ring.apply(notice(PAIRS[1], KeyState.PUBLISHED))
    found = await asyncio.gather(*(memory.ring.find(NEXT) for _ in range(100)))

    assert all(found)
    assert memory.table.reads <= 3


@pytest.mark.parametrize(("is_current", "interval"), [(True, 5.0), (False, 1.0)])
async def test_a_thousand_unknown_kids_cost_one_read(is_current: bool, interval: float) -> None:
    """A054: kids cost nothing to invent."""
    memory = await Memory.of(ACTIVE)
    memory.lease.is_current = is_current
    memory.time[0] += interval
    reads = memory.table.reads

    for number in range(500):
        assert await memory.ring.find(f"kid-{number}") is None
    assert await asyncio.gather(*(memory.ring.find(f"other-{number}") for number in range(500))) == [None] * 500
    assert memory.table.reads == reads + 1

    memory.time[0] += interval
    assert await memory.ring.find("kid-1") is None
    assert memory.table.reads == reads + 2


async def test_with_a_lease_an_unknown_kid_is_unknown_although_postgres_is_down() -> None:
    """Memory holds all that was acknowledged; without a lease nobody knows."""
    memory = await Memory.of(ACTIVE)
    memory.table.is_down = True
    memory.time[0] += 6

    assert await memory.ring.find("nobody") is None
    memory.lease.is_current = False
    memory.time[0] += 6
    with pytest.raises(DependencyUnavailable):
        await memory.ring.find("nobody")
    assert await memory.ring.find(PAIRS[0].kid)


async def test_an_instance_that_lost_touch_does_not_sign() -> None:
    """Its key may be another by now, or revoked."""
    memory = await Memory.of(ACTIVE)
    memory.time[0] += STALE_AFTER + 1
    assert memory.ring.signing.kid == PAIRS[0].kid

    memory.lease.is_current = False

    with pytest.raises(DependencyUnavailable):
        _ = memory.ring.signing
    await memory.ring.load()
    assert memory.ring.signing.kid == PAIRS[0].kid


async def test_a_predecessor_signs_for_seconds_while_the_successor_is_fetched() -> None:
    """Its tokens are good for an hour yet; but not for ever, or it would sign beyond its own end."""
    memory = await Memory.of(ACTIVE)
    memory.ring.apply(notice(PAIRS[1], KeyState.ACTIVE))
    memory.ring.apply(notice(PAIRS[0], KeyState.RETIRING))
    assert memory.ring.signing.kid == PAIRS[0].kid

    memory.time[0] += 11

    with pytest.raises(DependencyUnavailable):
        _ = memory.ring.signing
    memory.table.keys = [replace(ACTIVE, state=KeyState.RETIRING), coming(state=KeyState.ACTIVE)]
    await memory.ring.load()
    assert memory.ring.signing.kid == NEXT


@pytest.mark.parametrize("state", [KeyState.PENDING, KeyState.PUBLISHED, KeyState.RETIRING])
async def test_only_an_active_key_signs(state: KeyState) -> None:
    memory = await Memory.of(stored(PAIRS[0], state))

    with pytest.raises(DependencyUnavailable):
        _ = memory.ring.signing
    assert (PAIRS[0].kid in memory.kids) is (state is not KeyState.PENDING)


async def test_an_instance_holds_what_it_verifies_and_every_verifier_reported() -> None:
    memory = await Memory.of(ACTIVE, coming(), stored(PAIRS[2], KeyState.PENDING))

    assert memory.ring.holds() == sorted([PAIRS[0].kid, NEXT])
    assert memory.ring.holds([frozenset({NEXT}), frozenset({NEXT, PAIRS[0].kid})]) == [NEXT]
    assert memory.ring.holds([frozenset()]) == []


async def test_the_tending_ends_whatever_is_told_in_the_same_turn() -> None:
    """Before Python 3.12 `asyncio.wait_for` forgets that it was cancelled when what it waits for comes in the same turn."""
    ring = KeyRing(Table([ACTIVE]), VAULT)
    nothing_to_take: Any = None
    async with asyncio.timeout(5), Rotation(nothing_to_take, ring, VAULT, POLICY).running():
        for _ in range(3):
            await asyncio.sleep(0)  # until it waits for news
        ring.apply(notice(PAIRS[1], KeyState.PUBLISHED))


async def test_a_wrong_key_encryption_key_is_said_and_changes_nothing() -> None:
    """A053."""
    ring = KeyRing(Table([ACTIVE]), Vault([bytes(reversed(range(32)))]))

    with pytest.raises(UnusableKey):
        await ring.load()
    assert not ring.can_sign


@pytest.mark.parametrize(
    "change",
    [
        {"public_pem": PAIRS[2].public_pem},
        {"algorithm": "RS256"},
        {"sealed_private": VAULT.seal(PAIRS[2]).sealed_private},
        {"kid": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_row_that_was_changed_by_hand_is_refused(change: dict[str, object]) -> None:
    """Whoever can write to the table alone cannot have his own key believed: private part, public part, kid and algorithm belong together."""
    memory = await Memory.of(ACTIVE)
    memory.table.keys.append(replace(coming(), **change))  # type: ignore[arg-type]

    with pytest.raises(UnusableKey):
        await memory.ring.load()

    memory.time[0] += 6
    assert await memory.ring.find(str(change.get("kid", NEXT))) is None
    assert memory.ring.signing.kid == PAIRS[0].kid


def test_a_vault_opens_with_every_key_and_seals_with_the_first() -> None:
    """How KEY_ENCRYPTION_KEY is changed: old,new, then new,old, then new."""
    old, new = bytes(range(32)), bytes(range(32, 64))
    sealed = Vault([old]).seal(PAIRS[0]).sealed_private

    both = Vault([new, old])
    renewed = both.renewed(PAIRS[0].kid, sealed)

    assert renewed is not None
    assert both.renewed(PAIRS[0].kid, renewed) is None
    assert Vault([new]).open(PAIRS[0].kid, renewed) == PAIRS[0].private_pem.encode()
    with pytest.raises(UnusableKey):
        Vault([old]).open(PAIRS[0].kid, renewed)


@pytest.mark.parametrize("given", ["short", "AAAA,derived", "A" * 44, "derived,,", "é" * 44])
def test_a_weak_key_encryption_key_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        Vault.of(given, "salt")
