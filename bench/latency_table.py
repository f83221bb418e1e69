"""The latencies as a table of their own: a row for each question and way."""

from collections.abc import Mapping

from bench.figures import Figure
from bench.latency_figures import SHARE, SUBJECTS, WAYS
from bench.table import number

COLUMNS = {"max": "at most, /s", "p50": "p50, ms", "p95": "p95, ms", "p99": "p99, ms", "core": "/s by a core", "edge": "Envoy, µs CPU/call"}


def latencies(figures: Mapping[str, Figure]) -> list[str]:
    """Return the lines of the table, for what was measured; floors of the stores below it."""
    rows = [_row(figures, subject, way) for subject in SUBJECTS for way in WAYS if f"latency.{subject}.{way}.max" in figures]
    if not rows:
        return []
    heading = ["## Latency", "", f"Times at {SHARE:.0%} of the closed-loop maximum, from the moment when a call was due.", ""]
    head = [f"| {' | '.join(['', *COLUMNS.values()])} |", f"|{' --- |' * (len(COLUMNS) + 1)}"]
    return [*heading, *head, *rows, "", *_floors(figures), ""]


def _row(figures: Mapping[str, Figure], subject: str, way: str) -> str:
    cells = (figures.get(f"latency.{subject}.{way}.{column}") for column in COLUMNS)
    return f"| {SUBJECTS[subject]}, {WAYS[way]} | {' | '.join(number(cell.value.median) if cell else '' for cell in cells)} |"


def _floors(figures: Mapping[str, Figure]) -> list[str]:
    said = []
    for name, words in (("select1", "`SELECT 1` in Postgres"), ("ping", "`PING` in Valkey")):
        times = [figures.get(f"floor.{name}.{what}") for what in ("p50", "p95", "p99")]
        if all(times):
            said.append(f"{words} {' / '.join(number(one.value.median) for one in times if one)} ms")
    return [f"A round trip of its own, p50 / p95 / p99: {'; '.join(said)}."] if said else []
