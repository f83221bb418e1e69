"""What a check costs: statements, counted on the way to Postgres; and that no two questions share an answer."""

import asyncio
import random
import time
from functools import partial
from uuid import UUID, uuid4

import pytest
import redis.asyncio as aioredis

from services.chassis.consistency import ConsistencyTokens
from services.chassis.sealing import derive
from services.chassis.tenancy import TenantId
from services.rbac.turns import Turns
from tests.conftest import SALT, Stores, eventually
from tests.service.rbac.conftest import CLIENT, GROUP, USER, Leaseless, Rbac, Tenant, ask, subject
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import permission_pb2, rbac_pb2


def counted(rbac: Rbac, at: int = 0) -> list[str]:
    """Forget the statements so far, and return the list that those to come are added to."""
    statements = rbac.instances[at].database.statements
    statements.clear()
    return statements


async def test_a_cold_check_costs_one_statement_and_a_warm_one_none(rbac: Rbac, tenant: Tenant) -> None:
    user, group = str(uuid4()), await tenant.group("team")
    parent = await tenant.role("parent", "doc.read")
    await tenant.bind(group, await tenant.role("child", parents=[parent]), kind=GROUP, resource="folder/a")
    await tenant.join(group, user)
    await tenant.place("doc/1", "folder/a")

    statements = counted(rbac)
    assert await tenant.may(user, "doc.read", "doc/1")
    assert len(statements) == 1

    statements.clear()
    assert await tenant.may(user, "doc.read", "doc/1")
    assert statements == []


async def test_of_many_who_ask_the_same_at_once_one_reads(rbac: Rbac, tenant: Tenant) -> None:
    """F29: after a loss of memory, all who ask about one subject miss it together."""
    users = [str(uuid4()) for _ in range(5)]
    role = await tenant.role("reader", "doc.read")
    for user in users[:3]:
        await tenant.bind(user, role)
    await tenant.may(str(uuid4()), "doc.read")  # the tenant is known
    await eventually(partial(_is_led, rbac))

    statements, generation = counted(rbac), rbac.instances[0].memory.generation
    said = await asyncio.gather(*(tenant.may(user, "doc.read") for user in users for _ in range(40)))

    assert said == [user in users[:3] for user in users for _ in range(40)]
    is_led = rbac.instances[0].memory.generation == generation and await _is_led(rbac)  # or each check read a number
    assert len(statements) <= len(users) * 1.2 or not is_led
    assert len(rbac.instances[0].checker._turns) == 0


async def test_when_all_is_forgotten_at_once_each_question_is_read_once_by_each_instance(rbac: Rbac, tenant: Tenant, stores: Stores) -> None:
    """F29: FLUSHALL under load. No lease is left, so each check reads a number meanwhile; what is loaded anew is loaded once."""
    users = [str(uuid4()) for _ in range(20)]
    role = await tenant.role("reader", "doc.read")
    for user in users:
        await tenant.bind(user, role)
        for at in range(3):
            await tenant.may(user, "doc.read", at=at)
    for at in range(3):
        await eventually(partial(_is_led, rbac, at))
    before = [(instance.checker.cold, instance.memory.generation) for instance in rbac.instances]
    failed, waits = list[str](), list[float]()

    async def ask_for_a_while(user: str, at: int) -> None:
        for _ in range(15):
            began = time.monotonic()
            if not await tenant.may(user, "doc.read", at=at):
                failed.append(user)
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.2)

    asking = [asyncio.create_task(ask_for_a_while(user, at)) for user in users for at in range(3)]
    await asyncio.sleep(0.3)
    async with aioredis.Redis.from_url(stores.redis) as client:
        await client.flushall()
    await asyncio.gather(*asking)
    for at in range(3):
        await eventually(partial(_is_led, rbac, at))

    assert failed == []
    loads = [instance.checker.cold - cold for instance, (cold, _) in zip(rbac.instances, before, strict=True)]
    losses = [instance.memory.generation - generation for instance, (_, generation) in zip(rbac.instances, before, strict=True)]
    print(f"loads {loads} after {losses} losses of memory, the slowest of {len(waits)} checks {max(waits) * 1000:.0f} ms")
    assert all(0 < count <= len(users) * 1.2 * lost for count, lost in zip(loads, losses, strict=True))


async def _is_led(rbac: Rbac, at: int = 0) -> bool:
    return rbac.instances[at].coherence.is_current


async def test_who_waits_too_long_for_anothers_reading_reads_himself() -> None:
    turns = Turns()
    async with turns.taken("a") as first, turns.taken("a") as second, turns.taken("b") as other:
        assert (first, second, other) == (False, True, False)
    async with turns.taken("a") as again:
        assert not again
    assert len(turns) == 0


