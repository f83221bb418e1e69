"""What the instances tell Prometheus, and what of it must be so before anybody depends on them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from services.chassis.skew import TOLERATED
from services.preflight.findings import Finding, judged
from services.top.scrape import Look

ENOUGH = 3  # instances of each service in production


def from_numbers(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield what the numbers show."""
    silent = [one.target.name for one in looks if not one.is_up]
    told = [one for one in looks if one.is_up]
    yield judged("answering", good=bool(told) and not silent, words=_listed(silent) or f"all {len(told)}", otherwise="no numbers from")
    if not told:
        return
    few = [f"{context} {len(ones)}" for context, ones in sorted(_by_context(told).items()) if len(ones) < ENOUGH]
    yield judged("instances", good=not few, words=_listed(few) or f"at least {ENOUGH} of each service", otherwise=f"fewer than {ENOUGH}")
    yield _all(told, "ready", "watchword_ready", "not ready")
    yield _all(told, "leases", "watchword_lease_current", "no lease, so Postgres is asked instead of memory")
    yield _all(told, "callers", "watchword_callers_current", "token is asked about every caller")
    late = [
        f"{one.target.name} {one.sum('watchword_clock_skew_seconds'):+.1f} s"
        for one in told
        if abs(one.sum("watchword_clock_skew_seconds")) > TOLERATED
    ]
    yield judged("clocks", good=not late, words=_listed(late) or f"within {TOLERATED:.0f} s of Postgres's", otherwise="wrong")
    yield _alike(told, "settings", "watchword_settings_info", "fingerprint")
    yield _alike(told, "versions", "watchword_build_info", "version")
    others = [f"{one.target.name} {kind}" for one in told for kind in _labels(one, "watchword_build_info", "environment") if kind != "production"]
    yield judged("environment", good=not others, words=_listed(others) or "production everywhere", otherwise="APP_ENV is not production")


def pools(looks: Sequence[Look]) -> int:
    """Return to how many connections with Postgres all instances together may grow."""
    return int(sum(one.sum("watchword_database_connections_max") for one in looks))


def answered(looks: Sequence[Look], method: str) -> dict[str, float]:
    """Return how many calls of a method each instance has answered that serves it."""
    return {
        one.target.name: one.sum("grpc_server_handled_total", grpc_method=method)
        for one in looks
        if any(one.of("grpc_server_started_total", grpc_method=method))
    }


def _all(looks: Sequence[Look], name: str, number: str, otherwise: str) -> Finding:
    wrong = [one.target.name for one in looks if any(sample.value != 1 for sample in one.of(number))]
    return judged(name, good=not wrong, words=_listed(wrong) or "all", otherwise=otherwise)


def _alike(looks: Sequence[Look], name: str, number: str, label: str) -> Finding:
    """Whether all instances of a context say the same."""
    found = {context: sorted({value for one in ones for value in _labels(one, number, label)}) for context, ones in _by_context(looks).items()}
    differ = [f"{context} {' and '.join(values)}" for context, values in sorted(found.items()) if len(values) > 1]
    return judged(name, good=not differ, words=_listed(differ) or "the same within each service", otherwise="instances differ")


def _by_context(looks: Sequence[Look]) -> dict[str, list[Look]]:
    found: dict[str, list[Look]] = defaultdict(list)
    for one in looks:
        for context in _labels(one, "watchword_build_info", "context"):
            found[context].append(one)
    return found


def _labels(look: Look, number: str, label: str) -> list[str]:
    return [sample.labels.get(label, "") for sample in look.of(number)]


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)
