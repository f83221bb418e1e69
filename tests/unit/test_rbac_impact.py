"""What a change does, compared with what decisions say before and after it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from services.rbac.conditions import Conditions
from services.rbac.decisions import Judge, Outcome, Question
from services.rbac.holdings import compile_holdings, of_snapshot, places_of
from services.rbac.impact import Comparison, Impact, Patience, Side
from services.rbac.levels import Levels
from services.rbac.model import ANYBODY, FOR_EVER, Effect, Subject, SubjectType, Terms
from services.rbac.nodes import Bound, Holder, Revision, RoleFacts, Snapshot, State
from services.rbac.patterns import covering

NOW = datetime(2026, 11, 24, tzinfo=UTC)
USER, GROUP = Subject(SubjectType.USER, UUID(int=10)), Subject(SubjectType.GROUP, UUID(int=11))
ROLES = [UUID(int=number) for number in range(1, 4)]
# `x` is a type and a verb that no pattern names.
PLACES = ["", "d/1", "d/2", "d/3"]
ASKED = [f"{kind}.{verb}" for kind, verb in product("abx", "rwx")]
PATTERNS = [f"{kind}.{verb}" for kind, verb in product("ab*", "rw*")]
DENY = Terms(effect=Effect.DENY)
JUDGE = Judge(Conditions(), Levels())

bounds = st.builds(Bound, st.just(UUID(int=0)), st.sampled_from(ROLES), st.sampled_from(PLACES), st.sampled_from([FOR_EVER, FOR_EVER, DENY]))
holders = st.fixed_dictionaries(
    {
        USER: st.builds(Holder, st.lists(bounds, max_size=3).map(tuple), st.sampled_from([(), (GROUP.id,)])),
        GROUP: st.builds(Holder, st.lists(bounds, max_size=2).map(tuple)),
        ANYBODY: st.builds(Holder, st.lists(bounds, max_size=1).map(tuple)),
    }
)
patterns = st.frozensets(st.sampled_from(PATTERNS), max_size=3)
roles = st.tuples(patterns, patterns, patterns).map(
    lambda says: {
        role_id: RoleFacts(role_id, "", found, tuple(ROLES[:number])) for number, (role_id, found) in enumerate(zip(ROLES, says, strict=True))
    }
)
# d/1 may lie below d/2 or d/3, and d/2 below d/3.
places = st.fixed_dictionaries({"d/1": st.sampled_from(["", "d/2", "d/3"]), "d/2": st.sampled_from(["", "d/3"]), "d/3": st.just("")})
snapshots = st.builds(Snapshot, st.just(State(Revision(1), Revision(1))), holders, roles, places)

booleans = st.booleans()


@st.composite
def changes(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    """Two states that have much in common: each of what they consist of may be the same in both."""
    one, other = draw(snapshots), draw(snapshots)
    who = {subject: (one if draw(booleans) else other).holders[subject] for subject in one.holders}
    what = {role_id: (one if draw(booleans) else other).roles[role_id] for role_id in one.roles}
    return one, Snapshot(one.state, who, what, one.places if draw(booleans) else other.places)


def decisions(snapshot: Snapshot, subject: Subject) -> Mapping[tuple[str, str], bool]:
    """Return what a subject may do where, for all that is asked."""
    held = compile_holdings(of_snapshot(snapshot), subject)

    def may(permission: str, place: str) -> bool:
        above = places_of(snapshot.places.__getitem__, place)
        return JUDGE.decide(held.at(above, NOW), Question(subject, permission, place), NOW).outcome is Outcome.ALLOW

    return {(permission, place): may(permission, place) for permission, place in product(ASKED, PLACES)}


def measured(before: Snapshot, after: Snapshot, *subjects: Subject) -> Impact:
    moved = [name for name in PLACES[1:] if before.places[name] != after.places[name]]
    return Comparison(Side(before), Side(after), subjects, moved, is_truncated=False).measure()


@settings(max_examples=600)
@given(changes())
def test_what_is_told_is_what_decisions_say(change: tuple[Snapshot, Snapshot]) -> None:
    """Whatever turns from no to yes lies under a gain that is told, and every gain that is told turns something; for losses the same, backwards."""
    before, after = change
    impact = measured(before, after, USER)

    for old, new, told in ((before, after, impact.gains), (after, before, impact.losses)):
        was, now = decisions(old, USER), decisions(new, USER)
        turned = {asked for asked in now if now[asked] and not was[asked]}
        rights = {(pattern, one.resource) for one in told for pattern in one.patterns}
        for permission, place in turned:
            above = places_of(new.places.__getitem__, place)
            assert any((pattern, upper) in rights for pattern in covering(permission) for upper in above), (permission, place)
        for pattern, resource in rights:
            assert any(pattern in covering(permission) and resource in places_of(new.places.__getitem__, place) for permission, place in turned)
    assert impact.gaining_count == bool(impact.gains)
    assert impact.losing_count == bool(impact.losses)


@given(snapshots)
def test_no_change_is_no_impact(snapshot: Snapshot) -> None:
    impact = measured(snapshot, snapshot, USER, GROUP, ANYBODY)

    assert (impact.subject_count, impact.gaining_count, impact.losing_count, impact.gains, impact.losses) == (3, 0, 0, (), ())


def policy(*bound: Bound, who: Subject = USER, says: Mapping[UUID, frozenset[str]] | None = None) -> Snapshot:
    facts = {role_id: RoleFacts(role_id, "", found, ()) for role_id, found in (says or {ROLES[0]: frozenset({"a.r", "a.w"})}).items()}
    return Snapshot(State(Revision(1), Revision(1)), {USER: Holder(), ANYBODY: Holder(), who: Holder(bound)}, facts, dict.fromkeys(PLACES[1:], ""))


def bound(terms: Terms = FOR_EVER, place: str = "", role: UUID = ROLES[0]) -> Bound:
    return Bound(UUID(int=0), role, place, terms)


def told(impact: Impact) -> tuple[list[tuple[str, tuple[str, ...]]], list[tuple[str, tuple[str, ...]]]]:
    gains, losses = ([(one.resource, one.patterns) for one in side] for side in (impact.gains, impact.losses))
    return gains, losses


def test_better_terms_are_a_gain_and_worse_ones_a_loss() -> None:
    """Of a grant: longer, on no condition, for any login."""
    worse = [Terms(expire_time=NOW + timedelta(days=1)), Terms(condition="context.a"), Terms(acr="mfa"), Terms(max_age=timedelta(hours=1))]

    for terms in worse:
        impact = measured(policy(bound(terms)), policy(bound()), USER)
        assert told(impact) == ([("", ("a.r", "a.w"))], [])
        assert told(measured(policy(bound()), policy(bound(terms)), USER)) == ([], [("", ("a.r", "a.w"))])
        assert told(measured(policy(bound(), bound(terms)), policy(bound()), USER)) == ([], [])


def test_other_conditions_are_both() -> None:
    one, other = bound(Terms(condition="context.a")), bound(Terms(condition="context.b"))

    assert told(measured(policy(one), policy(other), USER)) == ([("", ("a.r", "a.w"))], [("", ("a.r", "a.w"))])


def test_a_denial_on_a_condition_takes_and_its_lifting_gives() -> None:
    denial = bound(Terms(effect=Effect.DENY, condition="context.a"))

    assert told(measured(policy(bound()), policy(bound(), denial), USER)) == ([], [("", ("a.r", "a.w"))])
    assert told(measured(policy(bound(), denial), policy(bound()), USER)) == ([("", ("a.r", "a.w"))], [])
    assert told(measured(policy(), policy(denial), USER)) == ([], [])


def test_what_is_denied_to_anybody_is_a_loss_whatever_rbac_knows_of_those_who_had_it() -> None:
    impact = measured(policy(who=ANYBODY), policy(bound(DENY, "d/1"), who=ANYBODY), ANYBODY)

    assert told(impact) == ([], [("d/1", ("a.r", "a.w"))])


def test_what_comes_with_something_wider_is_not_told_beside_it() -> None:
    says = {ROLES[0]: frozenset({"a.*", "a.r"}), ROLES[1]: frozenset({"a.r", "b.r"})}
    before, after = policy(says=says), policy(bound(place="d/1"), bound(place="d/2", role=ROLES[1]), bound(role=ROLES[0]), says=says)

    assert told(measured(before, after, USER)) == ([("", ("a.*",)), ("d/2", ("b.r",))], [])


def test_no_more_than_a_hundred_are_named_but_all_are_counted() -> None:
    many = frozenset(f"a.v{number}" for number in range(150))
    subjects = [Subject(SubjectType.USER, UUID(int=1000 + number)) for number in range(130)]
    before = policy(says={ROLES[0]: many})
    after = Snapshot(before.state, {**before.holders, **dict.fromkeys(subjects, Holder((bound(),)))}, before.roles, before.places)
    before = Snapshot(before.state, {**before.holders, **dict.fromkeys(subjects, Holder())}, before.roles, before.places)

    impact = measured(before, after, *subjects)

    assert (impact.subject_count, impact.gaining_count, impact.losing_count) == (130, 130, 0)
    assert len(impact.gains) == 100
    assert {len(one.patterns) for one in impact.gains} == {100}


def many(subjects: int, *bounds: Bound, says: Mapping[UUID, frozenset[str]]) -> tuple[Snapshot, list[Subject]]:
    """Return a policy in which so many members of GROUP hold, besides, a role of their own."""
    own = {Subject(SubjectType.USER, UUID(int=1000 + number)): UUID(int=10_000 + number) for number in range(subjects)}
    facts = {role_id: RoleFacts(role_id, "", found, ()) for role_id, found in {**says, **dict.fromkeys(own.values(), frozenset())}.items()}
    members = {subject: Holder((bound(role=role_id),), (GROUP.id,)) for subject, role_id in own.items()}
    return Snapshot(State(Revision(1), Revision(1)), {**members, GROUP: Holder(bounds), ANYBODY: Holder()}, facts, {}), list(own)


def test_a_measurement_ends_with_its_patience_and_says_so() -> None:
    """A thousand patterns denied to ten thousand people would take hours, and the calls of everybody else with them."""
    says = {role_id: frozenset(f"{kind}{number}.r" for number in range(1000)) for role_id, kind in zip(ROLES, "abc", strict=True)}
    after, subjects = many(10_000, bound(role=ROLES[0]), bound(role=ROLES[1]), says=says)
    before, _ = many(10_000, bound(role=ROLES[0]), bound(role=ROLES[1]), bound(DENY, role=ROLES[2]), says=says)

    impact = Comparison(Side(before), Side(after), subjects, [], is_truncated=False).measure(Patience(0.2))

    assert impact.is_truncated
    assert impact.subject_count == 10_000


def test_nobody_is_measured_for_who_is_gone() -> None:
    patience = Patience()
    patience.lose()

    impact = Comparison(Side(policy()), Side(policy(bound())), [USER], [], is_truncated=False).measure(patience)

    assert (impact.gaining_count, impact.is_truncated) == (0, True)


def test_those_who_hold_the_same_are_measured_once() -> None:
    """And each is told by himself, with what holds for him."""
    says = {ROLES[0]: frozenset({"a.r"}), ROLES[1]: frozenset({"b.r"})}
    before, subjects = many(3, says=says)
    group = Snapshot(before.state, {**before.holders, GROUP: Holder((bound(),))}, before.roles, {})
    twins = {**group.holders, subjects[1]: group.holders[subjects[0]]}
    after = Snapshot(before.state, {**twins, subjects[2]: Holder((bound(role=ROLES[1]),))}, before.roles, {})

    impact = Comparison(Side(before), Side(after), subjects, [], is_truncated=False).measure()

    assert {one.subject: one.patterns for one in impact.gains} == {subjects[0]: ("a.r",), subjects[1]: ("a.r",), subjects[2]: ("b.r",)}
    assert (impact.gaining_count, impact.losing_count, impact.is_truncated) == (3, 0, False)
