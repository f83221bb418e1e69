"""Changes that are only tried, many changes at once, and whom changes touch."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.rbac.store import impact
from tests.service.rbac.conftest import ANY, CLIENT, GROUP, USER, Rbac, Tenant, as_client, ask, subject
from watchword.errors import (
    AlreadyExists,
    Cycle,
    EtagMismatch,
    InvalidRequest,
    LastAdministrator,
    NotFound,
    PermissionDenied,
    WatchwordError,
)
from watchword.rbac.v1 import policy_pb2, rbac_pb2

TABLES = ("role", "role_parent", "role_binding", "subject_group", "group_member", "resource", "policy", "policy_change", "request")


async def everything(rbac: Rbac, tenant: Tenant) -> list[Any]:
    """Return all that the tenant has in Postgres."""
    found = [await rbac.sql(f"SELECT to_jsonb(t)::text AS row FROM rbac.{table} t WHERE tenant_id = $1 ORDER BY 1", tenant.id) for table in TABLES]
    found.append(await rbac.sql("SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1", tenant.id))
    found.append(await rbac.sql("SELECT id FROM suite.audit_event WHERE tenant_id = $1 ORDER BY id", tenant.id))
    return found


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Connect while inside."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


class World:
    """A tenant in which everything is there that can be changed."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.user, self.member = str(uuid4()), str(uuid4())

    async def build(self) -> "World":
        tenant = self.tenant
        self.role = await tenant.role("reader", "doc.read")
        self.spare = await tenant.role("spare", "doc.list")
        self.group, self.binding = await tenant.group("team"), await tenant.bind(self.user, self.role)
        await tenant.bind(self.group, self.role, kind=GROUP, resource="folder/a")
        await tenant.join(self.group, self.member)
        await tenant.place("doc/1", "folder/a")
        return self

    def bind(self, **more: Any) -> rbac_pb2.CreateRoleBindingRequest:
        return rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, self.user), role_id=self.spare, **more)

    def changes(self) -> list[tuple[str, str, Any, str]]:
        """Return of each way to change a policy: service, method, a request, and the name of the request in lists of changes."""
        end = Timestamp(seconds=4_000_000_000)
        return [
            ("roles", "CreateRole", rbac_pb2.CreateRoleRequest(name="new", permissions=["doc.write"]), "create_role"),
            (
                "roles",
                "UpdateRole",
                rbac_pb2.UpdateRoleRequest(role_id=self.role, role=rbac_pb2.RoleUpdate(permissions=["doc.write"])),
                "update_role",
            ),
            ("roles", "DeleteRole", rbac_pb2.DeleteRoleRequest(role_id=self.role), "delete_role"),
            ("bindings", "CreateRoleBinding", self.bind(), "create_role_binding"),
            ("bindings", "BatchCreateRoleBindings", rbac_pb2.BatchCreateRoleBindingsRequest(requests=[self.bind()]), ""),
            (
                "bindings",
                "UpdateRoleBinding",
                rbac_pb2.UpdateRoleBindingRequest(role_binding_id=self.binding, role_binding=rbac_pb2.RoleBindingUpdate(expire_time=end)),
                "update_role_binding",
            ),
            ("bindings", "DeleteRoleBinding", rbac_pb2.DeleteRoleBindingRequest(role_binding_id=self.binding), "delete_role_binding"),
            ("groups", "CreateGroup", rbac_pb2.CreateGroupRequest(name="new"), "create_group"),
            ("groups", "UpdateGroup", rbac_pb2.UpdateGroupRequest(group_id=self.group, group=rbac_pb2.GroupUpdate(name="renamed")), "update_group"),
            ("groups", "DeleteGroup", rbac_pb2.DeleteGroupRequest(group_id=self.group), "delete_group"),
            (
                "groups",
                "AddGroupMember",
                rbac_pb2.AddGroupMemberRequest(group_id=self.group, member=subject(USER, self.user)),
                "add_group_member",
            ),
            (
                "groups",
                "RemoveGroupMember",
                rbac_pb2.RemoveGroupMemberRequest(group_id=self.group, member=subject(USER, self.member)),
                "remove_group_member",
            ),
            ("resources", "SetResourceParent", rbac_pb2.SetResourceParentRequest(resource="doc/1", parent="folder/b"), "set_resource_parent"),
        ]

    def told(self, found: rbac_pb2.Impact) -> tuple[list[tuple[str, str, list[str]]], list[tuple[str, str, list[str]]]]:
        """Return gains and losses, with this world's people by name."""
        people = {self.user: "user", self.member: "member", "": "anybody"}

        def side(rows: Any) -> list[tuple[str, str, list[str]]]:
            return sorted((people.get(row.subject.id, row.subject.id), row.resource, list(row.permissions)) for row in rows)

        return side(found.gains), side(found.losses)


