"""Instances die, stores blink: what goes on, and what is said of it."""

import asyncio

import httpx

from tests.conftest import eventually
from tests.suite.conftest import Person, Suite, reason
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.token.v1 import token_pb2

READERS = 6


async def test_reads_go_on_when_an_instance_of_each_service_is_killed(suite: Suite, admin: Person, person: Person) -> None:
    """kill -9 under load, one service after the other: Envoy sends the reads to whoever is left."""
    done = asyncio.Event()
    counts = {"ok": 0}
    failed: list[str] = []

    async def over_rest() -> None:
        async with suite.rest as rest:
            while not done.is_set():
                note(await rest.get("/v1/me", headers=person.headers))
                note(await rest.post("/v1/tokens:verify", json={"token": person.token}, headers=person.headers))
                note(await rest.get("/.well-known/jwks.json"))

    async def over_grpc() -> None:
        while not done.is_set():
            verified = await suite.grpc.tokens.VerifyToken(
                token_pb2.VerifyTokenRequest(token=person.token), metadata=suite.peer("gateway", to="token"), timeout=5
            )
            checked = await suite.grpc.permissions.CheckPermission(
                permission_pb2.CheckPermissionRequest(
                    subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=admin.id), permission="users.read"
                ),
                metadata=admin.metadata,
                timeout=5,
            )
            counts["ok"] += (verified.status == token_pb2.VALID) + (checked.decision == permission_pb2.ALLOW)

    def note(answer: httpx.Response) -> None:
        counts["ok"] += answer.status_code == 200
        if answer.status_code != 200:
            failed.append(f"{answer.request.url.path} {answer.status_code} {answer.text}")

    readers = [asyncio.create_task(over_rest()) for _ in range(READERS // 2)] + [asyncio.create_task(over_grpc()) for _ in range(READERS // 2)]
    for name in ("token-1", "rbac-1", "identity-1", "gateway-1"):
        before = counts["ok"]
        await asyncio.to_thread(suite.stop, name)

        async def more_reads(before: int = before) -> bool:
            return counts["ok"] > before + 100 or any(reader.done() for reader in readers)

        await eventually(more_reads, within=30)
        await asyncio.to_thread(suite.start, name)
    done.set()
    await asyncio.gather(*readers)

    assert failed == []
    assert counts["ok"] > 400


async def test_a_dead_redis_shows_in_the_detailed_health_and_stops_nobody(suite: Suite, person: Person) -> None:
    """/health/detailed is for people; routing uses readiness, and verification asks Postgres."""
    async with suite.rest as rest:
        healthy = await rest.get("/health/detailed")
        assert (healthy.status_code, healthy.json()["checks"]) == (200, {"database": "healthy", "redis": "healthy"})
        await asyncio.to_thread(suite.stop, "redis")
        try:
            sick = await rest.get("/health/detailed")
            assert sick.status_code == 503
            assert sick.json()["status"] == "unhealthy"
            assert sick.json()["checks"] == {"database": "healthy", "redis": "unhealthy"}
            assert (await rest.get("/health/ready")).status_code == 200
            for _ in range(20):
                verified = await rest.post("/v1/tokens:verify", json={"token": person.token}, headers=person.headers)
                assert (verified.status_code, verified.json()["status"]) == (200, "VALID")
            await rest.post("/v1/auth/logout", json={}, headers=person.headers)
            assert (await rest.get("/v1/me", headers=person.headers)).status_code == 401
        finally:
            await asyncio.to_thread(suite.start, "redis")

        async def healed() -> bool:
            return (await rest.get("/health/detailed")).status_code == 200

        await eventually(healed)


async def test_a_service_without_instances_is_unavailable_and_not_ready(suite: Suite, admin: Person) -> None:
    """Never an empty body, never a wrong answer; and it comes back by itself."""
    async with suite.rest as rest:
        for name in ("rbac-1", "rbac-2", "rbac-3"):
            await asyncio.to_thread(suite.stop, name)
        try:

            async def not_ready() -> bool:
                return (await rest.get("/health/ready")).status_code == 503

            await eventually(not_ready)
            refused = await rest.get("/v1/users", headers=admin.headers)
            assert (refused.status_code, reason(refused)) == (503, "DEPENDENCY_UNAVAILABLE")
            assert (await rest.get("/health/live")).status_code == 200
        finally:
            for name in ("rbac-1", "rbac-2", "rbac-3"):
                await asyncio.to_thread(suite.start, name)

        async def answers() -> bool:
            return (await rest.get("/v1/users", headers=admin.headers)).status_code == 200

        await eventually(answers)
