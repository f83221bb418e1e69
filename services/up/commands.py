"""What the control socket of a running stack does. One connection is one command; services/up/control.py is its other end.

Changes of the fleet (scale, restart, switch) are made one at a time, and last as long as somebody listens: who hangs up ends a change between two of
its steps, and a switch goes back.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.up.blue_green import BlueServes, Switch, Wish
from services.up.blueprint import Blueprint
from services.up.control import SIGNALS, short
from services.up.fleet import Fleet
from services.up.home import Home
from services.up.rollout import Rollout
from services.up.supervisor import Failed, Stack
from services.up.trial import Trial

LONGEST_COMMAND = 1 << 20  # bytes

Say = Callable[[str], None]


class Commands:
    """The commands, and which change is being made."""

    def __init__(self, home: Home, blueprint: Blueprint, stack: Stack, *, changed: Callable[[], None]) -> None:
        self._home = home
        self._stack = stack
        self._fleet = Fleet(blueprint, stack, changed)
        self._changed = changed
        self._under_way = ""
        self._is_blue_back = False  # the last change was a switch that was given up
        self._back = asyncio.Event()
        self._idle = asyncio.Event()

    async def obey(self, line: bytes, say: Say, gone: asyncio.Event) -> dict[str, str]:
        """Carry one command out; return the answer. Process ids may have changed afterwards."""
        try:
            await self._action(json.loads(line), say, gone)
        except (Failed, LookupError, ValueError, TypeError, AttributeError) as error:
            return {"error": str(error.args[0]) if isinstance(error, LookupError) else str(error)}
        finally:
            self._changed()
        return {}

    def _action(self, command: dict[str, Any], say: Say, gone: asyncio.Event) -> Awaitable[None]:
        match command:
            case {"stop": str(name)}:
                return self._stack.stop_instance(name, SIGNALS[command.get("signal", "TERM")])
            case {"start": str(name)}:
                return self._stack.start_instance(name)
            case {"scale": dict(counts)}:
                return self._alone("scaling", lambda: Rollout(self._fleet, say, gone).scale(counts))
            case {"restart": list(services)}:
                return self._alone("a rolling restart", lambda: Rollout(self._fleet, say, gone).restart(services))
            case {"switch": list(services), "settings": dict(settings), "watch": float(watch), "tolerate": int(tolerate)}:
                wish = Wish(services, {str(name): str(value) for name, value in settings.items()}, watch, tolerate)
                return self._alone("a switch", lambda: self._switch(wish, say, gone))
            case {"rollback": True}:
                return self._roll_back(say)
            case _:
                raise ValueError(f"{command!r} is no command; see services/up/control.py")

    async def _alone(self, what: str, change: Callable[[], Awaitable[None]]) -> None:
        if self._under_way:
            raise ValueError(f"{self._under_way} is under way; wait for its end")
        self._under_way, self._is_blue_back = what, False
        self._idle.clear()
        try:
            await change()
        finally:
            self._under_way = ""
            self._idle.set()

    async def _switch(self, wish: Wish, say: Say, gone: asyncio.Event) -> None:
        self._back.clear()
        hearing = asyncio.create_task(_follow(gone, self._back))
        try:
            await Switch(self._fleet, Trial(self._home), say, self._back).make(wish)
        except BlueServes:
            self._is_blue_back = True
            raise
        finally:
            hearing.cancel()

    async def _roll_back(self, say: Say) -> None:
        """Return once blue serves alone. Raises ValueError if it does not: there is no switch, or it was over already, or blue is not fit."""
        if self._under_way == "a switch":
            self._back.set()
            say("the switch is told to go back")
            await self._idle.wait()
            if not self._is_blue_back:
                raise ValueError("the switch did not go back: it was over, or blue is not fit to serve; scripts/top shows what runs")
        elif not self._is_blue_back:
            raise ValueError("no switch is under way, and blue is gone: there is nothing to go back to")


async def _follow(gone: asyncio.Event, back: asyncio.Event) -> None:
    await gone.wait()
    back.set()


@asynccontextmanager
async def serve(path: Path, commands: Commands) -> AsyncIterator[None]:
    """Listen on `path` while inside; what is under way at the end is broken off."""
    talks: set[asyncio.Task[Any]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (talk := asyncio.current_task()) is not None:
            talks.add(talk)
            talk.add_done_callback(talks.discard)
        try:
            if line := await reader.readline():
                await _answer(commands, line, reader, writer)
        except ConnectionError:
            return  # who hung up needs no answer
        finally:
            writer.close()

    with short(path) as address:
        server = await asyncio.start_unix_server(converse, address, limit=LONGEST_COMMAND)
    try:
        yield
    finally:
        server.close()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _answer(commands: Commands, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    gone = asyncio.Event()

    async def hear() -> None:
        while await reader.read(1024):
            pass
        gone.set()

    def write(words: dict[str, str]) -> None:
        if not gone.is_set():
            writer.write(json.dumps(words).encode() + b"\n")

    hearing = asyncio.create_task(hear())
    try:
        write(await commands.obey(line, lambda text: write({"said": text}), gone))
        await writer.drain()
    finally:
        hearing.cancel()
