"""The other end of a hash process: starts `hash_process`, gives it work, and notices when it is gone.

It is started by vfork (subprocess): a fork runs the handlers by which gRPC's threads prepare for one, in the middle of their calls.
"""

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from services.identity import hash_process
from services.identity.hash_process import LENGTH, READY

Priority = Literal["idle", "low", "normal"]  # as `hash_process.NICE` says

LOADS_IN = 60.0  # seconds: it takes a tenth of one where it gets a core
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")  # of the environment: no secret


class HasherLost(Exception):
    """There is no process, or it ended or said nothing for too long before it answered."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one piece of work: `said` is what it returned, or what it raised if it is not `returned`. `cpu` in seconds."""

    returned: bool
    said: Any
    cpu: float

    def result(self) -> Any:
        """Return what the work returned, or raise what it raised."""
        if not self.returned:
            raise self.said
        return self.said


class Hasher:
    """One hash process. It is asked one thing at a time, once it is `loaded`."""

    def __init__(self) -> None:
        """Start it. Raises HasherLost if the system has none to give."""
        environment = {name: value for name, value in os.environ.items() if name in PASSED_ON}
        arguments = (sys.executable, "-P", "-X", "frozen_modules=on", hash_process.__file__)
        try:
            self._socket, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(arguments, stdin=theirs.fileno(), stdout=theirs.fileno(), env=environment)  # noqa: S603
        except OSError as error:
            raise HasherLost(repr(error)) from error
        self._answers: asyncio.StreamReader | None = None
        self._told: asyncio.StreamWriter | None = None

    async def load(self, modules: Sequence[str], priority: Priority) -> None:
        """Have it load `modules`, and then take its priority. Raises HasherLost."""
        try:
            async with asyncio.timeout(LOADS_IN):
                self._answers, self._told = await asyncio.open_unix_connection(sock=self._socket)
                self._told.write(pickle.dumps((sys.path, tuple(modules), priority)))
                await self._answers.readexactly(len(READY))
        except (OSError, EOFError, TimeoutError) as error:
            raise HasherLost(repr(error)) from error

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_loaded(self) -> bool:
        """Whether it was told what to load."""
        return self._told is not None

    @property
    def is_lost(self) -> bool:
        """Whether it is known to have ended."""
        return (self._answers is not None and self._answers.at_eof()) or (self._told is not None and self._told.is_closing())

    async def do(self, work: bytes, patience: float) -> Done:
        """Have a pickled callable called, within `patience` seconds. Raises HasherLost.

        After that, or if this is cancelled, the process must not be asked again: its next answer would be to what it was asked before.
        """
        assert self._answers
        assert self._told
        try:
            async with asyncio.timeout(patience):
                self._told.write(work)
                await self._told.drain()
                (length,) = LENGTH.unpack(await self._answers.readexactly(LENGTH.size))
                return Done(*pickle.loads(await self._answers.readexactly(length)))  # noqa: S301  # of the process that this one started
        except (OSError, EOFError, TimeoutError) as error:
            raise HasherLost(repr(error)) from error

    async def end(self) -> None:
        """Kill it, at once, and return when it has ended: a starved process needs CPU for that, too."""
        self._process.kill()
        if self._told is None:
            self._socket.close()
        else:
            self._told.close()
        await asyncio.to_thread(self._process.wait)

    @property
    def resident(self) -> int:
        """Bytes that it holds in memory; nought if nobody says."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0
