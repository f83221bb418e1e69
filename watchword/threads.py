"""The verifier for programs without an event loop: the feed runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Collection, Coroutine
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from watchword.permissions import Permissions
from watchword.principal import Principal
from watchword.refusals import KeyUnknown, VerificationStale
from watchword.verifier import ASK_DEADLINE, START_WITHIN, TokenVerifier

MARGIN = 8.0  # seconds for obtaining a token of one's own before the question

T = TypeVar("T")


class SyncTokenVerifier:
    """A TokenVerifier with its own thread; made with the same arguments. Start it after a fork, not before: threads do not survive one.

    A `token_source` runs in that thread.
    """

    def __init__(self, target: str, **options: Any) -> None:
        self._verifier = TokenVerifier(target, **options)
        self._permissions = Permissions(self._verifier)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, within: timedelta = START_WITHIN) -> None:
        """Start the thread and wait for the first checkpoint, as TokenVerifier.start does."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="watchword-revocations", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._verifier.start(within), self._loop).result()

    def stop(self) -> None:
        """End the thread."""
        if self._loop is None or self._thread is None:
            return
        loop, self._loop = self._loop, None
        asyncio.run_coroutine_threadsafe(self._verifier.stop(), loop).result(MARGIN)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(MARGIN)
        loop.close()

    def __enter__(self) -> "SyncTokenVerifier":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def staleness(self) -> timedelta:
        """As TokenVerifier.staleness."""
        return self._verifier.staleness

    def verify(self, token: str, *, audience: str = "", scopes: Collection[str] = ()) -> Principal:
        """As TokenVerifier.verify."""
        return self._verifier.verify(token, audience=audience, scopes=scopes)

    def check(self, token: str, *, audience: str = "", scopes: Collection[str] = ()) -> Principal:
        """As TokenVerifier.check; waits for the answer if it has to ask."""
        try:
            return self._verifier.verify(token, audience=audience, scopes=scopes)
        except (VerificationStale, KeyUnknown):  # `check` finds the same again, and knows whether to ask
            return self._await(self._verifier.check(token, audience=audience, scopes=scopes))

    def allows(self, principal: Principal, permission: str, resource: str = "") -> bool:
        """As Permissions.allows."""
        return self._await(self._permissions.allows(principal, permission, resource))

    def _await(self, question: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            question.close()
            raise VerificationStale
        asked = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return asked.result(ASK_DEADLINE + MARGIN)
        except TimeoutError:
            asked.cancel()
            raise VerificationStale from None
