"""What is done in the background goes on, whatever happens to it."""

import asyncio

from services.rbac.service import tended
from watchword.errors import DependencyUnavailable


class FailingSweep:
    """Raises what it is given, one at a time; after that it sweeps, and says so."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.swept = asyncio.Event()

    async def sweep(self) -> None:
        if self._failures:
            raise self._failures.pop(0)
        self.swept.set()


async def test_a_failed_sweep_does_not_end_the_sweeping() -> None:
    """Neither an error of the suite, nor one that nobody thought of."""
    store = FailingSweep(DependencyUnavailable(), RuntimeError("an error of a driver"))

    async with tended(store.sweep, every=0.001):
        await asyncio.wait_for(store.swept.wait(), 5)
