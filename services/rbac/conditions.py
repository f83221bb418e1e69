"""Conditions of bindings: CEL expressions (cel.dev) of type bool over `context`, which a question brings, and `now`.

Evaluated by Google's library, which counts the steps of comprehensions and gives up beyond its budget, and matches regular expressions in linear
time. With expressions of at most 2 KiB and a context of at most 8 KiB no evaluation takes long.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from functools import cache
from typing import Any

MAX_COMPILED = 2_000  # expressions kept ready, about 10 KiB each
_MISSING = re.compile(r'Key not found in map : "?(.*?)"?$', re.DOTALL)


class Truth(Enum):
    """What an evaluation gave. FAILED: the expression does not work upon this context, or takes too many steps."""

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


class Conditions:
    """Compiles expressions, keeps those used last, and evaluates them."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def check(self, expression: str) -> None:
        """Return if `expression` may be a condition. Raises ValueError with words for its author."""
        try:
            compiled = _environment().compile(expression)
        except RuntimeError as error:
            raise ValueError(_words(error)) from None
        kind = compiled.return_type().name()
        if kind not in ("BOOL", "DYN"):
            raise ValueError(f"must be of type bool, and is of type {kind.lower()}")

    def evaluate(self, expression: str, context: Mapping[str, object], now: datetime) -> Finding:
        """Evaluate a condition."""
        try:
            value = self._ready(expression).eval(data={"context": context, "now": now})
        except RuntimeError:  # beyond the budget, or written by a version that understood more
            return FAILED
        kind = value.type().name()
        if kind == "BOOL":
            return HOLDS if value.value() else HOLDS_NOT
        return _finding(str(value.value())) if kind == "ERROR" else FAILED

    def _ready(self, expression: str) -> Any:
        found = self._compiled.get(expression)
        if found is None:
            found = self._compiled[expression] = _environment().compile(expression)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(expression)
        return found


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
