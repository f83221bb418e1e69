"""What a full run saw, row by row: `scripts/chaos` says where it is kept; elsewhere nothing is."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

KEPT_IN = "WATCHWORD_CHAOS_RESULTS"  # the file, while a full run is under way
FAILED = "failed"
LONGEST = 300  # characters of why a row failed


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


def record_failure(row: str, promised: str, why: str) -> None:
    """Keep that a row failed, and why, in front of what was seen of it; `promised` is what its test says of itself, where nothing was seen."""
    if path := os.environ.get(KEPT_IN):
        kept = rows(Path(path))
        seen = next((one for one in kept if one.row == row), Row(row, "", promised, ""))
        failed = replace(seen, seen=f"**{FAILED}**: {' '.join(why.split())[:LONGEST]}{'; ' if seen.seen else ''}{seen.seen}")
        write(Path(path), [*(one for one in kept if one.row != row), failed])


def rows(path: Path) -> list[Row]:
    """Return what is kept."""
    return msgspec.json.decode(path.read_bytes(), type=list[Row]) if path.exists() else []


def write(path: Path, kept: list[Row]) -> None:
    """Keep these rows and no others, at once: nobody sees half of them."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
    draft.replace(path)
