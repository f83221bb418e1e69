"""The two states that a change lies between: the change is made, looked at, and undone.

All of it happens upon one snapshot (REPEATABLE READ), without the tenant's lock: nobody waits for a change that is only tried, but who wants a row
that it wrote, and that for as long as its subjects are read once.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from services.chassis.postgres import Connection
from services.chassis.tenancy import TenantId
from services.rbac.impact import Comparison, Side
from services.rbac.model import Subject
from services.rbac.nodes import Snapshot
from services.rbac.policy import Trial
from services.rbac.store.changing import TenantChange
from services.rbac.store.loading import FIND_STATE, load

T = TypeVar("T")
MOST_COMPARED = 10_000  # subjects that a change is tried upon
COMPARED_AT_ONCE = 1_000
PLACES_AT_ONCE = 5_000
BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
GIVE_WAY = "SET LOCAL lock_timeout = 200"  # milliseconds: changes that are really made come first


async def attempt(connection: Connection, tenant_id: TenantId, inside: TenantChange, effect: Callable[[TenantChange], Awaitable[T]]) -> Trial[T]:
    """Run `effect` inside a transaction that has done nothing yet, and undo it; return the states before and after."""
    await connection.execute(BEGIN)
    await connection.execute(GIVE_WAY)
    state = await connection.fetchrow(FIND_STATE, tenant_id)
    savepoint = connection.transaction()
    await savepoint.start()
    item = await effect(inside)
    subjects, moved = sorted(inside.affected, key=_by_id)[:MOST_COMPARED], sorted(inside.touched.places)
    after = await _read(connection, tenant_id, subjects, moved)
    await savepoint.rollback()
    before = await _read(connection, tenant_id, subjects, moved)
    places = await _places(connection, tenant_id, _resources(before, after))
    before = replace(before, places={**places, **before.places})
    after = replace(after, places={**before.places, **after.places})
    compared = Comparison(Side(before), Side(after), subjects, moved, inside.is_everybody_affected)
    return Trial(item, state["revision"], compared)


def _by_id(subject: Subject) -> tuple[int, UUID]:
    return subject.type, subject.id


async def _read(connection: Connection, tenant_id: TenantId, subjects: Sequence[Subject], places: Sequence[str]) -> Snapshot:
    """Return what subjects hold and where places lie, read a thousand subjects at a time."""
    whole = await load(connection.fetch, tenant_id, [], places)
    holders, roles = dict(whole.holders), dict(whole.roles)
    for first in range(0, len(subjects), COMPARED_AT_ONCE):
        part = await load(connection.fetch, tenant_id, subjects[first : first + COMPARED_AT_ONCE], [])
        holders |= part.holders
        roles |= part.roles
    return replace(whole, holders=holders, roles=roles)


def _resources(*sides: Snapshot) -> list[str]:
    """Return all places where anything is held."""
    return sorted({bound.resource for side in sides for holder in side.holders.values() for bound in holder.bindings} - {""})


async def _places(connection: Connection, tenant_id: TenantId, resources: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for first in range(0, len(resources), PLACES_AT_ONCE):
        found |= (await load(connection.fetch, tenant_id, [], resources[first : first + PLACES_AT_ONCE])).places
    return found
