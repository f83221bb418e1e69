"""Signing keys in Postgres. Every change of the ring is one transaction under one lock, and is told to all instances."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import Change, Connection, Database, Row, bump
from services.chassis.tenancy import TenantId
from services.token.key_pairs import UnusableKey
from services.token.keys import KeyState, Snapshot, StoredKey
from services.token.notices import KeyNotice, encode
from services.token.revocations import EVERYWHERE, Revocation, RevokedKind, id_of_key
from services.token.rotation import MOST_KEYS, Move, Step
from services.token.sessions import MAX_ACCESS_LIFE
from services.token.store.revocations import insert_revocation
from services.token.vault import NewKey
from watchword.errors import NotFound, PreconditionFailed

LIVE_FOR = timedelta(seconds=10)  # since an instance last wrote its row

Decide = Callable[[Snapshot], Step | None]
Renew = Callable[[str, bytes], bytes | None]

_EVENTS = {
    KeyState.PENDING: "signing_key_made",
    KeyState.PUBLISHED: "signing_key_published",
    KeyState.ACTIVE: "signing_key_activated",
    KeyState.RETIRING: "signing_key_superseded",
    KeyState.RETIRED: "signing_key_retired",
}


@dataclass(frozen=True, slots=True)
class ListedKey:
    """What may be shown of a key."""

    kid: str
    algorithm: str
    state: KeyState
    create_time: datetime
    state_time: datetime
    is_revoked: bool


class KeyStore:
    """Reads and changes the ring."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # A published key is held when every instance of token that lives says so, and at least one does.
    _READ = """
        SELECT now.now, k.kid, k.algorithm, k.state, k.public_pem, k.sealed_private, k.create_time, k.state_time, k.held_time, k.is_asked,
               k.state = 'PUBLISHED' AND coalesce(
                   (SELECT bool_and(k.kid = ANY(i.holds)) FROM instance i WHERE NOT i.guest AND i.seen_time > now.now - $1::interval), false
               ) AS is_held
        FROM (SELECT clock_timestamp() AS now) AS now
        LEFT JOIN signing_key AS k ON k.state <> 'RETIRED'
        ORDER BY k.create_time, k.kid
    """

    async def read(self) -> Snapshot:
        """Return all keys but the retired."""
        return _snapshot(await self._database.fetch(self._READ, LIVE_FOR))

    _LIST = """
        SELECT kid, algorithm, state, public_pem, create_time, state_time, revoke_time FROM signing_key
        WHERE state <> 'RETIRED' OR state_time > clock_timestamp() - $1::interval
        ORDER BY create_time, kid
    """

    async def list(self, retired_for: timedelta) -> list[ListedKey]:
        """Return the keys, oldest first, with those that retired within that time."""
        return [_listed(row) for row in await self._database.fetch(self._LIST, retired_for)]

    async def take(self, call: Call, step: Step, decide: Decide, fresh: NewKey | None) -> bool:
        """Take a step if it is still what `decide` says once nobody else can move the ring; return whether it was taken."""

        async def effect(change: Change) -> bool:
            await change.connection.execute(_LOCK)
            snapshot = _snapshot(await change.connection.fetch(self._READ, LIVE_FOR))
            if decide(snapshot) != step:
                return False
            await self._take(change, step, snapshot, fresh)
            return True

        return await self._database.change(call, bool, effect)

    async def _take(self, change: Change, step: Step, snapshot: Snapshot, fresh: NewKey | None) -> None:
        if step.move is Move.MAKE:
            assert fresh is not None
            await _insert(change, fresh, KeyState.PENDING)
        elif step.move is Move.PUBLISH:
            await _move(change, step.kid, KeyState.PUBLISHED)
        elif step.move is Move.NOTE_HELD:
            await change.connection.execute(_NOTE_HELD, step.kid)
        elif step.move is Move.PROMOTE:
            await _promote(change, step.kid, _active(snapshot), early=step.early)
        else:
            await _move(change, step.kid, KeyState.RETIRED)

    async def publish_next(self, call: Call, fresh: NewKey, *, is_urgent: bool = False) -> ListedKey:
        """Publish `fresh` as the next key, or hasten the key that is on its way; return which it is.

        is_urgent  because the present one is about to be withdrawn
        Raises     PreconditionFailed if too many keys are retiring
        """

        async def effect(change: Change) -> ListedKey:
            await change.connection.execute(_LOCK)
            snapshot = _snapshot(await change.connection.fetch(self._READ, LIVE_FOR))
            coming = next((key for key in snapshot.keys if key.state in (KeyState.PENDING, KeyState.PUBLISHED)), None)
            if coming is None:
                if len(snapshot.keys) >= MOST_KEYS and not is_urgent:
                    raise PreconditionFailed("too many keys are retiring; rotate again when some have retired")
                await _insert(change, fresh, KeyState.PENDING)
            kid = fresh.kid if coming is None else coming.kid
            await change.connection.execute(_ASK_FOR, kid)
            if coming is None or coming.state is KeyState.PENDING:
                await _move(change, kid, KeyState.PUBLISHED)
            return await _find(change.connection, kid)

        return await self._database.change(call, ListedKey, effect)

    async def find_admitted(self, given: NewKey) -> KeyState | None:
        """Return the state of the environment's key, or None if it is new. Raises UnusableKey if it, or its kid, belongs to another key."""
        return _state_of(given, await self._database.fetch(_FIND_TWINS, given.kid, given.public_pem))

    async def admit(self, call: Call, given: NewKey) -> KeyState:
        """Publish the environment's key if it is new; return its state. Raises UnusableKey like `find_admitted`."""

        async def effect(change: Change) -> KeyState:
            await change.connection.execute(_LOCK)
            state = _state_of(given, await change.connection.fetch(_FIND_TWINS, given.kid, given.public_pem))
            if state is not None:
                return state
            await _insert(change, given, KeyState.PENDING)
            await change.connection.execute(_ASK_FOR, given.kid)
            await _move(change, given.kid, KeyState.PUBLISHED)
            return KeyState.PUBLISHED

        return await self._database.change(call, KeyState, effect)

    async def revoke(self, call: Call, kid: str, fresh: NewKey) -> ListedKey:
        """Withdraw a key and its tokens. If it signed, the next key does from now on, and `fresh` if there is none. Raises NotFound."""

        async def effect(change: Change) -> ListedKey:
            await change.connection.execute(_LOCK)
            now = await change.connection.fetchval(_REVOKE, kid)
            if now is None:
                raise NotFound
            snapshot = _snapshot(await change.connection.fetch(self._READ, LIVE_FOR))
            if _active(snapshot) is None:
                await _promote(change, await self._successor(change, snapshot, fresh), None)
            change.tell(await _notice(change.connection, kid), takes_away=True)
            change.audit(AuditEvent("signing_key_revoked", "signing_key", kid))
            revision = await bump(change.connection, TenantId(EVERYWHERE))
            revocation = Revocation(EVERYWHERE, RevokedKind.KEY, id_of_key(kid), 0, now + MAX_ACCESS_LIFE)
            await insert_revocation(change, revocation, revision, now)
            return await _find(change.connection, kid)

        return await self._database.change(call, ListedKey, effect)

    async def _successor(self, change: Change, snapshot: Snapshot, fresh: NewKey) -> str:
        coming = [key for state in (KeyState.PUBLISHED, KeyState.PENDING) for key in snapshot.keys if key.state is state]
        if not coming:
            await _insert(change, fresh, KeyState.PENDING)
        kid = coming[0].kid if coming else fresh.kid
        if not coming or coming[0].state is KeyState.PENDING:
            await _move(change, kid, KeyState.PUBLISHED)
        return kid

    async def renew_seals(self, call: Call, renew: Renew) -> None:
        """Seal anew, with the present key-encryption key, what was sealed with an older one. Raises UnusableKey for what does not open."""

        async def effect(change: Change) -> None:
            await change.connection.execute(_LOCK)
            snapshot = _snapshot(await change.connection.fetch(self._READ, LIVE_FOR))
            for key in snapshot.keys:
                if (sealed := renew(key.kid, key.sealed_private)) is not None:
                    await change.connection.execute(_SEAL, key.kid, sealed)
                    change.audit(AuditEvent("signing_key_sealed_anew", "signing_key", key.kid))

        await self._database.change(call, type(None), effect)


