"""The memory of revocations: exact, whatever comes first, and no larger than stated."""

import random
from datetime import UTC, datetime, timedelta
from itertools import permutations
from uuid import UUID, uuid4

import pytest

from services.token.revoked import Revoked
from watchword.rules import Revocation, RevokedKind

NOW = datetime(2026, 11, 24, tzinfo=UTC)
TENANT = uuid4()


def revocation(
    kind: RevokedKind = RevokedKind.TOKEN, key: UUID | None = None, tenant: UUID = TENANT, minutes: float = 60, **more: object
) -> Revocation:
    """Return a revocation that ends in so many minutes."""
    fields = {"revision": 1, **more}
    return Revocation(tenant, kind, key or uuid4(), expire_time=NOW + timedelta(minutes=minutes), **fields)  # type: ignore[arg-type]


def found(memory: Revoked, kind: RevokedKind, key: UUID, tenant: UUID = TENANT) -> list[Revocation]:
    return list(memory.find_all([(kind, tenant, key.int)]))


def test_of_many_each_is_found_and_nothing_else() -> None:
    """Neighbours in a shard, other tenants, other kinds: 20,000 keys in a handful of shards, so that records lie side by side."""
    chance, memory = random.Random(7), Revoked()
    keys = [UUID(int=chance.getrandbits(128) & ~0xFFFF | number % 4) for number in range(20_000)]
    for key in keys[:10_000]:
        memory.add(revocation(key=key))

    assert all(len(found(memory, RevokedKind.TOKEN, key)) == 1 for key in keys[:10_000])
    assert not any(found(memory, RevokedKind.TOKEN, key) for key in keys[10_000:])
    assert not any(found(memory, RevokedKind.SESSION, key) for key in keys[:10_000])
    assert not any(found(memory, RevokedKind.TOKEN, key, uuid4()) for key in keys[:100])
    assert memory.count == 10_000


def test_a_name_that_lies_across_two_records_is_none_of_them() -> None:
    """Records lie end to end: what matches at no record's beginning does not count."""
    memory, first = Revoked(), UUID(int=0)
    memory.add(revocation(key=first, tenant=first))
    for number in range(1, 50):
        assert not found(memory, RevokedKind.TOKEN, UUID(int=number << 16), first)


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_the_states_of_a_row_may_come_in_any_order(order: tuple[int, ...]) -> None:
    """The one that refuses most is kept, plain rows and those that spare a session alike."""
    key, session = uuid4(), uuid4()
    plain = [revocation(RevokedKind.SUBJECT, key, revision=revision, minutes=revision) for revision in (1, 5, 9)]
    sparing = [
        revocation(RevokedKind.SUBJECT, key, revision=revision, spared_revision=spared, spared_session_id=session)
        for revision, spared in ((0, 2), (5, 2), (5, 8))
    ]

    for states, strongest in ((plain, (9, 0)), (sparing, (5, 8))):
        memory = Revoked()
        for index in order:
            memory.add(states[index])
            memory.add(states[index])
        (kept,) = found(memory, RevokedKind.SUBJECT, key)
        assert (kept.revision, kept.spared_revision) == strongest
        assert kept.expire_time >= max(state.expire_time for state in states)
        assert memory.count == 1


def test_many_sessions_at_once_are_held_like_one_by_one() -> None:
    """Those that are held already too, whichever of the two ends later; and nothing beside them."""
    one_by_one, at_once = Revoked(), Revoked()
    first, *keys = [uuid4() for _ in range(3000)]
    for memory in (one_by_one, at_once):
        memory.add(revocation(RevokedKind.SESSION, first, minutes=1))
        memory.add(revocation(RevokedKind.SESSION, keys[0], minutes=90))
    version = at_once.version

    for key in (first, *keys):
        one_by_one.add(revocation(RevokedKind.SESSION, key, revision=7))
    ids = b"".join(key.bytes for key in (first, *keys))
    at_once.add_sessions(TENANT, ids, revision=7, expire_time=NOW + timedelta(minutes=60))

    for key in (first, *keys):
        assert found(at_once, RevokedKind.SESSION, key) == found(one_by_one, RevokedKind.SESSION, key) != []
    assert at_once.count == one_by_one.count == 3000
    assert at_once.version > version
    assert not found(at_once, RevokedKind.SESSION, keys[0], uuid4())
    assert not found(at_once, RevokedKind.TOKEN, keys[0])


