"""What each process of the suite weighs, idle and after load, and how long it takes to start."""

from contextlib import AsyncExitStack

from bench.figures import Bench, Figure, at_most
from bench.floor import question
from bench.lanes import Lane
from bench.load import write_requests
from bench.machine import MIB, Weight
from bench.people import bind, people
from bench.questions import check_requests
from bench.slices import Spread
from bench.suite import SERVICES, Suite, members

IDLE_GOAL = 64.0  # MiB
STORES = ("envoy", "postgres", "redis")


async def processes(bench: Bench) -> list[Figure]:
    """Weigh them, load them, weigh them again, and start them anew."""
    suite = await bench.suites.get()
    await _load(bench, suite)
    weights = [figure for service in (*SERVICES, *STORES) for figure in _weights(service, suite)]
    whole = Figure("start.suite", "Start of the whole suite: new data, all schemas, the first administrator", "s", Spread.of([suite.start_seconds]))
    return [*weights, whole, *await _starts(bench, suite)]


async def _load(bench: Bench, suite: Suite) -> None:
    """Ask each service for a while what it is asked most: tokens, permissions, logins."""
    seconds, home = 1.0 if bench.extent.quick else 5.0, bench.stack.home
    persons = await people(suite, 2)
    await bind(suite, persons[0].id)
    tokens, logins, checks = home / "weigh.tokens", home / "weigh.logins", check_requests(home, persons[0].id).wire
    write_requests(tokens, [question(bench.stack.signer.user_token()).SerializeToString() for _ in range(500)])
    write_requests(logins, [person.login for person in persons] * 2)
    access = f"Bearer {bench.stack.signer.client_token('tokens.verify', 'permissions.check')}"
    async with AsyncExitStack() as running:
        worker, address = await running.enter_async_context(bench.stack.worker("bench.pace")), suite.endpoints.grpc
        await Lane(worker, address, "VerifyToken", tokens, "VALID", lambda: access).closed(seconds)
        await Lane(worker, address, "CheckPermission", checks, "ALLOW", lambda: access).closed(seconds)
        await Lane(worker, address, "Login", logins, "SESSION").closed(None, callers=2)


def _weights(service: str, suite: Suite) -> list[Figure]:
    one = suite.one(service)
    idle, loaded, goal = suite.idle[one.name], Weight.of(*members(one)), at_most(IDLE_GOAL) if service in SERVICES else None
    own = f"{idle.own / MIB:.0f} MiB of it are its own; the rest are pages of files, which processes share"
    grown = f"{loaded.own / MIB:.0f} MiB of it are its own"
    return [
        Figure(f"weight.{service}.idle", f"Resident set of {service}, idle", "MiB", Spread.of([idle.resident / MIB]), None, goal, (own,)),
        Figure(f"weight.{service}.loaded", f"Resident set of {service} after load", "MiB", Spread.of([loaded.resident / MIB]), notes=(grown,)),
    ]


async def _starts(bench: Bench, suite: Suite) -> list[Figure]:
    figures = []
    for service in SERVICES:
        name, seconds = suite.one(service).name, list[float]()
        for _ in range(1 if bench.extent.quick else 3):
            await suite.tell(stop=name, signal="TERM")
            seconds.append(await suite.tell(start=name))
        bench.say(f"{service} starts in {min(seconds):.2f} s")
        figures.append(Figure(f"start.{service}", f"Start of an instance of {service}, until it is ready", "s", Spread.of(seconds)))
    return figures
