"""What identity asks before it changes an account, and does before it deletes one: CheckAuthority and DeleteSubject."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.service.rbac.conftest import CLIENT, GROUP, USER, Metadata, Rbac, Tenant, as_client, ask, subject
from watchword.errors import IdempotencyConflict, InvalidRequest, LastAdministrator, PermissionDenied
from watchword.rbac.v1 import permission_pb2, rbac_pb2

ALLOWED: tuple[bool, list[str]] = (True, [])


async def authority(
    tenant: Tenant, actor: str, target: str = "", *permissions: str, kinds: tuple[Any, Any] = (USER, USER), by: Metadata = (), at: int = 0
) -> tuple[bool, list[str]]:
    """Return whether `actor` may act upon `target`, and what is missing."""
    request = permission_pb2.CheckAuthorityRequest(actor=subject(kinds[0], actor), permissions=permissions, tenant_id=tenant.id)
    if target:
        request.target.CopyFrom(subject(kinds[1], target))
    answer = await ask(tenant.instances[at].permissions.CheckAuthority, request, by or tenant.peer)
    return answer.decision == permission_pb2.ALLOW, list(answer.missing_permissions)


async def delete(tenant: Tenant, who: str, *, kind: Any = USER, once: str = "", by: Metadata = (), at: int = 0) -> str:
    """Take all from a subject; return the consistency token."""
    request = rbac_pb2.DeleteSubjectRequest(subject=subject(kind, who), tenant_id=tenant.id, request_id=once)
    return str((await ask(tenant.instances[at].bindings.DeleteSubject, request, by or tenant.peer)).consistency_token)


async def holder(tenant: Tenant, *permissions: str, kind: Any = USER, resource: str = "") -> str:
    """Return a new subject that holds `permissions`."""
    who = str(uuid4())
    await tenant.bind(who, await tenant.role(f"of-{who}", *permissions), kind=kind, resource=resource)
    return who


def others(rbac: Rbac, tenant: Tenant) -> Sequence[Metadata]:
    """All who are not identity: the administrator, a client with each scope, the other services."""
    client = as_client(tenant.id, str(uuid4()), "permissions.check", "role-bindings.delete")
    return (tenant.admin, client, rbac.keys.metadata("gateway", to="rbac"), rbac.keys.metadata("token", to="rbac"))


@pytest.mark.parametrize(
    ("held", "of_target", "missing"),
    [
        (["users.update"], [], []),
        (["users.update"], ["users.update"], []),
        (["users.*"], ["users.update", "users.*"], []),
        (["*.*"], ["*.*", "*.read", "invoices.pay"], []),
        (["*.read"], ["invoices.read", "*.read"], []),
        (["users.update"], ["users.*"], ["users.*"]),
        (["users.*"], ["*.update"], ["*.update"]),
        (["users.*", "roles.*"], ["*.*"], ["*.*"]),
        (["users.*"], ["users.read", "invoices.read", "invoices.pay"], ["invoices.pay", "invoices.read"]),
        ([], ["a.f", "a.e", "a.d", "a.c", "a.b", "a.a"], ["a.a", "a.b", "a.c", "a.d", "a.e"]),
    ],
)
async def test_who_holds_all_that_another_holds_may_act_upon_him(tenant: Tenant, held: list[str], of_target: list[str], missing: list[str]) -> None:
    actor, target = await holder(tenant, *held), await holder(tenant, *of_target)

    for at in (0, 1):
        assert await authority(tenant, actor, target, at=at) == (not missing, missing)


async def test_what_the_target_holds_on_one_resource_counts_and_what_the_actor_holds_there_does_not(tenant: Tenant) -> None:
    target = await holder(tenant, "invoices.pay", resource="folder/a")
    scoped, wide = await holder(tenant, "invoices.*", resource="folder/a"), await holder(tenant, "invoices.*")

    assert await authority(tenant, scoped, target) == (False, ["invoices.pay"])
    assert await authority(tenant, wide, target) == ALLOWED


async def test_groups_and_parents_of_roles_count_on_both_sides(tenant: Tenant) -> None:
    inner, outer = await tenant.group("inner"), await tenant.group("outer")
    await tenant.join(outer, inner, kind=GROUP)
    below = await tenant.role("below", parents=[await tenant.role("above", "invoices.pay")])
    await tenant.bind(outer, below, kind=GROUP)
    member, other, stranger = str(uuid4()), str(uuid4()), await holder(tenant, "invoices.read")
    for who in (member, other):
        await tenant.join(inner, who)

    assert await authority(tenant, stranger, member) == (False, ["invoices.pay"])
    assert await authority(tenant, other, member) == ALLOWED
    assert await authority(tenant, stranger, inner, kinds=(USER, GROUP)) == (False, ["invoices.pay"])


async def test_clients_act_and_are_acted_upon_alike_and_an_id_of_another_type_is_another_subject(tenant: Tenant) -> None:
    client = await holder(tenant, "invoices.pay", kind=CLIENT)

    assert await authority(tenant, client, await holder(tenant, "invoices.pay"), kinds=(CLIENT, USER)) == ALLOWED
    assert await authority(tenant, client, client, kinds=(USER, CLIENT)) == (False, ["invoices.pay"])
    assert await authority(tenant, client, client, kinds=(CLIENT, USER)) == ALLOWED


async def test_oneself_is_covered_yet_not_the_permissions_asked_about(tenant: Tenant) -> None:
    who = await holder(tenant, "invoices.pay", resource="folder/a")

    assert await authority(tenant, who, who) == ALLOWED
    assert await authority(tenant, who, who, "invoices.pay") == (False, ["invoices.pay"])


async def test_permissions_are_asked_about_alone_or_besides_a_target(tenant: Tenant) -> None:
    actor, target = await holder(tenant, "users.*"), await holder(tenant, "roles.read")

    assert await authority(tenant, actor, "", "users.read", "users.update") == ALLOWED
    assert await authority(tenant, actor, "", "users.read", "tokens.verify") == (False, ["tokens.verify"])
    assert await authority(tenant, actor, target, "tokens.verify", "roles.read") == (False, ["roles.read", "tokens.verify"])
    assert await authority(tenant, str(uuid4())) == ALLOWED


async def test_what_has_expired_counts_on_neither_side(rbac: Rbac, tenant: Tenant) -> None:
    role, soon = await tenant.role("payer", "invoices.pay"), rbac.clock.now() + timedelta(hours=1)
    short, lasting = str(uuid4()), str(uuid4())
    await tenant.bind(short, role, until=soon)
    await tenant.bind(lasting, role)
    nobody = str(uuid4())
    assert await authority(tenant, nobody, short) == (False, ["invoices.pay"])
    assert await authority(tenant, short, lasting) == ALLOWED

    rbac.clock.ahead = timedelta(hours=2)

    assert await authority(tenant, nobody, short) == ALLOWED
    assert await authority(tenant, short, lasting) == (False, ["invoices.pay"])


async def test_the_answer_is_that_of_the_present_state_at_every_instance(tenant: Tenant) -> None:
    role, actor, target = await tenant.role("payer", "invoices.pay"), str(uuid4()), str(uuid4())
    assert await authority(tenant, actor, target, at=1) == ALLOWED

    await tenant.bind(target, role, at=0)
    assert await authority(tenant, actor, target, at=1) == (False, ["invoices.pay"])

    binding = await tenant.bind(actor, role, at=0)
    assert await authority(tenant, actor, target, at=1) == ALLOWED
    await tenant.unbind(binding, at=0)
    assert await authority(tenant, actor, target, at=1) == (False, ["invoices.pay"])


async def test_what_is_held_in_another_tenant_counts_for_nothing(rbac: Rbac, tenant: Tenant) -> None:
    other, target = await rbac.tenant(), await holder(tenant, "invoices.pay")

    assert await authority(tenant, other.admin_id, target) == (False, ["invoices.pay"])
    assert await authority(other, str(uuid4()), target) == ALLOWED


async def test_a_pattern_is_no_permission_to_ask_about(tenant: Tenant) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await authority(tenant, tenant.admin_id, "", "users.*")
    assert [violation.field for violation in refusal.value.violations] == ["permissions[0]"]


async def test_only_identity_asks_and_only_identity_deletes(rbac: Rbac, tenant: Tenant) -> None:
    who = await holder(tenant, "invoices.pay")
    for caller in others(rbac, tenant):
        with pytest.raises(PermissionDenied):
            await authority(tenant, tenant.admin_id, who, by=caller)
        with pytest.raises(PermissionDenied):
            await delete(tenant, who, by=caller)
    assert await tenant.may(who, "invoices.pay")


@pytest.mark.parametrize("kind", [USER, CLIENT])
async def test_a_deleted_subject_holds_nothing_anywhere_and_others_keep_what_they_hold(rbac: Rbac, tenant: Tenant, kind: Any) -> None:
    role, group, who = await tenant.role("payer", "invoices.pay"), await tenant.group("payers"), str(uuid4())
    namesake = CLIENT if kind == USER else USER
    await tenant.bind(group, await tenant.role("reader", "invoices.read"), kind=GROUP)
    for each in (kind, namesake):
        await tenant.bind(who, role, kind=each)
        await tenant.bind(who, role, kind=each, resource="folder/a")
        await tenant.join(group, who, kind=each)
    assert await tenant.may(who, "invoices.read", kind=kind, at=1)

    token = await delete(tenant, who, kind=kind)

    for at in (0, 1):
        for permission in ("invoices.pay", "invoices.read"):
            assert not await tenant.may(who, permission, "folder/a", kind=kind, at=at)
            assert await tenant.may(who, permission, "folder/a", kind=namesake, at=at)
    assert (await tenant.check(who, "invoices.pay", kind=kind, fresh=token, at=1)).reason == permission_pb2.NO_ROLE
    left = "SELECT 1 FROM rbac.role_binding WHERE subject_id = $1 AND subject_type = $2"
    assert await rbac.sql(left, who, kind) == []
    assert await rbac.sql("SELECT 1 FROM rbac.group_member WHERE member_id = $1 AND member_type = $2", who, kind) == []


async def test_a_deletion_is_audited_and_that_of_nothing_is_no_error(rbac: Rbac, tenant: Tenant) -> None:
    who, found = await holder(tenant, "invoices.pay"), "SELECT actor_id, target_type, details::text FROM suite.audit_event WHERE target_id = $1"
    await tenant.join(await tenant.group("payers"), who)
    first = await delete(tenant, who)

    assert await delete(tenant, who) == first  # nothing changed: the same state

    events = await rbac.sql(f"{found} AND tenant_id = $2 AND type = 'subject_removed'", who, tenant.id)
    assert [(event["actor_id"], event["target_type"]) for event in events] == [("identity", "user")]
    assert '"bindings_removed": "1"' in events[0]["details"]
    assert '"memberships_removed": "1"' in events[0]["details"]


async def test_a_repeated_deletion_takes_nothing_that_was_given_since(tenant: Tenant) -> None:
    role, who, once = await tenant.role("payer", "invoices.pay"), str(uuid4()), str(uuid4())
    await tenant.bind(who, role)
    token = await delete(tenant, who, once=once)
    await tenant.bind(who, role)

    assert await delete(tenant, who, once=once, at=1) == token

    assert await tenant.may(who, "invoices.pay")
    with pytest.raises(IdempotencyConflict):
        await delete(tenant, str(uuid4()), once=once)


async def test_a_group_is_not_deleted_as_a_subject(tenant: Tenant) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await delete(tenant, await tenant.group("payers"), kind=GROUP)
    assert [violation.field for violation in refusal.value.violations] == ["subject.type"]


async def test_the_last_administrator_is_not_deleted_be_it_by_binding_or_by_group(tenant: Tenant) -> None:
    with pytest.raises(LastAdministrator):
        await delete(tenant, tenant.admin_id)
    assert await tenant.may(tenant.admin_id, "users.delete")

    group, boss = await tenant.group("admins"), str(uuid4())
    await tenant.bind(group, "watchword.admin", kind=GROUP)
    await tenant.join(group, boss)
    await delete(tenant, tenant.admin_id)
    with pytest.raises(LastAdministrator):
        await delete(tenant, boss)
    assert await tenant.may(boss, "users.delete")


async def test_of_two_administrators_deleted_at_once_one_stays(rbac: Rbac) -> None:
    for _ in range(5):
        tenant, second = await rbac.tenant(), str(uuid4())
        await tenant.bind(second, "watchword.admin")

        outcomes = await asyncio.gather(delete(tenant, tenant.admin_id, at=0), delete(tenant, second, at=1), return_exceptions=True)

        assert [type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)] == [LastAdministrator]
        assert len(await rbac.sql("SELECT id FROM rbac.role_binding WHERE tenant_id = $1", tenant.id)) == 1


async def test_who_manages_roles_does_not_place_resources(tenant: Tenant) -> None:
    """He could put any resource below one that he holds a role on, and so hold it there too."""
    who = str(uuid4())
    await tenant.bind(who, "watchword.role-manager")
    await tenant.bind(who, await tenant.role("payer", "invoices.pay"), resource="folder/own")
    move = rbac_pb2.SetResourceParentRequest(resource="folder/theirs", parent="folder/own")

    with pytest.raises(PermissionDenied):
        await ask(tenant.instances[0].resources.SetResourceParent, move, tenant.user(who))
    with pytest.raises(PermissionDenied):
        await tenant.role("placer", "resources.update", by=tenant.user(who))

    assert not await tenant.may(who, "invoices.pay", "folder/theirs")
