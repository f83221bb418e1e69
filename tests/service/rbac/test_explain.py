"""Explanations: the shortest chain to the permission, and for a denial what is missing."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.struct_pb2 import Struct

from tests.service.rbac.conftest import ANY, GROUP, USER, Rbac, Tenant, ask, subject
from watchword.errors import PermissionDenied
from watchword.rbac.v1 import permission_pb2, rbac_pb2


async def explain(tenant: Tenant, who: str, permission: str, resource: str = "", **more: Any) -> permission_pb2.ExplainPermissionResponse:
    """Explain, and see that the decision is the check's."""
    request = permission_pb2.ExplainPermissionRequest(subject=subject(USER, who), permission=permission, resource=resource, **more)
    answer: permission_pb2.ExplainPermissionResponse = await ask(tenant.instances[1].permissions.ExplainPermission, request, tenant.admin)
    checked = await tenant.check(who, permission, resource, **more)
    assert (answer.decision.decision, answer.decision.reason) == (checked.decision, checked.reason)
    return answer


def words(answer: permission_pb2.ExplainPermissionResponse) -> list[str]:
    return [step.text for step in answer.chain]


async def test_a_grant_is_explained_by_its_shortest_chain(tenant: Tenant) -> None:
    user = str(uuid4())
    base = await tenant.role("document.base", "doc.*")
    middle = await tenant.role("document.middle", parents=[base])
    top = await tenant.role("document.top", parents=[middle])
    inner, outer = await tenant.group("inner"), await tenant.group("outer")
    await tenant.join(outer, inner, kind=GROUP)
    await tenant.join(inner, user)
    await tenant.bind(outer, top, kind=GROUP, resource="folder/a")
    await tenant.place("doc/1", "folder/a")

    answer = await explain(tenant, user, "doc.read", "doc/1")
    assert words(answer) == [
        f"user {user}",
        "group inner",
        "group outer",
        "holds role document.top at folder/a",
        "role document.top",
        "with its parent role document.middle",
        "with its parent role document.base",
        "grants doc.read by doc.*",
    ]
    assert [step.WhichOneof("step") for step in answer.chain] == ["subject"] * 3 + ["role_binding"] + ["role"] * 3 + ["permission"]
    assert list(answer.missing) == []

    await tenant.bind(user, base)  # a shorter way
    assert words(await explain(tenant, user, "doc.read", "doc/1")) == [
        f"user {user}",
        "holds role document.base at the whole tenant",
        "role document.base",
        "grants doc.read by doc.*",
    ]


async def test_a_denial_that_somebody_wrote_is_explained_by_its_chain(tenant: Tenant) -> None:
    user, role = str(uuid4()), await tenant.role("reader", "doc.read")
    await tenant.bind(user, role)
    await tenant.bind("", role, kind=ANY, denies=True)

    answer = await explain(tenant, user, "doc.read")

    assert words(answer) == [
        f"user {user}",
        "anybody who is authenticated",
        "is denied role reader at the whole tenant",
        "role reader",
        "denies doc.read by doc.read",
    ]
    assert "must go" in answer.missing[0]


async def test_a_denial_says_what_is_missing_the_nearest_first(rbac: Rbac, tenant: Tenant) -> None:
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("reader", "doc.read"), resource="folder/a")
    await tenant.bind(user, await tenant.role("writer", "doc.write"), resource="folder/b")
    await tenant.bind(user, await tenant.role("owner", "doc.*"), until=datetime.now(UTC) + timedelta(hours=1))
    await rbac.sql("UPDATE rbac.role_binding SET expire_time = now() - interval '1 s' WHERE subject_id = $1 AND expire_time IS NOT NULL", user)
    await tenant.role("unrelated")  # a change, so that all instances look again
    await tenant.place("doc/1", "folder/a")

    answer = await explain(tenant, user, "doc.write", "doc/1")

    assert answer.decision.decision == permission_pb2.DENY
    assert answer.missing[0] == "the subject is granted doc.write at folder/b, which doc/1 does not lie below"
    assert any("expired at" in line for line in answer.missing)
    assert "role reader, held at folder/a, does not grant doc.write" in answer.missing
    assert "role writer would grant it" in answer.missing
    assert len(answer.chain) == 0


async def test_a_condition_and_a_login_are_explained(tenant: Tenant) -> None:
    user, small = str(uuid4()), Struct()
    small.update({"amount": 500})
    await tenant.bind(user, await tenant.role("payer", "invoice.pay"), condition="context.amount < 100")
    assert (await explain(tenant, user, "invoice.pay", context=small)).missing[0] == "the condition `context.amount < 100` does not hold"
    open_question = await explain(tenant, user, "invoice.pay")
    assert open_question.decision.decision == permission_pb2.CONDITIONAL
    assert "if `context.amount < 100`" in words(open_question)[1]

    await tenant.bind(user, await tenant.role("approver", "invoice.approve"), step_up=rbac_pb2.StepUp(acr="mfa"))
    weak = await explain(tenant, user, "invoice.approve", acr="pwd")
    assert weak.decision.decision == permission_pb2.STEP_UP_REQUIRED
    assert "for a login mfa" in words(weak)[1]


async def test_who_holds_nothing_is_told_which_roles_would_help(tenant: Tenant) -> None:
    await tenant.role("payer", "invoice.pay")

    answer = await explain(tenant, str(uuid4()), "invoice.pay")

    assert "role payer would grant it" in answer.missing
    assert (await explain(tenant, str(uuid4()), "rocket.launch")).missing[0] == "role watchword.admin would grant it"


async def test_another_tenants_policy_explains_nothing(rbac: Rbac, tenant: Tenant) -> None:
    user, other = str(uuid4()), await rbac.tenant()
    await tenant.bind(user, await tenant.role("secret-payer", "invoice.pay"))

    answer = await explain(other, user, "invoice.pay")

    assert answer.decision.decision == permission_pb2.DENY
    assert "secret-payer" not in str(answer)


async def test_explaining_needs_its_own_permission(tenant: Tenant) -> None:
    user = str(uuid4())
    await tenant.bind(user, "watchword.service")
    request = permission_pb2.ExplainPermissionRequest(subject=subject(USER, user), permission="doc.read")

    with pytest.raises(PermissionDenied):
        await ask(tenant.instances[0].permissions.ExplainPermission, request, tenant.user(user))
