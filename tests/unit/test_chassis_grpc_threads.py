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
    policies = {{thread: os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}}
    await server.stop(0)
    loop = policies.pop(str(os.getpid()))
    print(json.dumps([loop, list(policies.values())]))

asyncio.run(main())
"""
REFUSE = "os.sched_setscheduler = lambda *_: (_ for _ in ()).throw(PermissionError())"


def policies(before: str = "pass", **environment: str) -> tuple[int, list[int]]:
    """Return how the thread of the loop is scheduled, and how the others are, in a process that served a connection."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        env={**{name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
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


def test_where_policies_cannot_be_set_all_goes_on_as_ever() -> None:
    loop, others = policies(REFUSE)

    assert {loop, *others} == {os.SCHED_OTHER}


@pytest.mark.parametrize(("given", "expected"), [({}, "-event_engine_listener"), ({"GRPC_EXPERIMENTS": ""}, "")])
def test_what_grpc_is_asked_for_can_be_chosen_otherwise(given: dict[str, str], expected: str) -> None:
    program = "import services, os; print(os.environ['GRPC_EXPERIMENTS'])"
    environment = {**{name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}, **given}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True)

    assert said.stdout.strip() == expected
