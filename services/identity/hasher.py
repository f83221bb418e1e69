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
from typing import Any, Literal

from services.identity import hash_process
from services.identity.hash_process import LENGTH

Priority = Literal["idle", "low", "normal"]  # as `hash_process.NICE` says

PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")  # of the environment: no secret


class HasherLost(Exception):
    """There is no process, or it ended or said nothing for too long before it answered."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one piece of work: `said` is what it returned, or what it raised if it is not `returned`. Times in seconds."""

    returned: bool
    said: Any
    seconds: float
    cpu: float

    def result(self) -> Any:
        """Return what the work returned, or raise what it raised."""
        if not self.returned:
            raise self.said
        return self.said


class Hasher:
    """One hash process. It is asked one thing at a time."""

    def __init__(self, process: subprocess.Popen[bytes], answers: asyncio.StreamReader, told: asyncio.StreamWriter) -> None:
        self._process = process
        self._answers = answers
        self._told = told

    @classmethod
    async def start(cls, modules: Sequence[str], priority: Priority) -> "Hasher":
        """Start a process that loads `modules` before it takes its priority. Raises HasherLost if the system has none to give."""
        environment = {name: value for name, value in os.environ.items() if name in PASSED_ON}
        arguments = (sys.executable, "-P", "-X", "frozen_modules=on", hash_process.__file__)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(arguments, stdin=theirs.fileno(), stdout=theirs.fileno(), env=environment)  # noqa: ASYNC220, S603
        except OSError as error:
            ours.close()
            raise HasherLost(repr(error)) from error
        one = cls(process, *await asyncio.open_unix_connection(sock=ours))
        one._told.write(pickle.dumps((sys.path, tuple(modules), priority)))
        return one

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_lost(self) -> bool:
        """Whether it is known to have ended."""
        return self._answers.at_eof() or self._told.is_closing()

    async def do(self, work: bytes, patience: float) -> Done:
        """Have a pickled callable called, within `patience` seconds. Raises HasherLost.

        After that, or if this is cancelled, the process must not be asked again: its next answer would be to what it was asked before.
        """
        try:
            async with asyncio.timeout(patience):
                self._told.write(work)
                await self._told.drain()
                (length,) = LENGTH.unpack(await self._answers.readexactly(LENGTH.size))
                return Done(*pickle.loads(await self._answers.readexactly(length)))  # noqa: S301  # of the process that this one started
        except (OSError, EOFError, TimeoutError) as error:
            raise HasherLost(repr(error)) from error

    async def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._told.close()
        await asyncio.to_thread(self._process.wait)
