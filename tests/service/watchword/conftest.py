"""A fake suite for each test, and a verifier that follows it."""

from collections.abc import AsyncIterator

import pytest

from tests.service.watchword.fake import FakeSuite, fake_suite
from watchword import TokenVerifier


@pytest.fixture
async def fake() -> AsyncIterator[FakeSuite]:
    """The suite, in the test's hands."""
    async with fake_suite() as running:
        yield running


@pytest.fixture
async def verifier(fake: FakeSuite) -> AsyncIterator[TokenVerifier]:
    """A verifier that asks when it is stale."""
    async with fake.verifier() as running:
        yield running
