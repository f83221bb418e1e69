"""Failed logins are counted by all instances together, and say nothing about whom they concern."""

import asyncio
from uuid import uuid4

import grpc

from tests.suite.conftest import PASSWORD, Person, Suite, login, new_person, reason
from watchword import status
from watchword.errors import InvalidCredentials, RateLimited, WatchwordError
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc


async def attempt(stub: "authentication_pb2_grpc.AuthenticationServiceAsyncStub", name: str, password: str) -> WatchwordError | None:
    """Return what a login raised, None if it succeeded."""
    try:
        await stub.Login(authentication_pb2.LoginRequest(login=name, password=password), timeout=20)
    except grpc.aio.AioRpcError as error:
        return status.decode(error)
    return None


async def test_ten_wrong_passwords_over_two_instances_count_as_ten(suite: Suite, admin: Person) -> None:
    """Then even the right password waits, on both instances, and over REST too, with words on how long."""
    person = await new_person(suite, admin)
    stubs = suite.stubs("identity", authentication_pb2_grpc.AuthenticationServiceStub)
    assert len(stubs) == 2

    failures = [await attempt(stubs[number % 2], person.email, f"wrong {number} password") for number in range(10)]
    assert [type(failure) for failure in failures] == [InvalidCredentials] * 10

    for stub in stubs:
        refused = await attempt(stub, person.email, PASSWORD)
        assert isinstance(refused, RateLimited)
        assert refused.retry_after is not None
    async with suite.rest as rest:
        answer = await rest.post("/v1/auth/login", json={"login": person.email, "password": PASSWORD})
        assert (answer.status_code, reason(answer)) == (429, "RATE_LIMITED")
        assert int(answer.headers["retry-after"]) >= 1
        unlocked = await rest.post(f"/v1/users/{person.id}:unlock", json={}, headers=admin.headers)
        assert unlocked.status_code == 200, unlocked.text
    await login(suite, person.email)


async def test_a_burst_of_parallel_guesses_does_not_slip_past_the_counter(suite: Suite, admin: Person) -> None:
    """A100: counting after the hash would let all of them through."""
    person = await new_person(suite, admin)
    stubs = suite.stubs("identity", authentication_pb2_grpc.AuthenticationServiceStub)
    outcomes = await asyncio.gather(*(attempt(stubs[number % 2], person.email, f"guess {number}") for number in range(60)))
    assert sum(isinstance(outcome, InvalidCredentials) for outcome in outcomes) <= 10
    assert all(isinstance(outcome, WatchwordError) for outcome in outcomes)
    async with suite.rest as rest:
        await rest.post(f"/v1/users/{person.id}:unlock", json={}, headers=admin.headers)


async def test_unknown_and_wrong_get_the_same_bytes(suite: Suite, admin: Person) -> None:
    """A105: but for the request id, nothing differs."""
    person = await new_person(suite, admin)
    bodies = []
    async with suite.rest as rest:
        for name in (person.email, f"{uuid4().hex}@example.com"):
            answer = await rest.post("/v1/auth/login", json={"login": name, "password": "not the password"})
            body = answer.json()
            for detail in body["details"]:
                detail.get("metadata", {}).pop("request_id", None)
            bodies.append((answer.status_code, body))
    assert bodies[0] == bodies[1]
