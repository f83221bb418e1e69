"""The four health paths in the deployment guide's words, and grpc.health.v1 on every instance."""

import time

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.suite.conftest import Suite

SERVICES = {
    "identity": "watchword.identity.v1.AuthenticationService",
    "token": "watchword.token.v1.TokenService",
    "rbac": "watchword.rbac.v1.PermissionService",
    "gateway": "watchword.gateway.v1.HealthService",
}


async def test_the_basic_check_says_exactly_what_the_guide_says(suite: Suite) -> None:
    """Field for field, in this order."""
    async with suite.rest as rest:
        answer = await rest.get("/health")
    body = answer.json()
    assert list(body) == ["status", "service", "version", "environment", "timestamp"]
    assert (body["status"], body["service"], body["version"], body["environment"]) == ("healthy", "Auth Server", "1.0.0", "development")
    assert isinstance(body["timestamp"], float)
    assert abs(body["timestamp"] - time.time()) < 5


async def test_the_detailed_check_adds_database_and_redis(suite: Suite) -> None:
    """The same, and `checks`."""
    async with suite.rest as rest:
        body = (await rest.get("/health/detailed")).json()
    assert list(body) == ["status", "service", "version", "environment", "timestamp", "checks"]
    assert body["checks"] == {"database": "healthy", "redis": "healthy"}


@pytest.mark.parametrize(("path", "word"), [("/health/ready", "ready"), ("/health/live", "alive")])
async def test_the_probes_of_kubernetes_answer_200(suite: Suite, path: str, word: str) -> None:
    """What the seed's Deployment probes."""
    async with suite.rest as rest:
        answer = await rest.get(path)
    assert (answer.status_code, answer.json()["status"]) == (200, word)


@pytest.mark.parametrize("service", SERVICES)
async def test_every_instance_answers_the_standard_health_protocol(suite: Suite, service: str) -> None:
    """`""` and the full service name mean ready, `live` means alive, `ready.redis` that Redis answers; Watch streams."""
    for instance in suite.instances(service):
        stub = health_pb2_grpc.HealthStub(suite.channel(instance.address))  # type: ignore[no-untyped-call]
        for name in ("", SERVICES[service], "live", "ready.redis"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, (instance.name, name)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICES[service]))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize("service", SERVICES)
async def test_every_instance_reflects_its_services(suite: Suite, service: str) -> None:
    """What `buf curl` and grpcurl need."""
    stub = reflection_pb2_grpc.ServerReflectionStub(suite.channel(suite.instances(service)[0].address))  # type: ignore[no-untyped-call]
    stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {one.name async for answer in stream for one in answer.list_services_response.service}
    assert {SERVICES[service], "grpc.health.v1.Health"} <= names
