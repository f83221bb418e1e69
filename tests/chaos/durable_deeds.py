"""A write that can be repeated, with what must be true of it after a crash.

It leaves an effect, an audit row and a result under its request_id: all of them, or nothing. `check` says what else is broken once it is answered.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar
from uuid import uuid4

from tests.chaos.durable_stack import Instance
from tests.chaos.durable_town import Metadata, Town


class Deed(ABC):
    """One write under one request_id."""

    service: ClassVar[str]
    event: ClassVar[str]
    effect: ClassVar[str]  # SQL that counts effects
    is_over_once_checked: ClassVar[bool] = False  # the check uses up what a repeat would be answered with

    def __init__(self, town: Town) -> None:
        self.town = town
        self.suite = town.suite
        self.request_id = str(uuid4())
        self.trace = str(uuid4())

    async def prepare(self) -> None:  # noqa: B027  (not all need something)
        """Make what the write is about."""

    @abstractmethod
    async def do(self, at: Instance) -> Any:
        """Ask an instance to do it; the same request each time."""

    @property
    @abstractmethod
    def key(self) -> object:
        """What the effect is counted by."""

    @abstractmethod
    async def check(self, result: Any) -> list[str]:
        """Return what is broken, now that it was answered with `result`."""

    async def left(self) -> tuple[int, int, int]:
        """Return how many effects, audit rows and results there are, at one instant."""
        counts = f"""
            SELECT ARRAY[
                ({self.effect}),
                (SELECT count(*) FROM suite.audit_event WHERE request_id = $2 AND type = $3),
                (SELECT count(*) FROM {self.service}.request WHERE request_id = $4 AND result IS NOT NULL)
            ]
        """
        effects, audits, results = await self.suite.ask(counts, self.key, self.trace, self.event, self.request_id)
        return effects, audits, results

    async def _ask(self, at: Instance, stub: Any, method: str, request: Any, metadata: Metadata) -> Any:
        return await at.ask(stub, method, request, (*metadata, ("x-request-id", self.trace)), timeout=6)
