"""Instances die, stores blink: what goes on, and what is said of it."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from bench.machine import family
from tests.conftest import eventually
from tests.suite.conftest import Person, Suite, login, reason


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


async def test_a_killed_hash_process_costs_nobody_a_login(suite: Suite, person: Person) -> None:
    """Whether it waits for a password or hashes one."""
    pids = [one.pid for one in suite.instances("identity") if one.pid is not None]
    before = {pid: hash_processes(pid) for pid in pids}
    assert all(before.values())
    waiting, hashing = [child for children in before.values() for child in children], list[int]()
    for child in waiting:
        os.kill(child, signal.SIGKILL)

    logins = [asyncio.create_task(login(suite, person.email)) for _ in range(4)]  # more at once would count as guesses

    async def some_hash() -> bool:
        hashing[:] = [child for pid in pids for child in hash_processes(pid) if child not in waiting]  # those may not be quite dead yet
        return bool(hashing)

    await eventually(some_hash)
    for child in hashing:
        os.kill(child, signal.SIGKILL)

    assert {one.email for one in await asyncio.gather(*logins)} == {person.email}
    assert hashing
    assert any(hash_processes(pid) for pid in pids)


def hash_processes(pid: int) -> list[int]:
    """Return the hash processes of an instance that run."""
    return [child for child in family(pid) if "hash_process" in _command(child)]


def _command(pid: int) -> str:
    """Return what a process was started with; a zombie has forgotten it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
