"""Named places at which a test lets a process die, so that what is promised of a crash is tried between any two steps of a change.

A process that was started with WATCHWORD_CRASHPOINT=NAME, or NAME:N, kills itself when it passes that place, or passes it for the N-th time. It is
SIGKILL, so nothing is flushed, released or said. Every other process passes at the cost of one comparison: where to die is read once, at the start.
In production the variable counts for nothing. A contract test holds the names against tests/chaos.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "WATCHWORD_CRASHPOINT"


@dataclass(slots=True)
class Armed:
    """The place where this process dies, and how often it still passes before."""

    name: str
    spared: int


def read(environment: Mapping[str, str]) -> Armed | None:
    """Return where a process of this environment dies; None for nowhere, which is all there is in production."""
    if environment.get("APP_ENV") == "production" or "APP_ENV_FILE" in environment:
        return None
    name, _, count = environment.get(VARIABLE, "").partition(":")
    return Armed(name, int(count or 1) - 1) if name else None


_armed = read(os.environ)


def crashpoint(name: str) -> None:
    """Die, if this is the place."""
    if _armed is not None:
        _pass(_armed, name)


def _pass(armed: Armed, name: str) -> None:
    if armed.name != name:
        return
    if armed.spared == 0:
        _die()
    armed.spared -= 1


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