@pytest.fixture
async def world(tenant: Tenant) -> World:
    return await World(tenant).build()


USER_ALL, MEMBER_A, USER_A = ("user", "", ["doc.read"]), ("member", "folder/a", ["doc.read"]), ("user", "folder/a", ["doc.read"])
EXPECTED: dict[str, tuple[list[Any], list[Any]]] = {
    "CreateRole": ([], []),
    "UpdateRole": ([("member", "folder/a", ["doc.write"]), ("user", "", ["doc.write"])], [MEMBER_A, USER_ALL]),
    "DeleteRole": ([], [MEMBER_A, USER_ALL]),
    "CreateRoleBinding": ([("user", "", ["doc.list"])], []),
    "BatchCreateRoleBindings": ([("user", "", ["doc.list"])], []),
    "UpdateRoleBinding": ([], [USER_ALL]),
    "DeleteRoleBinding": ([], [USER_ALL]),
    "CreateGroup": ([], []),
    "UpdateGroup": ([], []),
    "DeleteGroup": ([], [MEMBER_A]),
    "AddGroupMember": ([], []),  # he reads everything already
    "RemoveGroupMember": ([], [MEMBER_A]),
    "SetResourceParent": ([], [("member", "doc/1", ["doc.read"])]),
}


async def test_a_change_that_is_only_validated_tells_what_it_would_do_and_does_nothing(rbac: Rbac, world: World) -> None:
    """AIP-163, on every RPC that has the field."""
    tenant, before = world.tenant, await everything(rbac, world.tenant)
    told = {}
    for service, method, request, _ in world.changes():
        request.validate_only = True
        request.request_id = str(uuid4())
        answer = await ask(getattr(getattr(rbac.instances[0], service), method), request, tenant.admin)
        assert answer.consistency_token
        assert answer.HasField("impact")
        told[method] = world.told(answer.impact)

    assert told == EXPECTED
    assert await everything(rbac, tenant) == before
    declared = {
        method.name
        for service in rbac_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if "validate_only" in method.input_type.fields_by_name
    }
    assert declared == set(EXPECTED)


async def test_a_simulation_of_a_list_tells_the_same(rbac: Rbac, world: World) -> None:
    before = await everything(rbac, world.tenant)
    for _, method, request, kind in world.changes():
        if kind:
            simulated = policy_pb2.SimulateChangeRequest(changes=[policy_pb2.PolicyChange(**{kind: request})])
            answer = await ask(rbac.instances[1].policies.SimulateChange, simulated, world.tenant.admin)
            assert world.told(answer.impact) == EXPECTED[method]

    assert await everything(rbac, world.tenant) == before


async def test_what_was_told_is_what_then_happens(world: World) -> None:
    tenant = world.tenant
    assert not await tenant.may(world.user, "doc.list")

    answer = await ask(tenant.instances[0].bindings.CreateRoleBinding, world.bind(validate_only=True), tenant.admin)
    assert answer.role_binding.role_id == world.spare
    assert not await tenant.may(world.user, "doc.list", at=1)
    await ask(tenant.instances[0].bindings.CreateRoleBinding, world.bind(), tenant.admin)

    assert await tenant.may(world.user, "doc.list", at=1)


