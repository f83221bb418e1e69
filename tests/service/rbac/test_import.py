"""Imports: whole chunks or nothing of them, by the rules of single changes, and again without harm."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rbac import import_servicer
from services.rbac.import_servicer import chunk_of, require_member
from tests.service.rbac.conftest import ANY, CLIENT, GROUP, USER, Metadata, Rbac, Tenant, as_client, ask, subject
from watchword import status
from watchword.errors import (
    AlreadyExists,
    Cycle,
    DepthExceeded,
    InvalidRequest,
    LastAdministrator,
    PermissionDenied,
    WatchwordError,
)
from watchword.rbac.v1 import policy_pb2, rbac_pb2

Chunk = policy_pb2.ImportPolicyRequest
Role, Group, Member = policy_pb2.ImportedRole, policy_pb2.ImportedGroup, policy_pb2.ImportedMember
Resource, Binding = policy_pb2.ImportedResource, policy_pb2.ImportedBinding


async def take(tenant: Tenant, *chunks: policy_pb2.ImportPolicyRequest, at: int = 0, by: Metadata = ()) -> list[policy_pb2.ImportPolicyResponse]:
    """Return the answers to chunks, or raise what the server raised."""
    try:
        call = tenant.instances[at].policies.ImportPolicy(iter(chunks), metadata=by or tenant.admin, timeout=30)
        return [answer async for answer in call]
    except grpc.aio.AioRpcError as error:
        raise status.decode(error) from error


def user(who: str) -> rbac_pb2.Subject:
    return subject(USER, who)


async def counted(rbac: Rbac, tenant: Tenant) -> dict[str, int]:
    """Return how many rows the tenant has."""
    tables = ("role", "subject_group", "group_member", "resource", "role_binding")
    return {table: (await rbac.sql(f"SELECT count(*) AS n FROM rbac.{table} WHERE tenant_id = $1", tenant.id))[0]["n"] for table in tables}


def whole(alice: str, bob: str, client: str) -> policy_pb2.ImportPolicyRequest:
    """A chunk with some of everything, in which what stands later names what stands before."""
    return Chunk(
        position=7,
        roles=[Role(name="reader", permissions=["doc.read"]), Role(name="writer", permissions=["doc.write"], parents=["reader"])],
        groups=[Group(name="inner"), Group(name="outer", description="all")],
        members=[Member(group="outer", member_group="inner"), Member(group="inner", member=user(alice))],
        resources=[Resource(resource="folder/b", parent="folder/a"), Resource(resource="doc/1", parent="folder/b")],
        bindings=[
            Binding(subject_group="outer", role="writer", resource="folder/a"),
            Binding(subject=user(bob), role="reader", expire_time_seconds=4_000_000_000),
            Binding(subject=subject(CLIENT, client), role="reader", resource="doc/9"),
            Binding(subject=subject(ANY, ""), role="reader", resource="folder/public"),
        ],
    )


async def test_a_chunk_is_taken_in_and_holds_on_every_instance(tenant: Tenant) -> None:
    alice, bob, client = (str(uuid4()) for _ in range(3))
    for at in range(3):  # memories are warm
        assert not await tenant.may(alice, "doc.write", "doc/1", at=at)

    [answer] = await take(tenant, whole(alice, bob, client))

    assert (answer.position, answer.created_count, answer.existing_count) == (7, 12, 0)
    for at in range(3):
        assert await tenant.may(alice, "doc.write", "doc/1", at=at)
        assert await tenant.may(alice, "doc.read", "folder/b", at=at)
        assert not await tenant.may(alice, "doc.read", at=at)
        assert await tenant.may(bob, "doc.read", at=at)
        assert await tenant.may(bob, "doc.read", "folder/public", at=at)
        assert await tenant.may(client, "doc.read", "doc/9", kind=CLIENT, at=at)
    bound = await tenant.check(bob, "doc.read", fresh=answer.consistency_token)
    assert bound.expire_time.seconds == 4_000_000_000


async def test_a_chunk_that_is_sent_again_changes_nothing(rbac: Rbac, tenant: Tenant) -> None:
    chunk = whole(*(str(uuid4()) for _ in range(3)))
    [first] = await take(tenant, chunk)
    before = await counted(rbac, tenant)

    answers = await take(tenant, chunk, chunk, at=1)

    assert [(one.created_count, one.existing_count) for one in answers] == [(0, 12), (0, 12)]
    assert {one.consistency_token for one in answers} == {first.consistency_token}
    assert await counted(rbac, tenant) == before


async def test_what_is_partly_there_is_completed(tenant: Tenant) -> None:
    alice, bob, client = (str(uuid4()) for _ in range(3))
    await tenant.role("reader", "doc.read")
    await tenant.join(await tenant.group("inner"), alice)

    [answer] = await take(tenant, whole(alice, bob, client))

    assert (answer.created_count, answer.existing_count) == (9, 3)
    assert await tenant.may(alice, "doc.write", "doc/1")


@pytest.mark.parametrize("count", [1, 1500])
async def test_what_is_taken_in_is_seen_by_memories_that_are_warm(tenant: Tenant, count: int) -> None:
    """Be it little, which is told by name, or much. Each chunk alone, and the very question that was asked before it."""
    users, group = [str(uuid4()) for _ in range(count)], await tenant.group("team")
    role = await tenant.role("reader", "doc.read")
    await tenant.bind(group, role, kind=GROUP, resource="folder/a")
    asked = (users[-1], "doc.read", "doc/0")

    async def answers() -> set[bool]:
        return {await tenant.may(*asked, at=at) for at in range(3)}

    assert await answers() == {False}
    await take(tenant, Chunk(members=[Member(group="team", member=user(who)) for who in users]))
    assert await answers() == {False}
    await take(tenant, Chunk(resources=[Resource(resource=f"doc/{number}", parent="folder/a") for number in range(count)]))
    assert await answers() == {True}
    await tenant.leave(group, users[-1])
    assert await answers() == {False}
    await take(tenant, Chunk(members=[Member(group="team", member=user(who)) for who in [*users, *(str(uuid4()) for _ in users)]]))
    assert await answers() == {True}
    await tenant.leave(group, users[-1])
    assert await answers() == {False}
    await take(tenant, Chunk(bindings=[Binding(subject=user(who), role="reader", resource="doc/0") for who in users]))
    assert await answers() == {True}


async def test_of_a_chunk_that_is_refused_nothing_stays_and_those_before_it_do(rbac: Rbac, tenant: Tenant) -> None:
    good, bad = Chunk(position=1, groups=[Group(name="one")]), Chunk(position=2, groups=[Group(name="two")], members=[Member(group="three")])
    bad.members[0].member.CopyFrom(user(str(uuid4())))
    call, told = tenant.instances[0].policies.ImportPolicy(iter([good, bad, good]), metadata=tenant.admin, timeout=30), []

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        told += [answer.position async for answer in call]

    assert isinstance(status.decode(refusal.value), InvalidRequest)
    names = await rbac.sql("SELECT name FROM rbac.subject_group WHERE tenant_id = $1", tenant.id)
    assert [row["name"] for row in names] == ["one"]


def named(error: WatchwordError) -> str:
    return error.violations[0].field if error.violations else error.text.partition(":")[0]


SOMEBODY = user("00000000-0000-4000-8000-000000000001")
REFUSED: list[tuple[str, policy_pb2.ImportPolicyRequest, type[WatchwordError], str]] = [
    (
        "an unknown role",
        Chunk(bindings=[Binding(subject=SOMEBODY, role="any"), Binding(subject=SOMEBODY, role="gone")]),
        InvalidRequest,
        "bindings[1].role",
    ),
    ("an unknown group", Chunk(bindings=[Binding(subject_group="gone", role="any")]), InvalidRequest, "bindings[0].subject_group"),
    ("nobody", Chunk(bindings=[Binding(role="any")]), InvalidRequest, "bindings[0].subject"),
    ("two at once", Chunk(bindings=[Binding(role="any", subject=SOMEBODY, subject_group="team")]), InvalidRequest, "bindings[0].subject"),
    ("a group by id", Chunk(bindings=[Binding(role="any", subject=subject(GROUP, SOMEBODY.id))]), InvalidRequest, "bindings[0].subject.type"),
    ("anybody with an id", Chunk(bindings=[Binding(role="any", subject=subject(ANY, SOMEBODY.id))]), InvalidRequest, "bindings[0].subject.id"),
    ("a user without", Chunk(bindings=[Binding(role="any", subject=subject(USER, ""))]), InvalidRequest, "bindings[0].subject.id"),
    ("no uuid", Chunk(bindings=[Binding(role="any", subject=subject(USER, "x"))]), InvalidRequest, "bindings[0].subject.id"),
    ("no resource", Chunk(bindings=[Binding(role="any", subject=SOMEBODY, resource="x")]), InvalidRequest, "bindings[0].resource"),
    ("the past", Chunk(bindings=[Binding(role="any", subject=SOMEBODY, expire_time_seconds=1)]), InvalidRequest, "bindings[0].expire_time_seconds"),
    ("no time", Chunk(bindings=[Binding(role="any", subject=SOMEBODY, expire_time_seconds=-1)]), InvalidRequest, "bindings[0].expire_time_seconds"),
    (
        "beyond time",
        Chunk(bindings=[Binding(role="any", subject=SOMEBODY, expire_time_seconds=2**60)]),
        InvalidRequest,
        "bindings[0].expire_time_seconds",
    ),
    ("anybody joins", Chunk(members=[Member(group="team", member=subject(ANY, ""))]), InvalidRequest, "members[0].member.type"),
    ("an unknown member", Chunk(members=[Member(group="team", member_group="gone")]), InvalidRequest, "members[0].member_group"),
    ("no parent", Chunk(resources=[Resource(resource="doc/1")]), InvalidRequest, "resources[0].parent"),
    ("two parents", Chunk(resources=[Resource(resource="a/1", parent=f"b/{n}") for n in (1, 2)]), AlreadyExists, "resources[1].parent"),
    ("elsewhere", Chunk(resources=[Resource(resource="doc/0", parent="b/1")]), AlreadyExists, "resources[0].parent"),
    ("another role", Chunk(roles=[Role(name="any", permissions=["doc.write"])]), AlreadyExists, "roles[0].name"),
    ("another parent", Chunk(roles=[Role(name="any", permissions=["doc.read"], parents=["watchword.service"])]), AlreadyExists, "roles[0].name"),
    ("two of a name", Chunk(roles=[Role(name="x"), Role(name="x", permissions=["doc.read"])]), AlreadyExists, "roles[1].name"),
    ("a later parent", Chunk(roles=[Role(name="x", parents=["y"]), Role(name="y")]), InvalidRequest, "roles[0].parents"),
    ("its own parent", Chunk(roles=[Role(name="x", parents=["x"])]), InvalidRequest, "roles[0].parents"),
    ("the suite's name", Chunk(roles=[Role(name="watchword.boss")]), InvalidRequest, "roles[0].name"),
    ("no pattern", Chunk(roles=[Role(name="x", permissions=["doc"])]), InvalidRequest, "roles[0].permissions[0]"),
]


@pytest.mark.parametrize(("chunk", "error", "place"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_a_refusal_names_the_member(
    rbac: Rbac, tenant: Tenant, chunk: policy_pb2.ImportPolicyRequest, error: type[WatchwordError], place: str
) -> None:
    await tenant.role("any", "doc.read")
    await tenant.group("team")
    await tenant.place("doc/0", "folder/a")
    before = await counted(rbac, tenant)
    chunk.groups.add(name="beside")

    with pytest.raises(error) as refusal:
        await take(tenant, chunk)

    assert named(refusal.value) == place
    assert await counted(rbac, tenant) == before


async def test_no_more_than_twenty_members_are_named(tenant: Tenant) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await take(tenant, Chunk(bindings=[Binding(subject=SOMEBODY, role=f"gone-{number}") for number in range(1000)]))

    assert len(refusal.value.violations) == 20


def chain(count: int) -> Iterable[policy_pb2.ImportedResource]:
    return (Resource(resource=f"doc/{number}", parent=f"doc/{number + 1}") for number in range(count))


async def test_no_hierarchy_gets_a_cycle_in_one_chunk_or_over_two(tenant: Tenant) -> None:
    groups = Chunk(groups=[Group(name=name) for name in "abc"], members=[Member(group="b", member_group="a")])
    await take(tenant, groups)
    for chunk in (
        Chunk(members=[Member(group="a", member_group="b")]),
        Chunk(members=[Member(group="c", member_group="b"), Member(group="a", member_group="c")]),
        Chunk(members=[Member(group="c", member_group="c")]),
    ):
        with pytest.raises(Cycle):
            await take(tenant, chunk)
    with pytest.raises(Cycle, match=r"a > b > c > a|b > c > a > b|c > a > b > c"):
        await take(tenant, Chunk(members=[Member(group="c", member_group="b"), Member(group="a", member_group="c")]))

    await take(tenant, Chunk(resources=chain(2)))
    with pytest.raises(Cycle):
        await take(tenant, Chunk(resources=[Resource(resource="doc/2", parent="doc/0")]))
    with pytest.raises(Cycle):
        await take(tenant, Chunk(resources=[Resource(resource="x/1", parent="x/2"), Resource(resource="x/2", parent="x/1")]))


async def test_no_hierarchy_gets_deeper_than_32_in_one_chunk_or_over_two(tenant: Tenant) -> None:
    await take(tenant, Chunk(resources=chain(31)))
    for chunk in (Chunk(resources=[Resource(resource="doc/31", parent="x/1")]), Chunk(resources=[Resource(resource="x/1", parent="doc/0")])):
        with pytest.raises(DepthExceeded):
            await take(tenant, chunk)
    upper = [Resource(resource=f"x/{number}", parent=f"x/{number + 1}") for number in range(16)]
    lower = [Resource(resource=f"y/{number}", parent=f"y/{number + 1}") for number in range(16)]
    await take(tenant, Chunk(resources=upper), Chunk(resources=lower))
    with pytest.raises(DepthExceeded):
        await take(tenant, Chunk(resources=[Resource(resource="y/16", parent="x/0")]))

    roles = [Role(name="r0"), *(Role(name=f"r{number}", parents=[f"r{number - 1}"]) for number in range(1, 33))]
    with pytest.raises(DepthExceeded):
        await take(tenant, Chunk(roles=roles))
    await take(tenant, Chunk(roles=roles[:32]))
    with pytest.raises(DepthExceeded):
        await take(tenant, Chunk(roles=roles[32:]))

    nested = [Group(name=f"g{number}") for number in range(33)]
    edges = [Member(group=f"g{number + 1}", member_group=f"g{number}") for number in range(32)]
    with pytest.raises(DepthExceeded):
        await take(tenant, Chunk(groups=nested, members=edges))
    await take(tenant, Chunk(groups=nested, members=edges[:16]), Chunk(members=edges[17:]))
    with pytest.raises(DepthExceeded):
        await take(tenant, Chunk(members=edges[16:17]))


async def importer(tenant: Tenant, *more: str) -> tuple[str, Metadata]:
    who = str(uuid4())
    await tenant.bind(who, await tenant.role(f"importer-{who}", "policies.import", *more))
    return who, tenant.user(who)


async def test_nobody_hands_out_by_import_what_he_does_not_hold(rbac: Rbac, tenant: Tenant) -> None:
    """A121, at each way by which an import hands out: a role's own patterns, its parents', a binding, a membership."""
    who, by = await importer(tenant, "doc.read")
    payer, outer = await tenant.role("payer", "invoices.pay"), await tenant.group("outer")
    await tenant.role("reader", "doc.read")
    await tenant.bind(outer, payer, kind=GROUP, resource="folder/a")
    await tenant.join(outer, await tenant.group("payers"), kind=GROUP)
    before = await counted(rbac, tenant)

    for chunk in (
        Chunk(roles=[Role(name="mine", permissions=["invoices.pay"])]),
        Chunk(roles=[Role(name="mine", permissions=["*.*"])]),
        Chunk(roles=[Role(name="mine", parents=["payer"])]),
        Chunk(bindings=[Binding(subject=user(who), role="reader"), Binding(subject=user(who), role="payer", resource="folder/b")]),
        Chunk(bindings=[Binding(subject=user(who), role="watchword.admin")]),
        Chunk(members=[Member(group="payers", member=user(who))]),
        Chunk(groups=[Group(name="mine")], members=[Member(group="outer", member_group="mine")]),
    ):
        with pytest.raises(PermissionDenied, match="does not hold"):
            await take(tenant, chunk, by=by)
    assert await counted(rbac, tenant) == before

    fine = Chunk(roles=[Role(name="mine", permissions=["doc.read"], parents=["reader"])], bindings=[Binding(subject=user(who), role="mine")])
    assert [one.created_count for one in await take(tenant, fine, by=by)] == [2]


async def test_nobody_imports_without_the_permission_or_beyond_his_scopes(tenant: Tenant) -> None:
    client, chunk = str(uuid4()), Chunk(groups=[Group(name="mine")])
    await tenant.bind(client, "watchword.admin", kind=CLIENT)

    for by in (tenant.user(str(uuid4())), as_client(tenant.id, client, "groups.create"), tenant.peer):
        with pytest.raises(PermissionDenied):
            await take(tenant, chunk, by=by)
    await take(tenant, chunk, by=as_client(tenant.id, client, "policies.import"))


async def test_who_loses_the_permission_in_the_middle_of_an_import_goes_no_further(tenant: Tenant) -> None:
    who = str(uuid4())
    binding = await tenant.bind(who, await tenant.role("importer", "policies.import"))
    call = tenant.instances[1].policies.ImportPolicy(metadata=tenant.user(who), timeout=30)
    await call.write(Chunk(groups=[Group(name="one")]))
    assert (await call.read()).created_count == 1

    await tenant.unbind(binding)
    await call.write(Chunk(groups=[Group(name="two")]))

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call.read()
    assert isinstance(status.decode(refusal.value), PermissionDenied)


async def test_an_import_does_not_take_the_last_administrator_by_a_group_that_is_denied_everything(tenant: Tenant) -> None:
    group = await tenant.group("locked")
    await tenant.bind(group, await tenant.role("all", "*.*"), kind=GROUP, denies=True)

    with pytest.raises(LastAdministrator):
        await take(tenant, Chunk(members=[Member(group="locked", member=user(tenant.admin_id))]))

    assert await tenant.may(tenant.admin_id, "users.delete")


async def test_another_tenants_names_are_nobodys(rbac: Rbac, tenant: Tenant) -> None:
    """A122."""
    other = await rbac.tenant()
    await other.role("theirs", "doc.read")
    await other.group("their-group")

    for chunk in (
        Chunk(bindings=[Binding(subject=SOMEBODY, role="theirs")]),
        Chunk(members=[Member(group="their-group", member=SOMEBODY)]),
        Chunk(roles=[Role(name="x", parents=["theirs"])]),
    ):
        with pytest.raises(InvalidRequest):
            await take(tenant, chunk)


async def test_a_chunk_is_audited_once_and_tells_whose_permissions_it_touched(rbac: Rbac, tenant: Tenant) -> None:
    alice, bob, client = (str(uuid4()) for _ in range(3))
    await take(tenant, whole(alice, bob, client), whole(alice, bob, client))

    events = await rbac.sql("SELECT details->>'created' AS n FROM suite.audit_event WHERE tenant_id = $1 AND type = 'policy_imported'", tenant.id)
    rows = await rbac.sql("SELECT subjects FROM rbac.policy_change WHERE tenant_id = $1 ORDER BY revision DESC LIMIT 1", tenant.id)

    assert [event["n"] for event in events] == ["12"]
    assert {text.partition("/")[2] for text in rows[0]["subjects"]} == {alice, bob, client, "00000000-0000-0000-0000-000000000000"}


async def test_bindings_are_what_they_would_be_if_made_one_by_one(rbac: Rbac, tenant: Tenant) -> None:
    one, other, end = str(uuid4()), str(uuid4()), datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    role = await tenant.role("reader", "doc.read")
    await tenant.bind(one, role, resource="doc/1", until=end)

    binding = Binding(subject=user(other), role="reader", resource="doc/1", expire_time_seconds=int(end.timestamp()))
    await take(tenant, Chunk(bindings=[binding]))

    found = []
    for who in (one, other):
        request = rbac_pb2.ListRoleBindingsRequest(subject_id=who)
        [made] = (await ask(rbac.instances[0].bindings.ListRoleBindings, request, tenant.admin)).role_bindings
        for field in ("id", "subject", "create_time", "update_time"):
            made.ClearField(field)
        found.append(made)
    assert found[0] == found[1]


words = st.sampled_from(
    ["", "a", "A", "a-b.c", "a/b", "type/id", "Type/id", "a" * 101, "x/" + "y" * 181, "\n", "é", "a\n", SOMEBODY.id, SOMEBODY.id.upper()]
)
subjects = st.one_of(st.none(), st.builds(rbac_pb2.Subject, type=st.integers(0, 5), id=words))
members = st.builds(Member, group=words, member=subjects, member_group=words)
resources = st.builds(Resource, resource=words, parent=words)
bindings = st.builds(
    Binding,
    subject=subjects,
    subject_group=words,
    role=words,
    resource=words,
    expire_time_seconds=st.sampled_from([0, -1, 5, 253402300799, 253402300800]),
)


LOOKS: dict[type, tuple[str, Callable[[Any, Any], bool], Callable[[Any], Any]]] = {
    Member: ("members", import_servicer._fits_member, import_servicer._member),
    Resource: ("resources", import_servicer._fits_place, import_servicer._place),
    Binding: ("bindings", import_servicer._fits_binding, import_servicer._binding),
}


@given(st.one_of(members, resources, bindings))
def test_what_is_looked_at_quickly_is_refused_as_what_is_looked_at_well(member: Any) -> None:
    """Ten thousand members are not looked at one field after the other: but none gets in that the rules of the contract refuse."""
    field, fits, read = LOOKS[type(member)]
    refused: list[str] = []
    try:
        require_member(member)
    except InvalidRequest as error:
        refused = [one.field for one in error.violations]
    chunk = Chunk()
    getattr(chunk, field).append(member)

    assert fits(member, read(member)) == (not refused)
    if refused:
        with pytest.raises(InvalidRequest) as refusal:
            chunk_of(chunk)
        assert [one.field for one in refusal.value.violations] == [f"{field}[0].{one}" for one in refused]
    else:
        assert len(chunk_of(chunk)) == 1
