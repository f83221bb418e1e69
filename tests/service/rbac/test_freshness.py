"""The promise: after a change's OK no instance answers from before it. Shown on three warm instances, and shown to fail without its defence."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import grpc
import pytest

from services.chassis.consistency import ConsistencyTokens
from services.chassis.sealing import derive
from services.chassis.tenancy import TenantId
from tests.conftest import SALT, Keys, Stores
from tests.service.rbac.conftest import GROUP, USER, Instance, Leaseless, Rbac, Tenant, ask, proxied, running, settings_of, subject
from watchword.errors import DependencyUnavailable, InvalidRequest, RevisionUnavailable
from watchword.rbac.v1 import permission_pb2, rbac_pb2

ROUNDS = 10_000 if os.environ.get("WATCHWORD_LONG") else 150


async def stale_answers(tenant: Tenant, rounds: int, *, before_removal: Callable[[], None] = lambda: None) -> int:
    """Bind, warm all instances, unbind at one while all are asked, and count who still says yes at once after the OK."""
    user, role, stale = str(uuid4()), await tenant.role("fleeting", "doc.read"), 0

    async def ask_all() -> list[bool]:
        return await asyncio.gather(*(tenant.may(user, "doc.read", at=at) for at in (0, 1, 2)))

    for number in range(rounds):
        writer = number % 3
        binding = await tenant.bind(user, role, at=writer)
        assert await ask_all() == [True] * 3, "a grant shows at once as well"
        before_removal()
        racing = [asyncio.create_task(ask_all()) for _ in range(2)]
        await tenant.unbind(binding, at=writer)
        stale += sum(await ask_all())
        await asyncio.gather(*racing)
    return stale


@pytest.mark.timeout(120 + ROUNDS // 10)
async def test_after_a_binding_is_gone_no_instance_allows(tenant: Tenant) -> None:
    """A109, A110: every memory warm, none stale."""
    assert await stale_answers(tenant, ROUNDS) == 0


async def test_an_instance_that_is_deaf_would_be_stale(rbac: Rbac, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defence off: an instance that says it has applied what it was told of a removal, and has not. The rounds above must notice."""
    revisions = rbac.instances[1].revisions
    apply, removals = revisions.apply, 0

    def hear(change: str) -> None:
        nonlocal removals
        if removals:
            removals -= 1
        else:
            apply(change)

    def next_is_a_removal() -> None:
        nonlocal removals
        removals = 1

    monkeypatch.setattr(revisions, "apply", hear)

    assert await stale_answers(tenant, 5, before_removal=next_is_a_removal) >= 1


