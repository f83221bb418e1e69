"""`python -m services.up`: starts the stack, says where it is, and stops it again. `scripts/up --help` lists the options."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from services.up.blueprint import CHECKOUT, Blueprint, Wishes, caller_settings
from services.up.detach import in_background
from services.up.home import Home, HomeError
from services.up.ports import PortBusy, reserve
from services.up.processes import MOST_INSTANCES, PROCESSES, Kind, Process, with_replicas
from services.up.session import Session


def pair(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def replicas(text: str) -> dict[str, int]:
    """Parse SERVICE=COUNT,…"""
    counts = dict(pair(part) for part in text.split(","))
    if not all(count.isdigit() and 1 <= int(count) <= MOST_INSTANCES for count in counts.values()):
        raise argparse.ArgumentTypeError(f"{text!r} is not SERVICE=COUNT with counts from 1 to {MOST_INSTANCES}")
    return {name: int(count) for name, count in counts.items()}


def port(text: str) -> int:
    """Parse a port number; 0 means any free one."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the options of `scripts/up`."""
    made = argparse.ArgumentParser(prog="scripts/up", description="Start the whole suite on this machine, with real Postgres, Valkey and Envoy.")
    add = made.add_argument
    add("--home", type=Path, default=CHECKOUT / ".watchword", help="directory for data, keys, logs and mail (default: .watchword in the checkout)")
    add("--rest-port", type=port, default=8080, metavar="PORT", help="where REST is served (default: 8080; 0: any free port)")
    add("--grpc-port", type=port, default=9090, metavar="PORT", help="where gRPC is served (default: 9090; 0: any free port)")
    add("--replicas", type=replicas, action="append", default=[], metavar="SERVICE=N", help="how many instances, such as token=3 (default: 2)")
    add("--env", type=pair, action="append", default=[], metavar="NAME=VALUE", help="a setting for all services")
    add("--detach", action="store_true", help="return once everything is ready; scripts/down stops it")
    add("--fresh", action="store_true", help="delete the data of an earlier run first")
    add("--unsafe-speed", action="store_true", help="let Postgres skip the disk syncs; for tests")
    add("--relative-to", type=Path, default=Path(), help=argparse.SUPPRESS)  # the directory that scripts/up was called from
    return made


def main(arguments: Sequence[str] | None = None, processes: Sequence[Process] = PROCESSES) -> int:
    """Run a stack; return 0 after an orderly end, 1 when it failed, 2 when it could not be tried."""
    options = parser().parse_args(arguments)
    os.umask(0o077)
    try:
        table = with_replicas(processes, {name: count for counts in options.replicas for name, count in counts.items()})
        home = Home(options.relative_to / options.home)
        home.claim()
        rest, grpc = reserve(options.rest_port, option="--rest-port"), reserve(options.grpc_port, option="--grpc-port")
        if options.fresh:
            home.wipe()
        home.furnish([row.name for row in table if row.kind is Kind.SERVICE])
        wishes = Wishes(caller_settings(dict(options.env)), durable=not options.unsafe_speed)
        blueprint = Blueprint(table, home=home, wishes=wishes, rest=rest, grpc=grpc)
    except (HomeError, PortBusy, ValueError, OSError) as error:
        print(f"scripts/up: {error}", file=sys.stderr)
        return 2
    session = Session(home, blueprint)
    if options.detach:
        return in_background(home, lambda ready: asyncio.run(session.run(ready)), blueprint.release_all)
    return asyncio.run(session.run(lambda: None))


if __name__ == "__main__":
    sys.exit(main())
