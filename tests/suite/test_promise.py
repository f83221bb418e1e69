"""The promise, on the whole stack: what was taken away is refused by every instance the moment the call has answered."""

import asyncio
import os
from typing import Any
from uuid import uuid4

import pytest

from tests.suite.conftest import PASSWORD, Person, Suite, login, new_person, reason
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.token.v1 import token_pb2, token_pb2_grpc

ROUNDS = 10_000 if os.environ.get("WATCHWORD_LONG") else 100


async def statuses(suite: Suite, token: str) -> set[str]:
    """Return what every token instance says of a token, all asked at once."""
    request, metadata = token_pb2.VerifyTokenRequest(token=token), suite.peer("identity", to="token")
    stubs = suite.stubs("token", token_pb2_grpc.TokenServiceStub)
    return {
        token_pb2.TokenStatus.Name(answer.status)
        for answer in await asyncio.gather(*(stub.VerifyToken(request, metadata=metadata) for stub in stubs))
    }


async def decisions(suite: Suite, request: permission_pb2.CheckPermissionRequest) -> set[str]:
    """Return what every rbac instance decides, all asked at once."""
    metadata = suite.peer("identity", to="rbac")
    stubs = suite.stubs("rbac", permission_pb2_grpc.PermissionServiceStub)
    answers = await asyncio.gather(*(stub.CheckPermission(request, metadata=metadata) for stub in stubs))
    return {permission_pb2.Decision.Name(answer.decision) for answer in answers}


def check(subject: str, permission: str, tenant_id: str) -> permission_pb2.CheckPermissionRequest:
    who = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=subject)
    return permission_pb2.CheckPermissionRequest(subject=who, permission=permission, tenant_id=tenant_id)


async def test_a_logout_over_rest_is_seen_by_every_token_instance(suite: Suite, admin: Person) -> None:
    """Refresh tokens of the session die with it."""
    person = await new_person(suite, admin)
    assert await statuses(suite, person.token) == {"VALID"}
    async with suite.rest as rest:
        answer = await rest.post("/v1/auth/logout", json={}, headers=person.headers)
        assert answer.status_code == 200, answer.text
        assert await statuses(suite, person.token) == {"REVOKED"}
        assert (await rest.get("/v1/me", headers=person.headers)).status_code == 401
        refreshed = await rest.post("/v1/auth/refresh", json={"refresh_token": person.refresh_token})
    assert (refreshed.status_code, reason(refreshed)) == (401, "TOKEN_INVALID")


async def test_logout_all_and_password_change_end_other_sessions(suite: Suite, admin: Person) -> None:
    """A password change spares the session that made it."""
    first = await new_person(suite, admin)
    second = await login(suite, first.email)
    async with suite.rest as rest:
        changed = await rest.post(
            "/v1/auth/password:change", json={"current_password": PASSWORD, "new_password": PASSWORD + " 8"}, headers=second.headers
        )
        assert changed.status_code == 200, changed.text
        assert await statuses(suite, first.token) == {"REVOKED"}
        assert await statuses(suite, second.token) == {"VALID"}
        old = await rest.post("/v1/auth/login", json={"login": first.email, "password": PASSWORD})
        assert (old.status_code, reason(old)) == (401, "INVALID_CREDENTIALS")
        await rest.post("/v1/auth/logout-all", json={}, headers=second.headers)
    assert await statuses(suite, second.token) == {"REVOKED"}


async def test_a_disabled_account_is_refused_everywhere_at_once(suite: Suite, admin: Person) -> None:
    """And stays out until it is enabled; its old tokens stay dead."""
    person = await new_person(suite, admin)
    async with suite.rest as rest:
        disabled = await rest.post(f"/v1/users/{person.id}:disable", json={}, headers=admin.headers)
        assert disabled.status_code == 200, disabled.text
        assert await statuses(suite, person.token) == {"SUBJECT_DISABLED"}
        refused = await rest.post("/v1/auth/login", json={"login": person.email, "password": PASSWORD})
        assert (refused.status_code, reason(refused)) == (401, "INVALID_CREDENTIALS")
        await rest.post(f"/v1/users/{person.id}:enable", json={}, headers=admin.headers)
    again = await login(suite, person.email)
    assert await statuses(suite, again.token) == {"VALID"}
    assert await statuses(suite, person.token) <= {"REVOKED", "SUBJECT_DISABLED"}


