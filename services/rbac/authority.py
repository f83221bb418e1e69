"""What a caller may hand out, and upon whom he may act: nothing that he does not hold himself, tenant-wide, and nobody who holds more.
And what may not be taken away: the last administrator.

Handing out and taking away are judged inside the transaction of the change, under the tenant's lock, so that no two changes can do together what
neither may alone.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from services.chassis.call import Caller, CallerKind
from services.rbac.checker import TENANT, TENANT_WIDE, Checker, Question, View
from services.rbac.holdings import Holding
from services.rbac.model import Subject, SubjectType
from services.rbac.patterns import Patterns
from watchword.errors import LastAdministrator, PermissionDenied

if TYPE_CHECKING:
    from services.rbac.store import TenantChange

NAMED = 5  # patterns that a refusal names


def subject_of(caller: Caller) -> Subject:
    """Return the subject that a user or client is."""
    return Subject(SubjectType.CLIENT if caller.kind is CallerKind.CLIENT else SubjectType.USER, caller.uuid)


class OwnDecider:
    """Decides about rbac's own callers by rbac's own data."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    async def allows(self, caller: Caller, permission: str) -> bool:
        """Return whether `caller` holds `permission` tenant-wide. Raises DependencyUnavailable."""
        decision, _ = await self._checker.check(caller.tenant_id, Question(subject_of(caller), permission))
        return decision.is_allowed


def patterns_of(holdings: Iterable[Holding]) -> set[str]:
    """Return the patterns of all that is held."""
    return {text for holding in holdings for text in holding.role.patterns.texts}


@dataclass(frozen=True, slots=True)
class Deed:
    """What `actor` wants to do: act upon `target`, if there is one, and use `permissions`."""

    actor: Subject
    target: Subject | None
    permissions: frozenset[str]

    @property
    def subjects(self) -> list[Subject]:
        """Whose holdings decide."""
        return [self.actor] if self.target is None else [self.actor, self.target]

    def lacking(self, view: View) -> list[str]:
        """Return what the actor needs tenant-wide and does not hold so, sorted. All that the target holds anywhere counts; oneself is no matter."""
        needed = set(self.permissions)
        if self.target is not None and self.target != self.actor:
            needed |= patterns_of(view.held_anywhere(self.target))
        return Patterns(patterns_of(view.held(self.actor, TENANT))).lacking(needed)


async def require_authority(change: "TenantChange", caller: Caller, handed_out: Iterable[str], now: datetime) -> None:
    """Return if `caller` may hand out the patterns `handed_out`; services of the suite may. Raises PermissionDenied."""
    if caller.is_peer:
        return
    own = (await change.holdings_of(subject_of(caller), now)).at(TENANT_WIDE, now)
    lacking = Patterns(patterns_of(own)).lacking(handed_out)
    if lacking:
        more = "" if len(lacking) <= NAMED else ", ..."
        raise PermissionDenied(f"this would hand out permissions that the caller does not hold: {', '.join(lacking[:NAMED])}{more}")


@dataclass(frozen=True, slots=True)
class Administration:
    """Whether any user administers the tenant now, and whether one does without end."""

    present: bool
    lasting: bool


@asynccontextmanager
async def administered(change: "TenantChange", now: datetime) -> AsyncIterator[None]:
    """Let what is inside take no tenant its last administrator. One whose binding ends does not stand in for one whose does not.

    Raises  LastAdministrator, which undoes the change
    """
    before = await change.administration(now)
    yield
    after = await change.administration(now)
    if (before.present and not after.present) or (before.lasting and not after.lasting):
        raise LastAdministrator
