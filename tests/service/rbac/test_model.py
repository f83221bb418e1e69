"""What a role, a group, a resource and an end mean to a check."""

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.service.rbac.conftest import CLIENT, GROUP, USER, Rbac, Tenant, ask, subject
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import permission_pb2


async def test_a_subject_without_roles_may_nothing_and_is_told_so(tenant: Tenant) -> None:
    answer = await tenant.check(str(uuid4()), "invoices.read")

    assert (answer.decision, answer.reason) == (permission_pb2.DENY, permission_pb2.NO_ROLE)


async def test_a_role_grants_what_it_names_and_nothing_else(tenant: Tenant) -> None:
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("clerk", "invoices.read"))

    granted, refused = await tenant.check(user, "invoices.read"), await tenant.check(user, "invoices.write")

    assert (granted.decision, granted.reason) == (permission_pb2.ALLOW, permission_pb2.GRANTED)
    assert (refused.decision, refused.reason) == (permission_pb2.DENY, permission_pb2.NO_PERMISSION)


@pytest.mark.parametrize(
    ("pattern", "granted", "refused"),
    [
        ("doc.*", ["doc.read", "doc.x"], ["document.read", "do.read", "docs.read"]),
        ("*.read", ["doc.read", "x.read"], ["doc.reader", "doc.rea", "read.doc"]),
        ("*.*", ["doc.read", "x.y"], []),
        ("doc.read", ["doc.read"], ["doc.read-all", "doc.rea", "a-doc.read"]),
    ],
)
async def test_a_wildcard_stands_for_a_whole_part(tenant: Tenant, pattern: str, granted: list[str], refused: list[str]) -> None:
    """A120."""
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("any", pattern))

    assert [await tenant.may(user, permission) for permission in granted] == [True] * len(granted)
    assert [await tenant.may(user, permission) for permission in refused] == [False] * len(refused)


@pytest.mark.parametrize(
    "permission", ["", "*", "*.*", "doc.*", "doc", "doc.read\n", "doc.read\x00", "Doc.read", "doc.read ", "doc..read", "doc.read.all"]
)
async def test_a_check_asks_about_one_exact_permission(tenant: Tenant, permission: str) -> None:
    """A120: a wildcard is a word of grants; a malformed permission is refused, never matched. A114: and so is one in another case."""
    with pytest.raises(InvalidRequest) as refusal:
        await tenant.check(tenant.admin_id, permission)

    assert [violation.field for violation in refusal.value.violations] == ["permission"]


async def test_a_role_has_the_permissions_of_its_parents_and_theirs(tenant: Tenant) -> None:
    user = str(uuid4())
    reader = await tenant.role("reader", "doc.read")
    writer = await tenant.role("writer", "doc.write", parents=[reader])
    owner = await tenant.role("owner", "doc.delete", parents=[writer])
    await tenant.bind(user, owner)

    assert [await tenant.may(user, f"doc.{verb}") for verb in ("read", "write", "delete", "share")] == [True, True, True, False]


async def test_a_member_of_a_group_in_a_group_holds_what_both_hold(tenant: Tenant) -> None:
    user, staff, company = str(uuid4()), await tenant.group("staff"), await tenant.group("company")
    await tenant.bind(staff, await tenant.role("inner", "desk.use"), kind=GROUP)
    await tenant.bind(company, await tenant.role("outer", "door.open"), kind=GROUP)
    await tenant.join(company, staff, kind=GROUP)
    await tenant.join(staff, user)

    assert await tenant.may(user, "desk.use")
    assert await tenant.may(user, "door.open")
    assert await tenant.may(staff, "door.open", kind=GROUP)
    assert not await tenant.may(company, "desk.use", kind=GROUP)

    await tenant.leave(staff, user)
    assert not await tenant.may(user, "door.open")


async def test_a_client_and_a_user_of_one_id_are_two_subjects(tenant: Tenant) -> None:
    same = str(uuid4())
    await tenant.bind(same, await tenant.role("robot", "jobs.run"), kind=CLIENT)

    assert await tenant.may(same, "jobs.run", kind=CLIENT)
    assert not await tenant.may(same, "jobs.run", kind=USER)


async def test_a_scoped_role_holds_on_its_resource_and_on_what_lies_below(tenant: Tenant) -> None:
    user = str(uuid4())
    await tenant.place("folder/b", "folder/a")
    await tenant.place("doc/1", "folder/b")
    await tenant.bind(user, await tenant.role("editor", "doc.edit"), resource="folder/b")

    assert await tenant.may(user, "doc.edit", "folder/b")
    assert await tenant.may(user, "doc.edit", "doc/1")
    assert not await tenant.may(user, "doc.edit", "folder/a")
    assert not await tenant.may(user, "doc.edit", "doc/2")
    assert (await tenant.check(user, "doc.edit")).reason == permission_pb2.NO_ROLE

    await tenant.place("doc/1", "")
    assert not await tenant.may(user, "doc.edit", "doc/1")


