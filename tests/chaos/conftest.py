"""One stack with faults for all rows, whole before each. Without WATCHWORD_LONG only the rows of SMOKE run, in a short form. With WATCHWORD_HALF,
1 or 2, only every second row runs.

A row that fails is kept as such (`record`), whether it fails before it has recorded what it saw or after that.
"""

import os
import re
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from tests.chaos.record import record, record_failure
from tests.chaos.world import World, world
from tests.suite.conftest import PASSWORD, Person, login

LONG = bool(os.environ.get("WATCHWORD_LONG"))
HALF = int(os.environ.get("WATCHWORD_HALF", "0"))
SMOKE = {"f01", "f02", "f05", "f13"}  # of the faults; all of durability


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the rows the time that they need, and leave those of the full set to the full set."""
    rows = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in rows:
        item.add_marker(pytest.mark.timeout(900), append=False)
    left = [item for item in rows if not LONG and (row := re.match(r"test_(f\d\d\w?)_", item.name)) and row[1] not in SMOKE]
    if HALF:
        left += rows[HALF % 2 :: 2]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep that a row failed."""
    report = yield
    if report.failed and item.path.parent == Path(__file__).parent:
        test = getattr(item, "function", None)
        said = (getattr(test, "__doc__", None) or "").split("\n")[0]
        named = re.match(r"test_(f\d\d\w?)_", item.name) or re.match(r"(D\d\d)\.", said)
        crash = getattr(report.longrepr, "reprcrash", None)
        record_failure(named[1].replace("f", "F") if named else item.name, said, getattr(crash, "message", None) or report.longreprtext)
    return report


@pytest.fixture(scope="session")
def started_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The stack."""
    with world(tmp_path_factory.mktemp("chaos") / "home") as made:
        yield made
        record(
            "starts",
            broken="nothing: each time that one of these rows starts a process again",
            promised="it comes up",
            seen=f"{made.starts} starts, {len(made.false_starts)} tries in vain" + "".join(f"; {one[:200]}" for one in made.false_starts),
        )


@pytest.fixture(scope="session")
async def person(started_stack: World) -> Person:
    """The administrator, who may do all that the load does."""
    one_time = Path(started_stack.endpoints.admin_password_file).read_text().strip()  # noqa: ASYNC240
    return await login(started_stack, started_stack.endpoints.admin_email, one_time, new_password=PASSWORD)


@pytest.fixture
async def stack(started_stack: World) -> AsyncIterator[World]:
    """The stack, whole."""
    await started_stack.whole()
    await started_stack.bury()
    yield started_stack
    await started_stack.mend()
