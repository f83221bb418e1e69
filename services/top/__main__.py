"""`python -m services.top`: looks again and again, and draws. `scripts/top --help` lists the options."""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from services.top.figures import instances, methods, pairs, whole
from services.top.scrape import Look, Target, look
from services.top.view import picture

CHECKOUT = Path(__file__).parent.parent.parent
ALTERNATE, NORMAL, HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[K", "\x1b[J"


class NothingToSee(Exception):
    """There is no stack to look at; the text says where it was looked for."""


def parser() -> argparse.ArgumentParser:
    """Return the options of `scripts/top`."""
    made = argparse.ArgumentParser(prog="scripts/top", description="Show live rates, latencies, instances and health of a running stack.")
    add = made.add_argument
    add("--home", type=Path, default=CHECKOUT / ".watchword", help="the stack's home (default: .watchword in the checkout)")
    add(
        "--target",
        type=target,
        action="append",
        default=[],
        metavar="NAME=URL",
        help="look at these instead, such as token-1=http://10.0.0.7:9464/metrics",
    )
    add("--interval", type=float, default=2.0, metavar="SECONDS", help="time between two looks (default: 2)")
    add("--once", action="store_true", help="print one picture as plain text and end; so does an output that is no terminal")
    add("--relative-to", type=Path, default=Path(), help=argparse.SUPPRESS)  # the directory that scripts/top was called from
    return made


def target(text: str) -> Target:
    """Parse NAME=URL."""
    name, _, url = text.partition("=")
    if not name or not url.startswith("http://"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=http://HOST:PORT/PATH")
    return Target(name, url)


def endpoints(home: Path) -> Mapping[str, Any]:
    """Return where the stack of `home` is, as it is now: its instances may be more or fewer than before. Raises NothingToSee."""
    try:
        found: Mapping[str, Any] = json.loads((home / "endpoints.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise NothingToSee(f"no stack runs in {home}; start one with scripts/up, or name its home with --home") from None
    return found


def targets(stack: Mapping[str, Any]) -> list[Target]:
    """Return the instances of a stack that tell numbers."""
    return [Target(one["name"], one["metrics"]) for one in stack.get("instances", ()) if one["metrics"]]


def draw(before: Sequence[Look], after: Sequence[Look]) -> str:
    """Return the picture of what happened between two looks."""
    every = pairs(before, after)
    return picture(whole(every), list(instances(every)), methods(every))


class Watch:
    """The looks, one after another."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._home = options.relative_to / options.home
        self._given = list(options.target)
        self._interval = options.interval
        self.end = asyncio.Event()

    async def look(self) -> list[Look]:
        """Look once. Raises NothingToSee."""
        return await look(self._given or targets(endpoints(self._home)))

    async def pause(self) -> None:
        """Wait for the time of the next look, or the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.end.wait(), self._interval)


async def once(watch: Watch) -> None:
    """Print one picture."""
    before = await watch.look()
    await watch.pause()
    print(draw(before, await watch.look()))


async def live(watch: Watch) -> None:
    """Draw until `q` or Ctrl-C."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, watch.end.set)
    loop.add_signal_handler(signal.SIGTERM, watch.end.set)
    with _screen():
        loop.add_reader(sys.stdin, lambda: watch.end.set() if sys.stdin.read(1) in ("q", "") else None)
        before = await watch.look()
        while not watch.end.is_set():
            await watch.pause()
            after = await watch.look()
            _show(draw(before, after))
            before = after


def _show(text: str) -> None:
    size = shutil.get_terminal_size()
    lines = [line[: size.columns] + CLEAR_LINE for line in text.splitlines()[: size.lines - 1]]
    print(HOME + "\r\n".join(lines) + CLEAR_BELOW, end="", flush=True)


@contextmanager
def _screen() -> Iterator[None]:
    """Take the terminal over, and give it back as it was."""
    former = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    print(ALTERNATE, end="", flush=True)
    try:
        yield
    finally:
        print(NORMAL, end="", flush=True)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, former)


def main(arguments: Sequence[str] | None = None) -> int:
    """Look; return 0, or 1 if there is nothing to look at."""
    options = parser().parse_args(arguments)
    is_plain = options.once or not (sys.stdin.isatty() and sys.stdout.isatty())

    async def run() -> None:
        watch = Watch(options)
        await (once(watch) if is_plain else live(watch))

    try:
        asyncio.run(run())
    except NothingToSee as error:
        print(f"scripts/top: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
