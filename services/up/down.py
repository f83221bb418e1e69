"""`python -m services.up.down`: stops the stack of a home, and returns when nothing of it is left."""

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from services.up.blueprint import CHECKOUT
from services.up.home import Home

PATIENCE_SECONDS = 120.0  # longer than all drains together
PAUSE_SECONDS = 0.05


def main() -> int:
    """Stop a stack; return 0 when none runs any more."""
    parser = argparse.ArgumentParser(prog="scripts/down", description="Stop the stack that scripts/up --detach started.")
    parser.add_argument("--home", type=Path, default=CHECKOUT / ".watchword", help="the stack's home (default: .watchword in the checkout)")
    parser.add_argument("--relative-to", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    home = Home(options.relative_to / options.home)
    while (occupant := home.occupant()) == 0:  # it has the lock and is about to sign
        time.sleep(PAUSE_SECONDS)
    if occupant is None:
        print(f"no stack is running in {home.path}")
        return 0
    return _stop(home, occupant)


def _stop(home: Home, occupant: int) -> int:
    began = time.monotonic()
    _signal(occupant, signal.SIGTERM)
    while home.occupant() == occupant:
        if time.monotonic() - began > PATIENCE_SECONDS:
            _signal(occupant, signal.SIGKILL)  # its children go with it
            print(f"the stack in {home.path} did not stop within {PATIENCE_SECONDS:.0f} s and was killed", file=sys.stderr)
            return 1
        time.sleep(PAUSE_SECONDS)
    print(f"stopped in {time.monotonic() - began:.1f} s")
    return 0


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


if __name__ == "__main__":
    sys.exit(main())
