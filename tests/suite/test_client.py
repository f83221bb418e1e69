"""`watchword.Client` in another process than the suite's, through Envoy: it asks in batches, and remembers only what is still true."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import eventually, process
from tests.suite.conftest import Client as OAuthClient
from tests.suite.conftest import Person, Suite, new_client, new_person
from watchword import Client, ClientCredentials, Outcome
from watchword.errors import InvalidRequest, Unavailable

READ = "invoices.read"


@pytest.fixture(scope="module")
async def asker(suite: Suite, admin: Person) -> OAuthClient:
    """A program that asks."""
    return await new_client(suite, admin, "permissions.check")


def client_of(suite: Suite, asker: OAuthClient, **more: object) -> Client:
    """Return a client that is not started."""
    return Client(suite.endpoints.grpc, credentials=ClientCredentials(asker.id, asker.secret), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def client(suite: Suite, asker: OAuthClient) -> AsyncIterator[Client]:
    """One that remembers."""
    async with client_of(suite, asker, cache_size=1000) as started:
        yield started


@pytest.fixture(scope="module")
async def role(suite: Suite, admin: Person) -> str:
    """A role that may read invoices."""
    name = f"reader-{uuid4().hex[:8]}"
    async with suite.rest as rest:
        made = await rest.post("/v1/roles", json={"name": name, "permissions": [READ]}, headers=admin.headers)
    assert made.status_code == 200, made.text
    return name


async def bind(suite: Suite, admin: Person, person: Person, role: str) -> tuple[str, str]:
    """Give a role; return the binding and a consistency token."""
    subject = {"type": "SUBJECT_TYPE_USER", "id": person.id}
    async with suite.rest as rest:
        bound = await rest.post("/v1/role-bindings", json={"subject": subject, "role_name": role}, headers=admin.headers)
    assert bound.status_code == 200, bound.text
    return bound.json()["role_binding"]["id"], bound.json()["consistency_token"]


async def unbind(suite: Suite, admin: Person, binding: str) -> None:
    async with suite.rest as rest:
        assert (await rest.delete(f"/v1/role-bindings/{binding}", headers=admin.headers)).status_code == 200


async def remember(client: Client, person: Person) -> None:
    """Ask until the answer is remembered."""

    async def is_remembered() -> bool:
        await client.check(f"user:{person.id}", READ)
        return client.recall(f"user:{person.id}", READ) is not None

    await eventually(is_remembered)


async def until(client: Client, person: Person, *, allowed: bool, within: float = 2) -> None:
    async def is_so() -> bool:
        return (await client.check(f"user:{person.id}", READ)).allowed is allowed

    await eventually(is_so, within=within)


async def test_many_checks_at_once_are_answered_each_by_its_own(suite: Suite, admin: Person, asker: OAuthClient, role: str) -> None:
    """A batch on the real server: who may, who may not, and one that cannot be asked."""
    people = [await new_person(suite, admin) for _ in range(3)]
    _, token = await bind(suite, admin, people[0], role)
    async with client_of(suite, asker) as client:
        decisions = await asyncio.gather(
            *(client.check(f"user:{person.id}", READ, at_least_as_fresh=token) for person in people),
            client.check("user:nobody", READ, at_least_as_fresh=token),
            return_exceptions=True,
        )
    assert [getattr(decision, "outcome", None) for decision in decisions] == [Outcome.ALLOW, Outcome.DENY, Outcome.DENY, None]
    assert isinstance(decisions[-1], InvalidRequest)


async def test_what_is_remembered_is_forgotten_when_it_changes(suite: Suite, admin: Person, client: Client, person: Person, role: str) -> None:
    """A grant and its end, while nothing is asked in between."""
    await remember(client, person)
    assert not await client.check(f"user:{person.id}", READ)
    binding, _ = await bind(suite, admin, person, role)
    await until(client, person, allowed=True)
    await remember(client, person)
    await unbind(suite, admin, binding)
    await until(client, person, allowed=False)


async def test_a_token_of_a_change_is_answered_from_after_it(suite: Suite, admin: Person, client: Client, person: Person, role: str) -> None:
    """At once, whatever is remembered."""
    for _ in range(10):
        await remember(client, person)
        binding, token = await bind(suite, admin, person, role)
        assert await client.check(f"user:{person.id}", READ, at_least_as_fresh=token)
        await unbind(suite, admin, binding)
        await until(client, person, allowed=False)


async def test_memory_outlives_the_instances_that_keep_it_true(suite: Suite, admin: Person, client: Client, role: str) -> None:
    """One after the other is killed; the client goes on at another, and misses nothing."""
    for name in ("rbac-1", "rbac-2", "rbac-3"):
        person = await new_person(suite, admin)
        binding, _ = await bind(suite, admin, person, role)
        await until(client, person, allowed=True)
        await remember(client, person)
        suite.stop(name, "KILL")
        try:

            async def is_unbound(binding: str = binding) -> bool:
                async with suite.rest as rest:
                    answer = await rest.delete(f"/v1/role-bindings/{binding}", headers=admin.headers)
                return answer.status_code in (200, 404)

            await eventually(is_unbound, within=20)
            await until(client, person, allowed=False, within=8)
        finally:
            suite.start(name)


async def test_the_example_tells_of_changes(suite: Suite, admin: Person, asker: OAuthClient, person: Person, role: str, tmp_path: Path) -> None:
    """As its readers run it."""
    environment = {**os.environ, "WATCHWORD_TARGET": suite.endpoints.grpc, "CLIENT_ID": asker.id, "CLIENT_SECRET": asker.secret}
    command = [sys.executable, "-m", "docs.examples.check_permissions", f"user:{person.id}", READ, "invoices.pay"]
    log = tmp_path / "log"
    with process(command, log=log, environment=environment):

        async def says(words: str) -> bool:
            return words in log.read_text()

        await eventually(lambda: says(f"{READ}: DENY (NO_ROLE)\ninvoices.pay: DENY (NO_ROLE)\n"))
        await bind(suite, admin, person, role)
        await eventually(lambda: says(f"{READ}: ALLOW (GRANTED)\n"), within=3)


async def test_without_the_suite_nothing_is_answered_beyond_max_staleness(suite: Suite, admin: Person, asker: OAuthClient, person: Person) -> None:
    """From memory for as long as was allowed, then not at all."""
    async with client_of(suite, asker, cache_size=10, max_staleness=timedelta(seconds=1.5)) as alone:
        await remember(alone, person)
        await alone.stop()

        async def is_stale() -> bool:
            try:
                await alone.check(f"user:{person.id}", READ)
            except Unavailable:
                return True
            await asyncio.sleep(0.05)
            return False

        await eventually(is_stale, within=5)