async def test_a_denial_is_a_loss_and_its_lifting_a_gain_where_they_meet_a_grant(world: World) -> None:
    tenant = world.tenant

    async def tried(**more: Any) -> Any:
        request = rbac_pb2.CreateRoleBindingRequest(role_id=world.role, effect=rbac_pb2.BINDING_EFFECT_DENY, validate_only=True, **more)
        return world.told((await ask(tenant.instances[0].bindings.CreateRoleBinding, request, tenant.admin)).impact)

    assert await tried(subject=subject(USER, world.user), resource="doc/9") == ([], [("user", "doc/9", ["doc.read"])])
    assert await tried(subject=subject(USER, world.member), resource="doc/1") == ([], [("member", "doc/1", ["doc.read"])])
    assert await tried(subject=subject(USER, world.member)) == ([], [MEMBER_A])
    assert await tried(subject=subject(USER, world.member), resource="doc/9") == ([], [])
    assert await tried(subject=subject(ANY, "")) == ([], [("anybody", "", ["doc.read"])])

    denial = await tenant.bind(world.group, world.role, kind=GROUP, denies=True)
    request = rbac_pb2.DeleteRoleBindingRequest(role_binding_id=denial, validate_only=True)
    lifted = (await ask(tenant.instances[0].bindings.DeleteRoleBinding, request, tenant.admin)).impact
    assert world.told(lifted) == ([MEMBER_A], [])


async def test_what_cannot_be_changed_cannot_be_tried_either(rbac: Rbac, world: World) -> None:
    tenant, at, stranger = world.tenant, rbac.instances[0], str(uuid4())
    await tenant.bind(stranger, "watchword.role-manager")
    listed = await ask(at.bindings.ListRoleBindings, rbac_pb2.ListRoleBindingsRequest(subject_id=tenant.admin_id), tenant.admin)
    child = await tenant.role("child", parents=[world.role])
    update = rbac_pb2.UpdateRoleRequest(role_id=world.role, role=rbac_pb2.RoleUpdate(parent_role_ids=[child]), validate_only=True)
    refused: list[tuple[type[WatchwordError], Any, Any, Any]] = [
        (
            LastAdministrator,
            at.bindings.DeleteRoleBinding,
            rbac_pb2.DeleteRoleBindingRequest(role_binding_id=listed.role_bindings[0].id),
            tenant.admin,
        ),
        (Cycle, at.roles.UpdateRole, update, tenant.admin),
        (PermissionDenied, at.bindings.CreateRoleBinding, world.bind(), tenant.user(stranger)),
        (EtagMismatch, at.groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=world.group, etag="old"), tenant.admin),
        (NotFound, at.groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=str(uuid4())), tenant.admin),
        (AlreadyExists, at.groups.CreateGroup, rbac_pb2.CreateGroupRequest(name="team"), tenant.admin),
        (InvalidRequest, at.bindings.CreateRoleBinding, world.bind(condition="1 +"), tenant.admin),
    ]
    before = await everything(rbac, tenant)

    for error, rpc, request, by in refused:
        request.validate_only = True
        with pytest.raises(error):
            await ask(rpc, request, by)

    assert await everything(rbac, tenant) == before


