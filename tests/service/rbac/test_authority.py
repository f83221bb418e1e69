"""A121: nobody hands out what he does not hold, and the last administrator stays, however many try at once."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from tests.service.rbac.conftest import ANY, CLIENT, GROUP, USER, Metadata, Rbac, Tenant, as_client, ask, subject
from watchword.errors import LastAdministrator, PermissionDenied
from watchword.rbac.v1 import rbac_pb2


async def manager(tenant: Tenant, *more: str) -> tuple[str, Metadata]:
    """A person who manages roles, and holds `more`."""
    who = str(uuid4())
    await tenant.bind(who, "watchword.role-manager")
    if more:
        await tenant.bind(who, await tenant.role(f"of-{who}", *more))
    return who, tenant.user(who)


async def admin_role(tenant: Tenant) -> str:
    roles = (await ask(tenant.instances[0].roles.ListRoles, rbac_pb2.ListRolesRequest(), tenant.admin)).roles
    return next(str(role.id) for role in roles if role.name == "watchword.admin")


async def admin_binding(tenant: Tenant) -> str:
    request = rbac_pb2.ListRoleBindingsRequest(subject_id=tenant.admin_id)
    return str((await ask(tenant.instances[0].bindings.ListRoleBindings, request, tenant.admin)).role_bindings[0].id)


@pytest.mark.parametrize("wanted", ["*.*", "invoices.*", "*.read", "invoices.delete", "users.read"])
async def test_nobody_makes_a_role_that_says_more_than_he_may(tenant: Tenant, wanted: str) -> None:
    _, caller = await manager(tenant, "invoices.read", "invoices.write")

    with pytest.raises(PermissionDenied, match="does not hold"):
        await tenant.role("bigger", "invoices.read", wanted, by=caller)

    await tenant.role("equal", "invoices.read", "roles.read", "groups.*", by=caller)


async def test_nobody_makes_a_role_below_one_that_says_more(tenant: Tenant) -> None:
    _, caller = await manager(tenant)
    above = await tenant.role("above", parents=[await tenant.role("top", "invoices.pay")])

    with pytest.raises(PermissionDenied):
        await tenant.role("below", parents=[above], by=caller)


async def test_nobody_binds_a_role_that_says_more_not_even_scoped(tenant: Tenant) -> None:
    who, caller = await manager(tenant)
    payer = await tenant.role("payer", "invoices.pay")

    for role in (await admin_role(tenant), "watchword.admin", payer):
        for resource in ("", "folder/a"):
            with pytest.raises(PermissionDenied):
                await tenant.bind(who, role, resource=resource, by=caller)

    assert not await tenant.may(who, "invoices.pay")


async def test_holding_a_role_on_a_resource_is_not_holding_it(tenant: Tenant) -> None:
    who, caller = await manager(tenant)
    payer = await tenant.role("payer", "invoices.pay")
    await tenant.bind(who, payer, resource="folder/a")

    with pytest.raises(PermissionDenied):
        await tenant.bind(who, payer, by=caller)


async def test_an_expired_role_covers_nothing(rbac: Rbac, tenant: Tenant) -> None:
    who, caller = await manager(tenant)
    payer = await tenant.role("payer", "invoices.pay")
    await tenant.bind(who, payer, until=rbac.clock.now() + timedelta(hours=1))
    rbac.clock.ahead = timedelta(hours=2)

    with pytest.raises(PermissionDenied):
        await tenant.bind(str(uuid4()), payer, by=caller)


async def test_nobody_edits_a_role_he_holds_into_more(tenant: Tenant) -> None:
    who, caller = await manager(tenant)
    own = await tenant.role("own", "invoices.read")
    await tenant.bind(who, own)
    top = await tenant.role("top", "invoices.pay")

    for update in (
        rbac_pb2.RoleUpdate(permissions=["invoices.read", "invoices.pay"]),
        rbac_pb2.RoleUpdate(permissions=["*.*"]),
        rbac_pb2.RoleUpdate(parent_role_ids=[top]),
    ):
        with pytest.raises(PermissionDenied):
            await ask(tenant.instances[0].roles.UpdateRole, rbac_pb2.UpdateRoleRequest(role_id=own, role=update), caller)

    assert not await tenant.may(who, "invoices.pay")


async def test_what_a_role_said_before_may_stay(tenant: Tenant) -> None:
    """Only what is added is handed out: a manager may take from a role, or describe it, though it says more than he may."""
    _, caller = await manager(tenant)
    role = await tenant.role("rich", "invoices.pay", "invoices.read")
    update = rbac_pb2.RoleUpdate(description="pays", permissions=["invoices.pay"])

    answer = await ask(tenant.instances[0].roles.UpdateRole, rbac_pb2.UpdateRoleRequest(role_id=role, role=update), caller)

    assert (answer.role.description, list(answer.role.permissions)) == ("pays", ["invoices.pay"])


async def test_nobody_joins_a_group_that_holds_more_or_lies_in_one_that_does(tenant: Tenant) -> None:
    who, caller = await manager(tenant)
    inner, outer = await tenant.group("inner"), await tenant.group("outer")
    await tenant.join(outer, inner, kind=GROUP)
    await tenant.join(inner, who, by=caller)  # holds nothing yet
    await tenant.leave(inner, who)
    await tenant.bind(outer, await tenant.role("payer", "invoices.pay"), kind=GROUP, resource="folder/a")

    for group in (inner, outer):
        with pytest.raises(PermissionDenied):
            await tenant.join(group, who, by=caller)
    other = await tenant.group("other")
    with pytest.raises(PermissionDenied):
        await tenant.join(inner, other, kind=GROUP, by=caller)


async def test_a_client_hands_out_what_its_roles_hold_within_its_scopes(tenant: Tenant) -> None:
    client = str(uuid4())
    await tenant.bind(client, "watchword.role-manager", kind=CLIENT)

    with pytest.raises(PermissionDenied):
        await tenant.role("by-client", "roles.read", by=as_client(tenant.id, client))
    await tenant.role("by-client", "roles.read", by=as_client(tenant.id, client, "roles.create"))
    with pytest.raises(PermissionDenied):
        await tenant.role("by-client-2", "invoices.pay", by=as_client(tenant.id, client, "roles.create"))


async def test_a_refused_hand_out_is_audited_and_changes_nothing(rbac: Rbac, tenant: Tenant) -> None:
    who, caller = await manager(tenant)
    with pytest.raises(PermissionDenied):
        await tenant.bind(who, "watchword.admin", by=caller)

    events = await rbac.sql(
        "SELECT outcome, actor_id, details::text FROM suite.audit_event WHERE tenant_id = $1 AND type = 'policy_change_denied'", tenant.id
    )

    assert [(event["outcome"], event["actor_id"]) for event in events] == [("failure", who)]
    assert not await tenant.may(who, "users.delete")


async def test_someone_without_the_permission_does_not_get_in_at_all(rbac: Rbac, tenant: Tenant) -> None:
    nobody = tenant.user(str(uuid4()))

    with pytest.raises(PermissionDenied):
        await tenant.role("mine", by=nobody)
    with pytest.raises(PermissionDenied):
        await ask(rbac.instances[0].roles.ListRoles, rbac_pb2.ListRolesRequest(), rbac.peer)  # not a call for services


async def test_an_administrator_who_lost_the_role_changes_nothing_at_any_instance(tenant: Tenant) -> None:
    """The gate asks the same checker: the next call after the OK is refused."""
    second = str(uuid4())
    binding = await tenant.bind(second, await admin_role(tenant))
    await tenant.role("fine", by=tenant.user(second))

    await tenant.unbind(binding, at=1)

    with pytest.raises(PermissionDenied):
        await tenant.role("late", by=tenant.user(second))


async def test_the_last_administrator_is_not_unbound(tenant: Tenant) -> None:
    with pytest.raises(LastAdministrator):
        await tenant.unbind(await admin_binding(tenant))
    assert await tenant.may(tenant.admin_id, "users.delete")

    await tenant.bind(str(uuid4()), await admin_role(tenant))
    await tenant.unbind(await admin_binding(tenant))
    assert not await tenant.may(tenant.admin_id, "users.delete")


async def test_neither_client_nor_scope_nor_empty_group_nor_short_stay_stands_in_for_the_last_administrator(rbac: Rbac, tenant: Tenant) -> None:
    role, empty = await admin_role(tenant), await tenant.group("empty")
    await tenant.bind(str(uuid4()), role, kind=CLIENT)
    await tenant.bind(str(uuid4()), role, resource="folder/a")
    await tenant.bind(str(uuid4()), role, until=rbac.clock.now() + timedelta(days=1))
    await tenant.bind(empty, role, kind=GROUP)

    with pytest.raises(LastAdministrator):
        await tenant.unbind(await admin_binding(tenant))


async def test_who_is_denied_what_mends_a_policy_does_not_stand_in_for_the_last_administrator(tenant: Tenant) -> None:
    by_self, by_group, by_parent = (str(uuid4()) for _ in range(3))
    mends, outer, inner = await tenant.role("mends", "role-bindings.delete"), await tenant.group("outer"), await tenant.group("inner")
    for user in (by_self, by_group, by_parent):
        await tenant.bind(user, "watchword.admin")
    await tenant.join(outer, inner, kind=GROUP)
    await tenant.join(inner, by_group)

    await tenant.bind(by_self, mends, denies=True)
    await tenant.bind(outer, mends, kind=GROUP, denies=True)
    await tenant.bind(by_parent, await tenant.role("below", parents=[mends]), denies=True)

    with pytest.raises(LastAdministrator):
        await tenant.unbind(await admin_binding(tenant))


async def test_the_last_administrator_is_not_denied_what_mends_a_policy_be_it_with_anybody(tenant: Tenant) -> None:
    mends = await tenant.role("mends", "role-bindings.*")

    for who, kind in ((tenant.admin_id, USER), ("", ANY)):
        with pytest.raises(LastAdministrator):
            await tenant.bind(who, mends, kind=kind, denies=True)


async def test_a_denial_that_is_not_his_or_not_of_what_mends_or_over_leaves_an_administrator_one(rbac: Rbac, tenant: Tenant) -> None:
    second, everything, until = str(uuid4()), await tenant.role("everything", "*.*"), rbac.clock.now() + timedelta(minutes=5)
    await tenant.bind(second, "watchword.admin")
    await tenant.bind(str(uuid4()), everything, denies=True)
    await tenant.bind(second, everything, kind=CLIENT, denies=True)
    await tenant.bind(second, everything, resource="folder/a", denies=True)
    await tenant.bind(second, await tenant.role("reads", "*.read"), denies=True)
    await tenant.bind(second, everything, until=until, denies=True)
    with pytest.raises(LastAdministrator):
        await tenant.unbind(await admin_binding(tenant))

    rbac.clock.ahead = timedelta(minutes=6)

    await tenant.unbind(await admin_binding(tenant))


async def test_of_many_administrators_and_many_who_are_denied_one_can_be_unbound(rbac: Rbac, tenant: Tenant) -> None:
    """To compare each with each takes longer than a statement may, and then nobody can be."""
    made = (
        "INSERT INTO rbac.role_binding (tenant_id, id, subject_type, subject_id, role_id, resource, effect, create_time)"
        " SELECT $1, gen_random_uuid(), 1, gen_random_uuid(), $2, '', $3, now() FROM generate_series(1, $4::int)"
    )
    role = await admin_role(tenant)
    await rbac.sql(made, tenant.id, role, 1, 3_000)
    await rbac.sql(made, tenant.id, role, 2, 30_000)
    binding = await tenant.bind(str(uuid4()), role)

    await tenant.unbind(binding)

    assert await rbac.sql("SELECT 1 FROM rbac.role_binding WHERE id = $1", UUID(binding)) == []


async def test_the_last_administrator_by_group_keeps_membership_and_groups(tenant: Tenant) -> None:
    inner, outer, boss = await tenant.group("inner"), await tenant.group("outer"), str(uuid4())
    await tenant.bind(outer, await admin_role(tenant), kind=GROUP)
    await tenant.join(outer, inner, kind=GROUP)
    await tenant.join(inner, boss)
    await tenant.unbind(await admin_binding(tenant))
    by = tenant.user(boss)

    with pytest.raises(LastAdministrator):
        await ask(tenant.instances[0].groups.RemoveGroupMember, rbac_pb2.RemoveGroupMemberRequest(group_id=inner, member=subject(USER, boss)), by)
    with pytest.raises(LastAdministrator):
        await ask(tenant.instances[0].groups.RemoveGroupMember, rbac_pb2.RemoveGroupMemberRequest(group_id=outer, member=subject(GROUP, inner)), by)
    for group in (inner, outer):
        with pytest.raises(LastAdministrator):
            await ask(tenant.instances[0].groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=group), by)

    assert await tenant.may(boss, "users.delete")


async def test_of_two_administrators_removed_at_once_one_stays(rbac: Rbac) -> None:
    """Each removal alone is fine: only the lock makes them see each other. Ten tenants, two instances."""
    for _ in range(10):
        tenant = await rbac.tenant()
        first, second = await admin_binding(tenant), await tenant.bind(str(uuid4()), await admin_role(tenant))

        outcomes = await asyncio.gather(tenant.unbind(first, at=0), tenant.unbind(second, at=1), return_exceptions=True)

        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert len(refused) == 1
        assert isinstance(refused[0], (LastAdministrator, PermissionDenied))  # the caller may be the one who was removed
        left = await rbac.sql("SELECT id FROM rbac.role_binding WHERE tenant_id = $1", tenant.id)
        assert len(left) == 1


async def test_without_the_lock_both_would_go(rbac: Rbac, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defence off: the same removals, started together behind no lock."""
    from services.rbac.store.changing import TenantChange

    monkeypatch.setattr(TenantChange, "_LOCK", "SELECT 0 AS revision WHERE $1::uuid IS NOT NULL")
    arrived = asyncio.Barrier(2)
    administration = TenantChange.administration

    async def together(self: TenantChange, now: object) -> object:
        found = await administration(self, now)  # type: ignore[arg-type]
        await arrived.wait()
        return found

    tenant = await rbac.tenant()
    first, second = await admin_binding(tenant), await tenant.bind(str(uuid4()), await admin_role(tenant))
    monkeypatch.setattr(TenantChange, "administration", together)

    await asyncio.gather(tenant.unbind(first, at=0), tenant.unbind(second, at=1))

    assert await rbac.sql("SELECT id FROM rbac.role_binding WHERE tenant_id = $1", tenant.id) == []
