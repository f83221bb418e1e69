"""WatchPermissions: whom each change touched, in order, without gaps, and never a checkpoint that claims too much."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
import pytest

from services.rbac import watch_servicer
from services.rbac.messages import wire_subject
from services.rbac.model import Subject
from tests.service.rbac.conftest import ANY, CLIENT, GROUP, Leaseless, Rbac, Tenant, as_client, ask
from watchword import status
from watchword.errors import PermissionDenied
from watchword.rbac.v1 import permission_pb2, rbac_pb2


class Follower:
    """One stream, read by a test."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.cursor = ""

    async def next(self) -> permission_pb2.WatchPermissionsResponse:
        """Return what is told next."""
        async with asyncio.timeout(10):
            answer = await self._call.read()
        assert isinstance(answer, permission_pb2.WatchPermissionsResponse), "the stream ended"
        self.cursor = answer.cursor
        return answer

    async def event(self) -> permission_pb2.WatchPermissionsResponse:
        """Return the next that is no checkpoint."""
        while True:
            answer = await self.next()
            if answer.WhichOneof("event") != "checkpoint":
                return answer

    async def touched(self) -> set[tuple[int, str]] | None:
        """Return whom the next change touched; None for everybody."""
        change = (await self.event()).change
        return None if change.all_subjects else {(one.type, one.id) for one in change.subjects}

    async def checkpoint(self) -> permission_pb2.WatchPermissionsResponse:
        """Return the next checkpoint."""
        while True:
            answer = await self.next()
            if answer.WhichOneof("event") == "checkpoint":
                return answer


@asynccontextmanager
async def following(tenant: Tenant, *, at: int = 1, cursor: str = "") -> AsyncIterator[Follower]:
    """Follow a tenant's policy at an instance while inside."""
    call = tenant.instances[at].permissions.WatchPermissions(permission_pb2.WatchPermissionsRequest(cursor=cursor), metadata=tenant.admin)
    try:
        yield Follower(call)
    finally:
        call.cancel()


async def test_each_change_names_whom_it_touched_and_nobody_else(tenant: Tenant) -> None:
    user, client, inner_user = (str(uuid4()) for _ in range(3))
    inner, outer = await tenant.group("inner"), await tenant.group("outer")
    await tenant.join(inner, inner_user)
    base = await tenant.role("base", "doc.read")
    child = await tenant.role("child", parents=[base])
    async with following(tenant) as follower:
        await follower.checkpoint()
        await tenant.bind(user, child)
        assert await follower.touched() == {(1, user)}
        await tenant.bind(client, base, kind=CLIENT, resource="folder/a")
        assert await follower.touched() == {(3, client)}
        await tenant.join(outer, inner, kind=GROUP)
        assert await follower.touched() == {(1, inner_user)}
        await tenant.bind(outer, child, kind=GROUP)
        assert await follower.touched() == {(1, inner_user)}
        update = rbac_pb2.UpdateRoleRequest(role_id=base, role=rbac_pb2.RoleUpdate(permissions=["doc.write"]))
        await ask(tenant.instances[2].roles.UpdateRole, update, tenant.admin)
        assert await follower.touched() == {(1, user), (3, client), (1, inner_user)}
        await tenant.place("doc/1", "folder/a")
        assert await follower.touched() == {(3, client)}
        binding = await tenant.bind("", base, kind=ANY)
        assert await follower.touched() == {(4, "")}
        await tenant.unbind(binding)
        assert await follower.touched() == {(4, "")}
        await ask(tenant.instances[0].groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=outer), tenant.admin)
        assert await follower.touched() == {(1, inner_user)}


async def test_more_than_a_thousand_are_everybody(rbac: Rbac, tenant: Tenant) -> None:
    role = await tenant.role("reader", "doc.read")
    await rbac.sql(
        "INSERT INTO rbac.role_binding (tenant_id, id, subject_type, subject_id, role_id, resource, create_time)"
        " SELECT $1, gen_random_uuid(), 1, gen_random_uuid(), $2, '', now() FROM generate_series(1, 1001)",
        tenant.id,
        role,
    )
    async with following(tenant) as follower:
        await follower.checkpoint()
        await ask(tenant.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role), tenant.admin)
        assert await follower.touched() is None