async def test_who_tries_waits_for_nobody_and_nobody_waits_for_him(rbac: Rbac, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change holds the tenant's lock until it commits; a trial that holds it would stop all changes while it compares ten thousand people."""
    tenant, request = world.tenant, rbac_pb2.DeleteRoleRequest(role_id=world.role, validate_only=True)
    async with connected(rbac.url) as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM rbac.policy WHERE tenant_id = $1 FOR UPDATE", tenant.id)
        await ask(tenant.instances[0].roles.DeleteRole, request, tenant.admin)

    trying, go_on, read = asyncio.Event(), asyncio.Event(), impact._read

    async def slowly(*args: Any) -> Any:
        trying.set()
        await go_on.wait()
        return await read(*args)

    monkeypatch.setattr(impact, "_read", slowly)
    async with asyncio.TaskGroup() as group:
        trial = group.create_task(ask(tenant.instances[0].roles.DeleteRole, request, tenant.admin))
        await trying.wait()
        await tenant.bind(str(uuid4()), world.spare)
        go_on.set()

    assert world.told(trial.result().impact) == EXPECTED["DeleteRole"]


async def test_ten_thousand_are_compared_and_more_are_counted_as_more(rbac: Rbac, world: World) -> None:
    tenant = world.tenant
    fill = "INSERT INTO rbac.group_member SELECT $1, $2, 1, gen_random_uuid() FROM generate_series(1, $3)"
    await rbac.sql(fill, tenant.id, world.group, 2_000)
    request = rbac_pb2.DeleteGroupRequest(group_id=world.group, validate_only=True)

    found = (await ask(tenant.instances[0].groups.DeleteGroup, request, tenant.admin)).impact
    assert (found.subject_count, found.losing_count, len(found.losses), found.truncated) == (2_001, 2_001, 100, False)
    await rbac.sql(fill, tenant.id, world.group, 8_000)
    found = (await ask(tenant.instances[0].groups.DeleteGroup, request, tenant.admin)).impact
    assert (found.subject_count, found.losing_count, len(found.losses), found.truncated) == (10_000, 10_000, 100, True)


def change(**one: Any) -> policy_pb2.PolicyChange:
    return policy_pb2.PolicyChange(**one)


async def test_many_changes_are_made_in_their_order_and_tell_what_they_made(rbac: Rbac, world: World) -> None:
    tenant = world.tenant
    changes = [
        change(create_group=rbac_pb2.CreateGroupRequest(name="other")),
        change(update_role=rbac_pb2.UpdateRoleRequest(role_id=world.role, role=rbac_pb2.RoleUpdate(permissions=["doc.write"]))),
        change(create_role=rbac_pb2.CreateRoleRequest(name="new", permissions=["doc.*"])),
        change(create_role_binding=rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, world.user), role_name="new", resource="doc/2")),
        change(delete_role_binding=rbac_pb2.DeleteRoleBindingRequest(role_binding_id=world.binding)),
    ]
    request = policy_pb2.ApplyChangesRequest(changes=changes, request_id=str(uuid4()))

    answer = await ask(rbac.instances[0].policies.ApplyChanges, request, tenant.admin)

    again = await ask(rbac.instances[1].policies.ApplyChanges, request, tenant.admin)
    assert again == answer
    made = [bool(one) for one in answer.ids]
    assert made == [True, True, True, True, False]
    assert (await ask(rbac.instances[1].roles.GetRole, rbac_pb2.GetRoleRequest(role_id=answer.ids[2]), tenant.admin)).role.name == "new"
    for at in range(3):
        assert await tenant.may(world.user, "doc.print", "doc/2", at=at)
        assert not await tenant.may(world.user, "doc.write", at=at)


async def test_of_many_changes_all_are_made_or_none_and_the_refusal_says_which_one_it_means(rbac: Rbac, world: World) -> None:
    tenant, before = world.tenant, await everything(rbac, world.tenant)
    first = change(create_group=rbac_pb2.CreateGroupRequest(name="other"))
    missing = rbac_pb2.DeleteGroupRequest(group_id=str(uuid4()))
    reserved = rbac_pb2.CreateRoleRequest(name="watchword.boss")
    early = rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, world.user), role_id=world.role, expire_time=Timestamp(seconds=1))
    once = rbac_pb2.CreateGroupRequest(name="x", request_id=str(uuid4()))
    only = rbac_pb2.CreateGroupRequest(name="x", validate_only=True)
    elsewhere = rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, world.user), role_id=world.role, tenant_id=tenant.id)

    for second, error, place in (
        (change(delete_group=missing), NotFound, "changes[1].delete_group"),
        (change(create_role=reserved), InvalidRequest, "changes[1].create_role.name"),
        (change(create_role_binding=early), InvalidRequest, "changes[1].create_role_binding.expire_time"),
        (change(create_group=once), InvalidRequest, "changes[1].create_group.request_id"),
        (change(create_group=only), InvalidRequest, "changes[1].create_group.validate_only"),
        (change(create_role_binding=elsewhere), InvalidRequest, "changes[1].create_role_binding.tenant_id"),
        (change(), InvalidRequest, "changes[1]"),
        (change(create_group=rbac_pb2.CreateGroupRequest()), InvalidRequest, "changes[1].create_group.name"),
    ):
        for rpc, request in (
            (rbac.instances[0].policies.ApplyChanges, policy_pb2.ApplyChangesRequest(changes=[first, second])),
            (rbac.instances[0].policies.SimulateChange, policy_pb2.SimulateChangeRequest(changes=[first, second])),
        ):
            with pytest.raises(error) as refusal:
                await ask(rpc, request, tenant.admin)
            named = refusal.value.violations[0].field if refusal.value.violations else refusal.value.text.partition(":")[0]
            assert named == place

    assert await everything(rbac, tenant) == before


