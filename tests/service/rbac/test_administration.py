"""Roles, groups, bindings and resources as things that are made, shown, changed and deleted."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from tests.service.rbac.conftest import GROUP, USER, Rbac, Tenant, ask, subject, turns
from watchword.errors import (
    AlreadyExists,
    Cycle,
    DepthExceeded,
    EtagMismatch,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    PageTokenInvalid,
    PreconditionFailed,
    WatchwordError,
)
from watchword.rbac.v1 import permission_pb2, rbac_pb2


async def update(tenant: Tenant, role: str, *paths: str, etag: str = "", **fields: Any) -> rbac_pb2.Role:
    request = rbac_pb2.UpdateRoleRequest(role_id=role, role=rbac_pb2.RoleUpdate(**fields), etag=etag)
    request.update_mask.paths.extend(paths)
    answer: rbac_pb2.UpdateRoleResponse = await ask(tenant.instances[0].roles.UpdateRole, request, tenant.admin)
    return answer.role


async def get(tenant: Tenant, role: str) -> rbac_pb2.Role:
    answer: rbac_pb2.GetRoleResponse = await ask(tenant.instances[1].roles.GetRole, rbac_pb2.GetRoleRequest(role_id=role), tenant.admin)
    return answer.role


async def test_every_tenant_has_the_suites_own_roles_and_nobody_changes_them(rbac: Rbac, tenant: Tenant) -> None:
    listed = (await ask(rbac.instances[0].roles.ListRoles, rbac_pb2.ListRolesRequest(), tenant.admin)).roles
    by_name = {role.name: list(role.permissions) for role in listed}

    assert by_name == {
        "watchword.admin": ["*.*"],
        "watchword.auditor": [
            "audit-events.read",
            "groups.read",
            "oauth-clients.read",
            "permissions.explain",
            "policies.simulate",
            "resources.read",
            "role-bindings.read",
            "roles.read",
            "users.read",
        ],
        "watchword.role-manager": ["groups.*", "permissions.check", "permissions.explain", "policies.*", "role-bindings.*", "roles.*"],
        "watchword.service": ["permissions.check", "tokens.verify"],
        "watchword.user-manager": ["users.*"],
    }
    assert all(role.system for role in listed)
    for role in listed:
        with pytest.raises(PreconditionFailed):
            await update(tenant, role.id, description="mine")
        with pytest.raises(PreconditionFailed):
            await ask(rbac.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role.id), tenant.admin)


async def test_no_role_takes_a_name_of_the_suites_own(tenant: Tenant) -> None:
    other = await tenant.role("other")

    for attempt in (tenant.role("watchword.boss"), update(tenant, other, name="watchword.boss")):
        with pytest.raises(InvalidRequest) as refusal:
            await attempt
        assert refusal.value.violations[0].field == "name"


async def test_a_role_name_is_taken_once_per_tenant(rbac: Rbac, tenant: Tenant) -> None:
    await tenant.role("clerk")

    with pytest.raises(AlreadyExists):
        await tenant.role("clerk")
    with pytest.raises(AlreadyExists):
        await update(tenant, await tenant.role("other"), name="clerk")
    await (await rbac.tenant()).role("clerk")


async def test_of_many_roles_of_one_name_made_at_once_one_is_made(tenant: Tenant) -> None:
    outcomes = await asyncio.gather(*(tenant.role("clerk") for _ in range(8)), return_exceptions=True)

    assert sum(isinstance(outcome, str) for outcome in outcomes) == 1
    assert {type(outcome) for outcome in outcomes if not isinstance(outcome, str)} == {AlreadyExists}


async def test_a_mask_says_what_is_changed(tenant: Tenant) -> None:
    parent = await tenant.role("parent", "a.b")
    role = await tenant.role("role", "doc.read", parents=[parent])

    changed = await update(tenant, role, "description", "permissions", description="new", name="ignored")
    assert (changed.name, changed.description, list(changed.permissions), list(changed.parent_role_ids)) == ("role", "new", [], [parent])

    changed = await update(tenant, role, name="renamed", permissions=["doc.write", "doc.read", "doc.read"])
    assert (changed.name, changed.description, list(changed.permissions)) == ("renamed", "new", ["doc.read", "doc.write"])
    assert await get(tenant, role) == changed


@pytest.mark.parametrize("path", ["verified", "tenant_id", "create_time", "system", "id", "*", "role.name", "etag", "permissions[0]", ""])
async def test_a_mask_names_nothing_else(tenant: Tenant, path: str) -> None:
    """A123."""
    role = await tenant.role("role", "doc.read")

    with pytest.raises(InvalidRequest) as refusal:
        await update(tenant, role, path, description="x")

    assert refusal.value.violations[0].field.startswith("update_mask")
    assert (await get(tenant, role)).description == ""


async def test_an_update_of_nothing_and_an_empty_name_are_refused(tenant: Tenant) -> None:
    role = await tenant.role("role")

    for paths in ((), ("name",)):
        with pytest.raises(InvalidRequest):
            await update(tenant, role, *paths)


async def test_an_old_etag_changes_nothing(tenant: Tenant) -> None:
    role = await tenant.role("role")
    first = await get(tenant, role)
    second = await update(tenant, role, description="one", etag=first.etag)
    assert second.etag != first.etag

    with pytest.raises(EtagMismatch):
        await update(tenant, role, description="two", etag=first.etag)
    with pytest.raises(EtagMismatch):
        await ask(tenant.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role, etag=first.etag), tenant.admin)
    assert await get(tenant, role) == second


async def test_an_old_etag_changes_no_binding(tenant: Tenant) -> None:
    """Who decided upon what he saw must not undo what somebody else did since."""
    at, binding = tenant.instances[0].bindings, await tenant.bind(str(uuid4()), await tenant.role("role"))
    first = (await ask(at.GetRoleBinding, rbac_pb2.GetRoleBindingRequest(role_binding_id=binding), tenant.admin)).role_binding

    def changing(condition: str, etag: str) -> rbac_pb2.UpdateRoleBindingRequest:
        terms = rbac_pb2.RoleBindingUpdate(condition=condition)
        return rbac_pb2.UpdateRoleBindingRequest(role_binding_id=binding, role_binding=terms, etag=etag)

    second = (await ask(at.UpdateRoleBinding, changing("context.one", first.etag), tenant.admin)).role_binding
    assert second.etag != first.etag

    with pytest.raises(EtagMismatch):
        await ask(at.UpdateRoleBinding, changing("context.two", first.etag), tenant.admin)
    with pytest.raises(EtagMismatch):
        await ask(at.DeleteRoleBinding, rbac_pb2.DeleteRoleBindingRequest(role_binding_id=binding, etag=first.etag), tenant.admin)
    assert (await ask(at.GetRoleBinding, rbac_pb2.GetRoleBindingRequest(role_binding_id=binding), tenant.admin)).role_binding == second
    await ask(at.DeleteRoleBinding, rbac_pb2.DeleteRoleBindingRequest(role_binding_id=binding, etag=second.etag), tenant.admin)


async def test_an_old_etag_changes_no_group(tenant: Tenant) -> None:
    at, group = tenant.instances[0].groups, await tenant.group("team")
    first = (await ask(at.GetGroup, rbac_pb2.GetGroupRequest(group_id=group), tenant.admin)).group

    def changing(description: str, etag: str) -> rbac_pb2.UpdateGroupRequest:
        return rbac_pb2.UpdateGroupRequest(group_id=group, group=rbac_pb2.GroupUpdate(description=description), etag=etag)

    second = (await ask(at.UpdateGroup, changing("one", first.etag), tenant.admin)).group
    assert second.etag != first.etag

    with pytest.raises(EtagMismatch):
        await ask(at.UpdateGroup, changing("two", first.etag), tenant.admin)
    with pytest.raises(EtagMismatch):
        await ask(at.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=group, etag=first.etag), tenant.admin)
    assert (await ask(at.GetGroup, rbac_pb2.GetGroupRequest(group_id=group), tenant.admin)).group == second


async def test_an_old_etag_moves_no_resource(tenant: Tenant) -> None:
    """A resource that was never written down has an etag too: that it is a root is what somebody may rely on."""
    at = tenant.instances[0].resources

    async def found() -> Any:
        return await ask(at.GetResource, rbac_pb2.GetResourceRequest(resource="doc/1"), tenant.admin)

    async def put(parent: str, etag: str) -> Any:
        return await ask(at.SetResourceParent, rbac_pb2.SetResourceParentRequest(resource="doc/1", parent=parent, etag=etag), tenant.admin)

    root = await found()
    placed = await put("folder/a", root.etag)
    assert (await found()).etag == placed.etag != root.etag
    (listed,) = (await ask(at.ListResources, rbac_pb2.ListResourcesRequest(), tenant.admin)).resources
    assert listed == await found()

    for parent in ("folder/b", "folder/a", ""):
        with pytest.raises(EtagMismatch):
            await put(parent, root.etag)
    assert (await found()).parent == "folder/a"
    assert (await put("", placed.etag)).etag == root.etag == (await found()).etag


async def test_a_cycle_of_roles_is_refused_with_its_path(tenant: Tenant) -> None:
    """A119: refused as it is written, so that no check ever meets one."""
    c = await tenant.role("c")
    b = await tenant.role("b", parents=[c])
    a = await tenant.role("a", parents=[b])

    with pytest.raises(Cycle, match="c > a > b > c"):
        await update(tenant, c, parent_role_ids=[a])
    with pytest.raises(Cycle, match="a > a"):
        await update(tenant, a, parent_role_ids=[a])
    assert list((await get(tenant, c)).parent_role_ids) == []


async def test_two_halves_of_a_cycle_made_at_once_do_not_meet(tenant: Tenant) -> None:
    for number in range(5):
        a, b = await tenant.role(f"a{number}"), await tenant.role(f"b{number}")

        outcomes = await asyncio.gather(update(tenant, a, parent_role_ids=[b]), update(tenant, b, parent_role_ids=[a]), return_exceptions=True)

        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Cycle", "Role"]


async def test_a_chain_of_32_roles_holds_and_one_more_is_refused(tenant: Tenant) -> None:
    """A119."""
    user = str(uuid4())
    chain = [await tenant.role("r0", "deep.read")]
    for number in range(1, 32):
        chain.append(await tenant.role(f"r{number}", parents=[chain[-1]]))
    await tenant.bind(user, chain[-1])
    assert await tenant.may(user, "deep.read")

    with pytest.raises(DepthExceeded):
        await tenant.role("r32", parents=[chain[-1]])
    with pytest.raises(DepthExceeded):
        await update(tenant, chain[0], parent_role_ids=[await tenant.role("top")])


async def test_groups_and_resources_make_no_cycles_either(tenant: Tenant) -> None:
    a, b = await tenant.group("ga"), await tenant.group("gb")
    await tenant.join(a, b, kind=GROUP)
    with pytest.raises(Cycle, match="ga > gb > ga"):
        await tenant.join(b, a, kind=GROUP)
    with pytest.raises(Cycle):
        await tenant.join(a, a, kind=GROUP)

    await tenant.place("doc/b", "doc/a")
    with pytest.raises(Cycle, match="doc/a > doc/b > doc/a"):
        await tenant.place("doc/a", "doc/b")
    with pytest.raises(Cycle):
        await tenant.place("doc/a", "doc/a")


async def test_groups_and_resources_are_at_most_32_deep(tenant: Tenant) -> None:
    groups = [await tenant.group(f"g{number}") for number in range(33)]
    for outer, inner in pairwise(groups[:32]):
        await tenant.join(outer, inner, kind=GROUP)
    with pytest.raises(DepthExceeded):
        await tenant.join(groups[31], groups[32], kind=GROUP)

    for number in range(31):
        await tenant.place(f"doc/{number}", f"doc/{number + 1}")
    with pytest.raises(DepthExceeded):
        await tenant.place("doc/31", "doc/32")


async def test_a_resource_is_moved_with_all_below_it_at_most_32_deep(tenant: Tenant) -> None:
    """What hangs on the resource counts as well as what it is hung below, and of many branches the longest."""
    for number in range(20):
        await tenant.place(f"low/{number}", f"low/{number + 1}")
    for number in range(12):
        await tenant.place(f"high/{number}", f"high/{number + 1}")
    await tenant.place("low/side", "low/20")

    with pytest.raises(DepthExceeded):
        await tenant.place("low/20", "high/0")
    await tenant.place("low/20", "high/2")
    with pytest.raises(DepthExceeded):
        await tenant.place("low/20", "high/1")
    with pytest.raises(Cycle, match=r"low/20 > low/2 > low/3 > low/4 > low/5 > low/6 > \.\.\. > "):
        await tenant.place("low/20", "low/2")


async def test_a_resource_with_a_hundred_thousand_below_it_is_moved_without_holding_up_the_loop(rbac: Rbac, tenant: Tenant) -> None:
    """They stay where they are, so none of them comes into Python: a turn of the event loop that takes a second costs the instance its lease."""
    below = "INSERT INTO rbac.resource SELECT $1, 'doc/' || n, CASE WHEN n <= 100 THEN 'folder/a' ELSE 'doc/' || (n % 100 + 1) END"
    await rbac.sql(f"{below} FROM generate_series(1, 100000) AS n", tenant.id)

    async with turns() as took:
        await tenant.place("folder/a", "folder/b")

    assert took.longest < 0.3
    await tenant.bind(user := str(uuid4()), await tenant.role("reader", "doc.read"), resource="folder/b")
    assert await tenant.may(user, "doc.read", "doc/99999")


async def test_a_group_of_ten_thousand_is_no_burden(rbac: Rbac, tenant: Tenant) -> None:
    """A119."""
    group, user = await tenant.group("crowd"), str(uuid4())
    await tenant.bind(group, await tenant.role("any", "doc.read"), kind=GROUP)
    await tenant.join(group, user)
    await rbac.sql("INSERT INTO rbac.group_member SELECT $1, $2, 1, gen_random_uuid() FROM generate_series(1, 10000)", tenant.id, group)

    assert await tenant.may(user, "doc.read")
    await tenant.leave(group, user)
    assert not await tenant.may(user, "doc.read")


async def test_a_role_is_deleted_with_its_bindings_but_not_as_a_parent(rbac: Rbac, tenant: Tenant) -> None:
    user, parent = str(uuid4()), await tenant.role("parent", "doc.read")
    child = await tenant.role("child", parents=[parent])
    binding = await tenant.bind(user, parent)
    with pytest.raises(PreconditionFailed):
        await ask(rbac.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=parent), tenant.admin)

    for role in (child, parent):
        await ask(rbac.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role), tenant.admin)

    with pytest.raises(NotFound):
        await ask(rbac.instances[1].bindings.GetRoleBinding, rbac_pb2.GetRoleBindingRequest(role_binding_id=binding), tenant.admin)


async def test_the_same_binding_is_made_once(tenant: Tenant) -> None:
    user, role = str(uuid4()), await tenant.role("any", "doc.read")
    await tenant.bind(user, role)

    with pytest.raises(AlreadyExists):
        await tenant.bind(user, role)
    await tenant.bind(user, role, resource="doc/1")


async def test_a_binding_names_its_role_once(tenant: Tenant) -> None:
    for role_id, role_name in (("", ""), (await tenant.role("any"), "any")):
        request = rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, str(uuid4())), role_id=role_id, role_name=role_name)
        with pytest.raises(InvalidRequest) as refusal:
            await ask(tenant.instances[0].bindings.CreateRoleBinding, request, tenant.admin)
        assert refusal.value.violations[0].field == "role_id"


async def test_adding_a_member_twice_and_removing_a_stranger_are_no_errors_and_no_changes(rbac: Rbac, tenant: Tenant) -> None:
    group, user = await tenant.group("team"), str(uuid4())
    await tenant.join(group, user)
    before = (await tenant.check(user, "doc.read")).consistency_token

    await tenant.join(group, user)
    await tenant.leave(group, str(uuid4()))

    assert (await tenant.check(user, "doc.read")).consistency_token == before


async def test_a_resource_never_written_down_is_a_root(tenant: Tenant) -> None:
    async def parent() -> str:
        return str((await ask(tenant.instances[1].resources.GetResource, rbac_pb2.GetResourceRequest(resource="doc/1"), tenant.admin)).parent)

    assert await parent() == ""
    await tenant.place("doc/1", "folder/a")
    assert await parent() == "folder/a"
    await tenant.place("doc/1", "")
    assert await parent() == ""


UNKNOWN: list[tuple[str, str, Callable[[str], Any]]] = [
    ("roles", "GetRole", lambda x: rbac_pb2.GetRoleRequest(role_id=x)),
    ("roles", "UpdateRole", lambda x: rbac_pb2.UpdateRoleRequest(role_id=x, role=rbac_pb2.RoleUpdate(name="x"))),
    ("roles", "DeleteRole", lambda x: rbac_pb2.DeleteRoleRequest(role_id=x)),
    ("roles", "CreateRole", lambda x: rbac_pb2.CreateRoleRequest(name="x", parent_role_ids=[x])),
    ("bindings", "CreateRoleBinding", lambda x: rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, str(uuid4())), role_id=x)),
    ("bindings", "CreateRoleBinding", lambda x: rbac_pb2.CreateRoleBindingRequest(subject=subject(GROUP, x), role_name="watchword.service")),
    ("bindings", "GetRoleBinding", lambda x: rbac_pb2.GetRoleBindingRequest(role_binding_id=x)),
    ("bindings", "DeleteRoleBinding", lambda x: rbac_pb2.DeleteRoleBindingRequest(role_binding_id=x)),
    ("groups", "GetGroup", lambda x: rbac_pb2.GetGroupRequest(group_id=x)),
    ("groups", "DeleteGroup", lambda x: rbac_pb2.DeleteGroupRequest(group_id=x)),
    ("groups", "AddGroupMember", lambda x: rbac_pb2.AddGroupMemberRequest(group_id=x, member=subject(USER, str(uuid4())))),
    ("groups", "RemoveGroupMember", lambda x: rbac_pb2.RemoveGroupMemberRequest(group_id=x, member=subject(USER, str(uuid4())))),
    ("groups", "ListGroupMembers", lambda x: rbac_pb2.ListGroupMembersRequest(group_id=x)),
]


@pytest.mark.parametrize(("service", "method", "request_of"), UNKNOWN)
async def test_another_tenants_id_is_answered_like_one_that_nobody_has(
    rbac: Rbac, tenant: Tenant, service: str, method: str, request_of: Callable[[str], Any]
) -> None:
    """A122."""
    other = await rbac.tenant()
    role, group = await other.role("theirs", "doc.read"), await other.group("theirs")
    binding = await other.bind(str(uuid4()), role)

    async def answer(identifier: str) -> tuple[type, str, Any]:
        with pytest.raises(WatchwordError) as refusal:
            await ask(getattr(getattr(rbac.instances[0], service), method), request_of(identifier), tenant.admin)
        return type(refusal.value), refusal.value.text, refusal.value.violations

    expected = await answer(str(uuid4()))
    assert expected[0] is NotFound
    assert [await answer(identifier) for identifier in (role, group, binding)] == [expected] * 3


async def test_a_member_group_of_another_tenant_is_not_found(rbac: Rbac, tenant: Tenant) -> None:
    theirs, ours = await (await rbac.tenant()).group("theirs"), await tenant.group("ours")

    with pytest.raises(NotFound):
        await tenant.join(ours, theirs, kind=GROUP)


async def test_a_request_id_causes_one_change_and_returns_one_result(rbac: Rbac, tenant: Tenant) -> None:
    request = rbac_pb2.CreateRoleRequest(name="once", permissions=["a.b"], request_id=str(uuid4()))

    first = await ask(rbac.instances[0].roles.CreateRole, request, tenant.admin)
    again = await ask(rbac.instances[1].roles.CreateRole, request, tenant.admin)
    assert again == first
    request.permissions.append("c.d")
    with pytest.raises(IdempotencyConflict):
        await ask(rbac.instances[1].roles.CreateRole, request, tenant.admin)


async def test_repeats_at_once_cause_one_change(rbac: Rbac, tenant: Tenant) -> None:
    request = rbac_pb2.CreateGroupRequest(name="once", request_id=str(uuid4()))

    answers = await asyncio.gather(*(ask(rbac.instances[number % 2].groups.CreateGroup, request, tenant.admin) for number in range(6)))

    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1


async def test_a_repeated_delete_returns_the_first_answer(rbac: Rbac, tenant: Tenant) -> None:
    role = await tenant.role("gone")
    request = rbac_pb2.DeleteRoleRequest(role_id=role, request_id=str(uuid4()))

    first = await ask(rbac.instances[0].roles.DeleteRole, request, tenant.admin)

    assert await ask(rbac.instances[1].roles.DeleteRole, request, tenant.admin) == first
    with pytest.raises(NotFound):
        await ask(rbac.instances[1].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role), tenant.admin)


async def test_lists_are_paged_without_gaps_in_their_order(rbac: Rbac, tenant: Tenant) -> None:
    names = [f"role-{number}" for number in range(7)]
    ids = [await tenant.role(name) for name in reversed(names)]
    user = str(uuid4())
    bindings = [await tenant.bind(user, role) for role in ids]
    group = await tenant.group("team")
    members = [str(uuid4()) for _ in range(5)]
    for member in members:
        await tenant.join(group, member)

    async def pages(rpc: Any, request: Any, field: str) -> list[Any]:
        found: list[Any] = []
        while True:
            answer = await ask(rpc, request, tenant.admin)
            assert len(getattr(answer, field)) <= 3
            found += getattr(answer, field)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    at = rbac.instances[1]
    roles = await pages(at.roles.ListRoles, rbac_pb2.ListRolesRequest(page_size=3), "roles")
    assert [role.name for role in roles if not role.system] == names
    mine = await pages(at.bindings.ListRoleBindings, rbac_pb2.ListRoleBindingsRequest(page_size=3, subject_id=user), "role_bindings")
    assert [binding.id for binding in mine] == bindings
    one = await pages(at.bindings.ListRoleBindings, rbac_pb2.ListRoleBindingsRequest(page_size=3, role_id=ids[2]), "role_bindings")
    assert [binding.id for binding in one] == [bindings[2]]
    teams = [group, *[await tenant.group(f"team-{number}") for number in range(6)]]
    groups = await pages(at.groups.ListGroups, rbac_pb2.ListGroupsRequest(page_size=3), "groups")
    assert [one.id for one in groups] == teams
    for number in range(7):
        await tenant.place(f"doc/{6 - number}", f"folder/{number % 2}")
    places = await pages(at.resources.ListResources, rbac_pb2.ListResourcesRequest(page_size=3), "resources")
    assert [one.resource for one in places] == [f"doc/{number}" for number in range(7)]
    below = await pages(at.resources.ListResources, rbac_pb2.ListResourcesRequest(page_size=3, parent="folder/0"), "resources")
    assert [(one.resource, one.parent) for one in below] == [(f"doc/{number}", "folder/0") for number in (0, 2, 4, 6)]
    listed = await pages(at.groups.ListGroupMembers, rbac_pb2.ListGroupMembersRequest(group_id=group, page_size=3), "members")
    assert [member.id for member in listed] == sorted(members)


async def test_a_page_token_is_good_for_its_own_list_and_tenant(rbac: Rbac, tenant: Tenant) -> None:
    other = await rbac.tenant()
    list_roles = rbac.instances[0].roles.ListRoles
    token = (await ask(list_roles, rbac_pb2.ListRolesRequest(page_size=2), tenant.admin)).next_page_token
    assert (await ask(list_roles, rbac_pb2.ListRolesRequest(page_size=2, page_token=token), tenant.admin)).roles

    forged = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
    for bad, by in ((forged, tenant.admin), ("x", tenant.admin), ("é", tenant.admin), (token, other.admin)):
        with pytest.raises(PageTokenInvalid):
            await ask(list_roles, rbac_pb2.ListRolesRequest(page_token=bad), by)
    with pytest.raises(PageTokenInvalid):
        await ask(rbac.instances[0].groups.ListGroups, rbac_pb2.ListGroupsRequest(page_token=token), tenant.admin)
    listing = permission_pb2.ListSubjectPermissionsRequest(subject=subject(USER, tenant.admin_id), tenant_id=tenant.id, page_token=token)
    with pytest.raises(PageTokenInvalid):
        await ask(rbac.instances[0].permissions.ListSubjectPermissions, listing, tenant.peer)
    with pytest.raises(InvalidRequest):
        await ask(list_roles, rbac_pb2.ListRolesRequest(page_size=-1), tenant.admin)


async def test_a_page_of_very_large_roles_is_shorter(rbac: Rbac, tenant: Tenant) -> None:
    """What a client takes at once is 4 MiB."""
    await rbac.sql(
        "INSERT INTO rbac.role SELECT $1, gen_random_uuid(), 'large-' || n, '', ARRAY(SELECT repeat('x', 60) || '.' || repeat('y', 55) || m"
        " FROM generate_series(1, 1000) m), false, 1, now(), now() FROM generate_series(1, 30) n",
        tenant.id,
    )
    request, count = rbac_pb2.ListRolesRequest(page_size=1000), 0
    while True:
        answer = await ask(rbac.instances[0].roles.ListRoles, request, tenant.admin)
        assert answer.ByteSize() < 2 * 1024 * 1024
        count += len(answer.roles)
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token

    assert count == 35


async def test_every_change_is_audited_with_what_it_was(rbac: Rbac, tenant: Tenant) -> None:
    user, parent = str(uuid4()), await tenant.role("parent")
    role = await tenant.role("role", "a.b", "a.c", parents=[parent])
    await update(tenant, role, "permissions", "name", name="renamed", permissions=["a.c", "a.d"])
    group = await tenant.group("team")
    await tenant.join(group, user)
    await tenant.unbind(await tenant.bind(user, role, resource="doc/1"))
    await tenant.leave(group, user)
    await tenant.place("doc/1", "folder/a")
    await ask(rbac.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role), tenant.admin)
    await ask(rbac.instances[0].groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=group), tenant.admin)

    rows = await rbac.sql(
        "SELECT type, actor_type, details->>'permissions_added' AS added, details->>'permissions_removed' AS removed, details->>'name' AS name"
        " FROM suite.audit_event WHERE tenant_id = $1 AND outcome = 'success' ORDER BY id",
        tenant.id,
    )

    assert [(row["type"], row["actor_type"]) for row in rows] == [
        ("role_bound", "service"),
        ("role_created", "user"),
        ("role_created", "user"),
        ("role_updated", "user"),
        ("group_created", "user"),
        ("group_member_added", "user"),
        ("role_bound", "user"),
        ("role_unbound", "user"),
        ("group_member_removed", "user"),
        ("resource_moved", "user"),
        ("role_deleted", "user"),
        ("group_deleted", "user"),
    ]
    assert (rows[3]["added"], rows[3]["removed"], rows[3]["name"]) == ("a.d", "a.b", "renamed")
