"""How decisions are weighed: denials first, conditions with what context there is, logins as strong as they are."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from services.rbac.conditions import Conditions, Truth
from services.rbac.decisions import Decision, Judge, Outcome, Question, Reason
from services.rbac.holdings import HeldRole, Holding
from services.rbac.levels import Levels, Login, StepUp
from services.rbac.model import FOR_EVER, Effect, Subject, SubjectType, Terms
from services.rbac.patterns import Patterns

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
ANNE = Subject(SubjectType.USER, uuid4())
READER = HeldRole(uuid4(), "reader", Patterns(["doc.read"]))
SMALL = "context.amount < 100"


def held(terms: Terms = FOR_EVER, role: HeldRole = READER) -> Holding:
    return Holding(uuid4(), role, "", terms)


def decide(*holdings: Holding, context: Mapping[str, object] | None = None, login: Login | None = None, permission: str = "doc.read") -> Decision:
    judge = Judge(Conditions(), Levels())
    return judge.decide(holdings, Question(ANNE, permission, "", context or {}, login or Login()), NOW)


DENY = Terms(effect=Effect.DENY)


@pytest.mark.parametrize(
    ("holdings", "context", "reason"),
    [
        ([], {}, Reason.NO_ROLE),
        ([held(role=HeldRole(uuid4(), "other", Patterns(["doc.write"])))], {}, Reason.NO_PERMISSION),
        ([held()], {}, Reason.GRANTED),
        ([held(), held(DENY)], {}, Reason.DENIED),
        ([held(DENY), held()], {}, Reason.DENIED),
        ([held(DENY)], {}, Reason.DENIED),
        ([held(), held(DENY, HeldRole(uuid4(), "other", Patterns(["doc.write"])))], {}, Reason.GRANTED),
        ([held(Terms(condition=SMALL))], {"amount": 50.0}, Reason.GRANTED),
        ([held(Terms(condition=SMALL))], {"amount": 500.0}, Reason.CONDITION_NOT_MET),
        ([held(Terms(condition=SMALL))], {}, Reason.CONTEXT_MISSING),
        ([held(Terms(condition=SMALL))], {"amount": "many"}, Reason.CONDITION_NOT_MET),  # cannot be evaluated: no grant
        ([held(Terms(condition=SMALL)), held()], {}, Reason.GRANTED),  # whatever the amount is
        ([held(), held(Terms(effect=Effect.DENY, condition=SMALL))], {"amount": 50.0}, Reason.DENIED),
        ([held(), held(Terms(effect=Effect.DENY, condition=SMALL))], {"amount": 500.0}, Reason.GRANTED),
        ([held(), held(Terms(effect=Effect.DENY, condition=SMALL))], {}, Reason.CONTEXT_MISSING),
        ([held(), held(Terms(effect=Effect.DENY, condition=SMALL))], {"amount": "many"}, Reason.DENIED),  # cannot be evaluated: denies
        ([held(Terms(effect=Effect.DENY, condition=SMALL))], {}, Reason.CONDITION_NOT_MET),  # nothing grants it either way
        ([held(Terms(acr="mfa"))], {}, Reason.LOGIN_TOO_WEAK),
        ([held(Terms(acr="mfa")), held(DENY)], {}, Reason.DENIED),
        ([held(Terms(acr="mfa")), held()], {}, Reason.GRANTED),
        ([held(Terms(condition=SMALL, acr="mfa"))], {}, Reason.CONTEXT_MISSING),
    ],
)
def test_what_speaks_for_and_against_is_weighed(holdings: list[Holding], context: dict[str, object], reason: Reason) -> None:
    assert decide(*holdings, context=context).reason is reason


def test_the_outcome_says_what_to_do_next() -> None:
    weak, open_question = decide(held(Terms(acr="mfa"))), decide(held(Terms(condition=SMALL)))

    assert (weak.outcome, weak.step_up) == (Outcome.STEP_UP_REQUIRED, StepUp("mfa", None))
    assert (open_question.outcome, open_question.missing) == (Outcome.CONDITIONAL, ("amount",))
    assert [decide(held()).outcome, decide().outcome, decide(held(), held(DENY)).outcome] == [Outcome.ALLOW, Outcome.DENY, Outcome.DENY]


@pytest.mark.parametrize(
    ("needed", "login", "is_enough"),
    [
        (Terms(acr="mfa"), Login("mfa"), True),
        (Terms(acr="mfa"), Login("hwk"), True),
        (Terms(acr="mfa"), Login("pwd"), False),
        (Terms(acr="mfa"), Login("unheard-of"), False),
        (Terms(acr="unheard-of"), Login("hwk"), False),
        (Terms(max_age=timedelta(minutes=5)), Login("pwd", NOW - timedelta(minutes=4)), True),
        (Terms(max_age=timedelta(minutes=5)), Login("pwd", NOW - timedelta(minutes=6)), False),
        (Terms(max_age=timedelta(minutes=5)), Login("pwd"), False),
        (Terms(acr="mfa", max_age=timedelta(minutes=5)), Login("pwd", NOW), False),
    ],
)
def test_a_login_is_strong_and_fresh_enough_or_not(needed: Terms, login: Login, is_enough: bool) -> None:
    assert decide(held(needed), login=login).is_allowed is is_enough


def test_the_weakest_login_that_would_do_is_named() -> None:
    weak = decide(held(Terms(acr="hwk")), held(Terms(acr="mfa", max_age=timedelta(minutes=5))), held(Terms(acr="mfa", max_age=timedelta(hours=1))))

    assert weak.step_up == StepUp("mfa", timedelta(hours=1))


def test_a_grant_ends_with_its_binding_or_when_the_login_is_too_old() -> None:
    end, login = NOW + timedelta(hours=2), Login("mfa", NOW - timedelta(minutes=10))

    assert decide(held(Terms(expire_time=end))).expire_time == end
    assert decide(held(Terms(expire_time=end)), held()).expire_time is None
    for lasting in (Terms(max_age=timedelta(days=3_652_000)), Terms(max_age=timedelta(days=3_652_000), expire_time=end)):  # to beyond the year 9999
        assert (decide(held(lasting), login=login).is_allowed, decide(held(lasting), login=login).expire_time) == (True, lasting.expire_time)
    assert decide(held(Terms(max_age=timedelta(hours=1))), login=login).expire_time == NOW + timedelta(minutes=50)
    assert decide(held(Terms(expire_time=end, max_age=timedelta(days=1))), login=login).expire_time == end


def test_only_answers_of_conditions_depend_on_context() -> None:
    assert not decide(held()).depends_on_context
    assert decide(held(Terms(condition=SMALL)), context={"amount": 1.0}).depends_on_context
    assert decide(held(Terms(condition=SMALL)), held()).depends_on_context


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("context.amount <", "Syntax error"),
        ("1 + 1", "must be of type bool"),
        ("amount < 5", "undeclared reference"),
        ("'yes'", "must be of type bool"),
    ],
)
def test_what_is_no_condition_is_refused_in_words(expression: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        Conditions().check(expression)

    assert "\n" not in str(refused.value)


def test_an_expression_that_takes_too_many_steps_fails() -> None:
    endless = "context.tags.all(a, context.tags.all(b, context.tags.all(c, a == b || c != 'x')))"

    assert Conditions().evaluate(endless, {"tags": ["t"] * 200}, NOW).truth is Truth.FAILED


def test_a_text_that_looks_like_an_error_is_no_missing_context() -> None:
    told = Conditions().evaluate("context.word", {"word": 'Key not found in map : "amount"'}, NOW)

    assert told.truth is Truth.FAILED


def test_time_is_a_condition_too() -> None:
    business_hours = Terms(condition="now.getHours() >= 9 && now.getHours() < 17")

    assert decide(held(business_hours)).is_allowed
