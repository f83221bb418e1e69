"""One run of a stack, from the first line that it prints to the last: start, serve until asked to stop or until something dies, stop."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from services.up import endpoints, walkthrough
from services.up.blueprint import Blueprint
from services.up.commands import Commands, serve
from services.up.home import Home
from services.up.supervisor import DRAIN_LIMIT_SECONDS, FAILURE_LIMIT_SECONDS, Failed, Stack


class Session:
    """A run."""

    def __init__(self, home: Home, blueprint: Blueprint) -> None:
        self._home = home
        self._blueprint = blueprint
        self._interrupts = 0

    async def run(self, ready: Callable[[], None]) -> int:
        """Run until a signal asks to stop; call `ready` once everything answers. Return 0, or 1 when something failed."""
        for instance in self._blueprint.instances:
            instance.begin_log()
        self._blueprint.write_addresses()
        self._withdraw()
        stack, asked = Stack(self._blueprint, _say), asyncio.Event()
        self._heed_signals(stack, asked)
        limit = DRAIN_LIMIT_SECONDS
        try:
            await self._serve(stack, asked, ready)
        except Failed as failure:
            limit = FAILURE_LIMIT_SECONDS
            _say(str(failure), error=True)
            return 1
        finally:
            await self._end(stack, limit)
        return 0

    async def _serve(self, stack: Stack, asked: asyncio.Event, ready: Callable[[], None]) -> None:
        """Return when asked to stop. Raises Failed."""
        began = time.monotonic()
        for row in self._blueprint.elsewhere:
            _say(f"  {row.name:<13}    —     given by the environment")
        if not await _unless(asked, stack.start(), stack):
            return
        commands = Commands(self._home, self._blueprint, stack, changed=lambda: self._publish(stack))
        async with serve(self._home.control, commands):
            self._publish(stack)
            found = endpoints.describe(self._home, self._blueprint, stack)
            _say(f"ready in {time.monotonic() - began:.1f} s\n{walkthrough.summary(found)}\n\n{walkthrough.lines(found)}")
            ready()
            await _unless(asked, asyncio.Event().wait(), stack)

    async def _end(self, stack: Stack, limit: float) -> None:
        began = time.monotonic()
        self._withdraw()
        await stack.stop(limit)
        _say(f"stopped in {time.monotonic() - began:.1f} s")

    def _publish(self, stack: Stack) -> None:
        endpoints.publish(self._home, endpoints.describe(self._home, self._blueprint, stack))

    def _withdraw(self) -> None:
        """Remove what says that a stack is here; one that was killed left it."""
        self._home.endpoints.unlink(missing_ok=True)
        self._home.control.unlink(missing_ok=True)

    def _heed_signals(self, stack: Stack, asked: asyncio.Event) -> None:
        def heed() -> None:
            self._interrupts += 1
            if self._interrupts == 1:
                _say("stopping; once more to stop at once")
                asked.set()
            else:
                stack.kill()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, heed)


async def _unless(asked: asyncio.Event, work: Coroutine[None, None, object], stack: Stack) -> bool:
    """Do `work` unless somebody asks to stop first; say whether it was done. Raises Failed, from `work` or from a process that ends."""
    working, asking, dying = asyncio.create_task(work), asyncio.create_task(asked.wait()), asyncio.create_task(stack.casualty())
    tasks: tuple[asyncio.Task[Any], ...] = (working, asking, dying)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return False
        if working.done():
            working.result()
            return True
        raise dying.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _say(text: str, *, error: bool = False) -> None:
    # A closed terminal or a full disk must not keep the stack from being stopped.
    with suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
