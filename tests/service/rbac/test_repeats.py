"""What takes away may find nothing left to do: its answer means all the same that no instance answers from before."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import pytest

from services.chassis.lease_log import Entry
from tests.conftest import eventually
from tests.service.rbac.conftest import GROUP, USER, Instance, Tenant, ask, subject
from watchword.errors import NotFound
from watchword.rbac.v1 import rbac_pb2

Removal = Callable[[], Awaitable[object]]


@asynccontextmanager
async def hearing_late(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Keep from an instance what it reads of the log while inside: its lease lives a second longer, and its memory answers."""
    log, asked, release = instance.coherence._log, asyncio.Event(), asyncio.Event()
    read = log.read
    await eventually(lambda: _is_current(instance))

    async def late(after: int, *, wait: float) -> list[Entry]:
        asked.set()
        entries = await read(after, wait=wait)
        if entries:
            await release.wait()
        return entries

    with monkeypatch.context() as patched:
        patched.setattr(log, "read", late)
        await asked.wait()
        try:
            yield
        finally:
            release.set()
    await eventually(lambda: _is_current(instance))


async def _is_current(instance: Instance) -> bool:
    return instance.coherence.is_current


async def remove_a_member(tenant: Tenant, user: str) -> Removal:
    group = await tenant.group(f"team-{user}")
    await tenant.bind(group, await tenant.role(f"any-{user}", "doc.read"), kind=GROUP)
    await tenant.join(group, user)
    return lambda: tenant.leave(group, user)


async def remove_all_of_a_subject(tenant: Tenant, user: str) -> Removal:
    await tenant.bind(user, await tenant.role(f"any-{user}", "doc.read"))
    request = rbac_pb2.DeleteSubjectRequest(subject=subject(USER, user), tenant_id=tenant.id)
    return lambda: ask(tenant.instances[0].bindings.DeleteSubject, request, tenant.peer)


async def unbind(tenant: Tenant, user: str) -> Removal:
    binding = await tenant.bind(user, await tenant.role(f"any-{user}", "doc.read"))
    return lambda: tenant.unbind(binding)


async def shrink_the_role(tenant: Tenant, user: str) -> Removal:
    role = await tenant.role(f"any-{user}", "doc.read")
    await tenant.bind(user, role)
    update = rbac_pb2.UpdateRoleRequest(role_id=role)
    update.update_mask.paths.append("permissions")
    update.role.SetInParent()
    return lambda: ask(tenant.instances[0].roles.UpdateRole, update, tenant.admin)


async def move_the_resource(tenant: Tenant, user: str) -> Removal:
    await tenant.place("doc/1", "folder/a")
    await tenant.bind(user, await tenant.role(f"any-{user}", "doc.read"), resource="folder/a")
    return lambda: tenant.place("doc/1", "folder/b")


@pytest.mark.parametrize("arrange", [remove_a_member, remove_all_of_a_subject, unbind, shrink_the_role, move_the_resource])
async def test_a_repeat_without_a_request_id_is_answered_when_the_first_could_have_been(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, arrange: Callable[[Tenant, str], Awaitable[Removal]]
) -> None:
    """The first caller lost patience after the commit; the second finds it done. NOT_FOUND says so as OK does."""
    for _ in range(3):
        if await is_shown(tenant, monkeypatch, arrange):
            return
    pytest.fail("the change was always known without waiting: nothing is shown")


async def is_shown(tenant: Tenant, monkeypatch: pytest.MonkeyPatch, arrange: Callable[[Tenant, str], Awaitable[Removal]]) -> bool:
    """Return whether a late instance answered from before when the first caller gave up. Fails if it does after the second has his answer."""
    user = str(uuid4())
    take_away = await arrange(tenant, user)
    assert [await tenant.may(user, "doc.read", "doc/1", at=at) for at in (0, 1, 2)] == [True] * 3

    async with hearing_late(tenant.instances[1], monkeypatch):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await take_away()
        # A machine so busy that the lease was lost shows nothing: who asks Postgres knows, and who loads a snapshot.
        answered_from_before = await tenant.may(user, "doc.read", "doc/1", at=1)
        with suppress(NotFound):
            await take_away()

        assert not await tenant.may(user, "doc.read", "doc/1", at=1)
        return answered_from_before
