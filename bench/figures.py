"""Figures: what is reported, each with what stands beside it and what was promised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.slices import Sample, Spread
from bench.stack import Stack
from bench.suite import Suites


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about a figure's ratio, or about the figure itself."""

    bound: float
    is_ceiling: bool  # at most, else at least
    of_ratio: bool = False

    def is_met(self, value: float) -> bool:
        """Whether `value` keeps it."""
        return value <= self.bound if self.is_ceiling else value >= self.bound

    @property
    def words(self) -> str:
        """The promise, short."""
        return f"{'≤' if self.is_ceiling else '≥'} {self.bound:,g}{' times' if self.of_ratio else ''}"


@dataclass(frozen=True, slots=True)
class Beside:
    """A floor or ceiling, measured in the same run; `ratio` is the figure divided by it, round by round."""

    title: str
    value: Spread
    ratio: Spread


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    name: str
    title: str
    unit: str
    value: Spread
    beside: Beside | None = None
    target: Target | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met by the median; None without one."""
        if self.target is None:
            return None
        judged = self.beside.ratio if self.target.of_ratio and self.beside else self.value
        return self.target.is_met(judged.median)


def at_most(bound: float, *, of_ratio: bool = False) -> Target:
    """Promise that it is no more."""
    return Target(bound, True, of_ratio)


def at_least(bound: float, *, of_ratio: bool = False) -> Target:
    """Promise that it is no less."""
    return Target(bound, False, of_ratio)


def beside(title: str, subject: Sequence[float], other: Sequence[float]) -> Beside:
    """Compare two series, round by round."""
    return Beside(title, Spread.of(other), Spread.of([mine / theirs for mine, theirs in zip(subject, other, strict=True)]))


def circumstances(subject: Sequence[Sample], floor: Sequence[Sample] = ()) -> tuple[str, ...]:
    """Say how busy the cores were and how long answers took: a core that idles between calls makes each of them dearer."""
    own = f"core {median(sample.busy for sample in subject):.0%} busy"
    with_floor = f", {median(sample.busy for sample in floor):.0%} under the floor" if floor else ""
    waits = f"answers p50 {median(sample.p50 for sample in subject) / 1000:.1f} ms, p99 {median(sample.p99 for sample in subject) / 1000:.1f} ms"
    return (own + with_floor, f"{waits}, {sum(sample.units for sample in subject):,} all as expected")


def at(values: Sequence[float], share: float) -> float:
    """Return the value that this share of `values` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def percentiles(
    name: str, title: str, values: Sequence[float], floor: Sequence[float] = (), *, target: Target | None = None, notes: tuple[str, ...] = ()
) -> list[Figure]:
    """Return median and 99th percentile; the target is about the latter."""
    figures = []
    for word, share in (("p50", 0.5), ("p99", 0.99)):
        value = at(values, share)
        under = at(floor, share) if floor else 0.0
        beside = Beside("transaction", Spread.of([under]), Spread.of([value / under])) if floor else None
        bound = target if word == "p99" else None
        figures.append(Figure(f"{name}.{word}", f"{title}, {word}", "ms", Spread.of([value]), beside, bound, (f"{len(values)} times", *notes)))
    return figures


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. `quick` is for trying: its figures are not for publishing."""

    quick: bool
    rounds: int
    seconds: float
    fresh_tokens: int  # a slice, each used once
    revocations: int
    live_revocations: tuple[int, ...]
    subscribers: tuple[int, ...]
    policy_seconds: float  # of a slice that asks rbac
    policies: tuple[int, ...]  # bindings
    cold_checks: int  # a slice
    role_seconds: float

    @classmethod
    def of(cls, *, quick: bool) -> "Extent":
        """Return the quick extent or the full one."""
        if quick:
            return cls(True, 1, 0.5, 400, 25, (0, 100_000), (200,), 0.3, (1_000, 20_000), 100, 1.0)
        return cls(False, 5, 3.0, 3_300, 300, (0, 100_000, 1_000_000), (1_000, 2_000), 2.0, (1_000, 1_000_000), 600, 8.0)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a group of figures works with."""

    stack: Stack
    suites: Suites
    extent: Extent
    say: Callable[[str], None]
