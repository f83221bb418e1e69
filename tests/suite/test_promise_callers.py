"""The promise, where callers are remembered: once a call that takes a token away has answered, every instance of rbac and identity refuses it."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.conftest import eventually
from tests.suite.conftest import PASSWORD, Person, Suite, login, new_client, new_person, sql
from tests.suite.test_promise import statuses
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.token.v1 import token_pb2, token_pb2_grpc

ROUNDS = 200 if os.environ.get("WATCHWORD_LONG") else 6
TakeAway = Callable[[Suite, Person, Person], Awaitable[None]]


async def lets_in(rpc: Any, request: Any, token: str) -> bool:
    """Whether an instance knows who calls, be it allowed to him or not."""
    try:
        await rpc(request, metadata=(("authorization", f"Bearer {token}"),), timeout=5)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise
        return error.code() is grpc.StatusCode.PERMISSION_DENIED
    return True


async def let_in(suite: Suite, token: str) -> list[bool]:
    """Return what each instance of rbac and identity does with a token, all asked at once."""
    who = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id="00000000-0000-4000-8000-000000000001")
    question = permission_pb2.CheckPermissionRequest(subject=who, permission="doc.read")
    checks = [(stub.CheckPermission, question) for stub in suite.stubs("rbac", permission_pb2_grpc.PermissionServiceStub)]
    own = [(stub.GetMe, authentication_pb2.GetMeRequest()) for stub in suite.stubs("identity", authentication_pb2_grpc.AuthenticationServiceStub)]
    return list(await asyncio.gather(*(lets_in(rpc, request, token) for rpc, request in (*checks, *own))))


async def warm(suite: Suite, token: str) -> None:
    """Let every instance know the bearer by heart, which it does when it is a guest in good standing."""
    wanted = len(suite.instances("rbac")) + len(suite.instances("identity"))
    guests = "SELECT 1 FROM token.instance WHERE guest AND mode = 'leased' AND seen_time > clock_timestamp() - interval '3 seconds'"

    async def all_are_guests() -> bool:
        return len(await sql(suite, guests)) >= wanted

    await eventually(all_are_guests)
    for _ in range(3):
        assert all(await let_in(suite, token))


async def post(suite: Suite, path: str, by: Person, **body: str) -> None:
    async with suite.rest as rest:
        answer = await rest.post(path, json=body, headers=by.headers)
    assert answer.status_code == 200, answer.text


async def disable(suite: Suite, admin: Person, person: Person) -> None:
    await post(suite, f"/v1/users/{person.id}:disable", admin)


async def delete(suite: Suite, admin: Person, person: Person) -> None:
    async with suite.rest as rest:
        assert (await rest.delete(f"/v1/users/{person.id}", headers=admin.headers)).status_code == 200


async def log_out(suite: Suite, _admin: Person, person: Person) -> None:
    await post(suite, "/v1/auth/logout", person)


async def log_out_everywhere(suite: Suite, _admin: Person, person: Person) -> None:
    await post(suite, "/v1/auth/logout-all", person)


async def change_the_password_elsewhere(suite: Suite, _admin: Person, person: Person) -> None:
    elsewhere = await login(suite, person.email)
    await post(suite, "/v1/auth/password:change", elsewhere, current_password=PASSWORD, new_password=PASSWORD + " 8")


async def revoke_the_token(suite: Suite, _admin: Person, person: Person) -> None:
    stub: Any = suite.stub(token_pb2_grpc.TokenServiceStub)
    await stub.RevokeToken(token_pb2.RevokeTokenRequest(token=person.token), metadata=suite.peer("identity", to="token"))


@pytest.mark.timeout(120 + 5 * ROUNDS)
@pytest.mark.parametrize("take_away", [disable, delete, log_out, log_out_everywhere, change_the_password_elsewhere, revoke_the_token])
async def test_what_was_taken_from_a_person_is_refused_by_everybody_who_knew_him(suite: Suite, admin: Person, take_away: TakeAway) -> None:
    """Round after round, all instances warmed, and all asked at once after the OK."""
    let_in_late = []
    for number in range(ROUNDS):
        person = await new_person(suite, admin)
        await warm(suite, person.token)
        racing = asyncio.create_task(let_in(suite, person.token))
        await take_away(suite, admin, person)
        let_in_now, said = await asyncio.gather(let_in(suite, person.token), statuses(suite, person.token))
        if any(let_in_now) or "VALID" in said:
            let_in_late.append(number)
        await racing
        if any(await let_in(suite, person.token)):
            let_in_late.append(number)

    assert let_in_late == []


@pytest.mark.timeout(120 + 5 * ROUNDS)
async def test_the_token_of_a_deleted_client_is_refused_by_everybody_who_knew_it(suite: Suite, admin: Person) -> None:
    for _ in range(ROUNDS):
        client = await new_client(suite, admin, "permissions.check")
        await warm(suite, client.token)
        async with suite.rest as rest:
            assert (await rest.delete(f"/v1/oauth-clients/{client.id}", headers=admin.headers)).status_code == 200

        let_in_now, said = await asyncio.gather(let_in(suite, client.token), statuses(suite, client.token))
        assert not any(let_in_now)
        assert "VALID" not in said
