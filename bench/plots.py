"""The plots of docs/benchmarks.md, drawn from the results alone: a plot whose figures were not measured is not drawn."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

from bench.figures import Figure
from bench.latency_figures import SHARE, WAYS

Values = Mapping[str, float]  # medians by the names of the figures
Point = tuple[float, float]
Line = tuple[str, Sequence[Point]]
COLORS = ("#1f6feb", "#bf3989", "#1a7f37", "#9a6700", "#8250df", "#57606a")
LOOK = Style(
    background="white",
    plot_background="white",
    font_family="sans-serif",
    colors=COLORS,
    title_font_size=15,
    legend_font_size=12,
    guide_stroke_color="#d0d7de",
    major_guide_stroke_color="#d0d7de",
)


def draw(figures: Sequence[Figure], directory: Path) -> list[str]:
    """Write the plots into `directory`; return the names of the files."""
    values = {figure.name: figure.value.median for figure in figures}
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in PLOTS.items():
        chart = plot(values)
        if chart is not None:
            (directory / name).write_bytes(chart.render())
            drawn.append(name)
    return drawn


def _latency(values: Values) -> Any:
    """Latency against load."""
    lines = [(f"{words}, {what}", _curve(values, way, what)) for way, words in WAYS.items() for what in ("p50", "p99")]
    title = "VerifyToken: milliseconds from the moment a call was due, at a share of the maximum"
    return _xy(title, lines, x="% of the closed-loop maximum", y="ms", logarithmic=True)


def _curve(values: Values, way: str, what: str) -> list[Point]:
    points = _series(values, rf"load\.{way}\.(\d+)\.{what}")
    main = values.get(f"latency.verify.{way}.{what}")
    return sorted([*points, *([] if main is None or not points else [(SHARE * 100, main)])])


def _cost(values: Values) -> Any:
    """CPU of a call against the floor, by the way it takes."""
    chart = _bars("CPU of a call against the bare echo: the instance, and Envoy where it stands between", "µs")
    chart.x_labels = list(WAYS.values())
    for subject, words in (("echo", "echo"), ("verify", "VerifyToken"), ("check", "CheckPermission")):
        cores = [values.get(f"latency.{subject}.{way}.core") for way in WAYS]
        if None in cores:
            return None
        chart.add(words, [round(1e6 / core, 1) for core in cores if core])
    return chart


def _growth(values: Values) -> Any:
    """Growth with data."""
    warm, cold = _series(values, r"check\.growth\.(\d+)"), _series(values, r"check\.growth\.cold\.(\d+)")
    if len(warm) < 2:
        return None
    chart = _bars("Growth with data: CPU of CheckPermission in policies of different sizes", "µs")
    chart.x_labels = [f"{size:,.0f} bindings" for size, _ in warm]
    chart.add("what memory knows", [round(cost, 1) for _, cost in warm])
    if len(cold) == len(warm):
        chart.add("what memory does not know", [round(cost, 1) for _, cost in cold])
    return chart


def _memory(values: Values) -> Any:
    """Memory against live revocations."""
    lines = [("resident set of an instance of token", _series(values, r"memory\.(\d+)"))]
    return _xy("Growth with live revocations", lines, x="live revocations", y="MiB")


def _scaling(values: Values) -> Any:
    """Scaling with instances, beside the ideal."""
    reached = _series(values, r"scaling\.(\d+)\.ideal")
    ideal = [(count, count * reached[0][1]) for count, _ in reached]
    title = "VerifyToken through Envoy: answers a second if each instance had a core, by CPU"
    return _xy(title, [("measured", reached), ("ideal: what one instance answers, times their number", ideal)], x="instances of token", y="/s")


PLOTS: dict[str, Callable[[Values], Any]] = {
    "latency.svg": _latency,
    "cost.svg": _cost,
    "growth.svg": _growth,
    "memory.svg": _memory,
    "scaling.svg": _scaling,
}


def _series(values: Values, pattern: str) -> list[Point]:
    """Return the figures whose name has a number in it, by that number."""
    found = ((re.fullmatch(pattern, name), value) for name, value in values.items())
    return sorted((float(match[1]), value) for match, value in found if match)


def _xy(title: str, lines: Sequence[Line], *, x: str, y: str, logarithmic: bool = False) -> Any:
    """Return a chart of lines; None if none of them has two points."""
    if not any(len(points) > 1 for _, points in lines):
        return None
    from_zero = {} if logarithmic else {"range": (0, max(value for _, points in lines for _, value in points) * 1.05)}
    chart = pygal.XY(title=title, x_title=x, y_title=y, logarithmic=logarithmic, dots_size=3, **from_zero, **_COMMON)
    for name, points in lines:
        if points:
            chart.add(name, [(place, round(value, 3)) for place, value in points])
    return chart


def _bars(title: str, y: str) -> Any:
    return pygal.Bar(title=title, y_title=y, print_values=True, print_values_position="top", **_COMMON)


# Without scripts and without random names, so that the same results give the same file.
_COMMON: dict[str, Any] = {
    "style": LOOK,
    "js": (),
    "no_prefix": True,
    "width": 900,
    "height": 420,
    "explicit_size": True,
    "legend_at_bottom": True,
    "legend_at_bottom_columns": 2,
    "truncate_legend": -1,
}
