"""`scripts/up` with faults: each instance has wires of its own to Postgres and Redis, and Envoy and the services can be started without a defence.

Beside the commands of services/up/control.py it obeys {"wires": [NAME], "do": VERB, "value": NUMBER}: NAME is such as token-1:redis, VERB a key of
DEEDS. What is missing from now on is in `without.json` of the home, read whenever a process starts: see tests/chaos/without.py.
"""

import json
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.up import __main__ as front
from services.up import session
from services.up.blueprint import Blueprint, Instance
from services.up.child import Command
from services.up.commands import Commands, Say
from services.up.control import SIGNALS
from services.up.processes import Kind
from services.up.session import Session
from tests.chaos import without
from tests.service.chassis.fault_proxy import FaultProxy

MOST = 4  # instances of a service that have wires
STORES = {"postgres": "DATABASE_URL", "redis": "REDIS_URL"}
WIRES: dict[str, FaultProxy] = {}


async def slow(wire: FaultProxy, value: float) -> None:
    wire.delay = value


async def lose_answers(wire: FaultProxy, value: float) -> None:
    wire.loses_answers = True


async def cut_after(wire: FaultProxy, value: float) -> None:
    wire.cut_after(int(value))


async def freeze(wire: FaultProxy, value: float) -> None:
    wire.freeze()


async def restore(wire: FaultProxy, value: float) -> None:
    await wire.restore()


async def cut_and_restore(wire: FaultProxy, value: float) -> None:
    await wire.cut()
    await wire.restore()


DEEDS: Mapping[str, Callable[[FaultProxy, float], Awaitable[None]]] = {
    deed.__name__: deed for deed in (slow, lose_answers, cut_after, freeze, restore, cut_and_restore)
}


class FaultyBlueprint(Blueprint):
    """The stack with wires, and without what `without.json` names."""

    def environment(self, instance: Instance) -> dict[str, str]:
        """Return the environment of a service or a job; a service's stores are at the ends of its wires."""
        environment = super().environment(instance)
        for store, setting in STORES.items():
            if wire := WIRES.get(f"{instance.name}:{store}"):
                del environment[f"{setting}_FILE"]
                environment[setting] = _aimed(self._store_url(store), wire.port)
        return environment

    def command(self, instance: Instance) -> Command:
        """Return what `instance` runs."""
        command = super().command(instance)
        if instance.process.kind is not Kind.SERVICE or not (missing := self._missing()):
            return command
        arguments = [*command.arguments[:-1], without.__name__, ",".join(missing), instance.process.module]
        return replace(command, arguments=arguments)

    def _store_url(self, store: str) -> str:
        return self.database_url if store == "postgres" else self.redis_url

    def _missing(self) -> list[str]:
        path = self._home.path / "without.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []

    def _render(self) -> Path:
        path = super()._render()
        without.weaken_envoy(path.parent, self._missing())
        return path


class FaultyCommands(Commands):
    """The commands, and those of the wires."""

    def _action(self, command: dict[str, Any], say: Say, gone: Any) -> Awaitable[None]:
        match command:
            case {"wires": list(names), "do": str(verb)}:
                return self._do(names, DEEDS[verb], float(command.get("value", 0)))
            case _:
                return super()._action(command, say, gone)

    @staticmethod
    async def _do(names: list[str], deed: Callable[[FaultProxy, float], Awaitable[None]], value: float) -> None:
        for name in names:
            await deed(WIRES[name], value)


class FaultySession(Session):
    """A run that lays the wires first."""

    async def run(self, ready: Callable[[], None]) -> int:
        """Run until a signal asks to stop."""
        async with AsyncExitStack() as laid:
            for name in (f"{service}-{number}" for service in self._blueprint.services for number in range(1, MOST + 1)):
                for store in STORES:
                    url = urlsplit(self._blueprint.database_url if store == "postgres" else self._blueprint.redis_url)
                    WIRES[f"{name}:{store}"] = await laid.enter_async_context(FaultProxy.before("127.0.0.1", url.port or 0))
            return await super().run(ready)


def _aimed(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()


if __name__ == "__main__":
    SIGNALS["INT"] = signal.SIGINT  # Postgres's fast shutdown
    for module, name, value in (
        (front, "Blueprint", FaultyBlueprint),
        (front, "Session", FaultySession),
        (session, "Commands", FaultyCommands),
    ):
        setattr(module, name, value)
    sys.exit(front.main())
