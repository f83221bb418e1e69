"""Lookups: where a subject may do something, and who may do something here.

Postgres names candidates in an order, from a cursor on; the check decides about each. So a lookup says exactly what checks say, whatever denies,
expires or depends on context, and a page is as good as its checks.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import UUID

from services.chassis.pages import PageRequest
from services.chassis.tenancy import TenantId
from services.rbac.checker import Checker, View
from services.rbac.decisions import Outcome, Question
from services.rbac.holdings import TENANT
from services.rbac.model import ANYBODY, Effect, Subject, SubjectType
from services.rbac.nodes import Revision
from services.rbac.patterns import covering

if TYPE_CHECKING:
    from services.rbac.store.finding import FindStore

C = TypeVar("C", Subject, str)

CHUNK = 500  # candidates that are decided at once
MOST_TRIED = 2_000  # candidates of one page: then it ends, however few were found
BOTH = (SubjectType.USER, SubjectType.CLIENT)


@dataclass(frozen=True, slots=True)
class Found(Generic[C]):
    """A page: what was found and on what terms, the candidate that it ends with (None on the last page), and the state it is of."""

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
        scopes = _scopes(view, question)

        async def candidates(after: str | None, limit: int) -> list[str]:
            begin = after or ""
            if TENANT in scopes:
                return await self._store.known_resources(tenant_id, kind, begin, limit)
            return await self._store.resources_below(tenant_id, kind, begin, limit, scopes=sorted(scopes)) if scopes else []

        async def decide(names: Sequence[str]) -> tuple[View, list[Outcome]]:
            at = await self._checker.view(tenant_id, [question.subject], names, at_least=at_least)
            return at, [at.decide(replace(question, resource=name)).outcome for name in names]

        after = page.after[0] if page.after else None
        is_everything = view.decide(question).outcome is Outcome.ALLOW
        return await _page(candidates, decide, after, page.size, is_everything=is_everything, revision=view.revision)

    async def subjects(
        self, tenant_id: TenantId, question: Question, kinds: Sequence[SubjectType], page: PageRequest, *, at_least: int = 0
    ) -> Found[Subject]:
        """Return who may do what is asked, whoever `question.subject` is: subjects of `kinds`, by type and id. Raises RevisionUnavailable."""
        anybody = replace(question, subject=ANYBODY)
        view = await self._checker.view(tenant_id, [ANYBODY], [question.resource], at_least=at_least)
        places = view.above(question.resource)

        async def candidates(after: Subject | None, limit: int) -> list[Subject]:
            begin = (0, UUID(int=0)) if after is None else (int(after.type), after.id)
            return await self._store.subjects(tenant_id, question.permission, places, kinds=kinds, after=begin, limit=limit)

        async def decide(subjects: Sequence[Subject]) -> tuple[View, list[Outcome]]:
            at = await self._checker.view(tenant_id, subjects, [question.resource], at_least=at_least)
            return at, [at.decide(replace(question, subject=subject)).outcome for subject in subjects]

        after = Subject(SubjectType(int(page.after[0])), UUID(page.after[1])) if page.after else None
        is_everything = view.decide(anybody).outcome is Outcome.ALLOW
        return await _page(candidates, decide, after, page.size, is_everything=is_everything, revision=view.revision)


async def _page(
    candidates: Callable[[C | None, int], Awaitable[list[C]]],
    decide: Callable[[Sequence[C]], Awaitable[tuple[View, list[Outcome]]]],
    after: C | None,
    size: int,
    *,
    is_everything: bool,
    revision: Revision,
) -> Found[C]:
    """Try candidates until the page is full, or there are no more, or too many were tried."""
    found: list[tuple[C, Outcome]] = []
    tried = 0
    while tried < MOST_TRIED:
        limit = min(CHUNK, max(size - len(found), 1) * 2)
        some = await candidates(after, limit)
        view, outcomes = await decide(some) if some else (None, [])
        revision = revision if view is None else view.revision
        for one, outcome in zip(some, outcomes, strict=True):
            after, tried = one, tried + 1
            if outcome is not Outcome.DENY:
                found.append((one, outcome))
                if len(found) == size:
                    return Found(tuple(found), one, is_everything, revision)
        if len(some) < limit:
            return Found(tuple(found), None, is_everything, revision)
    return Found(tuple(found), after, is_everything, revision)


def _scopes(view: View, question: Question) -> set[str]:
    """Return where the subject holds, on whatever terms, what covers the permission."""
    wanted = covering(question.permission)
    return {
        holding.resource
        for holding in view.held_anywhere(question.subject)
        if holding.terms.effect is Effect.ALLOW and holding.role.patterns.grants(wanted)
    }
