"""The client for programs without an event loop: it runs in a thread of its own, and what other threads ask at once travels together there too."""

import asyncio
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from watchword.client import DEADLINE, START_WITHIN, Client
from watchword.decisions import Decision, Subject
from watchword.errors import DeadlineExceeded, Unavailable

MARGIN = 1.0  # seconds that the other thread may take beyond the deadline that it keeps itself


class SyncClient:
    """A Client with its own thread; made with the same arguments. Start it after a fork, not before: threads do not survive one.

    A coroutine function for credentials runs in that thread.
    """

    def __init__(self, target: str, **options: Any) -> None:
        self._client = Client(target, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, within: timedelta = START_WITHIN) -> None:
        """Start the thread, as Client.start does."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="watchword-permissions", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._client.start(within), self._loop).result()

    def stop(self) -> None:
        """End the thread. Who still waits for an answer gets Unavailable."""
        if self._loop is None or self._thread is None:
            return
        loop, self._loop = self._loop, None
        asyncio.run_coroutine_threadsafe(self._client.stop(), loop).result(MARGIN)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(MARGIN)
        loop.close()

    def __enter__(self) -> "SyncClient":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def staleness(self) -> timedelta:
        """As Client.staleness."""
        return self._client.staleness

    def check(
        self,
        subject: Subject | str,
        permission: str,
        resource: str = "",
        *,
        context: Mapping[str, Any] | None = None,
        acr: str = "",
        auth_time: datetime | int | None = None,
        at_least_as_fresh: str = "",
        timeout: float = DEADLINE,
    ) -> Decision:
        """As Client.check; what is remembered is answered in the calling thread."""
        known = None if at_least_as_fresh else self._client.recall(subject, permission, resource, acr=acr, auth_time=auth_time)
        if known is not None:
            return known
        loop = self._loop
        if loop is None:
            raise Unavailable("this client is not started")
        question = self._client.check(
            subject,
            permission,
            resource,
            context=context,
            acr=acr,
            auth_time=auth_time,
            at_least_as_fresh=at_least_as_fresh,
            timeout=timeout,
        )
        try:
            asked = asyncio.run_coroutine_threadsafe(question, loop)
        except RuntimeError:  # it was stopped in between
            question.close()
            raise Unavailable("this client is not started") from None
        try:
            return asked.result(timeout + MARGIN)
        except TimeoutError:
            asked.cancel()
            raise DeadlineExceeded from None
