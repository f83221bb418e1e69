"""Many questions at once, and who may state which tenant."""

import asyncio
import random
from typing import Any
from uuid import uuid4

import pytest

from tests.service.rbac.conftest import CLIENT, GROUP, USER, Rbac, Tenant, as_client, ask, subject
from watchword.errors import InvalidRequest, PermissionDenied, RequestTooLarge, ResourceExhausted, WatchwordError
from watchword.rbac.v1 import permission_pb2, rbac_pb2


def question(who: str, permission: str, resource: str = "", kind: Any = USER, tenant_id: str = "") -> permission_pb2.CheckPermissionRequest:
    return permission_pb2.CheckPermissionRequest(subject=subject(kind, who), permission=permission, resource=resource, tenant_id=tenant_id)


async def test_each_answer_of_a_batch_is_that_of_the_single_check(rbac: Rbac, tenant: Tenant) -> None:
    """A115: duplicates, mixed subjects and resources, shuffled; cold at one instance, warm at the other."""
    group, users = await tenant.group("team"), [str(uuid4()) for _ in range(4)]
    await tenant.place("doc/1", "folder/a")
    await tenant.bind(users[0], await tenant.role("reader", "doc.read"))
    await tenant.bind(users[1], await tenant.role("writer", "doc.*"), resource="folder/a")
    await tenant.bind(group, await tenant.role("other", "*.list"), kind=GROUP)
    await tenant.join(group, users[2])
    questions = [
        question(who, permission, resource, kind)
        for who in (*users, tenant.admin_id)
        for permission in ("doc.read", "doc.write", "doc.list")
        for resource in ("", "doc/1", "folder/b")
        for kind in (USER, CLIENT)
    ]
    questions = random.Random(7).sample(questions * 2, len(questions) * 2)
    singles = [await tenant.check(one.subject.id, one.permission, one.resource, kind=one.subject.type) for one in questions]
    batch = permission_pb2.BatchCheckPermissionsRequest(requests=questions, tenant_id=tenant.id)

    for at in (0, 1):
        answers = await ask(rbac.instances[at].permissions.BatchCheckPermissions, batch, tenant.peer)
        assert list(answers.responses) == singles


async def test_all_answers_of_a_batch_are_of_one_state(rbac: Rbac, tenant: Tenant) -> None:
    """A role moves from one user to another, given before it is taken: no state has none of them."""
    first, second, role = str(uuid4()), str(uuid4()), await tenant.role("baton", "doc.read")
    holder = (first, await tenant.bind(first, role))
    batch = permission_pb2.BatchCheckPermissionsRequest(requests=[question(who, "doc.read") for who in (first, second)], tenant_id=tenant.id)

    async def relay() -> None:
        nonlocal holder
        for _ in range(30):
            other = second if holder[0] == first else first
            binding = await tenant.bind(other, role)
            await tenant.unbind(holder[1])
            holder = (other, binding)

    running = asyncio.create_task(relay())
    while not running.done():
        answers = await ask(rbac.instances[1].permissions.BatchCheckPermissions, batch, tenant.peer)
        assert permission_pb2.ALLOW in [answer.decision for answer in answers.responses]
        assert len({answer.consistency_token for answer in answers.responses}) == 1
    await running


async def test_a_bad_question_fails_alone_and_says_why(rbac: Rbac, tenant: Tenant) -> None:
    """A115: item for item what single checks say, the malformed one included."""
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("reader", "doc.read"))
    good, fresh, wordy = question(user, "doc.read"), question(user, "doc.read"), question(user, "doc.read")
    fresh.consistency.fully_consistent = True
    wordy.context.update({"word": "x" * 9000})
    bad = [
        (question(user, "doc.*"), "permission must be a permission"),
        (question(user, ""), "permission is required"),
        (question("somebody", "doc.read"), "subject.id must be a UUID"),
        (permission_pb2.CheckPermissionRequest(subject=rbac_pb2.Subject(type=USER), permission="doc.read"), "subject.id is required"),
        (question(user, "doc.read", kind=rbac_pb2.SUBJECT_TYPE_ANY), "subject.id must be empty"),
        (question(user, "doc.read", "nowhere"), "resource must be a resource"),
        (permission_pb2.CheckPermissionRequest(permission="doc.read"), "subject is required"),
        (question(user, "doc.read", kind=9), "subject.type is not one of the known values"),
        (question(user, "doc.read", tenant_id=str(uuid4())), "tenant_id must be empty"),
        (fresh, "consistency must be unset"),
        (wordy, "context must be at most"),
    ]
    batch = permission_pb2.BatchCheckPermissionsRequest(tenant_id=tenant.id)
    for request, _ in bad:
        batch.requests.extend([good, request])

    for _ in range(2):  # cold, then warm
        answers = list((await ask(rbac.instances[0].permissions.BatchCheckPermissions, batch, tenant.peer)).responses)
        assert {answer.decision for answer in answers[::2]} == {permission_pb2.ALLOW}
        assert {(answer.decision, answer.error.reason) for answer in answers[1::2]} == {(permission_pb2.DECISION_UNSPECIFIED, "INVALID_REQUEST")}
        for answer, (_, words) in zip(answers[1::2], bad, strict=True):
            assert words in answer.error.message


