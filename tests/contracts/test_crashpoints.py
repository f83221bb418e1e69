"""Every crash point is tried: one that no test in tests/chaos dies at is a promise that nobody checks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CALL = re.compile(r"\bcrashpoint\(\s*\"([^\"]*)\"\s*\)")


def placed() -> dict[str, list[str]]:
    """Return every crash point of the services, with the files that it is in."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "services").rglob("*.py")):
        for name in CALL.findall(path.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def tried() -> set[str]:
    """Return every text that tests in tests/chaos hold: the points that they die at are among them."""
    return {text for path in (ROOT / "tests" / "chaos").glob("test_*.py") for text in _texts(path)}


def _texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_crash_point_has_a_test_that_dies_there() -> None:
    """The tests themselves fail when a process that was told to die somewhere never comes by."""
    points = placed()
    assert len(points) > 15

    assert sorted(points.keys() - tried()) == []


def test_a_crash_point_is_in_one_place_and_says_where() -> None:
    """A name that stands twice would be passed at the one, and never tried at the other."""
    assert {name: files for name, files in placed().items() if len(files) != 1 or not re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", name)} == {}


def test_every_crash_point_is_found() -> None:
    """One whose name is no plain text would escape the search."""
    calls = [line for path in (ROOT / "services").rglob("*.py") for line in re.findall(r".*\bcrashpoint\(.*", path.read_text(encoding="utf-8"))]

    assert [line for line in calls if not CALL.search(line) and "def crashpoint" not in line] == []
