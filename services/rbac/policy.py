"""Changes of a policy, made or only tried: one, or many at once.

A change is an effect: a function of the inside of a transaction. So the very code that makes it, with all its refusals, tells what it would do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import UUID

from services.chassis.call import Call
from services.chassis.tenancy import TenantId
from services.rbac.impact import Comparison, Impact, Patience
from services.rbac.model import Written
from watchword.errors import EtagMismatch, InvalidRequest, Violation, WatchwordError

if TYPE_CHECKING:
    from services.rbac.store.changing import TenantChange
    from services.rbac.store.listing import RbacStore

T = TypeVar("T")
PolicyEffect = Callable[["TenantChange"], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a change left behind, or would have: the tenant's revision with it or, of one that was only tried, without; and then its impact."""

    item: T
    revision: int
    impact: Impact | None = None


@dataclass(frozen=True, slots=True)
class Trial(Generic[T]):
    """What a change would leave behind, the tenant's revision that it was tried upon, and the states that it lies between."""

    item: T
    revision: int
    compared: Comparison


class Policy:
    """Makes changes and tries them."""

    def __init__(self, store: "RbacStore") -> None:
        self._store = store
        self._measuring = asyncio.Lock()  # one at a time: two would not be done sooner, and take what checks need

    async def run(
        self, call: Call, tenant_id: TenantId, result: type[Written[T]], effect: PolicyEffect[T], *, validate_only: bool = False
    ) -> Outcome[T]:
        """Make a change, or only try it. Raises what `effect` raises."""
        if validate_only:
            return await self._attempt(call, tenant_id, effect)
        done = await self._store.change(call, tenant_id, result, effect)
        return Outcome(done.item, done.revision)

    async def simulate(self, call: Call, effects: Sequence[PolicyEffect[UUID | None]]) -> Outcome[list[UUID | None]]:
        """Try many changes, in their order. Raises what the first that cannot be made raises."""
        return await self._attempt(call, call.caller.tenant_id, _together(effects))

    async def _attempt(self, call: Call, tenant_id: TenantId, effect: PolicyEffect[T]) -> Outcome[T]:
        tried = await self._store.attempt(call, tenant_id, effect)
        return Outcome(tried.item, tried.revision, await self._measure(tried.compared))

    async def _measure(self, compared: Comparison) -> Impact:
        """Return the impact, computed aside: others' calls go on meanwhile. A caller who is gone is not computed for."""
        async with self._measuring:
            patience = Patience()
            try:
                return await asyncio.to_thread(compared.measure, patience)
            finally:
                patience.lose()

    async def apply(self, call: Call, effects: Sequence[PolicyEffect[UUID | None]], *, unchanged_since: int | None) -> Written[list[UUID | None]]:
        """Make many changes, all or none; only if the policy has not changed since `unchanged_since`. Raises EtagMismatch, and as `simulate`."""

        async def effect(change: "TenantChange") -> list[UUID | None]:
            if unchanged_since is not None and change.policy > unchanged_since:
                raise EtagMismatch("the policy was changed since")
            return await _together(effects)(change)

        return await self._store.change(call, call.caller.tenant_id, Written[list[UUID | None]], effect)


def at(error: WatchwordError, place: str) -> WatchwordError:
    """Return the same failure, as one of the member of a list at `place`."""
    if isinstance(error, InvalidRequest):
        return InvalidRequest(violations=[Violation(f"{place}.{one.field}", one.description) for one in error.violations])
    return type(error)(f"{place}: {error.text}", metadata=error.metadata)


def _together(effects: Sequence[PolicyEffect[UUID | None]]) -> PolicyEffect[list[UUID | None]]:
    async def effect(change: "TenantChange") -> list[UUID | None]:
        return [await one(change) for one in effects]

    return effect