async def test_the_token_of_a_change_in_another_context_is_as_fresh_at_every_rbac_instance(suite: Suite, admin: Person) -> None:
    """Identity, token and rbac count in one: whoever saw a change of theirs may ask rbac for a state no older, and is answered, warm or cold."""
    person, tenant = await new_person(suite, admin), await tenant_of(suite, admin)
    question = check(person.id, "users.read", tenant)
    assert await decisions(suite, question) == {"DENY"}  # all instances know the tenant now
    async with suite.rest as rest:
        disabled = await rest.post(f"/v1/users/{person.id}:disable", json={}, headers=admin.headers)
        question.consistency.at_least_as_fresh = disabled.json()["consistency_token"]
        assert await decisions(suite, question) == {"DENY"}
        other = await new_person(suite, admin)
        revoked = await rest.post("/v1/tokens:revoke", json={"token": other.token}, headers=other.headers)
        question.consistency.at_least_as_fresh = revoked.json()["consistency_token"]
        assert await decisions(suite, question) == {"DENY"}


@pytest.mark.timeout(120 + ROUNDS // 4)
async def test_a_removed_binding_is_denied_by_every_rbac_instance(suite: Suite, admin: Person, person: Person) -> None:
    """Bound, allowed everywhere; unbound, denied everywhere: all asked at once, caches warmed, round after round; 10,000 with WATCHWORD_LONG=1."""
    tenant = await tenant_of(suite, admin)
    question = check(person.id, "audit-events.read", tenant)
    stale: list[Any] = []
    async with suite.rest as rest:
        for round_number in range(ROUNDS):
            made = await rest.post(
                "/v1/role-bindings",
                json={"subject": {"type": "SUBJECT_TYPE_USER", "id": person.id}, "role_name": "watchword.auditor"},
                headers=admin.headers,
            )
            assert made.status_code == 200, made.text
            if await decisions(suite, question) != {"ALLOW"}:
                stale.append(("late grant", round_number))
            removed = await rest.delete(f"/v1/role-bindings/{made.json()['role_binding']['id']}", headers=admin.headers)
            assert removed.status_code == 200, removed.text
            if await decisions(suite, question) != {"DENY"}:
                stale.append(("stale allow", round_number))
    assert stale == []


async def test_a_removed_role_stops_its_holders_next_request(suite: Suite, admin: Person, person: Person) -> None:
    """The suite's own administration is ordinary rbac: no token needs to expire for it."""
    body = {"subject": {"type": "SUBJECT_TYPE_USER", "id": person.id}, "role_name": "watchword.auditor"}
    async with suite.rest as rest:
        for _ in range(10):
            assert (await rest.get("/v1/audit-events", headers=person.headers)).status_code == 403
            made = await rest.post("/v1/role-bindings", json=body, headers=admin.headers)
            assert (await rest.get("/v1/audit-events", headers=person.headers)).status_code == 200
            await rest.delete(f"/v1/role-bindings/{made.json()['role_binding']['id']}", headers=admin.headers)


async def test_the_audit_log_tells_it_all(suite: Suite, admin: Person) -> None:
    """Login, failure, revocation and binding, of three contexts, in one list."""
    person = await new_person(suite, admin)
    async with suite.rest as rest:
        await rest.post("/v1/auth/login", json={"login": person.email, "password": "wrong " + uuid4().hex})
        await rest.get("/v1/users", headers=person.headers)
        await rest.post("/v1/auth/logout-all", json={}, headers=person.headers)
        by_actor = (await rest.get("/v1/audit-events", params={"actor_id": person.id}, headers=admin.headers)).json()["events"]
        by_target = (await rest.get("/v1/audit-events", params={"target_id": person.id}, headers=admin.headers)).json()["events"]
    types = {event["type"] for event in by_actor + by_target}
    assert {"login_succeeded", "login_failed", "access_denied", "tokens_revoked"} <= types
    assert {event["context"] for event in by_actor + by_target} >= {"identity", "token"}


async def test_the_audit_log_is_what_was_written(suite: Suite, admin: Person) -> None:
    """By REST: each part goes on where the one before ended, and contains its head."""
    found: dict[str, Any] = {"next_sequence": "1", "head": {}}
    async with suite.rest as rest:
        while int(found["next_sequence"]):
            head = {f"expected_head.{name}": value for name, value in found["head"].items()}
            answer = await rest.get("/v1/audit-events:verify", params={"start_sequence": found["next_sequence"], **head}, headers=admin.headers)
            found = answer.json()
            assert found["state"] == "AUDIT_LOG_STATE_INTACT"
        forged = {"expected_head.sequence": "1", "expected_head.hash": "0" * 64}
        answer = await rest.get("/v1/audit-events:verify", params=forged, headers=admin.headers)
    assert (answer.json()["state"], answer.json()["breach"]) == ("AUDIT_LOG_STATE_BROKEN", "AUDIT_LOG_BREACH_TRUNCATED")


async def tenant_of(suite: Suite, person: Person) -> str:
    """Return the tenant that a person belongs to."""
    async with suite.rest as rest:
        return str((await rest.get("/v1/me", headers=person.headers)).json()["user"]["tenant_id"])
