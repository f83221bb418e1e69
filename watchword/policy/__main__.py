"""`python -m watchword.policy`, which is also `watchword policy`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from watchword.errors import WatchwordError
from watchword.policy.command import FAILED, Refused, Terminal, Work
from watchword.policy.connecting import WORDS, EnvironmentLacking, connection_of
from watchword.policy.document import SECTIONS, Owns
from watchword.policy.shapes import misshapen
from watchword.policy.simulation import TooLarge
from watchword.policy.strict_yaml import FileInvalid
from watchword.policy.tenant import TenantChanged


class _Parser(argparse.ArgumentParser):
    """A command line that cannot be read is an error like others: argparse's own status for it, 2, says here that there is a difference."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = _Parser("watchword policy", description="Policy as code.", epilog=WORDS, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True, metavar="export | diff | apply | test")
    export = commands.add_parser("export", help="print the tenant as a file")
    export.add_argument("--owns", type=_owns, default=Owns(True), metavar="PREFIX,...", help="only what begins so (default: all)")
    export.add_argument("--sections", type=_sections, default=SECTIONS, metavar="NAME,...", help=f"only these of {', '.join(SECTIONS)}")
    diff = commands.add_parser("diff", help="print what applying a file would change; status 2 if anything")
    diff.add_argument("file", type=Path)
    apply = commands.add_parser("apply", help="apply a file, if what it changes was seen")
    apply.add_argument("file", type=Path)
    apply.add_argument("--plan", default="", metavar="DIGEST", help="the plan that was seen, as diff printed it (default: ask)")
    test = commands.add_parser("test", help="check what a file expects; status 3 if anything is otherwise")
    test.add_argument("file", type=Path)
    test.add_argument("--simulate", action="store_true", help="first print what applying the file would do to whom")
    return made


def _owns(text: str) -> Owns:
    words = text.split(",")
    if wrong := next((misshapen("prefix", word) for word in words if misshapen("prefix", word)), ""):
        raise argparse.ArgumentTypeError(f"must be {wrong}")
    return Owns("all" in words, tuple(sorted({word for word in words if word != "all"})))


def _sections(text: str) -> tuple[str, ...]:
    words = text.split(",")
    if strangers := set(words) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(strangers))}: there are {', '.join(SECTIONS)}")
    return tuple(words)


async def run(options: argparse.Namespace, environment: Mapping[str, str], terminal: Terminal) -> int:
    """Run a command; return the exit status."""
    try:
        connection = connection_of(environment)
        connection.start()
        try:
            work = Work(connection, terminal, lambda: datetime.now(UTC))
            if options.command == "export":
                return await work.export(options.owns, options.sections)
            if options.command == "diff":
                return await work.diff(options.file)
            if options.command == "apply":
                return await work.apply(options.file, options.plan)
            return await work.test(options.file, simulates=options.simulate)
        finally:
            await connection.stop()
    except FileInvalid as error:
        for problem in error.problems:
            terminal.remark(f"{options.file}{f':{problem.line}' if problem.line else ''}: {problem.text}")
    except TenantChanged:
        terminal.remark("the tenant was changed while it was read; run this again")
    except (EnvironmentLacking, Refused, TooLarge) as error:
        terminal.remark(str(error))
    except WatchwordError as error:
        terminal.remark("; ".join([f"{error.reason}: {error.text}", *(f"{one.field} {one.description}" for one in error.violations)]))
    return FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    options = parser().parse_args(arguments)
    try:
        status = asyncio.run(run(options, os.environ, Terminal.standard()))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has gone; what is left must not fail once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
