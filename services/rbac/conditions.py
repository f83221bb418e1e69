"""Conditions of bindings: CEL expressions (cel.dev) of type bool over `context`, which a question brings, and `now`.

Evaluated by Google's library, which counts the steps of comprehensions and gives up beyond its budget, but not what a step costs. So what an
expression may take at worst is told when it is written, and again when it is first evaluated (services.rbac.costs); and one call has an allowance for
all of its evaluations together.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from functools import cache
from time import perf_counter
from typing import Any

from services.rbac.costs import TooCostly, require_affordable

ALLOWED = 0.2  # seconds of the event loop that conditions may take in one call; the last of them may go beyond it
MAX_COMPILED = 2_000  # expressions kept ready, about 10 KiB each
_MISSING = re.compile(r'Key not found in map : "?(.*?)"?$', re.DOTALL)


class Truth(Enum):
    """What an evaluation gave. FAILED: the expression does not work upon this context, or takes too many steps, or there was no time left for it."""

    HOLDS = auto()
    HOLDS_NOT = auto()
    MISSING = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of an evaluation; with MISSING, the member of the context that it lacked."""

    truth: Truth
    missing: str = ""


HOLDS, HOLDS_NOT, FAILED = Finding(Truth.HOLDS), Finding(Truth.HOLDS_NOT), Finding(Truth.FAILED)


class Allowance:
    """The time that one call's evaluations may take together: until it is spent, each may begin."""

    def __init__(self, seconds: float = ALLOWED) -> None:
        self._left = seconds

    @property
    def is_spent(self) -> bool:
        """Whether no more may begin."""
        return self._left <= 0

    def spend(self, seconds: float) -> None:
        """Take off what an evaluation took."""
        self._left -= seconds


class Conditions:
    """Compiles expressions, keeps those used last, and evaluates them."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def check(self, expression: str) -> None:
        """Return if `expression` may be a condition. Raises ValueError with words for its author."""
        try:
            compiled = self._ready(expression)
        except RuntimeError as error:
            raise ValueError(_words(error)) from None
        kind = compiled.return_type().name()
        if kind not in ("BOOL", "DYN"):
            raise ValueError(f"must be of type bool, and is of type {kind.lower()}")

    def is_ready(self, expression: str) -> bool:
        """Whether the expression is compiled already, so that to check or evaluate it costs little."""
        return expression in self._compiled

    def evaluate(self, expression: str, context: Mapping[str, object], now: datetime, allowance: Allowance | None = None) -> Finding:
        """Evaluate a condition, if the allowance is not spent."""
        if allowance is None:
            return self._evaluate(expression, context, now)
        if allowance.is_spent:
            return FAILED
        began = perf_counter()
        try:
            return self._evaluate(expression, context, now)
        finally:
            allowance.spend(perf_counter() - began)

    def _evaluate(self, expression: str, context: Mapping[str, object], now: datetime) -> Finding:
        try:
            value = self._ready(expression).eval(data={"context": context, "now": now})
        except (RuntimeError, TooCostly):  # beyond the budget, or written when more was understood or let pass
            return FAILED
        kind = value.type().name()
        if kind == "BOOL":
            return HOLDS if value.value() else HOLDS_NOT
        return _finding(str(value.value())) if kind == "ERROR" else FAILED

    def _ready(self, expression: str) -> Any:
        """Return an expression compiled. Raises RuntimeError, and TooCostly, as often as it is asked for: that it is, is remembered."""
        found = self._compiled.get(expression)
        if found is None:
            found = self._compiled[expression] = _compiled(expression)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(expression)
        if isinstance(found, TooCostly):
            raise found.with_traceback(None)
        return found


def _compiled(expression: str) -> Any:
    compiled = _environment().compile(expression)
    try:
        require_affordable(compiled.serialize())
    except TooCostly as error:
        return error
    return compiled


def _finding(words: str) -> Finding:
    missing = _MISSING.search(words)
    return FAILED if missing is None else Finding(Truth.MISSING, missing[1][:100])


def _words(error: RuntimeError) -> str:
    """Return the library's first line, without what only it knows."""
    line = str(error).splitlines()[0]
    return line.removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ").replace("<input>:", "at ")[:300]


@cache
def _environment() -> Any:
    """Return the one environment. The library is loaded by the first condition: it takes 8 MB."""
    from cel_expr_python import cel  # noqa: PLC0415

    return cel.NewEnv(variables={"context": cel.Type.Map(cel.Type.STRING, cel.Type.DYN), "now": cel.Type.TIMESTAMP})
