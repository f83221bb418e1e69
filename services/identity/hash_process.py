"""The program of a hash process: `hashing` starts it by path, and it does what it is told, one piece of work after another, until its input ends.

It shares no interpreter lock with the event loop that waits for it, so that losing its core holds nobody up but itself. So it may be an idle task
(SCHED_IDLE): it then takes what everything else on its cores leaves, and a core that only hashes counts as free to whoever wakes (decision 20).

Messages are pickles, between a process and the one that it started. First in: a `sys.path`, the modules to load, and the priority; out: READY. Then
in: callables without arguments. Out, for each of them, after the length of the answer: whether it returned, what it returned or raised, and the
seconds of CPU that it took.
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
from pathlib import Path
from typing import Any, BinaryIO

READY = b"+"
LENGTH = struct.Struct("!I")
OOM_SCORE = "500"  # of 1000: where memory ends, a hash is lost rather than the service
NICE = {"normal": 0, "low": 10, "idle": 19}  # of a priority; the last where there is no SCHED_IDLE


def main() -> None:
    """Work until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the service, which ends this process when it ends
        signal.signal(number, signal.SIG_IGN)
    told, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(EOFError, ConnectionError, pickle.UnpicklingError):  # whoever started it has gone, perhaps in the middle of a word
        sys.path[:], modules, priority = pickle.load(told)  # noqa: S301  # of the process that started this one
        for module in modules:
            importlib.import_module(module)
        step_back(priority)
        answers.write(READY)
        answers.flush()
        while True:
            _answer(pickle.load(told), answers)  # noqa: S301


def _answer(work: Callable[[], Any], answers: BinaryIO) -> None:
    began = time.process_time()
    try:
        done, said = True, work()
    except Exception as error:  # it is the caller's
        done, said = False, error
    cpu = time.process_time() - began
    try:
        answer = pickle.dumps((done, said, cpu))
    except Exception:  # a defect of the work, and not of this process
        answer = pickle.dumps((False, RuntimeError(f"what it said cannot be sent: {said!r}"), cpu))
    answers.write(LENGTH.pack(len(answer)) + answer)
    answers.flush()


def step_back(priority: str) -> None:
    """Take a lower priority, once what is needed is loaded, and be the first to go when memory ends."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    if priority == "idle":
        with contextlib.suppress(OSError, AttributeError):
            return os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(NICE[priority])
    return None


if __name__ == "__main__":
    main()
