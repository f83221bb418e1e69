"""Changing the number of instances, and replacing them one at a time, while calls go on."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from services.up.blueprint import Instance
from services.up.fleet import Fleet
from services.up.processes import MOST_INSTANCES
from services.up.supervisor import Failed


class Rollout:
    """One change, for one caller: `say` tells him how it goes, `gone` is set when he hung up, and ends the change between two steps."""

    def __init__(self, fleet: Fleet, say: Callable[[str], None], gone: asyncio.Event) -> None:
        self._fleet = fleet
        self._say = say
        self._gone = gone

    async def scale(self, counts: Mapping[str, int]) -> None:
        """Have so many instances of each service. Raises LookupError, ValueError, Failed."""
        for service, count in counts.items():
            self._fleet.running(service)
            if not isinstance(count, int) or not 1 <= count <= MOST_INSTANCES:
                raise ValueError(f"{service}={count}: a service has from 1 to {MOST_INSTANCES} instances here; without any, nobody would answer")
        for service, count in counts.items():
            if not self._gone.is_set():
                await self._scale(service, count)

    async def restart(self, services: Sequence[str]) -> None:
        """Replace every instance of these services, or of all: one at a time, each once its successor gets calls. Raises LookupError, Failed."""
        for service in services or self._fleet.services:
            self._fleet.running(service)
        await self._fleet.migrate()
        for service in self._fleet.services:
            for instance in self._fleet.running(service) if service in (services or self._fleet.services) else ():
                if not self._gone.is_set():
                    await self._replace(instance)

    async def _scale(self, service: str, count: int) -> None:
        now = self._fleet.running(service)
        if count > len(now):
            new = await self._fleet.add(service, count - len(now))
            await self._fleet.join(new)
            self._say("\n".join(f"  {instance.name} serves" for instance in new))
        if count < len(now):
            await self._fleet.let_in(now[:count])  # those that stay must be able to take over
            self._say("\n".join(f"  {words}" for words in await self._fleet.let_go(now[count:])))
        self._say(f"{service}: {count} now, {len(now)} before")

    async def _replace(self, old: Instance) -> None:
        try:
            new = await self._fleet.add(old.process.name, 1)
            await self._fleet.join(new)
        except Failed as failure:
            raise Failed(old.name, f"was not replaced and goes on serving, as do all others; its successor failed:\n{failure}") from failure
        for words in await self._fleet.let_go([old]):
            self._say(f"  {new[0].name} serves, {words}")