_LOCK = "SELECT pg_advisory_xact_lock(hashtext('watchword/token/signing_key'))"
_INSERT = """
    INSERT INTO signing_key (kid, algorithm, state, public_pem, sealed_private, create_time, state_time)
    VALUES ($1, $2, $3, $4, $5, clock_timestamp(), clock_timestamp())
"""
_FIND_TWINS = "SELECT kid, algorithm, state, public_pem FROM signing_key WHERE kid = $1 OR public_pem = $2"
_FIND = "SELECT kid, algorithm, state, public_pem, create_time, state_time, revoke_time FROM signing_key WHERE kid = $1"
# The private part goes when a key retires; the row stays, so that neither the kid nor the key comes back.
_MOVE = """
    UPDATE signing_key
    SET state = $2, state_time = clock_timestamp(), sealed_private = CASE WHEN $2 = 'RETIRED' THEN ''::bytea ELSE sealed_private END
    WHERE kid = $1
"""
_NOTE_HELD = "UPDATE signing_key SET held_time = clock_timestamp() WHERE kid = $1"
_ASK_FOR = "UPDATE signing_key SET is_asked = true WHERE kid = $1 AND NOT is_asked"
_SEAL = "UPDATE signing_key SET sealed_private = $2 WHERE kid = $1"
_REVOKE = """
    UPDATE signing_key
    SET state = 'RETIRED', sealed_private = '', revoke_time = coalesce(revoke_time, clock_timestamp()),
        state_time = CASE WHEN state = 'RETIRED' THEN state_time ELSE clock_timestamp() END
    WHERE kid = $1
    RETURNING clock_timestamp()
"""


