"""What an instance remembers: true at the tenant's head, bounded, least used first, and never for long."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.chassis.tenancy import TenantId
from services.rbac.memory import ANSWER_PARTS, TTL, Memory, Touched
from services.rbac.model import ANYBODY, FOR_EVER, Subject, SubjectType
from services.rbac.nodes import Bound, Holder, Revision, RoleFacts, Snapshot, State
from services.rbac.revisions import Revisions, encode

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TENANT = TenantId(uuid4())
ROLE = uuid4()
ANNE, BERT = Subject(SubjectType.USER, uuid4()), Subject(SubjectType.USER, uuid4())


def snapshot(policy: int, *, pattern: str = "doc.read", holders: Mapping[Subject, tuple[UUID, ...]] | None = None, revision: int = 0) -> Snapshot:
    """Return a state in which each of `holders` is bound to the roles beside it."""
    held = {who: Holder(tuple(Bound(UUID(int=9), role, "", FOR_EVER) for role in roles)) for who, roles in (holders or {ANNE: (ROLE,)}).items()}
    roles = {ROLE: RoleFacts(ROLE, "reader", frozenset((pattern,)), ())}
    return Snapshot(State(Revision(revision or policy), Revision(policy)), {ANYBODY: Holder(), **held}, roles, {"doc/1": "folder/1", "folder/1": ""})


class Instance:
    """A memory and what tells it of changes."""

    def __init__(self, max_weight: int = 10_000) -> None:
        self.memory = Memory(max_weight)
        self.revisions = Revisions(self.memory)

    def read(self, state: Snapshot, *subjects: Subject, generation: int | None = None, is_led: bool = True, at: datetime = NOW) -> None:
        self.revisions.learn(
            TENANT,
            state,
            subjects=subjects or (ANNE,),
            resources=("doc/1",),
            began=at,
            generation=self.memory.generation if generation is None else generation,
            is_led=is_led,
        )

    def hear(self, policy: int, previous: int, touched: Touched) -> None:
        self.revisions.apply(encode(TENANT, policy, previous, touched))

    def patterns(self, subject: Subject = ANNE, at: datetime = NOW) -> list[str] | None:
        tenant = self.memory.tenant(TENANT)
        held = None if tenant is None else self.memory.holdings(TENANT, tenant, subject, at)
        return None if held is None else [text for one in held.anywhere(at) for text in one.role.patterns.texts]

    def places(self, at: datetime = NOW) -> tuple[str, ...] | None:
        tenant = self.memory.tenant(TENANT)
        return None if tenant is None else self.memory.places(TENANT, tenant, "doc/1", at)


def of_role(role: UUID = ROLE) -> Touched:
    return Touched(roles=frozenset((role,)))


def test_what_was_read_is_known() -> None:
    one = Instance()
    one.read(snapshot(5))

    assert one.patterns() == ["doc.read"]
    assert one.places() == ("", "doc/1", "folder/1")
    assert one.patterns(BERT) is None


def test_a_change_kills_what_it_touched_and_nothing_else() -> None:
    one = Instance()
    one.read(snapshot(5, holders={ANNE: (ROLE,), BERT: ()}), ANNE, BERT)
    one.hear(6, 5, of_role())

    assert one.patterns() is None
    assert one.patterns(BERT) == []
    assert one.places() is not None


def test_a_change_of_a_place_kills_all_that_lies_below() -> None:
    one = Instance()
    one.read(snapshot(5))
    one.hear(6, 5, Touched(places=frozenset(("folder/1",))))

    assert one.places() is None
    assert one.patterns() == ["doc.read"]


def test_a_change_of_what_anybody_holds_kills_what_everybody_holds() -> None:
    one = Instance()
    one.read(snapshot(5))
    one.hear(6, 5, Touched(holders=frozenset((ANYBODY,))))

    assert one.patterns() is None


def test_what_was_read_after_a_change_stands_with_what_it_left_alone() -> None:
    one = Instance()
    one.read(snapshot(5, holders={ANNE: (ROLE,), BERT: (ROLE,)}), ANNE, BERT)
    one.hear(6, 5, of_role())
    one.read(snapshot(6, pattern="doc.write"))

    assert one.patterns() == ["doc.write"]
    assert one.patterns(BERT) == ["doc.write"]  # compiled of his old node and the role's new one


def test_a_fill_that_raced_a_change_is_dropped() -> None:
    one = Instance()
    one.read(snapshot(4))
    one.hear(5, 4, of_role())
    one.read(snapshot(4))  # read before the change, and late

    assert one.patterns() is None


def test_a_first_fill_that_raced_a_change_is_dropped() -> None:
    one = Instance()
    one.hear(5, 4, of_role())  # of a tenant that nobody asked about yet
    one.read(snapshot(4))

    assert one.patterns() is None


def test_a_fill_of_a_state_that_is_not_heard_of_yet_is_not_mixed_with_older_parts() -> None:
    one = Instance()
    one.read(snapshot(5, holders={ANNE: (ROLE,), BERT: (ROLE,)}), ANNE, BERT)
    one.read(snapshot(6, holders={ANNE: ()}))  # revision 6 took Anne's role

    assert one.patterns(BERT) == ["doc.read"]
    one.hear(6, 5, Touched(holders=frozenset((ANNE,))))
    one.read(snapshot(6, holders={ANNE: ()}))
    assert one.patterns() == []


def test_a_state_that_is_not_heard_of_yet_is_not_known() -> None:
    one, late = Instance(), Subject(SubjectType.USER, uuid4())
    one.read(snapshot(5))
    one.read(snapshot(6, holders={late: (ROLE,)}), late)

    assert one.patterns(late) is None  # all else is known as of revision 5


def test_a_notice_that_follows_another_than_the_head_forgets_the_tenant() -> None:
    one = Instance()
    one.read(snapshot(5))
    one.hear(7, 6, Touched())  # 6 is still under way

    assert one.patterns() is None
    one.read(snapshot(7))
    one.hear(6, 5, of_role())  # late, and part of what was read since

    assert one.patterns() == ["doc.read"]


def test_a_change_of_more_than_can_be_named_forgets_the_tenant() -> None:
    one = Instance()
    one.read(snapshot(5))
    one.hear(6, 5, Touched(holders=frozenset(Subject(SubjectType.USER, uuid4()) for _ in range(201))))

    assert one.patterns() is None


def test_without_a_lease_what_was_read_is_the_news() -> None:
    one = Instance()
    one.read(snapshot(5, holders={ANNE: (ROLE,), BERT: (ROLE,)}), ANNE, BERT)
    one.read(snapshot(8, pattern="doc.write"), is_led=False)

    assert one.patterns() == ["doc.write"]
    assert one.patterns(BERT) is None  # nobody said what 6, 7 and 8 did to him


async def test_what_was_read_before_everything_was_forgotten_is_not_learnt_after() -> None:
    one = Instance()
    generation = one.memory.generation
    await one.revisions.load()
    one.read(snapshot(5), generation=generation)

    assert one.patterns() is None


def test_a_node_that_says_the_same_stays_with_all_that_stands_on_it() -> None:
    one = Instance()
    one.read(snapshot(5, holders={ANNE: (ROLE,), BERT: (ROLE,)}), ANNE, BERT)
    tenant = one.memory.tenant(TENANT)
    assert tenant is not None
    before = tenant.roles[ROLE]
    one.read(snapshot(5))

    assert tenant.roles[ROLE] is before


def test_a_node_that_was_replaced_is_not_believed_by_what_was_compiled_of_it() -> None:
    one = Instance()
    one.read(snapshot(5, holders={ANNE: (ROLE,), BERT: (ROLE,)}), ANNE, BERT)
    one.read(snapshot(6, pattern="doc.write"))
    one.hear(6, 5, Touched(holders=frozenset((ANNE,))))  # a notice that forgets to name the role

    assert one.patterns(BERT) != ["doc.read"]


def test_an_old_entry_is_not_known() -> None:
    one = Instance()
    one.read(snapshot(5))

    assert one.patterns(at=NOW + TTL) == ["doc.read"]
    assert one.patterns(at=NOW + TTL + timedelta(seconds=1)) is None
    assert one.places(at=NOW + TTL + timedelta(seconds=1)) is None


def test_what_is_used_least_goes_first_and_its_weight_is_given_back() -> None:
    one, users = Instance(max_weight=60), [Subject(SubjectType.USER, uuid4()) for _ in range(12)]
    one.read(snapshot(5, holders={users[0]: (ROLE,)}), users[0])
    for user in users[1:]:
        one.read(snapshot(5, holders={user: (ROLE,)}), user)
        assert one.patterns(users[0])

    assert one.memory.weight <= 60
    assert one.patterns(users[1]) is None
    assert one.patterns(users[-1])


def test_what_is_larger_than_all_is_not_kept_and_does_not_push_others_out() -> None:
    one = Instance(max_weight=40)
    one.read(snapshot(5))
    one.read(snapshot(5, holders={BERT: (ROLE,) * 50}), BERT)

    assert one.patterns() == ["doc.read"]
    assert one.memory.weight <= 40


def test_answers_that_are_kept_weigh_too() -> None:
    one, users = Instance(max_weight=200), [Subject(SubjectType.USER, uuid4()) for _ in range(12)]
    for user in users:
        one.read(snapshot(5, holders={user: (ROLE,)}), user)
    tenant, before = one.memory.tenant(TENANT), one.memory.weight
    assert tenant is not None
    assert all(one.patterns(user) for user in users)

    for user in users:
        held = one.memory.holdings(TENANT, tenant, user, NOW)
        if held is not None:
            held.answers.update(dict.fromkeys(range(10)))  # type: ignore[arg-type]
            one.patterns(user)

    left = [user for user in users if one.patterns(user) is not None]
    assert len(left) * 10 * ANSWER_PARTS < one.memory.weight <= 200
    assert before + len(users) * 10 * ANSWER_PARTS > 200
    one.hear(6, 5, of_role())
    for user in left:
        one.read(snapshot(6, holders={user: ()}), user)
    assert one.memory.weight < before, "what was counted for answers is given back"


def test_tenants_that_nobody_asks_about_are_forgotten_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before one was forgotten is not learnt after: the change that it lacks was told to nobody."""
    monkeypatch.setattr("services.rbac.memory.MAX_TENANTS", 8)
    one, quiet = Instance(), TenantId(uuid4())
    one.read(snapshot(5))
    one.revisions.apply(encode(quiet, 3, 2, of_role()))
    generation = one.memory.generation

    for _ in range(20):
        one.revisions.apply(encode(TenantId(uuid4()), 1, 0, of_role()))
        assert one.patterns() == ["doc.read"]

    assert len(one.memory._tenants) + len(one.memory._old_tenants) <= 8
    assert one.memory.tenant(quiet) is None
    one.revisions.begin(quiet, 2, generation)
    assert one.memory.tenant(quiet) is None


