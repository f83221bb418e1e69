"""Terms of bindings: denials, conditions, logins, and roles that anybody holds; asked over gRPC, cold and warm."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from services.rbac.conditions import Conditions
from tests.service.rbac.conftest import ANY, CLIENT, GROUP, USER, Rbac, Tenant, ask, subject, turns
from watchword.errors import InvalidRequest, PermissionDenied
from watchword.rbac.v1 import permission_pb2, policy_pb2, rbac_pb2

ALLOW, DENY, CONDITIONAL, STEP_UP = permission_pb2.ALLOW, permission_pb2.DENY, permission_pb2.CONDITIONAL, permission_pb2.STEP_UP_REQUIRED


def context(**members: Any) -> Struct:
    """Return a context."""
    struct = Struct()
    struct.update(members)
    return struct


def ago(minutes: float) -> Timestamp:
    """Return the time so long ago."""
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) - timedelta(minutes=minutes))
    return stamp


async def decided(tenant: Tenant, who: str, permission: str = "doc.read", resource: str = "", **more: Any) -> int:
    """Return the decision, which is the same cold, warm, and at another instance."""
    answers = {(await tenant.check(who, permission, resource, at=at, **more)).decision for at in (0, 0, 1)}
    assert len(answers) == 1
    return int(answers.pop())


async def test_a_denial_wins_from_wherever_it_comes(tenant: Tenant) -> None:
    reader = await tenant.role("reader", "doc.read")
    wide = await tenant.role("everything-about-docs", "doc.*")
    by_group, by_self, by_any, by_place = (str(uuid4()) for _ in range(4))
    team = await tenant.group("team")
    for user in (by_group, by_self, by_place):
        await tenant.bind(user, reader)
    await tenant.join(team, by_group)
    await tenant.bind(team, wide, kind=GROUP, denies=True)
    await tenant.bind(by_self, reader, denies=True)
    await tenant.place("doc/1", "folder/secret")
    await tenant.bind(by_place, wide, resource="folder/secret", denies=True)

    assert await decided(tenant, by_group) == DENY
    assert await decided(tenant, by_self) == DENY
    assert await decided(tenant, by_place) == ALLOW
    assert await decided(tenant, by_place, resource="doc/1") == DENY
    assert await decided(tenant, by_place, resource="doc/2") == ALLOW

    await tenant.bind(by_any, await tenant.role("writer", "doc.write"))
    assert await decided(tenant, by_any, "doc.write") == ALLOW
    await tenant.bind("", wide, kind=ANY, denies=True, at=1)
    assert await decided(tenant, by_any, "doc.write") == DENY
    answer = await tenant.check(by_any, "doc.write")
    assert answer.reason == permission_pb2.DENIED


async def test_a_denial_that_is_taken_away_denies_no_longer_anywhere(tenant: Tenant) -> None:
    user, role = str(uuid4()), await tenant.role("reader", "doc.read")
    await tenant.bind(user, role)
    denial = await tenant.bind(user, role, denies=True)
    assert await decided(tenant, user) == DENY

    await tenant.unbind(denial, at=2)

    assert await decided(tenant, user) == ALLOW


async def test_what_anybody_holds_every_user_and_client_holds_and_no_group(tenant: Tenant) -> None:
    user, client, group = str(uuid4()), str(uuid4()), await tenant.group("team")
    assert await decided(tenant, user) == DENY  # remembered
    binding = await tenant.bind("", await tenant.role("reader", "doc.read"), kind=ANY)

    assert [await decided(tenant, who, kind=kind) for who, kind in ((user, USER), (client, CLIENT), (group, GROUP), ("", ANY))] == [
        ALLOW,
        ALLOW,
        DENY,
        ALLOW,
    ]
    await tenant.unbind(binding)
    assert await decided(tenant, user) == DENY


async def test_what_anybody_holds_in_one_tenant_nobody_holds_in_another(rbac: Rbac, tenant: Tenant) -> None:
    await tenant.bind("", await tenant.role("reader", "doc.read"), kind=ANY)

    assert await decided(await rbac.tenant(), str(uuid4())) == DENY


async def test_a_condition_decides_by_what_the_question_brings(tenant: Tenant) -> None:
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("payer", "invoice.pay"), condition="context.amount <= 100 && context.country in ['de', 'fr']")

    assert await decided(tenant, user, "invoice.pay", context=context(amount=99.5, country="de")) == ALLOW
    assert await decided(tenant, user, "invoice.pay", context=context(amount=101, country="de")) == DENY
    assert await decided(tenant, user, "invoice.pay", context=context(amount="a lot", country="de")) == DENY
    assert await decided(tenant, user, "invoice.pay", context=context(amount=1)) == CONDITIONAL
    answer = await tenant.check(user, "invoice.pay")
    assert (answer.decision, answer.reason, list(answer.missing_context)) == (CONDITIONAL, permission_pb2.CONTEXT_MISSING, ["amount"])
    assert answer.depends_on_context


@pytest.mark.parametrize(
    ("condition", "words"), [("context.amount <", "Syntax error"), ("amount < 5", "undeclared"), ("1 + 1", "bool"), ("x" * 2049, "2048 bytes")]
)
async def test_what_is_no_condition_is_refused(tenant: Tenant, condition: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await tenant.bind(str(uuid4()), await tenant.role("reader", "doc.read"), condition=condition)

    assert [violation.field for violation in refusal.value.violations] == ["condition"]
    assert words in refusal.value.violations[0].description


async def test_a_stronger_login_is_asked_for_by_name(tenant: Tenant) -> None:
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("payer", "invoice.pay"), step_up=rbac_pb2.StepUp(acr="mfa", max_age=Duration(seconds=600)))

    answer = await tenant.check(user, "invoice.pay", acr="pwd", auth_time=ago(1))
    assert (answer.decision, answer.reason) == (STEP_UP, permission_pb2.LOGIN_TOO_WEAK)
    assert (answer.step_up.acr, answer.step_up.max_age.seconds) == ("mfa", 600)
    assert await decided(tenant, user, "invoice.pay", acr="mfa", auth_time=ago(1)) == ALLOW
    assert await decided(tenant, user, "invoice.pay", acr="hwk", auth_time=ago(1)) == ALLOW
    assert await decided(tenant, user, "invoice.pay", acr="mfa", auth_time=ago(11)) == STEP_UP
    assert await decided(tenant, user, "invoice.pay", acr="mfa") == STEP_UP
    assert await decided(tenant, user, "invoice.refund", acr="pwd") == DENY  # no login would help


async def test_a_login_may_be_of_any_age_that_can_be_said(tenant: Tenant) -> None:
    """Also one that no calendar knows the end of: a question about it, and whatever is asked beside it, is answered."""
    user, other = str(uuid4()), str(uuid4())
    await tenant.bind(user, await tenant.role("elder", "tree.see"), step_up=rbac_pb2.StepUp(max_age=Duration(seconds=300_000_000_000)))
    await tenant.bind(other, await tenant.role("younger", "tree.climb"))

    assert await decided(tenant, user, "tree.see", auth_time=ago(1)) == ALLOW
    batch = permission_pb2.BatchCheckPermissionsRequest(tenant_id=tenant.id)
    batch.requests.add(subject=subject(USER, user), permission="tree.see", auth_time=ago(1))
    batch.requests.add(subject=subject(USER, other), permission="tree.climb")
    answers = await ask(tenant.instances[1].permissions.BatchCheckPermissions, batch, tenant.peer)
    assert [answer.decision for answer in answers.responses] == [ALLOW, ALLOW]


async def test_a_login_that_the_deployment_does_not_know_is_refused(tenant: Tenant) -> None:
    role = await tenant.role("reader", "doc.read")
    for step_up, denies, field in (
        (rbac_pb2.StepUp(acr="retina"), False, "step_up.acr"),
        (rbac_pb2.StepUp(max_age=Duration(seconds=0)), False, "step_up.max_age"),
        (rbac_pb2.StepUp(acr="mfa"), True, "step_up"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            await tenant.bind(str(uuid4()), role, step_up=step_up, denies=denies)
        assert [violation.field for violation in refusal.value.violations] == [field]


async def test_the_suites_own_permissions_are_not_given_to_weak_logins_or_on_conditions(tenant: Tenant) -> None:
    """Who calls rbac brings no context, so a conditional role is of no use there, and never fails open."""
    user = str(uuid4())
    await tenant.bind(user, "watchword.role-manager", condition="context.amount < 5")

    with pytest.raises(PermissionDenied):
        await ask(tenant.instances[0].roles.ListRoles, rbac_pb2.ListRolesRequest(), tenant.user(user))


async def test_terms_are_told_where_grants_are_listed(tenant: Tenant) -> None:
    user, role = str(uuid4()), await tenant.role("reader", "doc.read")
    await tenant.bind(user, role, condition="context.ok")
    await tenant.bind(user, role, denies=True, resource="doc/1")
    await tenant.bind(user, role, step_up=rbac_pb2.StepUp(acr="mfa"))

    request = permission_pb2.ListSubjectPermissionsRequest(subject=subject(USER, user), resource="doc/1", tenant_id=tenant.id)
    answer = await ask(tenant.instances[0].permissions.ListSubjectPermissions, request, tenant.peer)

    told = {(grant.condition, grant.step_up.acr, grant.effect) for grant in answer.grants}
    assert told == {
        ("context.ok", "", rbac_pb2.BINDING_EFFECT_ALLOW),
        ("", "", rbac_pb2.BINDING_EFFECT_DENY),
        ("", "mfa", rbac_pb2.BINDING_EFFECT_ALLOW),
    }
    assert list(answer.role_names) == []  # none is held whatever is asked


async def test_many_conditions_are_made_ready_one_at_a_time(tenant: Tenant) -> None:
    """To compile one takes milliseconds: five hundred of them in one turn would hold everybody's calls for as long as a lease lives."""
    role = await tenant.role("reader", "doc.read")
    conditions = [" && ".join([f"context.l{number}.all(x, x >= 0.0)"] * 60) for number in range(31)]
    began = time.thread_time()
    Conditions().check(conditions.pop())
    one = time.thread_time() - began
    orders = [rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, str(uuid4())), role_id=role, condition=each) for each in conditions]
    changes = [policy_pb2.PolicyChange(create_role_binding=order) for order in orders]

    first, second, _ = tenant.instances
    for rpc, request in (
        (first.policies.SimulateChange, policy_pb2.SimulateChangeRequest(changes=changes)),
        (second.bindings.BatchCreateRoleBindings, rbac_pb2.BatchCreateRoleBindingsRequest(requests=orders)),
    ):
        async with turns() as seen:
            await ask(rpc, request, tenant.admin)
        assert seen.longest < len(conditions) / 2 * one
