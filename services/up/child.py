"""One operating-system process of the stack: started in a group of its own, logged to a file, and never left behind.

However the supervisor ends, its children end too: on Linux the kernel signals each of them when it is gone (prctl(2), PR_SET_PDEATHSIG).
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    stop_signal   asks for an orderly end
    death_signal  what the process gets if the supervisor vanishes
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL


class Child:
    """A running or ended process."""

    def __init__(self, command: Command, log: Path) -> None:
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, which is also its group's; None before the start."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, its output appended to the log."""
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command.arguments,
                env=self._command.environment,
                cwd=self._command.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_bound_to_parent(self._command.death_signal),
            )
        finally:
            os.close(output)

    async def ended(self) -> int:
        """Wait for the end; return the exit code, negative for a signal. Whatever the process left in its group is killed."""
        if self._process is None:
            raise RuntimeError("not started")
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return code

    def send(self, number: signal.Signals) -> None:
        """Signal the process itself, if it runs."""
        if self._process is not None and self.is_running:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it and its group at once."""
        if self.is_running:
            self._signal_group(signal.SIGKILL)

    async def stop(self, limit: float) -> None:
        """Ask for an orderly end, and kill what is still there after `limit` seconds."""
        if self._process is None:
            return
        self.send(self._command.stop_signal)
        self.send(signal.SIGCONT)  # one that was paused could not hear
        try:
            await asyncio.wait_for(self._process.wait(), limit)
        except TimeoutError:
            self.kill()
        await self.ended()

    def tail(self) -> list[str]:
        """Return the last lines of the log."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16384))
                return log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            return []

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _bound_to_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return what ties a new process to this one's life; None where the system has no such thing."""
    if LIBC is None:
        return None
    parent, prctl = os.getpid(), LIBC.prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it vanished before it could be watched
            os._exit(1)

    return bind
