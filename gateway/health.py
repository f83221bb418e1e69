"""The health of the whole: what the seed's four paths say.

`live` and the basic check depend on nothing. `ready` asks every context through the same Envoy that traffic takes. `detailed` asks the databases.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

CHECK_TIMEOUT = 0.5  # seconds

Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Report:
    """Which checks passed."""

    checks: Mapping[str, bool]

    @property
    def is_good(self) -> bool:
        """Whether all passed."""
        return all(self.checks.values())


class WholeHealth:
    """Runs checks side by side; one that fails or takes too long is unhealthy."""

    def __init__(self, dependencies: Mapping[str, Check], contexts: Mapping[str, Check]) -> None:
        self._dependencies = dependencies
        self._contexts = contexts

    async def dependencies(self) -> Report:
        """Return how the databases are."""
        return await _report(self._dependencies)

    async def contexts(self) -> Report:
        """Return which contexts have an instance that is serving."""
        return await _report(self._contexts)


async def _report(checks: Mapping[str, Check]) -> Report:
    passed = await asyncio.gather(*(_passes(check) for check in checks.values()))
    return Report(dict(zip(checks, passed, strict=True)))


async def _passes(check: Check) -> bool:
    try:
        await asyncio.wait_for(check(), CHECK_TIMEOUT)
    except Exception:  # whatever it is, the dependency is not healthy
        return False
    return True
