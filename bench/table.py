"""The figures as a table, for a terminal and for the page."""

from collections.abc import Sequence

from bench.figures import Figure
from bench.slices import Spread

HEADINGS = ("figure", "value", "", "beside", "ratio", "target", "")
Row = tuple[str, ...]


def rows(figures: Sequence[Figure]) -> list[Row]:
    """Return a row a figure, in the order of HEADINGS."""
    return [_row(figure) for figure in figures]


def _row(figure: Figure) -> Row:
    other, ratio = "", ""
    if figure.beside is not None:
        other = f"{figure.beside.title} {number(figure.beside.value.median)}"
        ratio = spread(figure.beside.ratio)
    target = figure.target.words if figure.target else ""
    return (figure.name, spread(figure.value), figure.unit, other, ratio, target, {None: "", True: "met", False: "MISSED"}[figure.is_met])


def spread(value: Spread) -> str:
    """Write a median with its extremes, if there are any."""
    if value.low == value.high:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)} to {number(value.high)})"


def number(value: float) -> str:
    """Write a number with the digits that mean something."""
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def aligned(figures: Sequence[Figure]) -> str:
    """Return the table for a terminal."""
    lines = [HEADINGS, *rows(figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
