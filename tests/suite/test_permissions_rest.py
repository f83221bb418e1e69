"""Permissions as the world meets them: over REST, in JSON, through Envoy."""

from typing import Any
from uuid import uuid4

import httpx

from tests.suite.conftest import Person, Suite, new_person


async def post(rest: httpx.AsyncClient, path: str, body: dict[str, Any], who: Person) -> dict[str, Any]:
    """Return the answer's body."""
    answer = await rest.post(path, json=body, headers=who.headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_policy_is_tried_made_explained_and_looked_up(suite: Suite, admin: Person) -> None:
    person, name = await new_person(suite, admin), f"clerk-{uuid4().hex[:8]}"
    who = {"type": "SUBJECT_TYPE_USER", "id": person.id}
    async with suite.rest as rest:
        role = (await post(rest, "/v1/roles", {"name": name, "permissions": ["invoice.pay"]}, admin))["role"]
        await post(rest, "/v1/resources:setParent", {"resource": f"invoice/{name}", "parent": f"folder/{name}"}, admin)
        binding = {"subject": who, "role_id": role["id"], "resource": f"folder/{name}", "condition": "context.amount < 100.0"}

        tried = await post(rest, "/v1/role-bindings", {**binding, "validate_only": True}, admin)
        assert tried["impact"]["gaining_count"] == "1"
        assert tried["impact"]["gains"][0]["permissions"] == ["invoice.pay"]
        question = {"subject": who, "permission": "invoice.pay", "resource": f"invoice/{name}"}
        assert (await post(rest, "/v1/permissions:check", question, admin))["decision"] == "DENY"

        made = (await post(rest, "/v1/role-bindings", binding, admin))["role_binding"]
        small, large = ({**question, "context": {"amount": amount}} for amount in (5, 500))
        assert (await post(rest, "/v1/permissions:check", small, admin))["decision"] == "ALLOW"
        asked = await post(rest, "/v1/permissions:check", question, admin)
        assert (asked["decision"], asked["missing_context"]) == ("CONDITIONAL", ["amount"])
        explained = await post(rest, "/v1/permissions:explain", large, admin)
        assert explained["missing"][0] == "the condition `context.amount < 100.0` does not hold"
        explained = await post(rest, "/v1/permissions:explain", small, admin)
        assert explained["chain"][-1]["text"] == "grants invoice.pay by invoice.pay"

        where = {"subject": who, "permission": "invoice.pay", "resource_type": "invoice", "context": {"amount": 5}}
        found = await post(rest, "/v1/permissions:lookupResources", where, admin)
        assert found["resources"] == [{"resource": f"invoice/{name}", "decision": "ALLOW"}]
        who_may = {"permission": "invoice.pay", "resource": f"invoice/{name}", "context": {"amount": 5}}
        subjects = (await post(rest, "/v1/permissions:lookupSubjects", who_may, admin))["subjects"]
        # Clients of other tests may hold everything.
        assert {each["subject"]["id"] for each in subjects if each["subject"]["type"] == "SUBJECT_TYPE_USER"} == {person.id, admin.id}

        patch = {"role_binding": {"condition": ""}, "update_mask": "condition", "etag": made["etag"]}
        changed = await rest.patch(f"/v1/role-bindings/{made['id']}", json=patch, headers=admin.headers)
        assert changed.status_code == 200, changed.text
        assert (await post(rest, "/v1/permissions:check", question, admin))["decision"] == "ALLOW"
        stale = await rest.patch(f"/v1/role-bindings/{made['id']}", json={**patch, "role_binding": {"condition": "true"}}, headers=admin.headers)
        assert stale.json()["details"][0]["reason"] == "ETAG_MISMATCH"


async def test_many_changes_are_simulated_and_then_made_at_once(suite: Suite, admin: Person) -> None:
    person, name = await new_person(suite, admin), f"batch-{uuid4().hex[:8]}"
    async with suite.rest as rest:
        changes = [
            {"create_role": {"name": name, "permissions": ["report.read"]}},
            {"create_role_binding": {"subject": {"type": "SUBJECT_TYPE_USER", "id": person.id}, "role_name": name}},
        ]
        simulated = await post(rest, "/v1/policy:simulate", {"changes": changes}, admin)
        assert simulated["impact"]["gains"][0]["subject"]["id"] == person.id
        unchanged = {"changes": changes, "unchanged_since": simulated["consistency_token"], "request_id": str(uuid4())}
        done = await post(rest, "/v1/policy:apply", unchanged, admin)
        assert len([made for made in done["ids"] if made]) == 2
        question = {"subject": {"type": "SUBJECT_TYPE_USER", "id": person.id}, "permission": "report.read"}
        assert (await post(rest, "/v1/permissions:check", question, admin))["decision"] == "ALLOW"


async def test_authzen_over_rest_answers_as_the_standard_says(suite: Suite, admin: Person) -> None:
    person, name = await new_person(suite, admin), f"todo-{uuid4().hex[:8]}"
    async with suite.rest as rest:
        role = (await post(rest, "/v1/roles", {"name": name, "permissions": ["todo.can_read"]}, admin))["role"]
        await post(
            rest, "/v1/role-bindings", {"subject": {"type": "SUBJECT_TYPE_USER", "id": person.id}, "role_id": role["id"], "resource": "todo/1"}, admin
        )
        subject, read = {"type": "user", "id": person.id}, {"name": "can_read"}

        one = await post(rest, "/access/v1/evaluation", {"subject": subject, "action": read, "resource": {"type": "todo", "id": "1"}}, admin)
        assert one == {"decision": True, "context": {"reason": "GRANTED"}}
        batch = {"subject": subject, "action": read, "evaluations": [{"resource": {"type": "todo", "id": each}} for each in ("1", "2")]}
        many = await post(rest, "/access/v1/evaluations", batch, admin)
        assert [each["decision"] for each in many["evaluations"]] == [True, False]
        bad = await rest.post("/access/v1/evaluation", json={"subject": subject, "action": read}, headers=admin.headers)
        assert (bad.status_code, bad.json()["details"][1]["field_violations"][0]["field"]) == (400, "resource")
        unknown = await rest.post("/access/v1/evaluation", json=batch)
        assert unknown.status_code in (400, 401)
