"""Scaling and blue-green under a load of reads and changes, with no failed call; the rolling restart is F02 of tests/chaos."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.up.control import stop_instance
from tests.chaos.load import Load
from tests.chaos.rows import sound
from tests.conftest import ROOT
from tests.suite.conftest import PASSWORD, Person, Suite, login, running

SERVICES = ("token", "rbac", "identity", "gateway")


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    """A stack of its own, two instances a service, because addresses and names change."""
    with running(tmp_path_factory.mktemp("rollout") / "home") as suite:
        yield suite
        for channel in suite.channels.values():
            await channel.close()


@pytest.fixture(scope="module")
async def person(here: Suite) -> Person:
    """The administrator, who may do all that the load does."""
    one_time = Path(here.endpoints.admin_password_file).read_text().strip()  # noqa: ASYNC240
    return await login(here, here.endpoints.admin_email, one_time, new_password=PASSWORD)


async def begin(suite: Suite, verb: str, *options: str) -> asyncio.subprocess.Process:
    """Start one of the scripts."""
    command = [sys.executable, "-m", "services.up.change", verb, "--home", str(suite.home), *options]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT)


async def change(suite: Suite, verb: str, *options: str) -> tuple[int, str]:
    """Run one of the scripts to its end; return its exit code and its words."""
    process = await begin(suite, verb, *options)
    words, _ = await process.communicate()
    return process.returncode or 0, words.decode()


async def spoiled(suite: Suite, service: str, spoil: Callable[[str], Awaitable[object]]) -> str:
    """Begin a switch, spoil it by the name of a green instance once all calls go to green; return the words of its end, which is blue's."""
    blue = pids(suite, service)
    switch = await begin(suite, "blue-green", service, "--watch", "60")
    assert switch.stdout
    while b"watching" not in await switch.stdout.readline():
        assert switch.returncode is None
    both = pids(suite, service)
    await spoil(sorted(both.keys() - blue.keys())[0])
    words, _ = await switch.communicate()
    assert (switch.returncode, "blue serves" in words.decode()) == (1, True), words
    assert pids(suite, service) == blue
    return words.decode()


def pids(suite: Suite, service: str) -> dict[str, int]:
    """Return the process ids of the instances of a service as they are now."""
    instances = json.loads((suite.home / "endpoints.json").read_text())["instances"]
    return {one["name"]: one["pid"] for one in instances if one["service"] == service}


async def test_scaling_up_and_down_fails_no_call(here: Suite, person: Person) -> None:
    """From two to three to one: Envoy hears of a new one when it serves, and the old ones drain."""
    load, sizes = Load(here, person, is_direct=False), []

    async with load.running():
        for count in (3, 1):
            code, words = await change(here, "scale", f"token={count}", f"rbac={count}")
            assert code == 0, words
            sizes.append([len(pids(here, service)) for service in SERVICES])
            await load.goes_on()

    assert load.log.failed == []
    await sound(load)
    assert sizes == [[3, 3, 2, 2], [1, 1, 2, 2]]


async def test_switching_and_going_back_fail_no_call(here: Suite, person: Person) -> None:
    """Blue-green: to green for good, back on demand, and back by itself when a green one ends."""
    load, blue = Load(here, person, is_direct=False), {service: pids(here, service) for service in SERVICES}

    async with load.running():
        code, words = await change(here, "blue-green", "token", "gateway", "--watch", "1")
        assert (code, "switched" in words) == (0, True), words
        assert {service for service in SERVICES if pids(here, service) != blue[service]} == {"token", "gateway"}
        assert [len(pids(here, service)) for service in SERVICES] == [len(blue[service]) for service in SERVICES]

        words = await spoiled(here, "rbac", lambda _: change(here, "blue-green", "--rollback"))
        assert "the operator asked to go back" in words
        words = await spoiled(here, "identity", lambda name: asyncio.to_thread(stop_instance, here.home, name, "TERM"))
        assert "has ended" in words or "is unhealthy" in words

    assert load.log.failed == []
    await sound(load)