async def test_a_tenant_wide_role_holds_on_every_resource(tenant: Tenant) -> None:
    assert await tenant.may(tenant.admin_id, "doc.edit", "folder/anything")


async def test_a_binding_counts_until_its_end_and_the_answer_names_it(rbac: Rbac, tenant: Tenant) -> None:
    user, role = str(uuid4()), await tenant.role("guest", "doc.read")
    end = (rbac.clock.now() + timedelta(hours=1)).replace(microsecond=0)
    await tenant.bind(user, role, until=end)

    answer = await tenant.check(user, "doc.read")
    assert answer.decision == permission_pb2.ALLOW
    assert answer.expire_time.ToDatetime(end.tzinfo) == end

    rbac.clock.ahead = timedelta(hours=1, seconds=1)
    expired = await tenant.check(user, "doc.read")
    assert (expired.decision, expired.reason, expired.HasField("expire_time")) == (permission_pb2.DENY, permission_pb2.NO_ROLE, False)


async def test_a_remembered_grant_ends_in_time_without_any_change(rbac: Rbac, tenant: Tenant) -> None:
    """Two minutes lie within what an instance remembers: the end itself must be remembered too."""
    user, role = str(uuid4()), await tenant.role("guest", "doc.read")
    await tenant.bind(user, role, until=rbac.clock.now() + timedelta(minutes=2))
    assert await tenant.may(user, "doc.read")

    rbac.clock.ahead = timedelta(minutes=2, seconds=1)

    assert not await tenant.may(user, "doc.read")


async def test_the_answer_names_the_latest_end_and_none_for_a_grant_without_end(rbac: Rbac, tenant: Tenant) -> None:
    user, role, other = str(uuid4()), await tenant.role("guest", "doc.read"), await tenant.role("friend", "doc.*")
    first, second = ((rbac.clock.now() + timedelta(hours=hours)).replace(microsecond=0) for hours in (1, 2))
    await tenant.bind(user, role, until=second)
    await tenant.bind(user, role, until=first)
    assert (await tenant.check(user, "doc.read")).expire_time.ToDatetime(first.tzinfo) == second

    await tenant.bind(user, other)
    assert not (await tenant.check(user, "doc.read")).HasField("expire_time")


async def test_an_end_in_the_past_is_refused(rbac: Rbac, tenant: Tenant) -> None:
    role = await tenant.role("guest", "doc.read")

    with pytest.raises(InvalidRequest) as refusal:
        await tenant.bind(str(uuid4()), role, until=rbac.clock.now() - timedelta(seconds=1))

    assert refusal.value.violations[0].field == "expire_time"


async def test_what_one_tenant_grants_means_nothing_in_another(rbac: Rbac, tenant: Tenant) -> None:
    other = await rbac.tenant()

    assert await tenant.may(tenant.admin_id, "doc.read")
    assert not await other.may(tenant.admin_id, "doc.read")


async def test_the_grants_of_a_subject_are_listed_by_page_with_all_role_names_on_each(rbac: Rbac, tenant: Tenant) -> None:
    user = str(uuid4())
    end = (rbac.clock.now() + timedelta(hours=1)).replace(microsecond=0)
    reader = await tenant.role("reader", *(f"doc.v{number}" for number in range(5)))
    owner, empty = await tenant.role("owner", "doc.own", parents=[reader]), await tenant.role("empty")
    await tenant.bind(user, owner)
    await tenant.bind(user, owner, until=end)
    await tenant.bind(user, empty)
    await tenant.bind(user, reader, resource="folder/a", until=end)
    request = permission_pb2.ListSubjectPermissionsRequest(subject=subject(USER, user), tenant_id=tenant.id, page_size=4)

    seen, names = [], []
    while True:
        page = await ask(tenant.instances[0].permissions.ListSubjectPermissions, request, tenant.peer)
        seen += [(grant.permission, grant.role_name, grant.resource, grant.HasField("expire_time")) for grant in page.grants]
        names.append(list(page.role_names))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert seen == [("doc.own", "owner", "", False)] + [(f"doc.v{number}", "owner", "", False) for number in range(5)]
    assert names == [["empty", "owner"]] * 2
    on_folder = permission_pb2.ListSubjectPermissionsRequest(subject=subject(USER, user), tenant_id=tenant.id, resource="folder/a")
    page = await ask(tenant.instances[1].permissions.ListSubjectPermissions, on_folder, tenant.peer)
    assert list(page.role_names) == ["empty", "owner", "reader"]
    assert {(grant.resource, grant.HasField("expire_time")) for grant in page.grants if grant.role_name == "reader"} == {("folder/a", True)}
