"""The whole suite, as scripts/up starts it, in a home and on ports of its own: for what no instance shows alone."""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import Weight, family, keep_on
from bench.material import AUDIENCE, ISSUER, KID
from bench.stack import SETTINGS, Stack
from bench.workers import ROOT, BenchError
from services.chassis.service_identity import ServiceIdentity
from services.up.child import Child, Command
from services.up.control import ControlError, tell
from services.up.endpoints import Endpoints, RunningInstance
from services.up.home import one_time_password

SERVICES = ("token", "rbac", "identity", "gateway")
SETTLES_IN = 2.0  # seconds after which a process that nobody asks anything has become idle
STOP_LIMIT = 40.0  # seconds


@dataclass(frozen=True, slots=True)
class Suite:
    """A running suite.

    start_seconds  from nothing: new data, new keys, all schemas, the first administrator
    idle           what each process weighed before anybody asked anything
    """

    home: Path
    stack: Stack
    start_seconds: float
    idle: Mapping[str, Weight]
    admin_password: str

    @property
    def endpoints(self) -> Endpoints:
        """Where everything is now."""
        return _endpoints(self.home)

    def instances(self, service: str) -> list[RunningInstance]:
        """Return the running instances of a service."""
        return [one for one in self.endpoints.instances if one.service == service and one.pid is not None]

    def one(self, service: str) -> RunningInstance:
        """Return the only instance of a service. Raises BenchError."""
        found = self.instances(service)
        if len(found) != 1:
            raise BenchError(f"{len(found)} instances of {service} run, not one")
        return found[0]

    def arrange(self, *measured: str) -> None:
        """Give these services the measured core, and everybody else the other one."""
        for one in self.endpoints.instances:
            if one.pid is not None:
                keep_on(members(one), {self.stack.cores.measured if one.service in measured else self.stack.cores.others})

    def share(self) -> None:
        """Let everybody run on any core."""
        for one in self.endpoints.instances:
            if one.pid is not None:
                keep_on(members(one), os.sched_getaffinity(0))

    async def tell(self, **command: Any) -> float:
        """Have the supervisor carry a command out; return how many seconds that took. Raises BenchError."""
        began = time.monotonic()
        try:
            await asyncio.to_thread(tell, self.home, command, said=lambda _: None)
        except (ControlError, OSError) as error:
            raise BenchError(f"{command}: {error}") from error
        return time.monotonic() - began

    def peer(self, name: str, *, to: str) -> str:
        """Return the authorization of service `name`, calling service `to`; it is good for a minute."""
        private = Path(self.endpoints.service_keys[name]).read_text(encoding="ascii")
        public = (self.home / "secrets" / "service-public-keys.json").read_text(encoding="ascii")
        return f"Bearer {ServiceIdentity.load(name, private, public).token_for(to)}"


class Suites:
    """The suite that the groups share. It is started when the first of them wants it, and anew when one has failed on it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._running = AsyncExitStack()
        self._suite: Suite | None = None

    @asynccontextmanager
    async def kept(self) -> AsyncIterator["Suites"]:
        """Have it while inside."""
        try:
            yield self
        finally:
            await self.drop()

    async def get(self) -> Suite:
        """Return it. Raises BenchError."""
        if self._suite is None:
            self._suite = await self._started()
        return self._suite

    async def _started(self) -> Suite:
        try:
            return await self._running.enter_async_context(_running_suite(self._stack))
        except BenchError:  # somebody may have taken a port between its choice and its use
            return await self._running.enter_async_context(_running_suite(self._stack))

    async def drop(self) -> None:
        """End it, if it runs."""
        self._suite = None
        await self._running.aclose()


@asynccontextmanager
async def _running_suite(stack: Stack) -> AsyncIterator[Suite]:
    home, password = stack.home / "suite", one_time_password()
    options = ["--home", str(home), "--rest-port", "0", "--grpc-port", "0", "--replicas", ",".join(f"{name}=1" for name in SERVICES)]
    settings = SETTINGS | {"JWT_PRIVATE_KEY_FILE": str(stack.key_file), "JWT_KEY_ID": KID, "TOKEN_ISSUER": ISSUER, "TOKEN_AUDIENCE": AUDIENCE}
    settings |= {"BOOTSTRAP_ADMIN_PASSWORD": password}
    wishes = [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    command = Command([sys.executable, "-m", "services.up", *options, *wishes], environment, ROOT)
    began = time.monotonic()
    try:
        async with stack.running(Child(command, stack.home / "suite.log"), _published(home), stop_limit=STOP_LIMIT):
            seconds = time.monotonic() - began
            await asyncio.sleep(SETTLES_IN)
            yield Suite(home, stack, seconds, _weights(home), password)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _published(home: Path) -> Any:
    async def ask() -> bool:
        return (home / "endpoints.json").exists()

    return ask


def _endpoints(home: Path) -> Endpoints:
    raw = json.loads((home / "endpoints.json").read_text(encoding="utf-8"))
    return Endpoints(**{**raw, "instances": tuple(RunningInstance(**one) for one in raw["instances"])})


def _weights(home: Path) -> dict[str, Weight]:
    return {one.name: Weight.of(*members(one)) for one in _endpoints(home).instances if one.pid is not None}


def members(one: RunningInstance) -> list[int]:
    """Return the processes of an instance: of a service with those that it started, of a store without those that share its memory."""
    return family(one.pid or 0) if one.service in SERVICES else [one.pid or 0]
