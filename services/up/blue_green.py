"""Blue and green: a second set of instances beside the first, tried before it gets calls and watched when it does, with the way back kept open.

Blue rests meanwhile: alive, healthy and followed by Envoy, so that going back is one rename of a file. It ends once green has proved itself.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from services.top.figures import OURS
from services.top.scrape import Target, look
from services.up.blueprint import Instance
from services.up.fleet import Fleet
from services.up.supervisor import Failed
from services.up.trial import Trial

LOOK_EVERY_SECONDS = 0.5
# All instances of a service must agree on these, or a token or a revocation of one set would mean nothing to the other.
SHARED = frozenset(
    {
        *("DATABASE_URL", "REDIS_URL", "SECURITY_SALT", "TOKEN_ISSUER", "TOKEN_AUDIENCE", "KEY_ENCRYPTION_KEY"),
        *("SERVICE_KEY", "SERVICE_PUBLIC_KEYS", "JWT_PRIVATE_KEY", "JWT_PUBLIC_KEY", "JWT_KEY_ID"),
    }
)
OWN = frozenset(("INSTANCE_ID", "GRPC_ADDRESS", "METRICS_ADDRESS", "INTERNAL_GRPC_ADDRESS"))


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be switched.

    services  which; none means all
    settings  what green is set to beside what blue is
    watch     seconds for which green is watched
    tolerate  calls that may fail by green's own fault meanwhile
    """

    services: Sequence[str]
    settings: Mapping[str, str]
    watch: float
    tolerate: int


@dataclass(slots=True)
class Sets:
    """The two sets of all services concerned."""

    blue: list[Instance] = field(default_factory=list)
    green: list[Instance] = field(default_factory=list)


class BlueServes(Failed):
    """The switch was given up, and all is as it was before it."""


class Switch:
    """One switch. `back` may be set at any time, by whoever wants blue again."""

    def __init__(self, fleet: Fleet, trial: Trial, say: Callable[[str], None], back: asyncio.Event) -> None:
        self._fleet = fleet
        self._trial = trial
        self._say = say
        self._back = back

    async def make(self, wish: Wish) -> None:
        """Do it. Once blue is told to end there is no way back. Raises LookupError, ValueError; BlueServes with the reason; Failed if both go on."""
        _refuse_foreign(wish.settings)
        sets = Sets(blue=[one for service in wish.services or self._fleet.services for one in self._fleet.running(service)])
        await self._fleet.migrate()
        try:
            await self._start(sets, wish)
            await self._fleet.let_in(sets.green)
            await self._fleet.put_to_rest(sets.blue)
            self._say(f"  {_names(sets.green)}: all calls go here now; {_names(sets.blue)}: at rest")
            await self._watch(sets, wish)
            self._heed()
        except Failed as failure:
            await self._go_back(sets, failure)
            raise BlueServes("green", f"was given up, and blue serves: {failure}") from failure
        self._fleet.settle(sets.green)
        await self._end(sets.blue)
        self._say("switched")

    async def _start(self, sets: Sets, wish: Wish) -> None:
        """Start as many green ones as there are blue ones, and try each. Raises Failed."""
        for service in dict.fromkeys(one.process.name for one in sets.blue):
            self._heed()
            count = sum(one.process.name == service for one in sets.blue)
            sets.green += await self._fleet.add(service, count, wish.settings)
        await self._try(sets.green)
        self._heed()
        self._say(f"  {_names(sets.green)}: healthy, and a real call to each is answered")

    async def _watch(self, sets: Sets, wish: Wish) -> None:
        """Look until the time is over. Raises Failed when there is reason to go back."""
        self._say(f"  watching for {wish.watch:g} s; back with: scripts/blue-green --rollback")
        before, loop = await self._faults(sets.green), asyncio.get_running_loop()
        end = loop.time() + wish.watch
        while loop.time() < end:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._back.wait(), LOOK_EVERY_SECONDS)
            self._heed()
            await self._look(sets.green)
            await self._try(sets.green)
            if (failed := await self._faults(sets.green) - before) > wish.tolerate:
                raise Failed(_names(sets.green), f"failed {failed:.0f} calls by their own fault; {wish.tolerate} would have been tolerated")

    async def _look(self, green: Sequence[Instance]) -> None:
        """Raise Failed if one has ended, or Envoy finds it unhealthy."""
        for one in green:
            if one.child is not None and not one.is_running:
                raise Failed(one.name, f"has ended; its log is {one.log}", one.child.tail())
        try:
            healthy = set().union(*[await self._fleet.healthy(service) for service in {one.process.name for one in green}])
        except OSError as error:
            raise Failed("envoy", f"does not say to whom it gives calls: {error}") from error
        for one in green:
            if one.address not in healthy:
                raise Failed(one.name, f"is unhealthy, says Envoy; its log is {one.log}")

    async def _try(self, green: Sequence[Instance]) -> None:
        faults = await asyncio.gather(*(self._trial.fault(one.process.name, one.address) for one in green))
        for one, fault in zip(green, faults, strict=True):
            if fault:
                raise Failed(one.name, f"{fault}; its log is {one.log}")

    async def _faults(self, green: Sequence[Instance]) -> float:
        """Return how many calls these have failed by their own fault since they began. Raises Failed if one does not tell."""
        looks = await look([Target(one.name, one.metrics_url) for one in green])
        for one in looks:
            if not one.is_up:
                raise Failed(one.target.name, "does not tell its numbers")
        return sum(one.sum("grpc_server_handled_total", grpc_code=code) for one in looks for code in OURS)

    def _heed(self) -> None:
        if self._back.is_set():
            raise Failed("the operator", "asked to go back")

    async def _go_back(self, sets: Sets, reason: Failed) -> None:
        """Have blue serve alone again, and end green. Raises Failed, and leaves both, if blue is not fit to serve either."""
        try:
            await self._fleet.let_in(sets.blue)
        except Failed as failure:
            self._fleet.settle(sets.green)
            raise Failed("blue", f"cannot take over, so both sets go on: {failure}\nThe reason to go back was: {reason}") from failure
        if sets.green:
            await self._fleet.put_to_rest(sets.green)
            await self._end(sets.green)

    async def _end(self, instances: Sequence[Instance]) -> None:
        self._say("\n".join(f"  {words}" for words in await self._fleet.let_go(instances)))


def _refuse_foreign(settings: Mapping[str, str]) -> None:
    for name in settings:
        plain = name.removesuffix("_FILE")
        if plain in SHARED:
            raise ValueError(f"{name}: all instances of a stack must agree on it; change it with scripts/down and scripts/up --env")
        if plain in OWN:
            raise ValueError(f"{name}: the stack itself sets it for each instance")


def _names(instances: Sequence[Instance]) -> str:
    return ", ".join(one.name for one in instances)