async def _insert(change: Change, key: NewKey, state: KeyState) -> None:
    await change.connection.execute(_INSERT, key.kid, key.algorithm, state.value, key.public_pem, key.sealed_private)
    change.audit(AuditEvent(_EVENTS[state], "signing_key", key.kid, details={"algorithm": key.algorithm}))


async def _move(change: Change, kid: str, state: KeyState, *, early: bool = False) -> None:
    await change.connection.execute(_MOVE, kid, state.value)
    change.audit(AuditEvent(_EVENTS[state], "signing_key", kid, details={"reported_by_all": "false"} if early else {}))
    change.tell(await _notice(change.connection, kid), takes_away=False)


async def _promote(change: Change, kid: str, former: str | None, *, early: bool = False) -> None:
    """Let `kid` sign instead of `former`. Told in the order that leaves nobody without a key; written in the order that the index wants."""
    if former is not None:
        await change.connection.execute(_MOVE, former, KeyState.RETIRING.value)
        crashpoint("keys.after_superseding")
    await _move(change, kid, KeyState.ACTIVE, early=early)
    if former is not None:
        change.audit(AuditEvent(_EVENTS[KeyState.RETIRING], "signing_key", former))
        change.tell(await _notice(change.connection, former), takes_away=False)


async def _notice(connection: Connection, kid: str) -> str:
    row = await connection.fetchrow(_FIND, kid)
    return encode(KeyNotice(row["kid"], row["algorithm"], row["state"], row["public_pem"]))


async def _find(connection: Connection, kid: str) -> ListedKey:
    return _listed(await connection.fetchrow(_FIND, kid))


def _state_of(given: NewKey, twins: list[Row]) -> KeyState | None:
    for twin in twins:
        if twin["public_pem"] != given.public_pem:
            raise UnusableKey(f"JWT_KEY_ID {given.kid} already names another key; give the new key a new JWT_KEY_ID")
        if twin["kid"] != given.kid:
            raise UnusableKey(f"JWT_PRIVATE_KEY is in the ring already, under the JWT_KEY_ID {twin['kid']}; a key has one name")
        if twin["algorithm"] != given.algorithm:
            raise UnusableKey(f"JWT_KEY_ID {given.kid} names a key for {twin['algorithm']}; a key has one algorithm: give a new key and JWT_KEY_ID")
    return KeyState(twins[0]["state"]) if twins else None


def _active(snapshot: Snapshot) -> str | None:
    return next((key.kid for key in snapshot.keys if key.state is KeyState.ACTIVE), None)


def _snapshot(rows: list[Row]) -> Snapshot:
    keys = [row for row in rows if row["kid"] is not None]
    return Snapshot(rows[0]["now"], tuple(_key(row) for row in keys), frozenset(row["kid"] for row in keys if row["is_held"]))


def _key(row: Row) -> StoredKey:
    return StoredKey(
        kid=row["kid"],
        algorithm=row["algorithm"],
        state=KeyState(row["state"]),
        public_pem=row["public_pem"],
        sealed_private=row["sealed_private"],
        create_time=row["create_time"],
        state_time=row["state_time"],
        held_time=row["held_time"],
        is_asked=row["is_asked"],
    )


def _listed(row: Row) -> ListedKey:
    return ListedKey(row["kid"], row["algorithm"], KeyState(row["state"]), row["create_time"], row["state_time"], row["revoke_time"] is not None)