async def test_a_batch_holds_one_to_a_thousand_questions(rbac: Rbac, tenant: Tenant) -> None:
    longest = question(str(uuid4()), f"{'p' * 63}.{'q' * 63}", f"{'r' * 63}/{'s' * 180}")
    full = permission_pb2.BatchCheckPermissionsRequest(requests=[longest] * 1000, tenant_id=tenant.id)
    answers = await ask(rbac.instances[0].permissions.BatchCheckPermissions, full, tenant.peer)
    assert len(answers.responses) == 1000

    for count in (0, 1001):
        batch = permission_pb2.BatchCheckPermissionsRequest(requests=[question(str(uuid4()), "a.b")] * count, tenant_id=tenant.id)
        with pytest.raises(InvalidRequest):
            await ask(rbac.instances[0].permissions.BatchCheckPermissions, batch, tenant.peer)


async def test_a_message_beyond_all_bounds_is_refused(rbac: Rbac, tenant: Tenant) -> None:
    huge = permission_pb2.BatchCheckPermissionsRequest(requests=[question("x" * 2000, "a.b")] * 1000, tenant_id=tenant.id)

    with pytest.raises((RequestTooLarge, ResourceExhausted)):
        await ask(rbac.instances[0].permissions.BatchCheckPermissions, huge, tenant.peer)


async def test_a_service_states_the_tenant_and_others_have_one(rbac: Rbac, tenant: Tenant) -> None:
    checks, other = rbac.instances[0].permissions.CheckPermission, await rbac.tenant()
    user = question(tenant.admin_id, "doc.read")

    with pytest.raises(InvalidRequest) as refusal:
        await ask(checks, user, tenant.peer)
    assert refusal.value.violations[0].field == "tenant_id"

    for stated in ("", tenant.id):
        answer = await ask(checks, question(tenant.admin_id, "doc.read", tenant_id=stated), tenant.admin)
        assert answer.decision == permission_pb2.ALLOW
    for foreign in (other.id, str(uuid4())):
        with pytest.raises(InvalidRequest) as refusal:
            await ask(checks, question(tenant.admin_id, "doc.read", tenant_id=foreign), tenant.admin)
        assert refusal.value.violations[0].field == "tenant_id"
    binding = rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, tenant.admin_id), role_name="watchword.admin", tenant_id=other.id)
    with pytest.raises(InvalidRequest):
        await ask(rbac.instances[0].bindings.CreateRoleBinding, binding, tenant.admin)


async def test_a_check_needs_the_scope_or_the_permission(rbac: Rbac, tenant: Tenant) -> None:
    checks, client, request = rbac.instances[0].permissions.CheckPermission, str(uuid4()), question(tenant.admin_id, "doc.read")

    assert await ask(checks, request, as_client(tenant.id, client, "permissions.check"))
    with pytest.raises(PermissionDenied):
        await ask(checks, request, as_client(tenant.id, client, "tokens.verify"))
    with pytest.raises(PermissionDenied):
        await ask(checks, request, tenant.user(str(uuid4())))
    with pytest.raises(PermissionDenied):
        await ask(checks, question(tenant.admin_id, "doc.read", tenant_id=tenant.id), rbac.keys.metadata("token", to="rbac"))


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer x"),), (("authorization", "Basic eDp5"),)])
async def test_a_caller_who_proves_nothing_is_told_nothing(rbac: Rbac, tenant: Tenant, metadata: Any) -> None:
    with pytest.raises(WatchwordError) as refusal:
        await ask(rbac.instances[0].permissions.CheckPermission, question(tenant.admin_id, "doc.read"), metadata)

    assert refusal.value.code.name == "UNAUTHENTICATED"
