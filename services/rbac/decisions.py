"""Decisions: a question put to what a subject holds.

Every holding at the place asked about, above it, or tenant-wide, whose role covers the permission, is weighed:

* A binding that denies wins. Its condition counts as true if it cannot be evaluated.
* One that allows counts while its condition is true and the login strong enough. A condition that cannot be evaluated is not true.
* A condition that lacks context decides nothing: the answer is CONDITIONAL, unless a denial is certain, or a grant is and no denial is possible.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from functools import lru_cache

from services.rbac.conditions import Allowance, Conditions, Finding, Truth
from services.rbac.holdings import TENANT, Holding
from services.rbac.levels import UNKNOWN_LOGIN, Levels, Login, StepUp
from services.rbac.model import Effect, Subject, Terms
from services.rbac.patterns import covering


class Reason(IntEnum):
    """Why a decision is what it is; numbered as in the contract."""

    GRANTED = 1
    NO_ROLE = 2
    NO_PERMISSION = 3
    DENIED = 4
    CONDITION_NOT_MET = 5
    CONTEXT_MISSING = 6
    LOGIN_TOO_WEAK = 7


class Outcome(IntEnum):
    """The answers; numbered as in the contract."""

    ALLOW = 1
    DENY = 2
    CONDITIONAL = 3
    STEP_UP_REQUIRED = 4


_OUTCOMES = {Reason.GRANTED: Outcome.ALLOW, Reason.CONTEXT_MISSING: Outcome.CONDITIONAL, Reason.LOGIN_TOO_WEAK: Outcome.STEP_UP_REQUIRED}
NO_CONTEXT: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class Question:
    """May `subject`, logged in so, do `permission` at `resource`, or in the whole tenant if that is empty, given `context`?"""

    subject: Subject
    permission: str
    resource: str = TENANT
    context: Mapping[str, object] = field(default_factory=dict, hash=False)
    login: Login = UNKNOWN_LOGIN


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer.

    expire_time         of a grant: when the last of the granting bindings ends, or the login gets too old for it; None if one never does
    missing             members of the context that conditions lacked
    step_up             the weakest login that would do
    depends_on_context  whether a condition was evaluated
    """

    reason: Reason
    expire_time: datetime | None = None
    missing: tuple[str, ...] = ()
    step_up: StepUp | None = None
    depends_on_context: bool = False

    @property
    def outcome(self) -> Outcome:
        """The answer in a word."""
        return _OUTCOMES.get(self.reason, Outcome.DENY)

    @property
    def is_allowed(self) -> bool:
        """Whether the subject may, as things are."""
        return self.reason is Reason.GRANTED


GRANTED, NO_ROLE, NO_PERMISSION = Decision(Reason.GRANTED), Decision(Reason.NO_ROLE), Decision(Reason.NO_PERMISSION)
_covering = lru_cache(maxsize=4096)(covering)


class Judge:
    """Puts questions to holdings."""

    def __init__(self, conditions: Conditions, levels: Levels, allowance: Allowance | None = None) -> None:
        self._conditions = conditions
        self._levels = levels
        self._allowance = allowance

    def of_one_call(self) -> "Judge":
        """Return one whose conditions have an allowance together. Beyond it they count as ones that cannot be evaluated."""
        return Judge(self._conditions, self._levels, Allowance())

    def decide(self, held: Iterable[Holding], question: Question, now: datetime) -> Decision:
        """Answer `question`, to which `held` is all that counts: what the subject holds at the place, above it, and tenant-wide."""
        wanted, any_held, covers = _covering(question.permission), False, []
        for holding in held:
            any_held = True
            if holding.role.patterns.grants(wanted):
                covers.append(holding)
        if not covers:
            return NO_PERMISSION if any_held else NO_ROLE
        if all(holding.terms.is_plain for holding in covers):
            end = last_end(holding.terms.expire_time for holding in covers)
            return GRANTED if end is None else Decision(Reason.GRANTED, end)
        return self._weigh(covers, question, now)

    def _weigh(self, covers: list[Holding], question: Question, now: datetime) -> Decision:
        scales = _Scales()
        for holding in covers:
            finding = self.finding(holding.terms, question, now)
            if holding.terms.effect is Effect.DENY:
                scales.deny(finding)
            else:
                scales.allow(finding, holding.terms, self._lacking(holding.terms, question.login, now), question.login)
        return scales.read(self._levels, depends=any(holding.terms.condition for holding in covers))

    def finding(self, terms: Terms, question: Question, now: datetime) -> Finding | None:
        """Evaluate the condition of `terms`; None if it has none."""
        return self._conditions.evaluate(terms.condition, question.context, now, self._allowance) if terms.condition else None

    def is_login_enough(self, terms: Terms, login: Login, now: datetime) -> bool:
        """Whether a login is strong and fresh enough for a grant on `terms`."""
        return self._lacking(terms, login, now) is None

    def _lacking(self, terms: Terms, login: Login, now: datetime) -> StepUp | None:
        needed = StepUp(terms.acr, terms.max_age)
        return None if self._levels.satisfies(needed, login, now) else needed


class _Scales:
    """What speaks for and against."""

    def __init__(self) -> None:
        self.denied = False
        self.may_be_denied: list[str] = []  # context that denials lack
        self.ends: list[datetime | None] = []
        self.too_weak: list[StepUp] = []
        self.missing: list[str] = []  # context that grants lack

    def deny(self, finding: Finding | None) -> None:
        """Weigh a denial."""
        if finding is not None and finding.truth is Truth.MISSING:
            self.may_be_denied.append(finding.missing)
        elif finding is None or finding.truth is not Truth.HOLDS_NOT:
            self.denied = True

    def allow(self, finding: Finding | None, terms: Terms, lacking: StepUp | None, login: Login) -> None:
        """Weigh a grant."""
        if finding is not None and finding.truth is Truth.MISSING:
            self.missing.append(finding.missing)
        elif finding is not None and finding.truth is not Truth.HOLDS:
            return
        elif lacking is not None:
            self.too_weak.append(lacking)
        else:
            self.ends.append(_end(terms, login))

    def read(self, levels: Levels, *, depends: bool) -> Decision:
        """Return the decision."""
        if self.denied:
            return Decision(Reason.DENIED, depends_on_context=depends)
        granted = self.ends or self.too_weak or self.missing
        if not granted:
            return Decision(Reason.CONDITION_NOT_MET if depends else Reason.NO_PERMISSION, depends_on_context=depends)
        if self.may_be_denied or not (self.ends or self.too_weak):
            missing = tuple(sorted({*self.may_be_denied, *self.missing}))
            return Decision(Reason.CONTEXT_MISSING, missing=missing, depends_on_context=True)
        if self.ends:
            return Decision(Reason.GRANTED, last_end(self.ends), depends_on_context=depends)
        return Decision(Reason.LOGIN_TOO_WEAK, step_up=levels.weakest(self.too_weak), depends_on_context=depends)


def _end(terms: Terms, login: Login) -> datetime | None:
    """Return when a grant ends by itself: with its binding, or when the login is too old for it."""
    if terms.max_age is None or login.time is None:
        return terms.expire_time
    try:
        too_old = login.time + terms.max_age
    except OverflowError:  # after the year 9999
        return terms.expire_time
    return too_old if terms.expire_time is None else min(too_old, terms.expire_time)


def last_end(ends: Iterable[datetime | None]) -> datetime | None:
    """Return the latest of `ends`, where None is never."""
    known = []
    for end in ends:
        if end is None:
            return None
        known.append(end)
    return max(known)
