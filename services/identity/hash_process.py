"""The program of a hash process: `hashing` starts it by path, and it does what it is told, one piece of work after another, until its input ends.

It is an idle task (SCHED_IDLE): it takes what everything else on its cores leaves, and a core that only hashes counts as free to whoever wakes. It
shares no interpreter lock with the event loop that waits for it, so that losing its core holds nobody up but itself (decision 20).

Messages are pickles, between a process and the one that it started. First in: a `sys.path` and the modules to load. Then in: a callable without
arguments. Out, for each of these and after its length: whether it returned, what it returned or raised, and the seconds that it took, on the wall
and of CPU.
"""

import contextlib
import importlib
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

LENGTH = struct.Struct("!I")
NICE = {"normal": 0, "low": 10, "idle": 19}  # of a priority; the last where there is no SCHED_IDLE


def main() -> None:
    """Work until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the service, which ends this process when it ends
        signal.signal(number, signal.SIG_IGN)
    told, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    sys.path[:], modules, priority = pickle.load(told)  # noqa: S301  # of the process that started this one
    for module in modules:
        importlib.import_module(module)
    step_back(priority)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _answer(pickle.load(told), answers)  # noqa: S301


def _answer(work: Callable[[], Any], answers: BinaryIO) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    try:
        done, said = True, work()
    except Exception as error:  # it is the caller's
        done, said = False, error
    answer = pickle.dumps((done, said, time.perf_counter() - began, time.process_time() - cpu))
    answers.write(LENGTH.pack(len(answer)) + answer)
    answers.flush()


def step_back(priority: str) -> None:
    """Take a lower priority, once what is needed is loaded."""
    if priority == "idle":
        with contextlib.suppress(OSError, AttributeError):
            return os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(NICE[priority])
    return None


if __name__ == "__main__":
    main()