async def test_who_comes_back_misses_nothing_at_any_instance(tenant: Tenant) -> None:
    role, users = await tenant.role("reader", "doc.read"), [str(uuid4()) for _ in range(5)]
    async with following(tenant) as follower:
        cursor = (await follower.checkpoint()).cursor
    for user in users:
        await tenant.bind(user, role)
    for at in (0, 2):
        async with following(tenant, at=at, cursor=cursor) as follower:
            assert [await follower.touched() for _ in users] == [{(1, user)} for user in users]
            assert (await follower.checkpoint()).checkpoint.consistency_token


@pytest.mark.parametrize("is_leased", [True, False])
async def test_no_checkpoint_goes_before_a_change_that_was_acknowledged_before_it(
    rbac: Rbac, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, is_leased: bool
) -> None:
    """A checkpoint's cursor resumes behind all that was acknowledged before it was asked for, with a lease and without."""
    if not is_leased:
        monkeypatch.setattr(rbac.instances[1].watching, "_lease", Leaseless())
    role = await tenant.role("reader", "doc.read")
    for _ in range(10):
        user = str(uuid4())
        await tenant.bind(user, role)
        async with following(tenant) as late:
            cursor = (await late.next()).cursor
        binding = await tenant.bind(str(uuid4()), role)
        await tenant.unbind(binding)
        async with following(tenant, cursor=cursor) as follower:
            touched = [await follower.touched(), await follower.touched()]
            assert {(1, user)} not in touched


async def test_what_is_kept_no_longer_is_told_as_a_reset(rbac: Rbac, tenant: Tenant) -> None:
    role = await tenant.role("reader", "doc.read")
    async with following(tenant) as follower:
        cursor = (await follower.checkpoint()).cursor
    for _ in range(3):
        await tenant.bind(str(uuid4()), role)
    kept = await rbac.sql("SELECT revision FROM rbac.policy_change WHERE tenant_id = $1 ORDER BY revision DESC LIMIT 2", tenant.id)
    await rbac.sql("DELETE FROM rbac.policy_change WHERE tenant_id = $1 AND revision < $2", tenant.id, kept[-1]["revision"])

    async with following(tenant, cursor=cursor) as follower:
        assert (await follower.event()).WhichOneof("event") == "reset"
        await follower.checkpoint()


async def test_a_cursor_that_is_not_ours_and_one_of_another_tenant_are_reset(rbac: Rbac, tenant: Tenant) -> None:
    other = await rbac.tenant()
    async with following(other) as follower:
        foreign = (await follower.checkpoint()).cursor
    for cursor in (foreign, "made-up"):
        async with following(tenant, cursor=cursor) as follower:
            assert (await follower.event()).WhichOneof("event") == "reset"


async def test_a_restored_database_is_told_as_a_reset(rbac: Rbac, tenant: Tenant) -> None:
    """The counter came by the cursor's number once, and is behind it now."""
    await tenant.role("reader", "doc.read")
    async with following(tenant) as follower:
        cursor = (await follower.checkpoint()).cursor
    await rbac.sql("UPDATE rbac.policy SET revision = revision - 1 WHERE tenant_id = $1", tenant.id)
    rbac.instances[1].memory.clear()

    async with following(tenant, cursor=cursor) as follower:
        assert (await follower.event()).WhichOneof("event") == "reset"


async def test_one_tenants_watcher_hears_of_no_other(rbac: Rbac, tenant: Tenant) -> None:
    other = await rbac.tenant()
    async with following(tenant) as follower:
        await follower.checkpoint()
        await other.bind(str(uuid4()), await other.role("reader", "doc.read"))
        user = str(uuid4())
        await tenant.bind(user, "watchword.auditor")
        assert await follower.touched() == {(1, user)}