async def test_without_a_lease_the_revision_is_read(rbac: Rbac, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct mode: slower, and as fresh. The same rounds on an instance that has no lease and hears of nothing."""
    monkeypatch.setattr(rbac.instances[1].checker, "_lease", Leaseless())
    monkeypatch.setattr(rbac.instances[1].revisions, "apply", lambda _change: None)

    assert await stale_answers(tenant, 20) == 0


async def remove_from_group(tenant: Tenant, user: str) -> Callable[[], Awaitable[object]]:
    group = await tenant.group("team")
    await tenant.bind(group, await tenant.role("any", "doc.read"), kind=GROUP)
    await tenant.join(group, user)
    return lambda: tenant.leave(group, user)


async def delete_the_group(tenant: Tenant, user: str) -> Callable[[], Awaitable[object]]:
    group = await tenant.group("team")
    await tenant.bind(group, await tenant.role("any", "doc.read"), kind=GROUP)
    await tenant.join(group, user)
    return lambda: ask(tenant.instances[0].groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=group), tenant.admin)


async def shrink_the_parent(tenant: Tenant, user: str) -> Callable[[], Awaitable[object]]:
    parent = await tenant.role("above", "doc.read")
    await tenant.bind(user, await tenant.role("below", parents=[parent]))
    update = rbac_pb2.UpdateRoleRequest(role_id=parent)
    update.update_mask.paths.append("permissions")
    update.role.SetInParent()
    return lambda: ask(tenant.instances[0].roles.UpdateRole, update, tenant.admin)


async def delete_the_role(tenant: Tenant, user: str) -> Callable[[], Awaitable[object]]:
    role = await tenant.role("any", "doc.read")
    await tenant.bind(user, role)
    return lambda: ask(tenant.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role), tenant.admin)


async def move_the_resource(tenant: Tenant, user: str) -> Callable[[], Awaitable[object]]:
    await tenant.place("doc/1", "folder/a")
    await tenant.bind(user, await tenant.role("any", "doc.read"), resource="folder/a")
    return lambda: tenant.place("doc/1", "folder/b")


@pytest.mark.parametrize("arrange", [remove_from_group, delete_the_group, shrink_the_parent, delete_the_role, move_the_resource])
async def test_every_way_of_taking_away_shows_at_once_everywhere(
    tenant: Tenant, arrange: Callable[[Tenant, str], Awaitable[Callable[[], Awaitable[object]]]]
) -> None:
    user = str(uuid4())
    take_away = await arrange(tenant, user)
    for _ in range(3):  # the second time from memory, the third time as it was answered before
        assert [await tenant.may(user, "doc.read", "doc/1", at=at) for at in (0, 1, 2)] == [True] * 3

    await take_away()

    assert await asyncio.gather(*(tenant.may(user, "doc.read", "doc/1", at=at) for at in (1, 2, 0))) == [False] * 3


async def test_a_token_of_a_write_at_one_instance_holds_at_the_other(tenant: Tenant) -> None:
    """A112."""
    user, role = str(uuid4()), await tenant.role("any", "doc.read")
    binding = await tenant.bind(user, role)
    assert await tenant.may(user, "doc.read", at=1)

    token = await tenant.unbind(binding, at=0)
    answer = await tenant.check(user, "doc.read", at=1, fresh=token)

    assert answer.decision == permission_pb2.DENY
    assert answer.consistency_token == token


async def test_excluding_before_granting_never_shows_in_the_other_order(tenant: Tenant) -> None:
    """A111, the new enemy: out of the group first, then the group gets more. A check as fresh as the second write never allows."""
    user, group, role = str(uuid4()), await tenant.group("team"), await tenant.role("any", "doc.read")
    for _ in range(20):
        await tenant.join(group, user)
        await tenant.may(user, "doc.read", at=1)
        await tenant.leave(group, user, at=0)
        binding = await tenant.bind(group, role, kind=GROUP, at=1)
        token = (await tenant.check(group, "doc.read", kind=GROUP)).consistency_token

        assert (await tenant.check(user, "doc.read", at=1, fresh=token)).decision == permission_pb2.DENY
        await tenant.unbind(binding)


async def test_a_revision_that_is_not_there_yet_is_not_waited_for_and_not_ignored(tenant: Tenant) -> None:
    """A112: a replica that lags would meet such a token."""
    tokens = ConsistencyTokens(derive(SALT, "consistency"))
    own = TenantId(UUID(tenant.id))

    with pytest.raises(RevisionUnavailable):
        await tenant.check(tenant.admin_id, "doc.read", fresh=tokens.write(own, 10**9))


@pytest.mark.parametrize("token", ["x", "AAAA", "é" * 8, "A" * 48])
async def test_a_made_up_consistency_token_is_refused(tenant: Tenant, token: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await tenant.check(tenant.admin_id, "doc.read", fresh=token)

    assert refusal.value.violations[0].field == "consistency.at_least_as_fresh"


async def test_another_tenants_consistency_token_is_refused(rbac: Rbac, tenant: Tenant) -> None:
    token = (await (await rbac.tenant()).check(str(uuid4()), "doc.read")).consistency_token

    with pytest.raises(InvalidRequest):
        await tenant.check(tenant.admin_id, "doc.read", fresh=token)


async def test_a_fill_that_raced_a_change_is_not_believed_later(rbac: Rbac, tenant: Tenant) -> None:
    """A118: the read is held back with its rows in hand while the binding is deleted and acknowledged."""
    user, slow = str(uuid4()), rbac.instances[1].database
    binding = await tenant.bind(user, await tenant.role("any", "doc.read"))
    slow.holding, slow.held = asyncio.Event(), asyncio.Event()
    release = slow.holding
    racing = asyncio.create_task(tenant.may(user, "doc.read", at=1))
    await slow.held.wait()

    await tenant.unbind(binding, at=0)
    release.set()

    await racing  # began before the OK: either answer is right
    assert not await tenant.may(user, "doc.read", at=1)


async def test_a_check_that_was_given_up_leaves_nothing_behind(rbac: Rbac, tenant: Tenant) -> None:
    """A116: the caller's deadline passes in the middle of the load."""
    user, slow = str(uuid4()), rbac.instances[1].database
    await tenant.bind(user, await tenant.role("any", "doc.read"))
    slow.holding, slow.held = asyncio.Event(), asyncio.Event()
    request = permission_pb2.CheckPermissionRequest(subject=subject(USER, user), permission="doc.read", tenant_id=tenant.id)

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await rbac.instances[1].permissions.CheckPermission(request, metadata=tenant.peer, timeout=0.15)

    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    remembered = len(rbac.instances[1].memory._holdings)
    assert await tenant.may(user, "doc.read", at=1)
    assert len(rbac.instances[1].memory._holdings) == remembered + 1


async def test_without_postgres_memory_answers_and_nothing_else_does(rbac: Rbac, stores: Stores, service_keys: Keys, tenant: Tenant) -> None:
    """A117: what is remembered and still true is answered, what is not is UNAVAILABLE: neither yes nor no, and nothing is remembered of it."""
    user, stranger = str(uuid4()), str(uuid4())
    binding = await tenant.bind(user, await tenant.role("any", "doc.read"))
    async with proxied(rbac.url) as proxy, running(settings_of(proxy.url, stores, service_keys, "rbac-cut"), service_keys, rbac.clock) as alone:

        def check(who: str) -> Awaitable[permission_pb2.CheckPermissionResponse]:
            request = permission_pb2.CheckPermissionRequest(subject=subject(USER, who), permission="doc.read", tenant_id=tenant.id)
            return ask(alone.permissions.CheckPermission, request, tenant.peer)

        assert (await check(user)).decision == permission_pb2.ALLOW
        proxy.cut()
        with pytest.raises(DependencyUnavailable):
            await check(stranger)
        assert (await check(user)).decision == permission_pb2.ALLOW
        assert _remembered(alone) == 1

        await tenant.unbind(binding)

        with pytest.raises(DependencyUnavailable):
            await check(user)
        proxy.mend()
        assert (await check(user)).decision == permission_pb2.DENY
        assert (await check(stranger)).decision == permission_pb2.DENY


def _remembered(instance: Instance) -> int:
    return len(instance.memory._holdings)
