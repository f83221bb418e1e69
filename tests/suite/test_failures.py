"""Instances die, stores blink: what goes on, and what is said of it."""

import asyncio

from tests.conftest import eventually
from tests.suite.conftest import Person, Suite, reason


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
