"""The examples, run as their readers run them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import eventually, free_port, process
from tests.suite.conftest import Client, Person, Suite, new_client, new_person
from watchword.token.v1 import token_pb2


@pytest.fixture(scope="module")
async def client(suite: Suite, admin: Person) -> Client:
    """The application's own client."""
    return await new_client(suite, admin, "tokens.verify", "permissions.check")


def environment_of(suite: Suite, client: Client) -> dict[str, str]:
    """Return what the examples read."""
    own = {"WATCHWORD_TARGET": suite.endpoints.grpc, "WATCHWORD_ISSUER": suite.endpoints.rest, "CLIENT_ID": client.id, "CLIENT_SECRET": client.secret}
    return {**os.environ, **own}


@pytest.fixture(scope="module")
def application(suite: Suite, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The FastAPI application, on a port of its own."""
    port = free_port()
    environment = environment_of(suite, client)
    log: Path = tmp_path_factory.mktemp("fastapi") / "log"
    command = [sys.executable, "-m", "uvicorn", "docs.examples.fastapi_app:app", "--port", str(port), "--log-level", "warning"]
    with process(command, log=log, environment=environment) as running:
        yield f"http://127.0.0.1:{port}"
        assert running.poll() is None, log.read_text()


async def test_a_fastapi_application_lets_in_and_keeps_out(suite: Suite, admin: Person, application: str) -> None:
    """A good token reads, a role pays, and both end: the role at once, the token as soon as its revocation has arrived."""
    person = await new_person(suite, admin)
    async with httpx.AsyncClient(base_url=application, timeout=10) as app, suite.rest as rest:

        async def is_up() -> bool:
            try:
                return (await app.get("/invoices/7")).status_code == 401
            except httpx.TransportError:
                return False

        await eventually(is_up, within=20)
        assert (await app.get("/invoices/7")).headers["www-authenticate"].startswith("Bearer")
        assert (await app.get("/invoices/7", headers=person.headers)).json() == {"invoice": 7, "reader": person.id}
        assert (await app.post("/invoices/7:pay", headers=person.headers)).status_code == 403

        made = await rest.post("/v1/roles", json={"name": "payer", "permissions": ["invoices.pay"]}, headers=admin.headers)
        assert made.status_code == 200, made.text
        subject = {"type": "SUBJECT_TYPE_USER", "id": person.id}
        bound = await rest.post("/v1/role-bindings", json={"subject": subject, "role_name": "payer"}, headers=admin.headers)
        assert bound.status_code == 200, bound.text
        assert (await app.post("/invoices/7:pay", headers=person.headers)).json() == {"invoice": 7, "payer": person.id}

        binding = bound.json()["role_binding"]["id"]
        assert (await rest.delete(f"/v1/role-bindings/{binding}", headers=admin.headers)).status_code == 200
        assert (await app.post("/invoices/7:pay", headers=person.headers)).status_code == 403

        await suite.grpc.tokens.RevokeToken(token_pb2.RevokeTokenRequest(token=person.token), metadata=person.metadata)

        async def is_out() -> bool:
            return (await app.get("/invoices/7", headers=person.headers)).status_code == 401

        await eventually(is_out, within=2)


async def test_a_grpc_service_lets_in_and_keeps_out(suite: Suite, admin: Person, client: Client, tmp_path: Path) -> None:
    """A method for everybody with a good token, one for nobody without the permission, and the token's end."""
    person, address = await new_person(suite, admin), f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "docs.examples.grpc_service", address]
    with process(command, log=tmp_path / "log", environment=environment_of(suite, client)):
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]

            async def code(metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
                try:
                    await health.Check(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=5, wait_for_ready=True)
                except grpc.aio.AioRpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

            async def is_up() -> bool:
                return await code() is grpc.StatusCode.UNAUTHENTICATED

            await eventually(is_up, within=20)
            assert await code(person.metadata) is grpc.StatusCode.OK
            watch = health.Watch(health_pb2.HealthCheckRequest(), metadata=person.metadata, timeout=5)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await watch.read()
            assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED

            await suite.grpc.tokens.RevokeToken(token_pb2.RevokeTokenRequest(token=person.token), metadata=person.metadata)

            async def is_out() -> bool:
                return await code(person.metadata) is grpc.StatusCode.UNAUTHENTICATED

            await eventually(is_out, within=2)
