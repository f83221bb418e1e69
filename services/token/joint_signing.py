"""Signatures of calls that come close together, made together.

Eight signatures made at once cost as much as three (multi_buffer.py), so under load a call waits for seven others, for `PATIENCE` at most. One that
comes by itself is signed at once. So are all, for a while, after a wait that ended before eight had come: the while is longer after each, and short
again after a full eight. A signature that cannot be made together is made alone; nothing is refused for it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from services.token.keys import SigningKey
from services.token.multi_buffer import LANES, Fault, Lanes, MultiBuffer, Unavailable

NEAR = 0.002  # seconds between two calls that come close together
PATIENCE = 0.005  # seconds: twice what eight calls take to come, one after the other, on a busy core
PAUSE, MAX_PAUSE = 0.02, 1.28  # seconds without waiting: after the first wait in vain, and at most
WORTHWHILE = 3  # signatures made one by one that cost as much as eight together

Answer = Callable[[bytes], bytes]

log = structlog.get_logger()


class Job(NamedTuple):
    """Who waits for a signature."""

    text: str
    answer: Answer
    future: asyncio.Future[bytes]


class JointSigning:
    """Signs now, or soon with others. Its counts only grow."""

    def __init__(self, library: MultiBuffer | None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._library = library
        self._monotonic = monotonic
        self._key: SigningKey | None = None  # the last one that was signed with, for which jobs wait
        self._lanes: Lanes | None = None
        self._has_asked = False  # whether it has been found out if the key is one for lanes
        self._jobs: list[Job] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last = self._alone_until = float("-inf")
        self._pause = PAUSE
        self.alone = self.together = 0

    @classmethod
    def begin(cls, *, is_wanted: bool) -> "JointSigning":
        """Load the library if it is wanted and there, and say so in the log."""
        try:
            library = MultiBuffer() if is_wanted else None
        except Unavailable as error:
            log.info("signing_alone", cause=str(error))
            library = None
        return cls(library)

    @property
    def is_available(self) -> bool:
        """Whether signatures can be made together here."""
        return self._library is not None

    def sign(self, key: SigningKey, text: str, answer: Answer) -> bytes | asyncio.Future[bytes]:
        """Return what `answer` makes of the signature of `text`, now or as soon as it is made; what `answer` raises goes the same way."""
        now = self._monotonic()
        gap, self._last = now - self._last, now
        if key is not self._key:
            self._change(key)
        is_by_itself = gap > NEAR or now < self._alone_until
        if not self._jobs and (is_by_itself or not self._may_wait(key)):
            return answer(self.sign_alone(key, text))
        job = Job(text, answer, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if len(self._jobs) == LANES:
            self._pause = PAUSE
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._expire)
        return job.future

    def sign_alone(self, key: SigningKey, text: str) -> bytes:
        """Return the signature of `text`, made by itself."""
        signature = key.sign(text)
        self.alone += 1
        return signature

    def _change(self, key: SigningKey) -> None:
        """Sign for those who wait for the former key, and forget its numbers."""
        self._flush()
        self._key, self._lanes, self._has_asked = key, None, False

    def _may_wait(self, key: SigningKey) -> bool:
        """Whether there are lanes for `key`, which are made when they are first wanted. Cost: a few signatures, once a key."""
        if not self._has_asked and self._library is not None and key.algorithm == "RS256":
            try:
                self._lanes = self._library.lanes(key.private)
            except Fault:
                self._fail(key, "lanes sign otherwise than OpenSSL")
        self._has_asked = True
        return self._lanes is not None

    def _expire(self) -> None:
        self._alone_until = self._monotonic() + self._pause
        self._pause = min(self._pause * 2, MAX_PAUSE)
        self._flush()

    def _flush(self) -> None:
        """Answer all who wait and have not left. Raises nothing: each future has its own failure."""
        if self._timer is not None:
            self._timer.cancel()
        key, jobs = self._key, [job for job in self._jobs if not job.future.done()]
        self._jobs, self._timer = [], None
        if key is None or not jobs:
            return
        try:
            signatures = self._signatures(key, [job.text for job in jobs])
        except Exception as error:
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, signature in zip(jobs, signatures, strict=True):
            _settle(job, signature)

    def _signatures(self, key: SigningKey, texts: list[str]) -> list[bytes]:
        if self._lanes is not None and len(texts) >= WORTHWHILE:
            try:
                signatures = self._lanes.sign([text.encode() for text in texts])
            except Fault:
                self._fail(key, "a signature did not fit the public key")
            else:
                self.together += len(texts)
                return signatures
        return [self.sign_alone(key, text) for text in texts]

    def _fail(self, key: SigningKey, cause: str) -> None:
        """Sign nothing together until the next start: the machine or the library computes wrongly."""
        log.error("joint_signing_failed", kid=key.kid, cause=cause)
        self._library = self._lanes = None


def _settle(job: Job, signature: bytes) -> None:
    try:
        job.future.set_result(job.answer(signature))
    except Exception as error:
        job.future.set_exception(error)