async def test_without_a_lease_a_warm_check_costs_an_indexed_read(rbac: Rbac, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    user = str(uuid4())
    await tenant.may(user, "doc.read")
    monkeypatch.setattr(rbac.instances[0].checker, "_lease", Leaseless())

    statements = counted(rbac)
    await tenant.may(user, "doc.read")
    assert len(statements) == 1
    assert "WITH" not in statements[0]


async def test_after_a_change_whom_it_touched_costs_one_statement_once_and_all_others_none(rbac: Rbac, tenant: Tenant) -> None:
    touched, other, bystander = (str(uuid4()) for _ in range(3))
    role = await tenant.role("reader", "doc.read")
    for user in (touched, other):
        await tenant.bind(user, role)
        await tenant.may(user, "doc.read")
    await tenant.may(bystander, "doc.read")
    await tenant.bind(touched, await tenant.role("writer", "doc.write"))

    statements = counted(rbac)
    assert not await tenant.may(bystander, "doc.read")
    assert await tenant.may(other, "doc.read")
    assert statements == []
    for _ in range(2):
        assert await tenant.may(touched, "doc.write")
    assert len(statements) == 1


async def test_after_a_change_of_a_role_its_holders_cost_one_statement_together(rbac: Rbac, tenant: Tenant) -> None:
    role, users = await tenant.role("reader", "doc.read"), [str(uuid4()) for _ in range(20)]
    for user in users:
        await tenant.bind(user, role)
        await tenant.may(user, "doc.read")
    update = rbac_pb2.UpdateRoleRequest(role_id=role, role=rbac_pb2.RoleUpdate(permissions=["doc.write"]))
    await ask(rbac.instances[1].roles.UpdateRole, update, tenant.admin)

    statements = counted(rbac)
    assert [await tenant.may(user, "doc.read") for user in users] == [False] * 20
    assert [await tenant.may(user, "doc.write") for user in users] == [True] * 20
    assert len(statements) == 1


async def test_what_other_contexts_change_in_a_tenant_does_not_make_its_policy_be_loaded_anew(rbac: Rbac, tenant: Tenant) -> None:
    """Every login and revocation takes a revision too. Memory stays good; who asks for that very revision is answered from a read, once."""
    user = str(uuid4())
    await tenant.check(user, "doc.read")
    revision = (await rbac.sql("SELECT suite.bump_revision($1) AS revision", tenant.id))[0]["revision"]
    fresh = ConsistencyTokens(derive(SALT, "consistency")).write(TenantId(UUID(tenant.id)), revision)

    statements = counted(rbac)
    await tenant.check(user, "doc.read")
    assert statements == []

    assert (await tenant.check(user, "doc.read", fresh=fresh)).consistency_token == fresh
    assert len(statements) == 1
    await tenant.check(user, "doc.read", fresh=fresh)
    assert len(statements) == 1


async def test_a_batch_costs_what_one_check_costs(rbac: Rbac, tenant: Tenant) -> None:
    questions = [
        permission_pb2.CheckPermissionRequest(subject=subject(USER, str(uuid4())), permission="doc.read", resource=f"doc/{number}")
        for number in range(1000)
    ]
    batch = permission_pb2.BatchCheckPermissionsRequest(requests=questions, tenant_id=tenant.id)

    statements = counted(rbac)
    await ask(rbac.instances[0].permissions.BatchCheckPermissions, batch, tenant.peer)
    assert len(statements) == 1

    await ask(rbac.instances[0].permissions.BatchCheckPermissions, batch, tenant.peer)
    assert len(statements) == 1


async def test_no_two_questions_share_an_answer(rbac: Rbac, tenant: Tenant) -> None:
    """A113: neighbours of a granted question that joined strings would confuse with it, each asked with the memory warm."""
    user, role = str(uuid4()), await tenant.role("any", "doc.read")
    await tenant.bind(user, role, resource="doc/a")
    assert await tenant.may(user, "doc.read", "doc/a")

    for resource in ("doc/a:b", "doc/A", "doc/a.", "doc/a~", "doc/a=", "doc/a@x", "docx/a", "do/c-a", "doc/aa", "doc/a:doc.read"):
        assert not await tenant.may(user, "doc.read", resource)
    assert not await tenant.may(user, "doc.read", "doc/a", kind=CLIENT)
    assert not await tenant.may(user, "doc.read", "doc/a", kind=GROUP)
    assert await tenant.may(user, "doc.read", "doc/a")
    elsewhere = await rbac.tenant()
    assert not await elsewhere.may(user, "doc.read", "doc/a")


async def test_of_a_thousand_questions_that_look_alike_exactly_those_are_allowed_that_were_granted(tenant: Tenant) -> None:
    """A113: resources of few characters, among them all that separate something somewhere; twice, so that the second time all is remembered."""
    names = ["doc/" + "".join(random.Random(number).choices("ab:.~@=+-", k=3)) for number in range(1000)]
    user, role, granted = str(uuid4()), await tenant.role("any", "doc.read"), set(names[:20])
    for resource in granted:
        await tenant.bind(user, role, resource=resource)
    asked = [permission_pb2.CheckPermissionRequest(subject=subject(USER, user), permission="doc.read", resource=name) for name in names]
    batch = permission_pb2.BatchCheckPermissionsRequest(requests=asked, tenant_id=tenant.id)

    for _ in range(2):
        answers = (await ask(tenant.instances[0].permissions.BatchCheckPermissions, batch, tenant.peer)).responses
        assert [answer.decision == permission_pb2.ALLOW for answer in answers] == [name in granted for name in names]


async def test_identifiers_that_a_store_might_take_for_one_another_are_apart_or_refused(tenant: Tenant) -> None:
    """A114: case, spaces at the end, composed and decomposed letters; the same from memory as from Postgres."""
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("any", "doc.read"), resource="doc/a")

    for _ in range(2):
        assert await tenant.may(user, "doc.read", "doc/a")
        assert not await tenant.may(user, "doc.read", "doc/A")
        for resource in ("doc/a ", " doc/a", "DOC/a", "doc/\u00e4", "doc/a\u0308", "doc/a\0", "doc/*", "doc/a|b", "doc/a/b"):
            with pytest.raises(InvalidRequest):
                await tenant.may(user, "doc.read", resource)
        with pytest.raises(InvalidRequest):
            await tenant.may(user.upper(), "doc.read", "doc/a")
