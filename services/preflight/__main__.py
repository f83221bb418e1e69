"""`python -m services.preflight`: checks a deployment before it goes live. `scripts/preflight --help` lists the options."""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from services.preflight.edge import Client, Edge
from services.preflight.findings import Finding, State, judged, report
from services.preflight.numbers import answered, from_numbers, pools
from services.preflight.stores import postgres, redis
from services.top.__main__ import CHECKOUT, NothingToSee, endpoints, target, targets
from services.top.scrape import Look, Target, look

BY_HAND = {
    "backups": "restore one, and log in on what was restored",
    "failover": "stop one instance of each service, and Redis, and Postgres's primary: reads go on",
    "mail": "register an account, and click",
    "audit heads": "the head of each tenant's audit log is kept elsewhere, daily",
    "watching": "Prometheus has deploy/monitoring/alerts.yml, logs are collected, autoscaling is on",
}


def parser() -> argparse.ArgumentParser:
    """Return the options of `scripts/preflight`."""
    made = argparse.ArgumentParser(
        prog="scripts/preflight",
        description="Check a deployment before it goes live. Ends with 0 if all that can be tried is as it must be, 1 if something is not, 2 if "
        "something could not be tried.",
        epilog="Read from the environment: DATABASE_URL, REDIS_URL, and of an OAuth client with the scope tokens.verify CLIENT_ID and CLIENT_SECRET.",
    )
    add = made.add_argument
    add(
        "--home",
        type=Path,
        default=CHECKOUT / ".watchword",
        help="a stack of scripts/up, where neither --rest nor --target is given (default: .watchword in the checkout)",
    )
    add("--rest", type=rest, metavar="URL", help="the REST listener, as its callers reach it: https://auth.example.com")
    add(
        "--target",
        type=target,
        action="append",
        default=[],
        metavar="NAME=URL",
        help="the numbers of an instance, of each one: token-1=http://10.0.0.7:9464/metrics",
    )
    add("--relative-to", type=Path, default=Path(), help=argparse.SUPPRESS)  # the directory that scripts/preflight was called from
    return made


def rest(text: str) -> str:
    """Parse the URL of the edge."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not http://HOST or https://HOST")
    return text


async def preflight(options: argparse.Namespace, environment: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Yield what each check finds."""
    stack: Mapping[str, Any] = {}
    if not (options.rest or options.target):
        with suppress(NothingToSee):
            stack = endpoints(options.relative_to / options.home)
    instances = options.target or targets(stack)
    url = options.rest or stack.get("rest", "")
    looks = await look(instances)
    if instances:
        for finding in from_numbers(looks):
            yield finding
    else:
        yield Finding(State.NOT_TRIED, "numbers", "name each instance with --target")
    async for finding in postgres(environment.get("DATABASE_URL") or stack.get("database_url", ""), pools(looks)):
        yield finding
    async for finding in redis(environment.get("REDIS_URL") or stack.get("redis_url", "")):
        yield finding
    if url:
        async for finding in through(Edge(url), environment, looks, instances):
            yield finding
    else:
        yield Finding(State.NOT_TRIED, "edge", "name it with --rest")
    for name, words in BY_HAND.items():
        yield Finding(State.BY_HAND, name, words)


async def through(edge: Edge, environment: Mapping[str, str], before: Sequence[Look], instances: Sequence[Target]) -> AsyncIterator[Finding]:
    """Yield what is seen through the balancer, and whether it balanced."""
    async for finding in edge.checked():
        yield finding
    yield await edge.guessed()
    named = environment.get("CLIENT_ID", ""), environment.get("CLIENT_SECRET", "")
    revocation = await edge.revoked(Client(*named) if all(named) else None)
    yield revocation
    if instances and revocation.state is State.OK:
        then, now = answered(before, "VerifyToken"), answered(await look(instances), "VerifyToken")
        idle = [name for name, count in now.items() if count <= then.get(name, 0.0)]
        yield judged("balancing", good=not idle, words=", ".join(idle) or f"all {len(now)} instances of token were asked", otherwise="never asked")


async def run(options: argparse.Namespace) -> int:
    """Print what is found; return the exit status."""
    states = set()
    async for finding in preflight(options, os.environ):
        print(report([finding]), flush=True)
        states.add(finding.state)
    return 1 if State.FAILED in states else 2 if State.NOT_TRIED in states else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run(parser().parse_args())))
