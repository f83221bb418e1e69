"""What a caller may hand out, and upon whom he may act: nothing that he does not hold himself, tenant-wide, and nobody who holds more.
And what may not be taken away: the last administrator.

To hand out is to allow, and also to lift a denial. What a caller holds is what he is allowed whatever the question brings: no condition, no need of
a stronger login, and no denial that touches it. But whoever is allowed everything, and is not denied to mend the policy, may hand out everything:
else a denial that meets everybody could never be lifted. The last of them cannot be taken away.

Handing out and taking away are judged inside the transaction of the change, under the tenant's lock, so that no two changes can do together what
neither may alone.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from services.chassis.call import Caller, CallerKind
from services.rbac.decisions import Question
from services.rbac.holdings import TENANT, Holding
from services.rbac.model import Effect, Subject, SubjectType
from services.rbac.patterns import EVERYTHING, Patterns, overlap
from watchword.errors import LastAdministrator, PermissionDenied

if TYPE_CHECKING:
    from services.rbac.checker import Checker, View
    from services.rbac.store.changing import TenantChange

NAMED = 5  # patterns that a refusal names
MENDING = ("role-bindings.create", "role-bindings.delete")  # whoever may do these can mend whatever else is amiss


def subject_of(caller: Caller) -> Subject:
    """Return the subject that a user or client is."""
    return Subject(SubjectType.CLIENT if caller.kind is CallerKind.CLIENT else SubjectType.USER, caller.uuid)


class OwnDecider:
    """Decides about rbac's own callers by rbac's own data."""

    def __init__(self, checker: "Checker") -> None:
        self._checker = checker

    async def allows(self, caller: Caller, permission: str) -> bool:
        """Return whether `caller` holds `permission` tenant-wide, without context and for any login. Raises DependencyUnavailable."""
        decision, _ = await self._checker.check(caller.tenant_id, Question(subject_of(caller), permission))
        return decision.is_allowed


def patterns_of(holdings: Iterable[Holding], effect: Effect = Effect.ALLOW) -> set[str]:
    """Return the patterns of all that is allowed, on whatever terms; or denied."""
    return {text for holding in holdings if holding.terms.effect is effect for text in holding.role.patterns.texts}


def secured(tenant_wide: Iterable[Holding], anywhere: Iterable[Holding]) -> Patterns:
    """Return what is allowed for certain: tenant-wide, on plain terms, and denied nowhere, not even in part; to an administrator, everything."""
    held = list(tenant_wide)
    allowed, denied = patterns_of(holding for holding in held if holding.terms.is_plain), patterns_of(anywhere, Effect.DENY)
    if not denied or (EVERYTHING in allowed and _mends(patterns_of(held, Effect.DENY))):
        return Patterns(allowed)
    return Patterns(allowed, besides=denied)


def _mends(denied: Iterable[str]) -> bool:
    """Whether somebody who is denied `denied` in the whole tenant, and allowed everything else, can still mend its policy."""
    return not any(overlap(pattern, permission) for pattern in denied for permission in MENDING)


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

    def lacking(self, view: "View") -> list[str]:
        """Return what the actor needs tenant-wide and does not hold so, sorted. All that the target holds anywhere counts; oneself is no matter."""
        needed = set(self.permissions)
        if self.target is not None and self.target != self.actor:
            needed |= patterns_of(view.held_anywhere(self.target))
        return secured(view.held(self.actor, TENANT), view.held_anywhere(self.actor)).lacking(needed)


async def require_authority(change: "TenantChange", caller: Caller, handed_out: Iterable[str], now: datetime) -> None:
    """Return if `caller` may hand out the patterns `handed_out`; services of the suite may. Raises PermissionDenied."""
    wanted = set(handed_out)
    if not caller.is_peer and wanted:
        require_covered(await authority_of(change, caller, now), wanted)


async def authority_of(change: "TenantChange", caller: Caller, now: datetime) -> Patterns:
    """Return what a user or client may hand out."""
    who = subject_of(caller)
    if who not in change.authority:
        own = (await change.holdings_of(who))[who]
        change.authority[who] = secured(own.at((TENANT,), now), own.anywhere(now))
    return change.authority[who]


def require_covered(authority: Patterns, handed_out: Iterable[str]) -> None:
    """Return if `authority` covers the patterns `handed_out`. Raises PermissionDenied."""
    lacking = authority.lacking(handed_out)
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