def test_what_has_expired_leaves_and_what_has_not_stays() -> None:
    """A sweep in parts comes round to every shard."""
    memory = Revoked()
    short = [revocation(minutes=1) for _ in range(500)] + [revocation(RevokedKind.CLIENT, minutes=1, issued_before=NOW)]
    long = [revocation(minutes=30) for _ in range(500)] + [revocation(RevokedKind.CLIENT, minutes=30, issued_before=NOW)]
    for one in (*short, *long):
        memory.add(one)

    for _ in range(16):
        memory.sweep((NOW + timedelta(minutes=2)).timestamp(), 1 << 12)

    assert memory.count == len(long)
    assert not any(found(memory, one.kind, one.key) for one in short)
    assert all(found(memory, one.kind, one.key) for one in long)


def test_a_snapshot_holds_a_tenants_own_and_nothing_of_others() -> None:
    memory, other = Revoked(), uuid4()
    own = {one.key for one in (revocation(), revocation(RevokedKind.SUBJECT, issued_before=NOW))}
    for key in own:
        memory.add(revocation(key=key))
    memory.add(revocation(tenant=other))

    assert {one.key for part in memory.of_tenants(frozenset({TENANT})) for one in part} == own
    assert len([one for part in memory.of_tenants(None) for one in part]) == 3


def test_every_addition_moves_the_version() -> None:
    """What was found good before is looked up again."""
    memory = Revoked()
    one = revocation()
    versions = [memory.version]
    for _ in range(2):
        memory.add(one)
        versions.append(memory.version)
    assert len(set(versions)) == 3


def test_rows_taken_in_at_once_are_what_they_are_one_by_one() -> None:
    """Of two states of one row, whichever comes first; all of them again, as after a lost lease; and an expiry in the middle of a second."""
    tenant, again = uuid4(), uuid4()
    end = datetime(2030, 1, 1, 12, 0, 0, 400_000, tzinfo=UTC)
    given = [
        *(Revocation(tenant, kind, uuid4(), number, end) for number, kind in enumerate((*RevokedKind, RevokedKind.TOKEN), 1)),
        Revocation(tenant, RevokedKind.SUBJECT, again, 9, end, is_disabled=True),
        Revocation(tenant, RevokedKind.SUBJECT, again, 7, end),
    ]
    one_by_one, at_once = Revoked(), Revoked()
    for revocation in given:
        one_by_one.add(revocation)
    rows = [(one.tenant_id, one.kind.value, one.key.bytes, one.revision, int(one.expire_time.timestamp()) + 1, one.is_disabled) for one in given]
    names = [(one.kind, one.tenant_id, one.key.int) for one in given]
    for _ in range(2):
        at_once.add_plain(rows)
        assert list(at_once.find_all(names)) == list(one_by_one.find_all(names))
        assert at_once.count == one_by_one.count == len(given) - 1


def test_a_later_state_of_a_row_takes_nothing_back() -> None:
    """Whether states come by rows or as revocations: the highest revision says whether it is disabled, and the longest life counts."""
    key, end = uuid4(), datetime(2030, 1, 1, tzinfo=UTC)
    states = [(7, 0, False), (9, 0, True), (9, -60, True), (8, 60, False), (9, 60, True)]
    seen = []
    for by_rows in (True, False):
        memory = Revoked()
        for revision, seconds, is_disabled in states:
            one = Revocation(TENANT, RevokedKind.SUBJECT, key, revision, end + timedelta(seconds=seconds), is_disabled=is_disabled)
            if by_rows:
                memory.add_plain([(TENANT, "subject", key.bytes, revision, int(one.expire_time.timestamp()) + 1, is_disabled)])
            else:
                memory.add(one)
            (held,) = found(memory, RevokedKind.SUBJECT, key)
            seen.append((held.revision, (held.expire_time - end).total_seconds(), held.is_disabled))
    assert seen == [(7, 1, False), (9, 1, True), (9, 1, True), (9, 61, True), (9, 61, True)] * 2
