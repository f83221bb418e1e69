"""The picture: three tables of plain text, no wider than they must be."""

from collections.abc import Sequence

from services.top.figures import Durations, Instance, Method, Whole

INSTANCES = ("INSTANCE", "STATE", "LEASE", "CALLS/S", "ERR/S", "P50", "P95", "P99", "BUSY", "CPU", "MEMORY", "POOL")
METHODS = ("METHOD", "CALLS/S", "FAILED/S", "P50", "P95", "P99", "MEMORY")
DASH = "-"


def picture(whole: Whole, instances: Sequence[Instance], methods: Sequence[Method]) -> str:
    """Return all of it."""
    parts = [_summary(whole), table(INSTANCES, [_instance(one) for one in instances], words=2)]
    if methods:
        parts.append(table(METHODS, [_method(one) for one in methods], words=1))
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """Align columns: the first `words` to the left, numbers to the right."""
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    lines = ("  ".join(_put(cell, widths[at], is_word=at < words) for at, cell in enumerate(row)).rstrip() for row in (head, *rows))
    return "\n".join(lines)


def _put(cell: str, width: int, *, is_word: bool) -> str:
    return cell.ljust(width) if is_word else cell.rjust(width)


def _summary(whole: Whole) -> str:
    health = "  ".join(f"{name} {'ok' if good else 'DOWN'}" for name, good in whole.health.items()) or DASH
    rates = "  ".join(f"{name} {_rate(value)}/s" for name, value in whole.rates.items())
    levels = "  ".join(f"{name} {_level(name, value)}" for name, value in whole.levels.items())
    return f"health   {health}\nrates    {rates}\nlevels   {levels}"


def _level(name: str, value: float) -> str:
    if name == "cache hits":
        return f"{value:.1%}"
    return _seconds(value) if name.endswith("p99") else f"{value:.0f}"


def _instance(one: Instance) -> tuple[str, ...]:
    lease = DASH if one.lease is None else "held" if one.lease else "LOST"
    cpu = DASH if one.cpu is None else f"{one.cpu:.0%}"
    memory = DASH if one.memory is None else f"{one.memory / 2**20:.0f} MiB"
    pool = DASH if one.pool is None else f"{one.pool[0]:.0f}/{one.pool[1]:.0f}"
    return (one.name, one.state, lease, _rate(one.calls), _rate(one.errors), *_took(one.took), f"{one.in_flight:.0f}", cpu, memory, pool)


def _method(one: Method) -> tuple[str, ...]:
    hits = DASH if one.hits is None else f"{one.hits:.1%}"
    return (one.name, _rate(one.calls), _rate(one.failed), *_took(one.took), hits)


def _took(took: Durations) -> tuple[str, str, str]:
    return _seconds(took.p50), _seconds(took.p95), _seconds(took.p99)


def _seconds(value: float | None) -> str:
    if value is None:
        return DASH
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.0f} µs"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
