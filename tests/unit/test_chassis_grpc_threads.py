"""gRPC's threads wait for their turn; the loop does not. Each case is a process of its own, for threads begin once."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, json, os, sys
from services.chassis import grpc_threads
import grpc

async def main():
    {before}
    grpc_threads.begin()
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{{port}}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
    ask = getattr(os, "asked", os.sched_getscheduler)
    policies = {{thread: ask(int(thread)) for thread in os.listdir("/proc/self/task")}}
    await server.stop(0)
    loop = policies.pop(str(os.getpid()))
    print(json.dumps([loop, list(policies.values())]))

asyncio.run(main())
"""
REFUSED = [
    "os.sched_setscheduler = lambda *_: (_ for _ in ()).throw(PermissionError())",
    "os.sched_getscheduler, os.asked = (lambda *_: (_ for _ in ()).throw(OSError(38, 'not here'))), os.sched_getscheduler",
]


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in which nobody has chosen how connections are served unless `environment` says so."""
    inherited = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, timeout=60, check=True)


def policies(before: str = "pass") -> tuple[int, list[int]]:
    """Return how the thread of the loop is scheduled, and how the others are, in a process that served a connection."""
    done = run(PROGRAM.format(before=before))
    assert done.stderr == ""  # so says a release of grpc that does not know the experiment any more
    loop, others = json.loads(done.stdout)
    return loop, others


def test_threads_of_grpc_wait_for_their_turn_and_the_loop_does_not() -> None:
    loop, others = policies()

    assert loop == os.SCHED_OTHER
    assert len(others) > 1
    assert set(others) == {os.SCHED_BATCH}


def test_whoever_chose_a_policy_for_the_process_keeps_it() -> None:
    loop, others = policies("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))")

    assert {loop, *others} == {os.SCHED_IDLE}


@pytest.mark.parametrize("refuse", REFUSED)
def test_where_policies_cannot_be_set_all_goes_on_as_ever(refuse: str) -> None:
    """Containers may forbid it, or not know it."""
    loop, others = policies(refuse)

    assert {loop, *others} == {os.SCHED_OTHER}


LOADING = """
import importlib, os, sys

class Looks:
    def find_spec(self, name, *_):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"))

sys.meta_path.insert(0, Looks())
importlib.import_module("{module}")
"""


@pytest.mark.parametrize("module", ["services.token.service", "services.rbac.service", "services.identity.service", "gateway.service"])
@pytest.mark.parametrize(
    ("given", "expected"), [({}, "-event_engine_listener"), ({"GRPC_EXPERIMENTS": "monitoring_experiment"}, "monitoring_experiment")]
)
def test_how_connections_are_served_is_decided_before_grpc_is_loaded(module: str, given: dict[str, str], expected: str) -> None:
    """grpc looks when it is loaded, and never again. Whoever decided otherwise keeps that."""
    said = run(LOADING.format(module=module), **given)

    assert said.stdout.strip() == expected
