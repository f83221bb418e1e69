"""From the slices of the lanes to figures: maximum, times at 70 % of it, and what a core answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from bench.figures import Figure, beside
from bench.lanes import CALLERS, Timed, waiting
from bench.slices import Spread

SHARE = 0.7  # of the maximum
PERCENTILES: dict[str, Callable[[Timed], float]] = {
    "p50": lambda one: one.p50 / 1000,
    "p95": lambda one: one.p95 / 1000,
    "p99": lambda one: one.p99 / 1000,
}
WAYS = {"direct": "gRPC, direct", "envoy": "gRPC, through Envoy", "rest": "REST"}
SUBJECTS = {"echo": "bare echo", "verify": "VerifyToken, one token repeated", "check": "CheckPermission, one question repeated"}


@dataclass(frozen=True, slots=True)
class Measured:
    """The slices of one lane, by round: as fast as possible, and at 70 % of that."""

    most: list[Timed]
    paced: list[Timed]


def figures_of(name: str, measured: Mapping[str, Measured], hits: float | None) -> list[Figure]:
    """Return the figures of one lane, such as verify.envoy, beside those of the echo that went the same way."""
    subject, _, way = name.partition(".")
    own, floor = measured[name], measured[f"echo.{way}"]
    from_memory = () if hits is None else (f"{hits:.1%} of all calls answered from memory",)
    late = median(one.late for one in own.paced) / 1000
    pace = f"at {median(one.rate for one in own.paced):,.0f}/s; the load itself was late by {late:.2f} ms at p99"

    def figure(what: str, words: str, unit: str, of: Callable[[Timed], float], *notes: str) -> Figure:
        mine, echo = (slices.paced if what in PERCENTILES else slices.most for slices in (own, floor))
        values, others = [of(one) for one in mine], [of(one) for one in echo]
        against = None if subject == "echo" else beside("echo", values, others)
        return Figure(f"latency.{name}.{what}", f"{SUBJECTS[subject]}, {WAYS[way]}: {words}", unit, Spread.of(values), against, None, notes)

    on_way = "the instance" if way == "direct" else "the instance and Envoy together"
    figures = [
        figure("max", "closed-loop maximum", "/s", lambda one: one.rate, f"{CALLERS} callers, {waiting(own.most)}", *from_memory),
        *(figure(what, f"{what} at {SHARE:.0%} of the maximum", "ms", of, pace) for what, of in PERCENTILES.items()),
        figure("core", f"answers by a second of one core, {on_way}", "/CPU s", lambda one: 1e6 / one.cost()),
    ]
    if way != "direct":
        figures.append(figure("edge", "CPU of Envoy", "µs/call", lambda one: one.cost("envoy")))
    return figures


def curve(way: str, share: float, timed: Timed) -> list[Figure]:
    """Return the figures of VerifyToken at another load."""
    title, notes = f"VerifyToken, {WAYS[way]}: at {share:.0%} of the maximum", (f"at {timed.rate:,.0f}/s",)
    return [
        Figure(f"load.{way}.{share * 100:.0f}.{what}", f"{title}, {what}", "ms", Spread.of([PERCENTILES[what](timed)]), notes=notes)
        for what in ("p50", "p99")
    ]
