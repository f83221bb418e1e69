"""What a check found, in words for whoever is about to go live."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a check ended."""

    OK = "OK"
    FAILED = "FAILED"
    NOT_TRIED = "NOT TRIED"
    BY_HAND = "BY HAND"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    state: State
    name: str
    words: str


def judged(name: str, *, good: bool, words: str, otherwise: str = "") -> Finding:
    """Return OK with `words`, or FAILED with `otherwise` and them."""
    return Finding(State.OK, name, words) if good else Finding(State.FAILED, name, f"{otherwise}: {words}" if otherwise else words)


def report(findings: Iterable[Finding]) -> str:
    """Return a line each."""
    return "\n".join(f"{one.state.value:<10} {one.name:<16} {one.words}" for one in findings)