async def test_watching_needs_the_scope_or_the_permission(tenant: Tenant) -> None:
    call = tenant.instances[0].permissions.WatchPermissions(permission_pb2.WatchPermissionsRequest(), metadata=tenant.user(str(uuid4())))
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call.read()
    assert isinstance(status.decode(refusal.value), PermissionDenied)


async def test_who_may_not_watch_any_more_is_told_nothing_more(tenant: Tenant) -> None:
    """A stream is long, and must not outlive the permission that it began with."""
    user = str(uuid4())
    binding = await tenant.bind(user, await tenant.role("watcher", "permissions.check"))
    call = tenant.instances[1].permissions.WatchPermissions(permission_pb2.WatchPermissionsRequest(), metadata=tenant.user(user))
    follower = Follower(call)
    await follower.checkpoint()
    await tenant.unbind(binding)

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await follower.next()
    assert isinstance(status.decode(refusal.value), PermissionDenied)


async def test_a_client_with_the_scope_watches_without_a_binding(tenant: Tenant) -> None:
    metadata, role, user = as_client(tenant.id, str(uuid4()), "permissions.check"), await tenant.role("reader", "doc.read"), str(uuid4())
    call = tenant.instances[1].permissions.WatchPermissions(permission_pb2.WatchPermissionsRequest(), metadata=metadata)
    follower = Follower(call)
    await follower.checkpoint()
    await tenant.bind(user, role)

    assert await follower.touched() == {(1, user)}
    call.cancel()


async def test_one_reads_for_all_who_stand_at_the_same_place(rbac: Rbac, tenant: Tenant) -> None:
    """A change wakes thousands of watchers at once: they must not ask Postgres one by one."""
    role = await tenant.role("reader", "doc.read")
    async with AsyncExitStack() as stack:
        followers = [await stack.enter_async_context(following(tenant)) for _ in range(20)]
        for follower in followers:
            await follower.checkpoint()
        statements = rbac.instances[1].database.statements
        before = sum("policy_change" in sql for sql in statements)
        user = str(uuid4())
        await tenant.bind(user, role)
        assert [await follower.touched() for follower in followers] == [{(1, user)}] * 20
        asked = sum("policy_change" in sql for sql in statements) - before

    assert asked < 5


async def test_a_change_is_encoded_once_for_all_who_watch(rbac: Rbac, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that names a thousand subjects takes milliseconds to encode, and its watchers are told in one turn of the event loop."""
    written = list[Subject]()

    def counted(one: Subject) -> rbac_pb2.Subject:
        written.append(one)
        return wire_subject(one)

    role = await tenant.role("reader", "doc.read")
    users = [str(uuid4()) for _ in range(2)]
    async with AsyncExitStack() as stack:
        followers = [await stack.enter_async_context(following(tenant)) for _ in range(20)]
        for follower in followers:
            await follower.checkpoint()
        monkeypatch.setattr(watch_servicer, "wire_subject", counted)
        for user in users:
            await tenant.bind(user, role)
            assert [await follower.touched() for follower in followers] == [{(1, user)}] * 20

    assert [str(one.id) for one in written] == users


async def test_another_change_of_the_same_revision_is_told_as_it_is(rbac: Rbac, tenant: Tenant) -> None:
    """A restored database counts the same revisions again."""
    role, user, other = await tenant.role("reader", "doc.read"), str(uuid4()), str(uuid4())
    async with following(tenant) as follower:
        cursor = (await follower.checkpoint()).cursor
    await tenant.bind(user, role)
    async with following(tenant, cursor=cursor) as follower:
        assert await follower.touched() == {(1, user)}

    await rbac.sql("UPDATE rbac.policy_change SET subjects = $2 WHERE tenant_id = $1 AND $3 = ANY(subjects)", tenant.id, [f"1/{other}"], f"1/{user}")

    async with following(tenant, cursor=cursor) as follower:
        assert await follower.touched() == {(1, other)}
