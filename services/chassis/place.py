"""Where a process runs, so that others on the same machine can tell for certain that it is gone.

Whether a process of another machine or container is gone nobody can tell: it may only be cut off, and answer. Source: proc(5), kill(2).
"""

import os
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ENDED = ("Z", "X", "x")  # a process that has ended, and only is not waited for


@cache
def own_place() -> str:
    """Return this process's place: machine, its start, namespace of process ids, id, and start; empty where that cannot be said."""
    began = _state_and_start(os.getpid())
    machine = _machine()
    return f"{machine}/{os.getpid()}/{began[1]}" if machine and began else ""


def is_gone(place: str) -> bool:
    """Return whether the process of a place has certainly ended."""
    machine, _, process = place.rpartition("/")
    machine, _, pid = machine.rpartition("/")
    if not machine or machine != _machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)  # says who exists also where /proc is hidden
    except ProcessLookupError:
        return True
    except OSError:
        pass
    found = _state_and_start(int(pid))
    return found is not None and (found[0] in _ENDED or found[1] != process)


def _machine() -> str:
    """Machines that were restored from one image of a running one share the id of their start, and are told apart by name."""
    try:
        return f"{os.uname().nodename}/{_BOOT.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None
