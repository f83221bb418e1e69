"""What a full run saw, row by row: `scripts/chaos` says where it is kept; elsewhere nothing is."""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

KEPT_IN = "WATCHWORD_CHAOS_RESULTS"  # the file, while a full run is under way


@dataclass(frozen=True, slots=True)
class Row:
    """One fault: what is broken, what is promised, what was seen, and what was seen with the defence off."""

    row: str
    broken: str
    promised: str
    seen: str
    without: str = ""


def record(row: str, *, broken: str, promised: str, seen: str, without: str = "") -> None:
    """Keep what was seen of a row; `without` says what was seen with the defence off. The last word on a row holds."""
    if path := os.environ.get(KEPT_IN):
        kept = [one for one in rows(Path(path)) if one.row != row]
        write(Path(path), [*kept, Row(row, broken, promised, seen, without)])


def rows(path: Path) -> list[Row]:
    """Return what is kept."""
    return msgspec.json.decode(path.read_bytes(), type=list[Row]) if path.exists() else []


def write(path: Path, kept: list[Row]) -> None:
    """Keep these rows and no others, at once: nobody sees half of them."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
    draft.replace(path)
