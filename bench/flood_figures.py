"""From what happened under a flood to figures, beside what was before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from bench.figures import Beside, Figure, Target, at_least, at_most
from bench.lanes import Timed
from bench.login import COST
from bench.machine import MIB
from bench.slices import Spread
from bench.workers import Answer

SHARE = 0.5  # of the idle maximum: the rate at which verifications are timed
NONE: Answer = {"count": 0, "p50": 0.0, "p95": 0.0, "p99": 0.0}
SERVED, REFUSED = "SESSION", "RESOURCE_EXHAUSTED LOGIN_CAPACITY_EXCEEDED RetryInfo"
PLACES = {"apart": "identity on a core of its own", "shared": "all cores shared by all, and by the load"}


@dataclass(frozen=True, slots=True)
class Verifying:
    """How verifications went: as many as can be, and at half the idle maximum."""

    most: list[Timed]
    paced: list[Timed]

    @property
    def rates(self) -> list[float]:
        """Answers a second."""
        return [one.rate for one in self.most]

    def times(self, percentile: str) -> list[float]:
        """Milliseconds, by slice."""
        return [getattr(one, percentile) / 1000 for one in self.paced]


@dataclass(frozen=True, slots=True)
class Flooded:
    """What became of the logins, by outcome, in each half. `served` and `hashed` are identity's own counts in the time that the flood lasted."""

    first: dict[str, Answer]
    second: dict[str, Answer]
    asked: float  # a second
    seconds: float
    served: float
    hashed: float
    resident: list[int]
    verifying: Verifying

    def count(self, outcome: str) -> int:
        """Return how many logins ended so."""
        return sum(half[outcome]["count"] for half in (self.first, self.second) if outcome in half)

    @property
    def others(self) -> dict[str, int]:
        """How many ended neither with a session nor with a refusal that says when to come back."""
        return {outcome: self.count(outcome) for outcome in sorted({*self.first, *self.second} - {SERVED, REFUSED})}


def figures_of(name: str, ceiling: float, idle: Verifying, flooded: Flooded) -> list[Figure]:
    """Return the figures of one arrangement; `ceiling` is how many a second bcrypt alone compares."""
    under = f"under {flooded.asked:.0f} logins/s for {flooded.seconds:.0f} s, {PLACES[name]}"
    figures = [*_verified(idle, flooded.verifying), *_logged_in(flooded, ceiling, is_apart=name == "apart")]
    return [replace(figure, name=f"flood.{name}.{figure.name}", title=f"{figure.title}, {under}") for figure in figures]


def _verified(idle: Verifying, now: Verifying) -> list[Figure]:
    at, most = f"VerifyToken through Envoy at {SHARE:.0%} of the idle maximum", at_least(0.7, of_ratio=True)
    return [
        Figure("verify", "VerifyToken through Envoy", "/s", Spread.of(now.rates), _over("idle", now.rates, idle.rates), most),
        _time("p50", at, idle, now, None),
        _time("p99", at, idle, now, at_most(3, of_ratio=True)),
    ]


def _time(percentile: str, title: str, idle: Verifying, now: Verifying, target: Target | None) -> Figure:
    times = now.times(percentile)
    return Figure(f"verify.{percentile}", f"{title}, {percentile}", "ms", Spread.of(times), _over("idle", times, idle.times(percentile)), target)


def _logged_in(flooded: Flooded, ceiling: float, *, is_apart: bool) -> list[Figure]:
    """Where the load takes all cores, what is left for hashes is nobody's promise."""
    served, (saturated, refused) = flooded.served / flooded.seconds, (half.get(REFUSED, NONE) for half in (flooded.first, flooded.second))
    sessions = f"{flooded.count(SERVED)} got a session in all, {flooded.hashed:.0f} were hashed meanwhile"
    refusals = (f"{flooded.count(REFUSED)} in all, {_times(refused)}", f"while verifications were asked as fast as possible: {_times(saturated)}")
    grown = (max(flooded.resident) - flooded.resident[0]) / MIB
    enough, none = (at_least(0.9, of_ratio=True), at_most(0)) if is_apart else (None, None)
    bcrypt = _over(f"bcrypt alone at cost {COST}", [served], [ceiling])
    return [
        Figure("served", "Logins that got a session", "/s", Spread.of([served]), bcrypt, enough, (sessions,)),
        Figure("refused.p99", "Refusals with reason and RetryInfo, p99", "ms", Spread.of([refused["p99"] / 1000]), None, at_most(20), refusals),
        Figure("others", "Logins that ended otherwise", "calls", Spread.of([sum(flooded.others.values())]), None, none, _listed(flooded.others)),
        Figure("memory", "What identity's resident set grew by", "MiB", Spread.of([grown]), None, at_most(8)),
    ]


def _times(one: Answer) -> str:
    return f"p50 {one['p50'] / 1000:.1f} ms, p95 {one['p95'] / 1000:.1f} ms, p99 {one['p99'] / 1000:.1f} ms"


def _listed(counts: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{count} {outcome}" for outcome, count in counts.items())


def _over(title: str, own: Sequence[float], other: Sequence[float]) -> Beside:
    """Compare with the median of `other`: the slices of the two are not of the same rounds."""
    floor = median(other)
    return Beside(title, Spread.of(other), Spread.of([one / floor for one in own]))
