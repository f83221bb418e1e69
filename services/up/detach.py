"""Running a stack in the background: the caller sees every line until it is ready, and then has the prompt back."""

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader

from services.up.home import Home

READY = b"1"
PAUSE_SECONDS = 0.05


def in_background(home: Home, run: Callable[[Callable[[], None]], int], let_go: Callable[[], None]) -> int:
    """Have a child process `run`, with a callback for when it is ready; return 0 from then on, or 1 if it ends before.

    Ctrl-C meanwhile stops the child. `let_go` closes what only the child may hold, in the parent.
    Must be called before there are threads, because it forks.
    """
    log_path = home.log("up")
    log_path.unlink(missing_ok=True)
    log_path.touch(mode=0o600)
    hears, tells = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(hears)
        os._exit(_become_background(home, tells, run))
    os.close(tells)
    let_go()
    with log_path.open("rb") as log:
        try:
            return _follow(log, hears)
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
            return _follow(log, hears)


def _become_background(home: Home, tells: int, run: Callable[[Callable[[], None]], int]) -> int:
    os.setsid()
    home.sign()
    with open(os.devnull, "rb") as nothing, home.log("up").open("ab") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        return run(lambda: _tell(tells))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _tell(tells: int) -> None:
    # A caller that did not wait does not stop the stack.
    with suppress(BrokenPipeError):
        os.write(tells, READY)
    os.close(tells)


def _follow(log: BufferedReader, hears: int) -> int:
    """Print the log as it grows, until the pipe brings the word or closes without it."""
    while not select.select([hears], [], [], PAUSE_SECONDS)[0]:
        _copy(log)
    is_ready = os.read(hears, 1) == READY
    _copy(log)
    return 0 if is_ready else 1


def _copy(log: BufferedReader) -> None:
    text = log.read().decode(errors="replace")
    with suppress(BrokenPipeError):  # nobody reads; the exit code still matters
        sys.stdout.write(text)
        sys.stdout.flush()
