"""The instances of the services while they change: added, let in, put to rest, let go. Each step is over once Envoy has followed.

Whoever changes a running stack does it in this order, and no call fails: a new instance is healthy before Envoy hears of it, Envoy gives it calls
before an old one goes, and one that goes drains first.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.request import urlopen

from services.up.blueprint import Blueprint, Instance, Route
from services.up.supervisor import DRAIN_LIMIT_SECONDS, FAILURE_LIMIT_SECONDS, Failed, Stack

FOLLOW_LIMIT_SECONDS = 10.0  # Envoy asks for health four times a second
PAUSE_SECONDS = 0.05
ANSWER_SECONDS = 2.0


class Fleet:
    """All instances of all services of a running stack."""

    def __init__(self, blueprint: Blueprint, stack: Stack, changed: Callable[[], None]) -> None:
        self._blueprint = blueprint
        self._stack = stack
        self._changed = changed

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services, in the order in which they start."""
        return self._blueprint.services

    def running(self, service: str) -> list[Instance]:
        """Return the instances of a service. Raises LookupError for what is no service, Failed if one of them is stopped."""
        if service not in self.services:
            raise LookupError(f"{service!r} is no service; the services are {', '.join(self.services)}")
        found = self._blueprint.of(service)
        for instance in found:
            if not instance.is_running:
                raise Failed(instance.name, f"is stopped; first start it: python -m services.up.control start {instance.name}")
        return found

    async def migrate(self) -> None:
        """Bring the database to what the code expects, which leaves instances of the release before it working. Raises Failed."""
        for job in self._blueprint.of("migrate"):
            await self._stack.bring_up(job)

    async def add(self, service: str, count: int, settings: Mapping[str, str] | None = None) -> list[Instance]:
        """Start so many more instances; return them once all are healthy. Envoy does not know them yet. Raises Failed, and leaves none of them."""
        new = [self._blueprint.add(service, settings) for _ in range(count)]
        for instance in new:
            instance.begin_log()
        done = await asyncio.gather(*(self._stack.bring_up(instance) for instance in new), return_exceptions=True)
        self._changed()
        if failures := [result for result in done if isinstance(result, BaseException)]:
            await self._discard(new)
            raise failures[0]
        return new

    async def let_in(self, instances: Sequence[Instance]) -> None:
        """Have Envoy give calls to these; return when it does. Raises Failed if it finds one of them unhealthy."""
        self._route(instances, Route.OPEN)
        await self._until_follows(instances, gets_calls=True)

    async def put_to_rest(self, instances: Sequence[Instance]) -> None:
        """Have Envoy give no new calls to these; return when it gives none. Calls under way go on."""
        self._route(instances, Route.RESTING)
        await self._until_follows(instances, gets_calls=False)

    async def let_go(self, instances: Sequence[Instance]) -> list[str]:
        """Drain and end these; return when they are gone, with what there is to say of each."""
        for instance in instances:
            instance.may_end = True
        words = await asyncio.gather(*(_drain(instance) for instance in instances))
        self._forget(instances)
        return list(words)

    async def healthy(self, service: str) -> set[str]:
        """Return the addresses of a service to which Envoy gives calls now. Raises OSError."""
        text = await asyncio.to_thread(_ask, f"http://{self._blueprint.envoy_admin}/clusters")
        fields = (line.split("::") for line in text.splitlines())
        return {field[1] for field in fields if field[0] == service and field[2:] == ["health_flags", "healthy"]}

    async def join(self, instances: Sequence[Instance]) -> None:
        """Let new instances in for good. Raises Failed, and leaves none of them, if Envoy does not follow."""
        try:
            await self.let_in(instances)
        except Failed:
            await self.let_go(instances)
            raise
        self.settle(instances)

    def settle(self, instances: Sequence[Instance]) -> None:
        """Let these be instances like all others: their trial is over."""
        for instance in instances:
            self._blueprint.settle(instance)

    async def _discard(self, instances: Sequence[Instance]) -> None:
        await asyncio.gather(*(one.child.stop(FAILURE_LIMIT_SECONDS) for one in instances if one.child is not None))
        self._forget(instances)

    def _forget(self, instances: Sequence[Instance]) -> None:
        for instance in instances:
            self._blueprint.forget(instance)
        for service in {instance.process.name for instance in instances}:
            self._blueprint.tell_envoy(service)
        self._changed()

    def _route(self, instances: Sequence[Instance], route: Route) -> None:
        for instance in instances:
            instance.route = route
        for service in {instance.process.name for instance in instances}:
            self._blueprint.tell_envoy(service)

    async def _until_follows(self, instances: Sequence[Instance], *, gets_calls: bool) -> None:
        began = time.monotonic()
        for instance in instances:
            while (instance.address in await self._followed(instance)) is not gets_calls:
                if time.monotonic() - began > FOLLOW_LIMIT_SECONDS:
                    words = "is not given calls by Envoy, although it says SERVING" if gets_calls else "is still given calls by Envoy"
                    raise Failed(instance.name, f"{words}, {FOLLOW_LIMIT_SECONDS:.0f} s after it was told; its log is {instance.log}")
                await asyncio.sleep(PAUSE_SECONDS)

    async def _followed(self, instance: Instance) -> set[str]:
        try:
            return await self.healthy(instance.process.name)
        except OSError as error:
            raise Failed("envoy", f"does not say to whom it gives calls: {error}") from error


async def _drain(instance: Instance) -> str:
    began = time.monotonic()
    if instance.child is None:
        return f"{instance.name} never ran"
    await instance.child.stop(DRAIN_LIMIT_SECONDS)
    code, took = await instance.child.ended(), time.monotonic() - began
    return (
        f"{instance.name} drained and ended in {took:.1f} s"
        if code == 0
        else f"{instance.name} ended with {code} after {took:.1f} s: see {instance.log}"
    )


def _ask(url: str) -> str:
    with urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310  (Envoy's admin address, on loopback)
        body: bytes = answer.read()
    return body.decode()
