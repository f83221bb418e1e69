"""A stack of stand-ins in a home of its own, as tests start, change and stop it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, eventually

STAND_IN = [sys.executable, "-m", "tests.suite.stack_standin", "--rest-port", "0", "--grpc-port", "0", "--unsafe-speed"]


class StandIn:
    """A stack of stand-ins in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    async def up(self, *options: str) -> tuple[int, str]:
        """Run `scripts/up --detach`; return its exit code and what it printed."""
        return await run(*STAND_IN, "--detach", "--home", str(self.home), *options)

    async def down(self) -> tuple[int, str]:
        """Run `scripts/down`."""
        return await run(sys.executable, "-m", "services.up.down", "--home", str(self.home))

    async def change(self, verb: str, *options: str) -> tuple[int, str]:
        """Run `scripts/scale`, `scripts/rolling-restart` or `scripts/blue-green`."""
        return await run(sys.executable, "-m", "services.up.change", verb, "--home", str(self.home), *options)

    def endpoints(self) -> Any:
        """Return what endpoints.json says."""
        return json.loads((self.home / "endpoints.json").read_text())

    def instance(self, name: str) -> Any:
        """Return what endpoints.json says of one instance."""
        return next(one for one in self.endpoints()["instances"] if one["name"] == name)

    def pids(self, service: str) -> dict[str, int]:
        """Return the process ids of the instances of a service."""
        return {one["name"]: one["pid"] for one in self.endpoints()["instances"] if one["service"] == service}

    async def is_gone(self) -> bool:
        """Whether no process mentions the home, in its command line or its environment."""
        return not await asyncio.to_thread(processes_of, self.home)


async def run(*command: str) -> tuple[int, str]:
    """Run a command to its end; return its exit code and all it printed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def processes_of(home: Path) -> list[str]:
    """Return the command lines of all processes that belong to the stack in `home`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            if str(home).encode() in words + (entry / "environ").read_bytes():
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@asynccontextmanager
async def stand_in(home: Path) -> AsyncIterator[StandIn]:
    """Give a home in which nothing runs yet, and in which nothing runs afterwards."""
    made = StandIn(home)
    yield made
    await made.down()
    await eventually(made.is_gone)