async def test_changes_are_made_only_upon_the_policy_that_they_were_made_for(rbac: Rbac, world: World) -> None:
    """What was shown in a diff is what is applied."""
    tenant, apply = world.tenant, rbac.instances[0].policies.ApplyChanges
    request = policy_pb2.ApplyChangesRequest(changes=[change(create_group=rbac_pb2.CreateGroupRequest(name="other"))])
    simulated = policy_pb2.SimulateChangeRequest(changes=request.changes)
    request.unchanged_since = (await ask(rbac.instances[1].policies.SimulateChange, simulated, tenant.admin)).consistency_token
    await tenant.bind(world.user, world.spare)

    with pytest.raises(EtagMismatch):
        await ask(apply, request, tenant.admin)
    request.unchanged_since = (await tenant.check(world.user, "doc.list")).consistency_token
    await ask(apply, request, tenant.admin)
    with pytest.raises(InvalidRequest):
        await ask(apply, policy_pb2.ApplyChangesRequest(changes=request.changes, unchanged_since="x"), tenant.admin)


async def test_a_list_needs_what_its_changes_need_one_by_one(rbac: Rbac, world: World) -> None:
    """Who may apply policies, and not delete groups, deletes no group by applying a policy. Neither does a client that was given no scope for it."""
    tenant, who, client = world.tenant, str(uuid4()), str(uuid4())
    await tenant.bind(who, await tenant.role("applier", "policies.*", "groups.create"))
    await tenant.bind(client, "watchword.admin", kind=CLIENT)
    create, delete = rbac_pb2.CreateGroupRequest(name="other"), rbac_pb2.DeleteGroupRequest(group_id=world.group)
    scoped = as_client(tenant.id, client, "policies.apply", "policies.simulate", "groups.create")

    for by in (tenant.user(who), scoped):
        for request, rpc in (
            (policy_pb2.ApplyChangesRequest(), rbac.instances[0].policies.ApplyChanges),
            (policy_pb2.SimulateChangeRequest(), rbac.instances[0].policies.SimulateChange),
        ):
            request.changes.extend([change(create_group=create), change(delete_group=delete)])
            with pytest.raises(PermissionDenied, match=r"groups\.delete"):
                await ask(rpc, request, by)
    await ask(rbac.instances[0].policies.SimulateChange, policy_pb2.SimulateChangeRequest(changes=[change(create_group=create)]), scoped)
    await ask(rbac.instances[0].policies.ApplyChanges, policy_pb2.ApplyChangesRequest(changes=[change(create_group=create)]), tenant.user(who))


async def test_a_list_hands_out_no_more_than_its_changes_one_by_one(world: World) -> None:
    """Not even what an earlier change of the list would have to hand out first."""
    tenant, who = world.tenant, str(uuid4())
    await tenant.bind(who, "watchword.role-manager")
    grab = [
        change(create_role=rbac_pb2.CreateRoleRequest(name="mine", permissions=["invoices.pay"])),
        change(create_role_binding=rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, who), role_name="mine")),
    ]

    for changes in (grab, [change(create_role_binding=rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, who), role_name="watchword.admin"))]):
        with pytest.raises(PermissionDenied, match="does not hold"):
            await ask(tenant.instances[0].policies.ApplyChanges, policy_pb2.ApplyChangesRequest(changes=changes), tenant.user(who))


