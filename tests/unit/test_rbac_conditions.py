"""What a condition may take: it is told before it is stored, bounded when it is evaluated, and what goes beyond never lets anybody do anything."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.rbac import costs
from services.rbac.conditions import ALLOWED, Allowance, Conditions, Truth
from services.rbac.decisions import Judge, Outcome, Question
from services.rbac.holdings import HeldRole, Holding
from services.rbac.levels import Levels
from services.rbac.model import Effect, Subject, SubjectType, Terms
from services.rbac.patterns import Patterns

NOW = datetime(2026, 11, 30, tzinfo=UTC)
SLOW = "context.flags.filter(flag, flag).size() == 0"  # the slowest that is let pass: some 60 ms, for the most flags that fit into a context
FLAGS = {"flags": [False] * 2000}
TEN = "[0,0,0,0,0,0,0,0,0,0]"
TEXT = {"s": "a" * 900, "l": [0.0] * 50}

HOSTILE = {
    "a costly pattern in a loop": "context.l.all(x, !context.s.matches('(a?){50}b'))",
    "a costly pattern": "!context.s.matches('(a?){400}b')",
    "a pattern of many kinds of letters": "!context.s.matches('(\\\\pL?){20}x')",
    "patterns that add up": " && ".join(["!context.s.matches('(a|b|ab|ba)*[ab]{9}c')"] * 30),
    "a pattern that is made": "context.s.matches(context.s)",
    "loops in loops in loops in loops": f"{TEN}.all(a, {TEN}.all(b, {TEN}.all(c, {TEN}.all(d, true))))",
    "texts that are put together": f"{TEN}.map(a, {TEN}.map(b, {TEN}.map(c, context.s + context.s + context.s))).size() > 0",
    "lists that are compared in a loop": f"{TEN}.all(a, {TEN}.all(b, {TEN}.all(c, context.l == context.l)))",
    "searches in a loop": f"{TEN}.all(a, {TEN}.all(b, context.s.contains(context.s)))",
    "what grows in a loop": "context.l.map(x, context.s).size() > 0",
    "a loop over what a loop made": "context.l.filter(x, true).filter(x, true).size() > 0",
}
HONEST = [
    "context.amount < 1000.0 && context.currency in ['EUR', 'USD']",
    "context.user.department == context.resource.department",
    "context.roles.exists(role, role == 'auditor')",
    "context.roles.exists(role, role in context.allowed)",
    "context.mine.exists(a, context.theirs.exists(b, a == b))",
    "context.mails.all(mail, mail.matches('^[a-z0-9._%+-]+@example[.]com$'))",
    "context.iban.matches('^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$')",
    "context.name.matches('^[\\\\pL \\'-]+$')",
    "context.path.startsWith('/public/') || context.path.contains(context.part)",
    "now - timestamp(context.since) < duration('8h') && now.getHours('Europe/Berlin') >= 9",
    "has(context.owner) && context.owner.teams.exists_one(team, team.id == context.team)",
    SLOW,
]


@pytest.mark.parametrize("expression", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_could_hold_an_instance_is_no_condition(expression: str) -> None:
    """One of them took minutes: of everybody's time, not of its tenant's."""
    with pytest.raises(ValueError, match=r"must not|could take too long"):
        Conditions().check(expression)


@pytest.mark.parametrize("expression", HOSTILE.values(), ids=HOSTILE.keys())
def test_one_that_was_stored_before_is_not_evaluated(expression: str) -> None:
    assert Conditions().evaluate(expression, TEXT, NOW).truth is Truth.FAILED


@pytest.mark.parametrize("expression", HONEST)
def test_what_conditions_are_for_is_let_pass(expression: str) -> None:
    Conditions().check(expression)


@pytest.mark.parametrize(
    ("pattern", "items", "categories"),
    [
        ("abc", 3, 0),
        ("[a-z0-9]+@[^.]", 3, 0),
        ("a{3}b{2,5}c{4,}", 12, 0),
        ("(ab{3}){2}", 8, 0),
        ("(?:(a?){20}){20}", 400, 0),
        (r"\pL\p{Greek}[\PN\d]{3}", 5, 5),
        (r"\{3}\\{4}", 7, 0),
        ("a{99999999999}", 99999, 0),
        ("(((", 0, 0),
        ("a{}b{,}", 2, 0),
    ],
)
def test_a_pattern_counts_as_much_as_it_is_when_written_out(pattern: str, items: int, categories: int) -> None:
    assert costs.weight(pattern) == (items, categories)


def held(effect: Effect) -> Holding:
    """Return what is held on a slow condition: that no flag is set."""
    return Holding(UUID(int=3), HeldRole(UUID(int=1), "clerk", Patterns(["files.read"])), "", Terms(effect=effect, condition=SLOW))


def test_what_is_asked_when_the_allowance_is_spent_is_never_allowed() -> None:
    """A thousand questions of one batch share what their conditions may take."""
    conditions = Conditions()
    judge, question = Judge(conditions, Levels()), Question(Subject(SubjectType.USER, UUID(int=2)), "files.read", context=FLAGS)
    spent = Judge(conditions, Levels(), Allowance(0))

    assert judge.decide([held(Effect.ALLOW)], question, NOW).outcome is Outcome.ALLOW
    assert spent.decide([held(Effect.ALLOW)], question, NOW).outcome is Outcome.DENY
    unlocked = Question(question.subject, "files.read", context={"flags": [True]})
    plain = Holding(UUID(int=4), held(Effect.ALLOW).role, "", Terms())
    assert judge.decide([plain, held(Effect.DENY)], unlocked, NOW).outcome is Outcome.ALLOW
    assert spent.decide([plain, held(Effect.DENY)], unlocked, NOW).outcome is Outcome.DENY


def test_a_call_spends_its_own_allowance_and_the_next_has_another() -> None:
    """What one call spends, no other lacks."""
    everyones, question = Judge(Conditions(), Levels()), Question(Subject(SubjectType.USER, UUID(int=2)), "files.read", context=FLAGS)
    call, calls = everyones.of_one_call(), 0
    while call.decide([held(Effect.ALLOW)], question, NOW).is_allowed:
        calls += 1
        assert calls < 10_000 * ALLOWED

    assert calls > 0
    assert everyones.of_one_call().decide([held(Effect.ALLOW)], question, NOW).is_allowed
