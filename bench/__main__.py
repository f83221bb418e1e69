"""`scripts/bench`: runs the groups of figures one after another, prints the table, writes the results."""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.client import client
from bench.figures import Bench, Extent, Figure
from bench.growth import growth, lookup
from bench.issue import issue
from bench.local_figures import local
from bench.machine import Cores, Machine
from bench.memory import memory
from bench.page import COMMITTED, PAGE, page
from bench.permissions import check, checks
from bench.propagation import propagation
from bench.results import Results
from bench.role_change import role_change
from bench.seeding import imports
from bench.stack import SETTINGS, running_stack
from bench.subscribers import subscribers
from bench.table import aligned
from bench.verify import batch, verify
from bench.visible import visible
from bench.workers import ROOT, BenchError
from services.embedded import EmbeddedError

LIMIT, QUICK_LIMIT = 1800.0, 480.0  # seconds: far more than it takes, so that nothing hangs for ever

GROUPS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "verify": verify,
    "batch": batch,
    "issue": issue,
    "local": local,
    "propagation": propagation,
    "memory": memory,
    "subscribers": subscribers,
    "import": imports,
    "check": check,
    "checks": checks,
    "growth": growth,
    "role-change": role_change,
    "visible": visible,
    "lookup": lookup,
    "client": client,
}


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("scripts/bench", description="Measure, each figure beside its floor or ceiling.")
    parser.add_argument("--quick", action="store_true", help="three minutes, to see that it works; figures are not for publishing")
    parser.add_argument("--only", metavar="NAME,...", default="", help=f"only these groups: {', '.join(GROUPS)}")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="where the JSON goes; without it, a whole run writes bench/results and the page, others nothing"
    )
    chosen = parser.parse_args(given)
    chosen.groups = [name for name in chosen.only.split(",") if name] or list(GROUPS)
    if strangers := sorted(set(chosen.groups) - set(GROUPS)):
        parser.error(f"--only: {', '.join(strangers)}: the groups are {', '.join(GROUPS)}")
    return chosen


async def run(groups: Sequence[str], *, quick: bool) -> Results:
    """Measure. Raises BenchError, EmbeddedError."""
    began, extent, figures = time.monotonic(), Extent.of(quick=quick), []
    started = datetime.now(UTC)
    say("starting Postgres and Valkey")
    async with running_stack() as stack:
        bench = Bench(stack, extent, say)
        for name in groups:
            say(f"{name} ({time.monotonic() - began:.0f} s since the start)")
            figures += await GROUPS[name](bench)
    return Results(
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        groups=tuple(groups),
        machine=Machine.here().facts(),
        cores_apart=Cores.here().are_apart,
        settings=SETTINGS,
        figures=tuple(figures),
    )


def say(words: str) -> None:
    """Tell how far it is."""
    print(f"· {words}", file=sys.stderr, flush=True)


def show(results: Results) -> None:
    """Print the table, what stood around each figure, and on what it was measured."""
    print(aligned(results.figures), end="\n\n")
    for figure in results.figures:
        if figure.notes:
            print(f"{figure.name}: {'; '.join(figure.notes)}")
    print(f"\non {', '.join(f'{name} {value}' for name, value in results.machine.items())}")
    print(f"with {', '.join(f'{name}={value}' for name, value in results.settings.items())}")


def deliver(results: Results, out: Path | None, *, is_whole: bool) -> None:
    """Write the results where they are wanted; a whole run is what the repository shows."""
    if out is not None:
        out.write_bytes(results.encode())
        print(f"results in {out}")
    elif is_whole:
        COMMITTED.parent.mkdir(exist_ok=True)
        COMMITTED.write_bytes(results.encode())
        PAGE.write_text(page(results), encoding="utf-8")
        print(f"results in {COMMITTED.relative_to(ROOT)}, their page in {PAGE.relative_to(ROOT)}")


async def main(given: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    chosen = arguments(given)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.timeout(QUICK_LIMIT if chosen.quick else LIMIT):
            results = await run(chosen.groups, quick=chosen.quick)
    except TimeoutError:
        print("it took too long: is the machine busy with something else?", file=sys.stderr)
        return 1
    except (BenchError, EmbeddedError) as error:
        print(error, file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("stopped", file=sys.stderr)
        return 1
    show(results)
    deliver(results, chosen.out, is_whole=chosen.groups == list(GROUPS) and not chosen.quick)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
