"""AuthZEN 1.0: the standard's shapes, on the decisions of the check."""

from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from tests.service.rbac.conftest import Tenant, ask, turns
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import authzen_pb2, authzen_pb2_grpc, rbac_pb2


async def evaluate(tenant: Tenant, body: dict[str, Any]) -> dict[str, Any]:
    """Ask as the body of the REST call would."""
    stub = authzen_pb2_grpc.AuthZenServiceStub(tenant.instances[0].channel)
    return MessageToDict(await ask(stub.Evaluate, ParseDict(body, authzen_pb2.EvaluateRequest()), tenant.admin))


async def evaluate_many(tenant: Tenant, body: dict[str, Any]) -> dict[str, Any]:
    """Ask as the body of the REST call would."""
    stub = authzen_pb2_grpc.AuthZenServiceStub(tenant.instances[0].channel)
    return MessageToDict(await ask(stub.EvaluateMany, ParseDict(body, authzen_pb2.EvaluateManyRequest()), tenant.admin))


async def reader(tenant: Tenant, resource: str = "doc/1") -> dict[str, str]:
    """Return a user who may read a document."""
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("reader", "doc.read"), resource=resource)
    return {"type": "user", "id": user}


async def test_an_evaluation_is_a_check(tenant: Tenant) -> None:
    subject, doc = await reader(tenant), {"type": "doc", "id": "1"}

    allowed = await evaluate(tenant, {"subject": subject, "action": {"name": "read"}, "resource": doc})
    spelt_out = await evaluate(tenant, {"subject": subject, "action": {"name": "doc.read"}, "resource": doc})
    denied = await evaluate(tenant, {"subject": subject, "action": {"name": "write"}, "resource": doc})

    assert allowed == spelt_out == {"decision": True, "context": {"reason": "GRANTED"}}
    assert denied.get("decision", False) is False
    assert denied["context"] == {"reason": "NO_PERMISSION"}


async def test_properties_and_context_are_what_conditions_see(tenant: Tenant) -> None:
    who = str(uuid4())
    user = {"type": "user", "id": who, "properties": {"department": "sales"}}
    condition = "context.subject.department == context.resource.department && context.amount < 100"
    await tenant.bind(who, await tenant.role("payer", "bill.pay"), condition=condition)
    body = {
        "subject": user,
        "action": {"name": "pay"},
        "resource": {"type": "bill", "id": "7", "properties": {"department": "sales"}},
        "context": {"amount": 5},
    }

    assert (await evaluate(tenant, body))["decision"] is True
    lacking = await evaluate(tenant, {**body, "context": {}})
    assert (lacking.get("decision", False), lacking["context"]["missing_context"]) == (False, ["amount"])


async def test_a_stronger_login_is_named(tenant: Tenant) -> None:
    user = str(uuid4())
    await tenant.bind(user, await tenant.role("payer", "bill.pay"), step_up=rbac_pb2.StepUp(acr="mfa"))

    answer = await evaluate(tenant, {"subject": {"type": "user", "id": user}, "action": {"name": "pay"}, "resource": {"type": "bill", "id": "7"}})

    assert answer["context"] == {"reason": "LOGIN_TOO_WEAK", "acr_values": "mfa"}


async def test_many_take_what_they_do_not_say_from_the_whole(tenant: Tenant) -> None:
    subject = await reader(tenant)
    body = {
        "subject": subject,
        "action": {"name": "read"},
        "evaluations": [
            {"resource": {"type": "doc", "id": "1"}},
            {"resource": {"type": "doc", "id": "2"}},
            {"resource": {"type": "doc", "id": "1"}, "action": {"name": "write"}},
            {"resource": {"type": "doc"}, "subject": {"type": "robot", "id": "r2d2"}},
            {},
        ],
    }

    answers = (await evaluate_many(tenant, body))["evaluations"]

    assert [one.get("decision", False) for one in answers] == [True, False, False, False, False]
    assert answers[3]["context"]["error"]["status"] == 400
    assert "subject.type" in answers[3]["context"]["error"]["message"]
    assert "resource is required" in answers[4]["context"]["error"]["message"]


@pytest.mark.parametrize(("semantic", "count"), [("execute_all", 4), ("deny_on_first_deny", 2), ("permit_on_first_permit", 1), ("", 4)])
async def test_evaluations_stop_where_they_are_told_to(tenant: Tenant, semantic: str, count: int) -> None:
    subject = await reader(tenant)
    body = {
        "subject": subject,
        "action": {"name": "read"},
        "evaluations": [{"resource": {"type": "doc", "id": name}} for name in ("1", "2", "1", "2")],
        "options": {"evaluations_semantic": semantic},
    }

    answers = (await evaluate_many(tenant, body))["evaluations"]

    assert [one.get("decision", False) for one in answers] == [True, False, True, False][:count]


async def test_no_evaluations_are_one(tenant: Tenant) -> None:
    body = {"subject": await reader(tenant), "action": {"name": "read"}, "resource": {"type": "doc", "id": "1"}}

    assert await evaluate_many(tenant, body) == {"decision": True, "context": {"reason": "GRANTED"}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"subject": None}, "subject"),
        ({"action": None}, "action"),
        ({"resource": None}, "resource"),
        ({"subject": {"type": "robot", "id": "1"}}, "subject.type"),
        ({"subject": {"type": "user", "id": "somebody"}}, "subject.id"),
        ({"action": {"name": "Read!"}}, "permission"),
        ({"resource": {"type": "doc", "id": "a b"}}, "resource"),
        ({"context": {"word": "x" * 9000}}, "context"),
    ],
)
async def test_what_cannot_be_asked_is_refused(tenant: Tenant, change: dict[str, Any], field: str) -> None:
    body = {"subject": {"type": "user", "id": str(uuid4())}, "action": {"name": "read"}, "resource": {"type": "doc", "id": "1"}, **change}

    with pytest.raises(InvalidRequest) as refusal:
        await evaluate(tenant, {name: value for name, value in body.items() if value is not None})

    assert [violation.field for violation in refusal.value.violations] == [field]


async def test_an_unknown_semantic_is_refused(tenant: Tenant) -> None:
    body = {"evaluations": [{}], "options": {"evaluations_semantic": "guess"}}

    with pytest.raises(InvalidRequest) as refusal:
        await evaluate_many(tenant, body)

    assert [violation.field for violation in refusal.value.violations] == ["options.evaluations_semantic"]


async def test_many_evaluations_of_a_large_context_leave_others_their_turns(tenant: Tenant) -> None:
    """A request of a few kilobytes is a thousand contexts: read in one go, they would hold an instance for longer than its lease lives."""
    stub = authzen_pb2_grpc.AuthZenServiceStub(tenant.instances[0].channel)
    defaults = {"subject": {"type": "user", "id": str(uuid4())}, "action": {"name": "read"}, "context": {"flags": [True] * 1800}}
    body = {**defaults, "evaluations": [{"resource": {"type": "doc", "id": str(number)}} for number in range(200)]}
    request = ParseDict(body, authzen_pb2.EvaluateManyRequest())
    async with turns() as seen:
        answer = await ask(stub.EvaluateMany, request, tenant.admin)

    assert [one.decision for one in answer.evaluations] == [False] * 200
    assert seen.longest < seen.sum / 3
