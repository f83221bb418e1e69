"""Lookups: where a subject may do something, and who may do something here.

Postgres names candidates in an order, from a cursor on; the check decides about each. So a lookup says exactly what checks say, whatever denies,
expires or depends on context, and a page is as good as its checks. Of what changes while a page is put together, it tells the old or the new.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import UUID

from services.chassis.pages import PageRequest
from services.chassis.tenancy import TenantId
from services.rbac.checker import Checker, View, allows
from services.rbac.decisions import Outcome, Question
from services.rbac.holdings import TENANT, Holding
from services.rbac.model import ANYBODY, Subject, SubjectType
from services.rbac.nodes import Revision
from services.rbac.patterns import covering

if TYPE_CHECKING:
    from services.rbac.store.finding import FindStore

C = TypeVar("C", Subject, str)
Candidates = Callable[[C | None, int], Awaitable[list[C]]]
Decide = Callable[[Sequence[C]], Awaitable[list[Outcome]]]

CHUNK = 500  # candidates that are decided at once
MOST_TRIED = 2_000  # candidates of one page: then it ends, however few were found
MOST_WALKED = 10_000  # resources below what a subject holds; of more, all that the tenant knows are candidates. About 15 ms
NOBODY = (0, UUID(int=0))  # before all subjects
BOTH = (SubjectType.USER, SubjectType.CLIENT)


@dataclass(frozen=True, slots=True)
class Found(Generic[C]):
    """A page: what was found and on what terms, the candidate that it ends with (None on the last page), and a state that it is no older than."""

    items: tuple[tuple[C, Outcome], ...]
    last: C | None
    is_everything: bool
    revision: Revision


class Lookups:
    """Looks up."""

    def __init__(self, store: "FindStore", checker: Checker) -> None:
        self._store = store
        self._checker = checker

    async def resources(self, tenant_id: TenantId, question: Question, kind: str, page: PageRequest, *, at_least: int = 0) -> Found[str]:
        """Return where `question.subject` may do what is asked: resources of type `kind`, by name. Raises RevisionUnavailable."""
        view = await self._checker.view(tenant_id, [question.subject], [], at_least=at_least)
        candidates = self._resources_of(tenant_id, kind, _scopes(view, question))

        async def decide(names: Sequence[str]) -> list[Outcome]:
            at = await self._checker.view(tenant_id, [question.subject], names, at_least=at_least, is_scan=True)
            return [at.decide(replace(question, resource=name)).outcome for name in names]

        items, last = await _page(candidates, decide, page.after[0] if page.after else None, page.size)
        return Found(items, last, view.decide(question).is_allowed, view.revision)

    def _resources_of(self, tenant_id: TenantId, kind: str, scopes: set[str]) -> "Candidates[str]":
        """Return what names resources of which some may lie in `scopes`, and none that does is left out."""
        is_wide = TENANT in scopes

        async def candidates(after: str | None, limit: int) -> list[str]:
            nonlocal is_wide
            if not is_wide:
                below = await self._store.resources_below(tenant_id, kind, after or "", limit, scopes=sorted(scopes), most=MOST_WALKED)
                if below is not None:
                    return below
                is_wide = True
            return await self._store.known_resources(tenant_id, kind, after or "", limit)

        async def none(_after: str | None, _limit: int) -> list[str]:
            return []

        return candidates if scopes else none

    async def subjects(
        self, tenant_id: TenantId, question: Question, kinds: Sequence[SubjectType], page: PageRequest, *, at_least: int = 0
    ) -> Found[Subject]:
        """Return who may do what is asked, whoever `question.subject` is: subjects of `kinds`, by type and id. Raises RevisionUnavailable."""
        view = await self._checker.view(tenant_id, [ANYBODY], [question.resource], at_least=at_least)
        is_anybodys = bool(_granting(view.held(ANYBODY, question.resource), question))
        places = view.above(question.resource)

        async def candidates(after: Subject | None, limit: int) -> list[Subject]:
            begin = NOBODY if after is None else (int(after.type), after.id)
            if is_anybodys:
                return await self._store.known_subjects(tenant_id, kinds=kinds, after=begin, limit=limit)
            return await self._store.reached_subjects(tenant_id, question.permission, places, kinds=kinds, after=begin, limit=limit)

        async def decide(subjects: Sequence[Subject]) -> list[Outcome]:
            at = await self._checker.view(tenant_id, subjects, [question.resource], at_least=at_least, is_scan=True)
            return [at.decide(replace(question, subject=subject)).outcome for subject in subjects]

        after = Subject(SubjectType(int(page.after[0])), UUID(page.after[1])) if page.after else None
        items, last = await _page(candidates, decide, after, page.size)
        return Found(items, last, view.decide(replace(question, subject=ANYBODY)).is_allowed, view.revision)


async def _page(candidates: "Candidates[C]", decide: "Decide[C]", after: C | None, size: int) -> tuple[tuple[tuple[C, Outcome], ...], C | None]:
    """Try candidates until the page is full, or there are no more, or too many were tried. Return what was found, and where the next page begins."""
    found: list[tuple[C, Outcome]] = []
    tried, limit = 0, min(CHUNK, size + 1)
    while tried < MOST_TRIED:
        some = await candidates(after, limit)
        for one, outcome in zip(some, await decide(some) if some else (), strict=True):
            if len(found) == size:
                return tuple(found), after
            after = one
            if outcome is not Outcome.DENY:
                found.append((one, outcome))
        if len(some) < limit:
            return tuple(found), None
        tried, limit = tried + len(some), min(CHUNK, 2 * limit)
    return tuple(found), after


def _scopes(view: View, question: Question) -> set[str]:
    """Return where the subject holds, on whatever terms, what covers the permission."""
    return {holding.resource for holding in _granting(view.held_anywhere(question.subject), question)}


def _granting(held: Sequence[Holding], question: Question) -> list[Holding]:
    """Return those of `held` that allow, on whatever terms, what is asked."""
    wanted = covering(question.permission)
    return [holding for holding in allows(held) if holding.role.patterns.grants(wanted)]
