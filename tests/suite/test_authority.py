"""Nobody reaches, by way of accounts or clients, for more than they hold themselves."""

from uuid import uuid4

import pytest

from tests.suite.conftest import PASSWORD, Person, Suite, new_person, reason
from tests.suite.test_promise import check, decisions, tenant_of


async def holder(suite: Suite, admin: Person, *permissions: str) -> Person:
    """Return a person with a role of these permissions."""
    person = await new_person(suite, admin)
    async with suite.rest as rest:
        role = await rest.post("/v1/roles", json={"name": f"r{uuid4().hex}", "permissions": permissions}, headers=admin.headers)
        assert role.status_code == 200, role.text
        subject = {"type": "SUBJECT_TYPE_USER", "id": person.id}
        bound = await rest.post("/v1/role-bindings", json={"subject": subject, "role_id": role.json()["role"]["id"]}, headers=admin.headers)
        assert bound.status_code == 200, bound.text
    return person


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"user": {"email": "mine@example.com"}}),
        ("POST", ":disable", {}),
        ("POST", ":enable", {}),
        ("POST", ":unlock", {}),
        ("DELETE", "", None),
    ],
    ids=["change the address", "disable", "enable", "unlock", "delete"],
)
async def test_a_user_manager_does_not_touch_an_administrator(suite: Suite, admin: Person, method: str, path: str, body: object) -> None:
    """A changed address and a reset password would make an administrator of him. Plain people he may manage."""
    manager = await holder(suite, admin, "users.*")
    for target, expected in ((admin.id, 403), ((await new_person(suite, admin)).id, 200)):
        sent = {"user": {"email": f"{uuid4().hex}@example.com"}} if method == "PATCH" else body
        async with suite.rest as rest:
            answer = await rest.request(method, f"/v1/users/{target}{path}", json=sent, headers=manager.headers)
        assert answer.status_code == expected, answer.text
        assert expected == 200 or reason(answer) == "PERMISSION_DENIED"


async def test_a_client_manager_gets_at_no_more_than_he_holds(suite: Suite, admin: Person) -> None:
    """Neither by a new client's scopes, nor by the secret of one that may do more."""
    manager = await holder(suite, admin, "oauth-clients.*", "tokens.verify")
    async with suite.rest as rest:

        async def create(by: Person, *scopes: str) -> tuple[int, str]:
            made = await rest.post("/v1/oauth-clients", json={"display_name": "c", "scopes": scopes}, headers=by.headers)
            return made.status_code, made.json().get("client", {}).get("client_id", "")

        assert (await create(manager, "tokens.revoke"))[0] == 403
        status_code, own = await create(manager, "tokens.verify")
        assert status_code == 200
        _, powerful = await create(admin, "tokens.verify")
        subject = {"type": "SUBJECT_TYPE_CLIENT", "id": powerful}
        await rest.post("/v1/role-bindings", json={"subject": subject, "role_name": "watchword.admin"}, headers=admin.headers)

        assert (await rest.post(f"/v1/oauth-clients/{own}:rotateSecret", json={}, headers=manager.headers)).status_code == 200
        assert (await rest.post(f"/v1/oauth-clients/{powerful}:rotateSecret", json={}, headers=manager.headers)).status_code == 403
        assert (await rest.delete(f"/v1/oauth-clients/{powerful}", headers=manager.headers)).status_code == 403
        assert (await rest.delete(f"/v1/oauth-clients/{powerful}", headers=admin.headers)).status_code == 200


async def test_a_deleted_account_holds_nothing(suite: Suite, admin: Person) -> None:
    """Its bindings go with it, so that no dead administrator counts as the last one."""
    person, tenant = await holder(suite, admin, "users.read"), await tenant_of(suite, admin)
    assert await decisions(suite, check(person.id, "users.read", tenant)) == {"ALLOW"}
    async with suite.rest as rest:
        answer = await rest.delete(f"/v1/users/{person.id}", headers=admin.headers)
        assert answer.status_code == 200, answer.text
        assert await decisions(suite, check(person.id, "users.read", tenant)) == {"DENY"}
        assert (await rest.post("/v1/auth/login", json={"login": person.email, "password": PASSWORD})).status_code == 401
