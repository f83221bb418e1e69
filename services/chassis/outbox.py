"""The Postgres half of coherence: changes that not every instance is known to have heard of, and the instances that may hold memory.

Each context that keeps memory has the tables `change` and `instance` in its schema. A change is posted in the transaction that makes it, and deleted
once every instance has it. An instance says `leased` before it loads its memory, and `direct` after it has stopped believing it.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from services.chassis.place import is_gone, own_place
from services.chassis.postgres import Database, Posted

BATCH = 1000  # changes that a relay takes at once


class Mode(StrEnum):
    """Whether an instance may be answering from memory."""

    LEASED = "leased"
    DIRECT = "direct"


class Outbox:
    """Reads and writes both tables. Every method raises DependencyUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _LIST = """
        SELECT id, payload, takes_away FROM change
        WHERE ($1::interval IS NULL OR create_time <= clock_timestamp() - $1::interval) AND id > $2 ORDER BY id LIMIT $3
    """

    async def list(self, *, older_than: timedelta | None = None, after: int = 0) -> list[Posted]:
        """Return changes that wait, or have waited for so long, oldest first, at most BATCH. Without `older_than` no clock is asked."""
        rows = await self._database.fetch(self._LIST, older_than, after, BATCH)
        return [Posted(row["id"], row["payload"], row["takes_away"]) for row in rows]

    async def batches(self) -> AsyncIterator[Sequence[Posted]]:
        """Yield all changes that wait, oldest first."""
        after = 0
        while batch := await self.list(after=after):
            yield batch
            after = batch[-1].id

    _FIND_LEFT = "SELECT id FROM change WHERE id = ANY($1::bigint[])"

    async def find_left(self, ids: Sequence[int]) -> set[int]:
        """Return which of `ids` still wait."""
        return {row["id"] for row in await self._database.fetch(self._FIND_LEFT, ids)}

    _DELETE = "DELETE FROM change WHERE id = ANY($1::bigint[])"

    async def delete(self, ids: Sequence[int]) -> None:
        """Strike off changes that everybody has."""
        await self._database.execute(self._DELETE, ids)

    # `version` orders an instance's own writes: one that was given up, and reaches Postgres late, changes nothing.
    _REGISTER = """
        INSERT INTO instance AS i (id, name, mode, version, seen_time, holds, place) VALUES ($1, $2, $3, $4, clock_timestamp(), $5, $6)
        ON CONFLICT (id) DO UPDATE SET mode = excluded.mode, version = excluded.version, seen_time = excluded.seen_time, holds = excluded.holds
        WHERE i.version < excluded.version
    """

    async def register(self, instance: UUID, name: str, mode: Mode, version: int, holds: Sequence[str]) -> None:
        """Say what an instance does, and what it holds."""
        await self._database.execute(self._REGISTER, instance, name, mode.value, version, list(holds), own_place())

    _SIGN_OFF = "DELETE FROM instance WHERE id = $1"

    async def sign_off(self, instance: UUID) -> None:
        """Forget an instance that answers no more."""
        await self._database.execute(self._SIGN_OFF, instance)

    _IS_ANY_LEASED = "SELECT EXISTS (SELECT 1 FROM instance WHERE mode = 'leased' AND seen_time > clock_timestamp() - $1::interval)"

    async def is_any_leased(self, *, seen_within: timedelta) -> bool:
        """Return whether any instance may be answering from memory. One not seen for so long has stopped by itself."""
        row = await self._database.fetch_row(self._IS_ANY_LEASED, seen_within)
        return row is None or bool(row[0])

    _FIND_PLACES = "SELECT id, place FROM instance WHERE mode = 'leased'"

    async def forget_the_gone(self) -> None:
        """Forget instances on this machine whose processes have ended without a word. Those of other machines may only be cut off."""
        for row in await self._database.fetch(self._FIND_PLACES):
            if is_gone(row["place"]):
                await self.sign_off(row["id"])

    _SWEEP = "DELETE FROM instance WHERE seen_time < clock_timestamp() - $1::interval"

    async def sweep(self, *, unseen_for: timedelta) -> None:
        """Forget instances that died."""
        await self._database.execute(self._SWEEP, unseen_for)

    _FIND_DEPLOYMENT = "SELECT id FROM suite.deployment"

    async def find_deployment(self) -> UUID:
        """Return this deployment's id."""
        row = await self._database.fetch_row(self._FIND_DEPLOYMENT)
        assert row is not None  # the migration inserts it
        deployment: UUID = row["id"]
        return deployment


class GuestBook(Outbox):
    """Where guests of another context say what they do. They make no changes there, and pass none on."""

    def __init__(self, database: Database, context: str) -> None:
        super().__init__(database)
        self._enter = f"""
            INSERT INTO {context}.instance AS i (id, name, mode, version, seen_time, holds, place, guest)
            VALUES ($1, $2, $3, $4, clock_timestamp(), $5, $6, true)
            ON CONFLICT (id) DO UPDATE SET mode = excluded.mode, version = excluded.version, seen_time = excluded.seen_time
            WHERE i.version < excluded.version
        """  # noqa: S608  (a context's name is written in the code)
        self._leave = f"DELETE FROM {context}.instance WHERE id = $1"  # noqa: S608

    async def list(self, *, older_than: timedelta | None = None, after: int = 0) -> list[Posted]:
        """Return nothing: what was acknowledged while nobody had a lease is in Postgres, and so in all answers of that context's instances."""
        return []

    async def register(self, instance: UUID, name: str, mode: Mode, version: int, holds: Sequence[str]) -> None:
        """Say what a guest does."""
        await self._database.execute(self._enter, instance, name, mode.value, version, list(holds), own_place())

    async def sign_off(self, instance: UUID) -> None:
        """Forget a guest that answers no more."""
        await self._database.execute(self._leave, instance)
