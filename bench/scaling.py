"""One, two and three instances of token behind Envoy: what one verification costs all of them together."""

from contextlib import AsyncExitStack
from pathlib import Path

from bench.figures import Bench, Figure, at_most, beside
from bench.floor import question
from bench.lanes import Lane, Timed, instance
from bench.load import write_requests
from bench.slices import Spread
from bench.suite import Suite
from bench.workers import Worker

COUNTS = (1, 2, 3)
CALLERS = 24  # of each instance: there are more of them where there is more to do
WARM_UP_SECONDS = 0.4  # each instance must have met the token and its asker twice


async def scaling(bench: Bench) -> list[Figure]:
    """Measure VerifyToken through Envoy while the suite is scaled up and down; all instances and Envoy share one core, as there is no other."""
    suite, requests = await bench.suites.get(), bench.stack.home / "scaling"
    rounds, seconds = (1, 0.5) if bench.extent.quick else (3, 2.5)
    write_requests(requests, [question(bench.stack.signer.user_token()).SerializeToString()])
    found: dict[int, list[Timed]] = {count: [] for count in COUNTS}
    async with AsyncExitStack() as running:
        worker = await running.enter_async_context(bench.stack.worker("bench.pace"))
        running.push_async_callback(suite.tell, scale={"token": 1})
        for number in range(rounds):
            for count in COUNTS:
                took = await suite.tell(scale={"token": count})
                suite.arrange("token", "envoy")  # so that their core has no idle moments, which make each call dearer
                lane = _lane(bench, suite, worker, requests)
                await lane.closed(WARM_UP_SECONDS * count, callers=CALLERS * count)
                timed = await lane.closed(seconds, callers=CALLERS * count)
                found[count].append(timed)
                bench.say(f"round {number + 1}/{rounds}  {count} instances: {_cost(timed):6.1f} µs CPU, {timed.rate:6.0f}/s; scaled in {took:.1f} s")
    return _figures(found)


def _lane(bench: Bench, suite: Suite, worker: Worker, requests: Path) -> Lane:
    access = f"Bearer {bench.stack.signer.client_token('tokens.verify')}"
    instances = [instance(one) for one in suite.instances("token")]
    pids = {f"token {number}": one.pid for number, one in enumerate(instances)} | {"envoy": suite.one("envoy").pid or 0}
    counted = tuple(one.metrics for one in instances if one.metrics)
    return Lane(worker, suite.endpoints.grpc, "VerifyToken", requests, "VALID", lambda: access, pids=pids, counted=counted)


def _cost(timed: Timed) -> float:
    return timed.cost(*(name for name in timed.cpu if name != "envoy"))


def _figures(found: dict[int, list[Timed]]) -> list[Figure]:
    figures = []
    all_costs = {count: [_cost(timed) for timed in slices] for count, slices in found.items()}
    fewer = {2: "one instance", 3: "two instances"}
    for count, costs in all_costs.items():
        rates = [timed.rate for timed in found[count]]
        title = f"VerifyToken through Envoy, {count} instance{'s' if count > 1 else ''} of token"
        # One alone pays more for sharing its core with Envoy than any number does, so that only the third says what another instance costs.
        before = beside(fewer[count], costs, all_costs[count - 1]) if count in fewer else None
        target = at_most(1.05, of_ratio=True) if count > 2 else None
        figures.append(Figure(f"scaling.{count}.cost", f"{title}: CPU of all of them for one call", "µs/call", Spread.of(costs), before, target))
        figures.append(
            Figure(f"scaling.{count}.ideal", f"{title}: what as many cores would answer", "/s", Spread.of([count * 1e6 / cost for cost in costs]))
        )
        figures.append(Figure(f"scaling.{count}.rate", f"{title}, on one core together: answered", "/s", Spread.of(rates)))
    return figures
