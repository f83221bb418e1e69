"""VerifyToken and CheckPermission: how long answers take at 70 % of what is answered at most, and what they cost, by each of the ways in."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from uuid import uuid4

from bench.counters import hit_ratio
from bench.edge import edge
from bench.figures import Bench, Figure
from bench.floor import echoing
from bench.lanes import Lane, instance
from bench.latency_figures import SHARE, WAYS, Measured, curve, figures_of
from bench.people import bind
from bench.questions import check_requests, verify_requests
from bench.round_trips import round_trips
from bench.slices import WARM_UP_SECONDS
from bench.suite import Suite

REST = {"VerifyToken": ("/v1/tokens:verify", "status", "VALID"), "CheckPermission": ("/v1/permissions:check", "decision", "ALLOW")}
LOADS = (0.1, 0.3, 0.5, 0.8, 0.9)  # for the curve
LOADS_OVER_REST = (0.1, 0.3, 0.5, 0.7)  # there the load costs most, and shares a core with Envoy: beyond this it is the load that is late


async def latency(bench: Bench) -> list[Figure]:
    """Measure both, beside an echo that takes the same ways."""
    suite = await bench.suites.get()
    suite.arrange("token", "rbac")
    trips = await round_trips(bench)
    async with _lanes(bench, suite) as lanes:
        measured = await _measured(bench, lanes)
        curves = await _curves(bench, lanes, measured)
        hits = {name: await hit_ratio(lane.counted[0], lane.method) for name, lane in lanes.items() if lane.counted}
    figures = [figure for name in lanes for figure in figures_of(name, measured, hits.get(name))]
    return [*trips, *figures, *curves]


@asynccontextmanager
async def _lanes(bench: Bench, suite: Suite) -> AsyncIterator[dict[str, Lane]]:
    stack, user = bench.stack, str(uuid4())
    await bind(suite, user)
    async with AsyncExitStack() as running:
        worker = await running.enter_async_context(stack.worker("bench.pace"))
        token, rbac, front = instance(suite.one("token")), instance(suite.one("rbac")), suite.one("envoy")
        echo = await running.enter_async_context(echoing(stack, token, worker, 1.0))
        host, _, port = echo.instance.address.rpartition(":")
        mirror = await running.enter_async_context(edge(stack, (host, int(port))))
        verifies, checks = verify_requests(stack.home, stack.signer.user_token()), check_requests(stack.home, user)
        access = f"Bearer {stack.signer.client_token('tokens.verify', 'permissions.check')}"
        ends = {
            "echo": (echo.instance, mirror.rest, mirror.grpc, mirror.pid, "VerifyToken", verifies),
            "verify": (token, suite.endpoints.rest, suite.endpoints.grpc, front.pid or 0, "VerifyToken", verifies),
            "check": (rbac, suite.endpoints.rest, suite.endpoints.grpc, front.pid or 0, "CheckPermission", checks),
        }
        lanes = {}
        for name, (server, rest, grpc, envoy, method, asked) in ends.items():
            path, member, expected = REST[method]
            counted = () if server.metrics is None else (server.metrics,)
            on_way = {"service": server.pid, "envoy": envoy}
            lanes[f"{name}.direct"] = Lane(
                worker, server.address, method, asked.wire, expected, lambda: access, pids={"service": server.pid}, counted=counted
            )
            lanes[f"{name}.envoy"] = Lane(worker, grpc, method, asked.wire, expected, lambda: access, pids=on_way, counted=counted)
            lanes[f"{name}.rest"] = Lane(worker, rest + path, method, asked.body, expected, lambda: access, member, on_way, counted)
        yield lanes


async def _measured(bench: Bench, lanes: dict[str, Lane]) -> dict[str, Measured]:
    rounds, seconds = (1, 0.3) if bench.extent.quick else (2, 2.5)
    for lane in lanes.values():
        await lane.closed(WARM_UP_SECONDS)
    found = {name: Measured([], []) for name in lanes}
    for number in range(rounds):
        for name, lane in lanes.items():
            most = await lane.closed(seconds)
            paced = await lane.paced(most.rate * SHARE, seconds * 1.2, seed=number)
            found[name].most.append(most)
            found[name].paced.append(paced)
            words = (
                f"{most.rate:6.0f}/s at most, {most.cost():6.1f} µs CPU; at {SHARE:.0%} p50 {paced.p50 / 1000:.2f} ms, p99 {paced.p99 / 1000:.2f} ms"
            )
            bench.say(f"round {number + 1}/{rounds}  {name:<13} {words}")
    return found


async def _curves(bench: Bench, lanes: dict[str, Lane], measured: dict[str, Measured]) -> list[Figure]:
    """Measure answers of VerifyToken at other loads; a quick run measures one."""
    seconds = 0.3 if bench.extent.quick else 2.0
    figures = []
    for way in WAYS:
        most = median(one.rate for one in measured[f"verify.{way}"].most)
        shares = LOADS_OVER_REST if way == "rest" else LOADS
        for share in shares[2:3] if bench.extent.quick else shares:
            timed = await lanes[f"verify.{way}"].paced(most * share, seconds, seed=int(share * 100))
            bench.say(f"{way:<7} at {share:.0%}: p50 {timed.p50 / 1000:.2f} ms, p99 {timed.p99 / 1000:.2f} ms")
            figures += curve(way, share, timed)
    return figures
