"""The local verifier of the public package, run as a worker in a process of its own, as other people's services run it."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

from bench.material import AUDIENCE, ISSUER
from bench.raw import spend
from bench.workers import Answer, BenchError, work
from watchword.refusals import TokenRefused
from watchword.verifier import TokenVerifier, WhenStale

LOOK_EVERY = 0.0002  # seconds between two questions about a token that is being revoked
GIVE_UP_AFTER = 5.0  # seconds


@asynccontextmanager
async def verifying(address: str, access_token: str) -> AsyncIterator[Callable[[str], object]]:
    """Follow the instance at `address` while inside; yields what tells whom a token speaks for, or raises TokenRefused. Raises BenchError."""

    async def own() -> str:
        return access_token

    async with TokenVerifier(address, credentials=own, issuer=ISSUER, audience=AUDIENCE, when_stale=WhenStale.REFUSE) as verifier:
        if verifier.staleness == timedelta.max:
            raise BenchError("the local verifier got no checkpoint")
        yield verifier.verify


class Jobs:
    """What the worker can be asked to do."""

    def __init__(self, verify: Callable[[str], object]) -> None:
        self._verify = verify

    async def do(self, job: Answer) -> Answer:
        """Do one of them."""
        if job["do"] == "repeated":
            return spend(partial(self._verify, job["token"]), job["seconds"])
        if job["do"] == "new":
            return self._verify_once(job["tokens"], job["first"], job["count"])
        if job["do"] == "accept":
            return {"accepted": self._accepts(job["token"])}
        return await self._await_refusal(job["token"])

    def _verify_once(self, path: str, first: int, count: int) -> Answer:
        tokens = Path(path).read_text(encoding="ascii").splitlines()[first : first + count]
        began, before = time.monotonic(), time.process_time_ns()
        for token in tokens:
            self._verify(token)
        return {"units": len(tokens), "cpu": time.process_time_ns() - before, "seconds": time.monotonic() - began}

    async def _await_refusal(self, token: str) -> Answer:
        """Ask without end, until the answer is no; tell when that was by the clock of all processes."""
        until = time.monotonic() + GIVE_UP_AFTER
        while self._accepts(token) and time.monotonic() < until:  # noqa: ASYNC110  (asking is what is measured)
            await asyncio.sleep(LOOK_EVERY)
        return {"refused_at": time.monotonic_ns(), "refused": time.monotonic() < until}

    def _accepts(self, token: str) -> bool:
        try:
            self._verify(token)
        except TokenRefused:
            return False
        return True


async def main(address: str, access_token: str) -> None:
    """Work."""
    async with verifying(address, access_token) as verify:
        await work(Jobs(verify).do)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
