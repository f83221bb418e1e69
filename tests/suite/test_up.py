"""The supervisor, with real Postgres, Valkey and Envoy, and stand-ins for the services: start, failure, control, end."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.up import control
from services.up.probes import grpc_serving
from tests.conftest import ROOT, eventually
from tests.suite.stand_in import STAND_IN, StandIn, stand_in


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[StandIn]:
    """A home in which nothing runs yet, and in which nothing runs afterwards."""
    async with stand_in(tmp_path / "home") as made:
        yield made


async def test_detached_it_is_ready_when_the_command_returns(stack: StandIn) -> None:
    """What comes after `scripts/up --detach` in a script may rely on it."""
    code, words = await stack.up()

    assert code == 0
    assert "ready in" in words
    found = stack.endpoints()
    assert found["rest"] in words
    for name in ("token-1", "rbac-1", "identity-1", "gateway-1"):
        host, _, port = stack.instance(name)["address"].partition(":")
        assert await grpc_serving(host, int(port))()
    await (await asyncpg.connect(found["database_url"])).close()
    assert set(json.loads((stack.home / "secrets" / "service-public-keys.json").read_text())) == set(found["service_keys"])


async def test_data_secrets_and_passwords_survive_a_restart(stack: StandIn) -> None:
    """Stopping for the night must not cost the accounts."""
    await stack.up()
    connection = await asyncpg.connect(stack.endpoints()["database_url"])
    await connection.execute("CREATE TABLE kept (it int)")
    await connection.close()
    keys = (stack.home / "secrets" / "service-public-keys.json").read_bytes()

    assert (await stack.down())[0] == 0
    assert await stack.is_gone()
    assert not (stack.home / "endpoints.json").exists()
    await stack.up()

    connection = await asyncpg.connect(stack.endpoints()["database_url"])
    assert await connection.fetchval("SELECT count(*) FROM kept") == 0
    await connection.close()
    assert (stack.home / "secrets" / "service-public-keys.json").read_bytes() == keys


async def test_a_second_stack_in_the_same_home_is_refused(stack: StandIn) -> None:
    """Two Postgres servers on one directory would destroy it; wiping it under a running stack as well."""
    await stack.up()

    for options in ((), ("--fresh",)):
        code, words = await stack.up(*options)
        assert code == 2
        assert "scripts/down" in words
    assert stack.instance("postgres")["pid"]


async def test_a_process_that_dies_takes_the_stack_down_with_its_last_words(stack: StandIn) -> None:
    """A stack that limps unseen helps nobody."""
    await stack.up()

    os.kill(stack.instance("rbac-1")["pid"], signal.SIGKILL)

    await eventually(stack.is_gone)
    words = (stack.home / "logs" / "up.log").read_text()
    assert "rbac-1 was killed by SIGKILL" in words
    assert "| at your service" in words
    assert not (stack.home / "endpoints.json").exists()


async def test_a_start_that_fails_says_why_and_leaves_nothing(stack: StandIn) -> None:
    """The reason is on the screen, not in a file that one has to know of."""
    code, words = await stack.up("--env", "BROKEN=identity-1")

    assert code == 1
    assert "identity-1 ended with exit code 3" in words
    assert "| alas" in words
    await eventually(stack.is_gone)


async def test_an_instance_stopped_by_command_comes_back_on_its_port(stack: StandIn) -> None:
    """Tests of failures need to kill one instance and to have it back, while the others go on."""
    await stack.up()
    before = stack.instance("token-1")

    await asyncio.to_thread(control.stop_instance, stack.home, "token-1", "KILL")
    assert stack.instance("token-1")["pid"] is None
    await asyncio.to_thread(control.start_instance, stack.home, "token-1")

    after = stack.instance("token-1")
    assert after["address"] == before["address"]
    assert after["pid"] not in (None, before["pid"])
    with pytest.raises(control.ControlError, match="is running"):
        await asyncio.to_thread(control.start_instance, stack.home, "token-1")
    with pytest.raises(control.ControlError, match="is not one of"):
        await asyncio.to_thread(control.stop_instance, stack.home, "nobody-1")


async def test_a_supervisor_that_is_killed_leaves_no_process(stack: StandIn) -> None:
    """kill -9 gives it no chance to clean up: the kernel does it."""
    await stack.up()

    os.kill(stack.endpoints()["supervisor_pid"], signal.SIGKILL)

    await eventually(stack.is_gone)
    code, _ = await stack.up()
    assert code == 0  # Postgres was shut down in good order, and the home is free


async def test_ctrl_c_stops_everything(stack: StandIn) -> None:
    """In the foreground, the keyboard is the only control there is."""
    process = await asyncio.create_subprocess_exec(*STAND_IN, "--home", str(stack.home), stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    while b"ready in" not in await process.stdout.readline():
        assert process.returncode is None

    process.send_signal(signal.SIGINT)
    words, _ = await process.communicate()

    assert process.returncode == 0
    assert b"stopped in" in words
    assert await stack.is_gone()
