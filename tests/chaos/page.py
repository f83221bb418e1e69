"""The table of docs/reliability.md, written from the results of a full run: `python -m tests.chaos.page SECONDS FILE...` takes them over."""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench.marked import put
from tests.chaos.record import FAILED, Row, rows, write

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "tests" / "chaos" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- written by scripts/chaos -->\n"


def expected() -> set[str]:
    """Return the rows that tests record."""
    tests = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    return {row for text in tests for row in re.findall(r'record\(\s*"([DF]\d\d\w?)"', text)}


def table(kept: list[Row], summary: str) -> str:
    """Return the part of the page that a run writes."""
    lines = [("row", "broken", "promised", "seen", "with the defence off"), ("---",) * 5]
    lines += [(one.row, one.broken, one.promised, one.seen, one.without) for one in sorted(kept, key=lambda one: one.row)]
    return "\n".join([summary, "", *(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in line)} |" for line in lines), ""])


def main() -> None:
    """Take the results of a run over."""
    seconds, *found = sys.argv[1:]
    kept = [row for path in found for row in rows(Path(path))]
    if not kept:
        sys.exit("nothing was seen, and nothing is published")
    present = {one.row for one in kept}
    kept += [Row(row, "", "", f"**{FAILED}**: it was not run, or ended before it was come to") for row in sorted(expected() - present)]
    failed = [one.row for one in kept if one.seen.startswith(f"**{FAILED}")]
    told = f"{len(failed)} of them failed: {', '.join(failed)}" if failed else "none of them failed"
    minutes = "{}:{:02} minutes".format(*divmod(int(seconds), 60))
    summary = f"The last full run: {datetime.now(UTC):%Y-%m-%d}, {minutes}, {os.cpu_count()} cores, {len(kept)} rows; {told}."
    write(COMMITTED, kept)
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), BEGIN, table(kept, summary)), encoding="utf-8")


if __name__ == "__main__":
    main()
