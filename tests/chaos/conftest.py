"""One stack with faults for all rows, whole before and after each."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.world import World, world
from tests.suite.conftest import PASSWORD, Person, login

LONG = bool(os.environ.get("WATCHWORD_LONG"))


@pytest.fixture(scope="session")
def started_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The stack."""
    with world(tmp_path_factory.mktemp("chaos") / "home") as made:
        yield made


@pytest.fixture(scope="session")
async def person(started_stack: World) -> Person:
    """The administrator, who may do all that the load does."""
    one_time = Path(started_stack.endpoints.admin_password_file).read_text().strip()  # noqa: ASYNC240
    return await login(started_stack, started_stack.endpoints.admin_email, one_time, new_password=PASSWORD)


@pytest.fixture
async def stack(started_stack: World) -> World:
    """The stack, whole."""
    await started_stack.whole()
    return started_stack
