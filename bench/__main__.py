"""`scripts/bench`: runs the groups of figures one after another, prints the table, writes the results."""

import argparse
import asyncio
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.client import client
from bench.direct import direct
from bench.figures import Bench, Extent, Figure
from bench.flood import flood
from bench.growth import growth, lookup
from bench.issue import issue
from bench.latency import latency
from bench.local_figures import local
from bench.login import login
from bench.machine import Cores, Machine
from bench.memory import memory
from bench.page import COMMITTED, PAGE, publish
from bench.permissions import check, checks
from bench.processes import processes
from bench.propagation import propagation
from bench.refresh import refresh
from bench.results import Failure, Results
from bench.role_change import role_change
from bench.scaling import scaling
from bench.seeding import imports
from bench.stack import SETTINGS, running_stack
from bench.subscribers import subscribers
from bench.suite import Suites
from bench.table import aligned
from bench.verify import batch, verify
from bench.visible import visible
from bench.workers import ROOT, BenchError
from services.embedded import EmbeddedError

LIMIT, QUICK_LIMIT = 600.0, 150.0  # seconds for a group: far more than it takes, so that nothing hangs for ever

GROUPS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "verify": verify,
    "batch": batch,
    "issue": issue,
    "local": local,
    "direct": direct,
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
    "processes": processes,
    "latency": latency,
    "refresh": refresh,
    "login": login,
    "scaling": scaling,
    "flood": flood,
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
    """Measure; a group that fails is told, and the others are measured all the same. Raises BenchError, EmbeddedError."""
    began, extent, figures, failures = time.monotonic(), Extent.of(quick=quick), list[Figure](), list[Failure]()
    started = datetime.now(UTC)
    say("starting Postgres and Valkey")
    async with running_stack() as stack, Suites(stack).kept() as suites:
        bench = Bench(stack, suites, extent, say)
        for number, name in enumerate(groups, 1):
            say(f"{name}, {number} of {len(groups)} ({time.monotonic() - began:.0f} s since the start)")
            try:
                async with asyncio.timeout(QUICK_LIMIT if quick else LIMIT):
                    figures += await GROUPS[name](bench)
            except Exception as error:  # whatever it is, what the other groups found is not lost for it
                failures.append(Failure(name, _words(error)))
                say(f"{name} FAILED: {traceback.format_exc()}")
                await suites.drop()
    return Results(
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        groups=tuple(groups),
        machine=Machine.here().facts(),
        cores_apart=Cores.here().are_apart,
        settings=SETTINGS,
        figures=tuple(figures),
        failures=tuple(failures),
    )


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "took too long: is the machine busy with something else?"
    return str(error) if isinstance(error, (BenchError, EmbeddedError)) else f"{type(error).__name__}: {error}"


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
    for failure in results.failures:
        print(f"\n{failure.group} FAILED: {failure.words}", file=sys.stderr)


def deliver(results: Results, out: Path | None, *, is_whole: bool) -> None:
    """Write the results where they are wanted; a whole run is what the repository shows."""
    if out is not None:
        out.write_bytes(results.encode())
        print(f"results in {out}")
    elif is_whole:
        COMMITTED.parent.mkdir(exist_ok=True)
        COMMITTED.write_bytes(results.encode())
        publish(results)
        print(f"results in {COMMITTED.relative_to(ROOT)}, their page in {PAGE.relative_to(ROOT)}")


async def main(given: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    chosen = arguments(given)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        results = await run(chosen.groups, quick=chosen.quick)
    except (BenchError, EmbeddedError) as error:
        print(error, file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("stopped", file=sys.stderr)
        return 1
    show(results)
    deliver(results, chosen.out, is_whole=chosen.groups == list(GROUPS) and not chosen.quick)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