async def test_what_an_earlier_change_of_a_list_takes_a_later_one_does_not_hand_out(world: World) -> None:
    tenant, who, second = world.tenant, str(uuid4()), str(uuid4())
    own = await tenant.bind(who, "watchword.admin")
    changes = [
        change(create_role=rbac_pb2.CreateRoleRequest(name="before", permissions=["invoices.pay"])),
        change(delete_role_binding=rbac_pb2.DeleteRoleBindingRequest(role_binding_id=own)),
        change(create_role_binding=rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, second), role_name="watchword.admin")),
    ]

    with pytest.raises(PermissionDenied, match="does not hold"):
        await ask(tenant.instances[0].policies.ApplyChanges, policy_pb2.ApplyChangesRequest(changes=changes), tenant.user(who))


async def touched(rbac: Rbac, tenant: Tenant) -> set[str] | None:
    """Return whom the last change touched, without their types; None for too many."""
    rows = await rbac.sql("SELECT subjects FROM rbac.policy_change WHERE tenant_id = $1 ORDER BY revision DESC LIMIT 1", tenant.id)
    subjects = rows[0]["subjects"]
    return None if subjects is None else {text.partition("/")[2] for text in subjects}


async def test_each_change_says_whose_permissions_it_touched(rbac: Rbac, world: World) -> None:
    """For those who watch: by roles and their children, groups and theirs, places and what they lie below, before the change and after it."""
    tenant, outer, deep, anybody = world.tenant, await world.tenant.group("outer"), str(uuid4()), "00000000-0000-0000-0000-000000000000"
    child = await tenant.role("child", parents=[world.role])
    await tenant.join(outer, world.group, kind=GROUP)
    await tenant.bind(deep, child, resource="folder/top")
    assert await touched(rbac, tenant) == {deep}
    await tenant.place("folder/a", "folder/top")
    assert await touched(rbac, tenant) == {deep, world.member}

    async def after(made: Awaitable[Any]) -> set[str] | None:
        await made
        return await touched(rbac, tenant)

    at, admin = rbac.instances[0], tenant.admin
    update = rbac_pb2.UpdateRoleRequest(role_id=world.role, role=rbac_pb2.RoleUpdate(permissions=["doc.write"]))
    assert await after(ask(at.roles.UpdateRole, update, admin)) == {deep, world.user, world.member}
    assert await after(tenant.bind(outer, child, kind=GROUP)) == {world.member}
    assert await after(tenant.join(outer, deep)) == {deep}
    assert await after(tenant.leave(outer, world.group, kind=GROUP)) == {world.member}
    assert await after(ask(at.roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=child), admin)) == {deep}
    assert await after(tenant.place("folder/a", "")) == {world.member}
    assert await after(ask(at.groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=world.group), admin)) == {world.member}
    assert await after(ask(at.bindings.DeleteRoleBinding, rbac_pb2.DeleteRoleBindingRequest(role_binding_id=world.binding), admin)) == {world.user}
    assert await after(tenant.bind("", world.spare, kind=ANY)) == {anybody}
    assert await after(tenant.group("quiet")) == set()
    rows = await rbac.sql("SELECT revision, previous FROM rbac.policy_change WHERE tenant_id = $1 ORDER BY revision", tenant.id)
    assert [row["previous"] for row in rows[1:]] == [row["revision"] for row in rows[:-1]]
    crowd = await tenant.group("crowd")
    await rbac.sql("INSERT INTO rbac.group_member SELECT $1, $2, 1, gen_random_uuid() FROM generate_series(1, 1001)", tenant.id, crowd)
    assert await after(tenant.bind(crowd, world.spare, kind=GROUP)) is None


async def test_what_has_expired_is_nobodys_loss(rbac: Rbac, world: World) -> None:
    tenant, user = world.tenant, str(uuid4())
    binding = await tenant.bind(user, world.role, until=rbac.clock.now() + timedelta(hours=1))
    await rbac.sql("UPDATE rbac.role_binding SET expire_time = now() - interval '1 second' WHERE id = $1", binding)
    request = rbac_pb2.DeleteRoleBindingRequest(role_binding_id=binding, validate_only=True)

    found = (await ask(tenant.instances[0].bindings.DeleteRoleBinding, request, tenant.admin)).impact

    assert (found.subject_count, found.losing_count) == (1, 0)