def test_a_tenant_that_was_forgotten_and_changed_is_not_answered_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.rbac.memory.MAX_TENANTS", 8)
    one = Instance()
    one.read(snapshot(5))
    for _ in range(20):
        one.revisions.apply(encode(TenantId(uuid4()), 1, 0, of_role()))
    assert one.memory.tenant(TENANT) is None

    one.hear(7, 6, Touched(holders=frozenset((BERT,))))  # what 6 touched was told while nothing was known of the tenant
    assert one.patterns() is None
    one.hear(6, 5, of_role())
    assert one.patterns() is None


def test_nodes_go_with_the_last_entry_that_stands_on_them() -> None:
    one = Instance()
    one.read(snapshot(5))
    tenant = one.memory.tenant(TENANT)
    assert tenant is not None
    assert ROLE in tenant.roles
    one.memory._holdings.clear()

    assert ROLE not in tenant.roles


def test_the_revision_of_other_contexts_is_taken_only_with_the_policy_of_the_head() -> None:
    one = Instance()
    one.read(snapshot(5, revision=9))
    tenant = one.memory.tenant(TENANT)
    assert tenant is not None
    one.read(snapshot(6, revision=12))

    assert tenant.revision == 9
    one.read(snapshot(5, revision=11))
    assert tenant.revision == 11
