"""Bindings that ended long ago are deleted, and nobody misses them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.chassis.call import Call, Caller, CallerKind
from services.chassis.tenancy import TenantId
from services.rbac.model import RoleBinding, Terms, Written
from services.rbac.store.changing import TenantChange
from services.rbac.store.listing import ENDED_BINDINGS_DAYS
from tests.service.rbac.conftest import Rbac, Tenant, ask
from watchword.errors import NotFound
from watchword.rbac.v1 import rbac_pb2

LONG_AGO = timedelta(days=ENDED_BINDINGS_DAYS, minutes=1)
LATELY = timedelta(days=ENDED_BINDINGS_DAYS, minutes=-1)


async def ended(rbac: Rbac, tenant: Tenant, who: str, role: str, ago: timedelta, *, denies: bool = False) -> str:
    """Return a binding that ended so long ago: it was made, and then moved into the past."""
    binding = await tenant.bind(who, role, until=datetime.now(UTC) + timedelta(hours=1), denies=denies)
    await rbac.sql("UPDATE rbac.role_binding SET expire_time = now() - $2::interval WHERE id = $1", UUID(binding), ago)
    return binding


async def bindings_of(tenant: Tenant, who: str) -> set[str]:
    """Return a subject's bindings."""
    request = rbac_pb2.ListRoleBindingsRequest(subject_id=who)
    return {binding.id for binding in (await ask(tenant.instances[1].bindings.ListRoleBindings, request, tenant.admin)).role_bindings}


async def told(rbac: Rbac, tenant: Tenant) -> tuple[int, int]:
    """Return the revision of the tenant's policy, and the number of the last notice that went to all instances."""
    rows = await rbac.sql("SELECT revision, last_value FROM rbac.policy, rbac.change_id_seq WHERE tenant_id = $1", UUID(tenant.id))
    return rows[0]["revision"], rows[0]["last_value"]


async def test_a_binding_is_deleted_a_month_after_its_end(rbac: Rbac, tenant: Tenant) -> None:
    """Whether it allowed or denied; not one without end, and not one whose end people may still ask about."""
    user, role, other = str(uuid4()), await tenant.role("reader", "doc.read"), await tenant.role("writer", "doc.write")
    gone = {await ended(rbac, tenant, user, role, LONG_AGO), await ended(rbac, tenant, user, role, LONG_AGO, denies=True)}
    kept = {await ended(rbac, tenant, user, role, LATELY), await tenant.bind(user, other)}
    assert await bindings_of(tenant, user) == gone | kept

    await rbac.instances[0].store.forget_bindings()

    assert await bindings_of(tenant, user) == kept


async def test_its_deletion_changes_no_answer_and_no_revision(rbac: Rbac, tenant: Tenant) -> None:
    """All instances answered without it for a month: a notice would tell them nothing, and would cost everybody's memory."""
    user, role = str(uuid4()), await tenant.role("reader", "doc.read")
    await ended(rbac, tenant, user, role, LONG_AGO)
    before = await told(rbac, tenant)
    assert [await tenant.may(user, "doc.read", at=at) for at in (0, 1, 2)] == [False] * 3

    await rbac.instances[0].store.forget_bindings()

    assert not await bindings_of(tenant, user)
    assert [await tenant.may(user, "doc.read", at=at) for at in (0, 1, 2)] == [False] * 3
    assert await told(rbac, tenant) == before


async def test_a_page_token_is_good_when_its_binding_is_gone(rbac: Rbac, tenant: Tenant) -> None:
    """It is a place in the order of ids, whoever stands there."""
    user, role = str(uuid4()), await tenant.role("reader", "doc.read")
    await ended(rbac, tenant, user, role, LONG_AGO)
    last = await tenant.bind(user, role)
    request = rbac_pb2.ListRoleBindingsRequest(subject_id=user, page_size=1)
    first = await ask(tenant.instances[0].bindings.ListRoleBindings, request, tenant.admin)

    await rbac.instances[0].store.forget_bindings()

    assert await bindings_of(tenant, user) == {last}
    request.page_token = first.next_page_token
    second = await ask(tenant.instances[1].bindings.ListRoleBindings, request, tenant.admin)
    assert [binding.id for binding in second.role_bindings] == [last]


async def test_a_binding_that_is_being_prolonged_is_not_deleted(rbac: Rbac, tenant: Tenant) -> None:
    """The sweep comes between the reading and the writing of a change: else OK would be said of a grant that is nowhere."""
    user, store = str(uuid4()), rbac.instances[0].store
    binding_id = await ended(rbac, tenant, user, await tenant.role("reader", "doc.read"), LONG_AGO)

    async def prolonging(change: TenantChange) -> RoleBinding:
        binding = await change.get_binding(UUID(binding_id))
        await rbac.instances[1].store.forget_bindings()
        prolonged = replace(binding, terms=Terms(expire_time=datetime.now(UTC) + timedelta(hours=1)))
        assert await change.update_binding(prolonged)
        return prolonged

    call = Call("/test/Prolong", Caller(CallerKind.SERVICE, "identity"), request_id=str(uuid4()), address="192.0.2.1")
    await store.change(call, TenantId(UUID(tenant.id)), Written[RoleBinding], prolonging)

    assert await bindings_of(tenant, user) == {binding_id}
    assert await tenant.may(user, "doc.read", at=2)


async def test_a_binding_that_is_gone_cannot_be_prolonged(rbac: Rbac, tenant: Tenant) -> None:
    """It is given anew."""
    user, role = str(uuid4()), await tenant.role("reader", "doc.read")
    binding = await ended(rbac, tenant, user, role, LONG_AGO)
    await rbac.instances[0].store.forget_bindings()

    request = rbac_pb2.UpdateRoleBindingRequest(role_binding_id=binding, role_binding=rbac_pb2.RoleBindingUpdate(condition="true"))
    with pytest.raises(NotFound):
        await ask(tenant.instances[0].bindings.UpdateRoleBinding, request, tenant.admin)

    await tenant.bind(user, role)
    assert await tenant.may(user, "doc.read", at=1)
