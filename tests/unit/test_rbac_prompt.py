"""Answers that are given again: only of the very state that they were made of, and only if they depend on nothing else."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast
from uuid import UUID, uuid4

import pytest

from services.chassis.call import Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.consistency import ConsistencyTokens
from services.chassis.tenancy import TenantId
from services.rbac.checker import Checker
from services.rbac.conditions import Conditions
from services.rbac.decisions import Judge
from services.rbac.levels import SKEW, Levels
from services.rbac.memory import Memory, Touched
from services.rbac.model import ANYBODY, FOR_EVER, Subject, SubjectType, Terms
from services.rbac.nodes import Bound, Holder, Revision, RoleFacts, Snapshot, State
from services.rbac.prompt_servicer import PromptChecks
from services.rbac.revisions import Revisions, encode
from watchword.rbac.v1 import permission_pb2, rbac_pb2

if TYPE_CHECKING:
    from services.rbac.store.listing import RbacStore

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TENANT, OTHER = TenantId(uuid4()), TenantId(uuid4())
ROLE, USER = uuid4(), uuid4()
ANNE = Subject(SubjectType.USER, USER)
TOUCHED = Touched(holders=frozenset((ANNE,)))
ALLOW, DENY = permission_pb2.ALLOW, permission_pb2.DENY
QUESTION = permission_pb2.CheckPermissionRequest(
    subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=str(USER)), permission="doc.read", resource="doc/1"
)


class Moved(Clock):
    """A clock that stands still."""

    def __init__(self) -> None:
        self.time = NOW

    def seconds(self) -> float:
        return self.time.timestamp()


class Lease:
    """A lease that a test ends."""

    is_current = True


class Instance:
    """What answers promptly, and what tells it of changes. Nothing is read from Postgres but what a test says."""

    def __init__(self, *, most: int = 100) -> None:
        self.clock, self.lease, self.memory = Moved(), Lease(), Memory()
        self.revisions = Revisions(self.memory)
        judge = Judge(Conditions(), Levels(["pwd", "mfa"]))
        self.checker = Checker(cast("RbacStore", None), self.memory, self.revisions, self.lease, clock=self.clock, judge=judge)
        self.prompt = PromptChecks(self.checker, ConsistencyTokens(b"k" * 32), most=most)

    def read(self, policy: int, *terms: Terms, tenant_id: TenantId = TENANT, revision: int = 0) -> None:
        """Read a state in which Anne holds the role at doc/1, on each of `terms`."""
        bound = tuple(Bound(UUID(int=number), ROLE, "doc/1", one) for number, one in enumerate(terms))
        roles = {ROLE: RoleFacts(ROLE, "reader", frozenset(("doc.read",)), ())}
        state = State(Revision(revision or policy), Revision(policy))
        snapshot, now, generation = (
            Snapshot(state, {ANYBODY: Holder(), ANNE: Holder(bound)}, roles, {"doc/1": ""}),
            self.clock.now(),
            self.memory.generation,
        )
        self.revisions.learn(tenant_id, snapshot, subjects=(ANNE,), resources=("doc/1",), began=now, generation=generation, is_led=True)

    def hear(self, policy: int, previous: int, touched: Touched = TOUCHED) -> None:
        self.revisions.apply(encode(TENANT, policy, previous, touched))

    def ask(
        self, question: permission_pb2.CheckPermissionRequest = QUESTION, tenant_id: TenantId = TENANT
    ) -> permission_pb2.CheckPermissionResponse | None:
        """Ask alone and in a batch, which answer the same."""
        caller = Caller(CallerKind.CLIENT, str(uuid4()), tenant_id)
        alone = self.prompt.check(question.SerializeToString(), caller)
        batch = permission_pb2.BatchCheckPermissionsRequest(requests=[question, question]).SerializeToString()
        together = self.prompt.check_batch(batch, caller)
        assert (alone is None) == (together is None)
        if alone is None or together is None:
            return None
        answer = permission_pb2.CheckPermissionResponse.FromString(alone)
        assert list(permission_pb2.BatchCheckPermissionsResponse.FromString(together).responses) == [answer, answer]
        return answer

    def decision(self, question: permission_pb2.CheckPermissionRequest = QUESTION) -> "permission_pb2.Decision.ValueType | None":
        answer = self.ask(question)
        return None if answer is None else answer.decision


def decided(one: Instance) -> list[object]:
    """Count the decisions that are made from now on."""
    made, judge = list[object](), one.checker._judge
    decide = judge.decide

    def counting(*args: object) -> object:
        made.append(args)
        return decide(*args)  # type: ignore[arg-type]

    judge.decide = counting  # type: ignore[method-assign,assignment]
    return made


def test_the_same_question_in_the_same_state_is_decided_once() -> None:
    one = Instance()
    one.read(5, FOR_EVER)
    views = decided(one)

    assert [one.decision() for _ in range(3)] == [ALLOW] * 3
    assert len(views) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.hear(6, 5),
        lambda one: one.hear(6, 5, Touched(everything=True)),
        lambda one: one.hear(8, 7),  # one is still under way
        lambda one: one.memory.clear(),
        lambda one: setattr(one.lease, "is_current", False),
    ],
    ids=["of the subject", "of everything", "after one that is missing", "of which nothing is known", "that nobody would tell of"],
)
def test_after_a_change_the_answer_is_not_given_again(change: Callable[[Instance], None]) -> None:
    one = Instance()
    one.read(5, FOR_EVER)
    assert one.decision() == ALLOW

    change(one)

    assert one.ask() is None  # it has to be read


def test_after_a_change_the_answer_is_the_new_one() -> None:
    one = Instance()
    one.read(5, FOR_EVER)
    assert one.decision() == ALLOW

    one.hear(6, 5)
    one.read(6)
    assert one.decision() == DENY

    one.hear(7, 6)
    one.read(7, FOR_EVER)
    assert one.decision() == ALLOW


def test_a_change_that_touches_neither_subject_nor_place_leaves_the_answer_and_its_token_is_of_the_new_state() -> None:
    one = Instance()
    one.read(5, FOR_EVER)
    before = one.ask()
    one.hear(6, 5, Touched(roles=frozenset((uuid4(),))))
    after = one.ask()

    assert before is not None
    assert after is not None
    assert (before.decision, after.decision) == (ALLOW, ALLOW)
    assert before.consistency_token != after.consistency_token


def test_an_answer_names_the_newest_revision_that_is_known() -> None:
    """Other contexts take revisions of a tenant, too: the policy stays as it was."""
    one = Instance()
    one.read(5, FOR_EVER)
    before = one.ask()
    one.read(5, FOR_EVER, revision=9)
    after = one.ask()

    assert before is not None
    assert after is not None
    assert before.consistency_token != after.consistency_token


def test_a_grant_that_ends_is_not_given_again_after_its_end() -> None:
    one = Instance()
    one.read(5, Terms(expire_time=NOW + timedelta(seconds=10)))
    assert one.decision() == ALLOW

    one.clock.time += timedelta(seconds=11)

    assert one.decision() == DENY


def test_a_grant_that_a_login_gets_too_old_for_is_not_given_again() -> None:
    one, fresh = Instance(), permission_pb2.CheckPermissionRequest()
    fresh.CopyFrom(QUESTION)
    fresh.acr = "mfa"
    fresh.auth_time.FromDatetime(NOW)
    one.read(5, Terms(acr="mfa", max_age=timedelta(seconds=10)))
    assert one.decision(fresh) == ALLOW

    one.clock.time += timedelta(seconds=11) + SKEW

    assert one.decision(fresh) == permission_pb2.STEP_UP_REQUIRED


def test_a_condition_that_looks_at_the_time_is_evaluated_each_time() -> None:
    one = Instance()
    one.read(5, Terms(condition="now < timestamp('2030-01-01T00:00:10Z')"))
    assert one.decision() == ALLOW

    one.clock.time += timedelta(seconds=11)

    assert one.decision() == DENY


def test_tenants_share_no_answer_to_the_same_question() -> None:
    one = Instance()
    one.read(5, FOR_EVER)
    one.read(5, tenant_id=OTHER)

    for _ in range(2):
        assert one.decision() == ALLOW
        answer = one.ask(tenant_id=OTHER)
        assert answer is not None
        assert answer.decision == DENY


def test_no_answer_is_given_again_for_ever() -> None:
    """A database that was restored from a backup may come by the same revision again."""
    one = Instance()
    one.read(5, FOR_EVER)
    assert one.decision() == ALLOW

    one.clock.time += timedelta(minutes=6)

    assert one.ask() is None


def test_so_many_questions_are_remembered_and_no_more() -> None:
    one, asked = Instance(most=4), permission_pb2.CheckPermissionRequest()
    one.read(5, FOR_EVER)
    for number in range(40):
        asked.CopyFrom(QUESTION)
        asked.permission = f"doc.verb-{number}"
        one.ask(asked)

    assert len(one.prompt._questions) <= 4
    assert one.decision() == ALLOW
