"""The commands that change a running stack: `scripts/scale`, `scripts/rolling-restart` and `scripts/blue-green`, each with --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.up.__main__ import pair
from services.up.blueprint import CHECKOUT
from services.up.control import ControlError, tell
from services.up.home import Home

WATCH_SECONDS = 30.0


class Unusable(Exception):
    """What was asked for cannot be tried; the text says why."""


def count(text: str) -> tuple[str, int]:
    """Parse SERVICE=N; the stack says which services and numbers there are."""
    service, number = pair(text)
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not SERVICE=N")
    return service, int(number)


def parser() -> argparse.ArgumentParser:
    """Return the options of all three."""
    made = argparse.ArgumentParser(prog="scripts", description="Change a running stack while it answers.")
    made.add_argument("--relative-to", type=Path, default=Path(), help=argparse.SUPPRESS)  # the directory that the script was called from
    verbs = made.add_subparsers(dest="verb", required=True)

    def verb(name: str, words: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, prog=f"scripts/{name}", description=words)
        one.add_argument("--home", type=Path, default=CHECKOUT / ".watchword", help="the stack's home (default: .watchword in the checkout)")
        return one

    scale = verb("scale", "Change the number of instances of a running stack, without a failed call.")
    scale.add_argument("counts", type=count, nargs="+", metavar="SERVICE=N", help="such as token=3")
    restart = verb("rolling-restart", "Replace the instances of a running stack by new ones, one at a time, without a failed call.")
    restart.add_argument("services", nargs="*", metavar="SERVICE", help="which services (default: all)")
    switch = verb(
        "blue-green",
        "Start a green set of instances beside the blue one, try it, switch to it, watch it, and end blue. It goes back by itself if green"
        " fails a call, a health check or a trial, and on demand: by --rollback or Ctrl-C.",
    )
    switch.add_argument("services", nargs="*", metavar="SERVICE", help="which services, or `all`")
    switch.add_argument("--settings", type=Path, action="append", default=[], metavar="FILE", help="green's settings: NAME=VALUE lines")
    switch.add_argument("--watch", type=float, default=WATCH_SECONDS, metavar="SECONDS", help="how long green is watched (default: 30)")
    switch.add_argument("--tolerate", type=int, default=0, metavar="N", help="how many calls green may fail by its own fault (default: 0)")
    switch.add_argument("--rollback", action="store_true", help="have the switch that is under way go back to blue")
    return made


def command_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the stack is told. Raises Unusable."""
    if options.verb == "scale":
        return {"scale": dict(options.counts)}
    if options.verb == "rolling-restart":
        return {"restart": options.services}
    if options.rollback:
        return {"rollback": True}
    if not options.services:
        raise Unusable("name the services to switch, or `all`")
    services = [] if options.services == ["all"] else options.services
    named = {name: value for path in options.settings for name, value in settings_of(options.relative_to / path).items()}
    return {"switch": services, "settings": named, "watch": options.watch, "tolerate": options.tolerate}


def settings_of(path: Path) -> dict[str, str]:
    """Read NAME=VALUE lines; empty ones and those that begin with # are left out. Raises Unusable."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return dict(pair(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#"))
    except (OSError, ValueError, argparse.ArgumentTypeError) as error:
        raise Unusable(f"{path}: {error}") from None


def carry_out(home: Home, command: dict[str, Any]) -> None:
    """Have the stack do it, telling how it goes. Raises Unusable, ControlError."""
    if home.occupant() is None:
        raise Unusable(f"no stack is running in {home.path}; start one with scripts/up, or name its home with --home")
    try:
        tell(home.path, command, timeout=None, said=lambda text: print(text, flush=True))
    except OSError:
        raise Unusable(f"the stack in {home.path} is starting or stopping; try again when scripts/up has said that it is ready") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when it is done, 1 when it failed, 2 when it could not be tried, 130 when it was interrupted and undone."""
    options = parser().parse_args(arguments)
    home = Home(options.relative_to / options.home)
    try:
        carry_out(home, command_of(options))
    except (Unusable, ControlError) as error:
        print(f"scripts/{options.verb}: {error}", file=sys.stderr)
        return 2 if isinstance(error, Unusable) else 1
    except KeyboardInterrupt:
        return interrupted(home, options)
    return 0


def interrupted(home: Home, options: argparse.Namespace) -> int:
    """The stack has heard that nobody listens any more; say what it makes of it. Return 130, or 1 if it does not go back."""
    if options.verb != "blue-green":
        print("interrupted: the step under way is finished, the others are left out; scripts/top shows what runs", file=sys.stderr)
        return 130
    print("interrupted: going back to blue", file=sys.stderr)
    try:
        carry_out(home, {"rollback": True})
    except (Unusable, ControlError) as error:
        print(f"scripts/{options.verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted again, and the stack goes on going back; scripts/top shows what runs", file=sys.stderr)
        return 130
    print("blue serves", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
