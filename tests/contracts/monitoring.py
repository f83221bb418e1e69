"""The expressions of the alerts and of the dashboard, taken apart: which numbers they ask for, and by which labels."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
OF_PROMETHEUS = {"up", "ALERTS"}  # made by Prometheus itself
OF_SCRAPING = {"job", "instance"}  # labels that Prometheus adds
CHILDREN = ("expr", "lhs", "rhs", "args", "vector_selector")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A number that an expression asks for: its name, and labels that it must have."""

    where: str
    name: str
    labels: frozenset[str]


@cache
def alerts() -> tuple[dict[str, Any], ...]:
    """Return the alert rules."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return tuple(rule for group in groups for rule in group["rules"])


@cache
def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Yield where each expression is, and the expression, with Grafana's variables filled in."""
    yield from ((rule["alert"], rule["expr"]) for rule in alerts())
    panels = (panel for panel in dashboard()["panels"] if panel["type"] != "row")
    texts = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
    texts += [("annotations", one["expr"]) for one in dashboard()["annotations"]["list"]]
    yield from ((where, re.sub(r"\$job", ".*", text.replace("$__rate_interval", "5m"))) for where, text in texts)


def wanted() -> Iterator[Wanted]:
    """Yield every number that is asked for, with the labels by which it is chosen, grouped or summed. Raises ValueError for what is no PromQL."""
    for where, text in expressions():
        yield from _walk(where, promql_parser.parse(text), frozenset())


def _walk(where: str, node: Any, grouped: frozenset[str]) -> Iterator[Wanted]:
    if isinstance(node, promql_parser.VectorSelector):
        yield Wanted(where, str(node.name), grouped | {matcher.name for matcher in node.matchers.matchers})
        return
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        grouped = frozenset(node.modifier.labels)  # what is further out groups what this one leaves
    for name in CHILDREN:
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None:
                yield from _walk(where, one, grouped)
