"""Refreshes, run as a worker: each chain trades its refresh token for the next one, again and again, as a session does."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from bench.pace import percentiles
from bench.workers import Answer, BenchError, work
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc
from watchword.token.v1 import token_pb2, token_pb2_grpc

CALL_LIMIT = 10.0  # seconds
ROLES = ("accountant", "auditor")
Refresh = Callable[[str], Awaitable[str]]


class Chains:
    """Sessions that go on from slice to slice."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens

    async def run(self, refresh: Refresh, seconds: float) -> Answer:
        """Refresh all of them, one after another each, for `seconds`."""
        began, took = time.monotonic(), list[int]()

        async def go_on(number: int) -> None:
            while time.monotonic() < began + seconds:
                before = time.monotonic_ns()
                successor = await refresh(self._tokens[number])
                took.append(time.monotonic_ns() - before)
                if not successor or successor == self._tokens[number]:
                    raise BenchError("a refresh gave no successor")
                self._tokens[number] = successor

        await asyncio.gather(*(go_on(number) for number in range(len(self._tokens))))
        return {"count": len(took), "seconds": time.monotonic() - began, **percentiles(took)}


async def main(address: str, method: str, tokens: Path) -> None:
    """Work."""
    chains = Chains(tokens.read_text(encoding="ascii").split())  # noqa: ASYNC240  (before anything is measured)
    async with grpc.aio.insecure_channel(address) as channel:
        token: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(channel)
        identity: authentication_pb2_grpc.AuthenticationServiceAsyncStub = authentication_pb2_grpc.AuthenticationServiceStub(channel)

        async def run(job: Answer) -> Answer:
            metadata = (("authorization", job["authorization"]),)

            async def refresh_token(old: str) -> str:
                request = token_pb2.RefreshTokenRequest(refresh_token=old, roles=ROLES, revision=job["revision"])
                return (await token.RefreshToken(request, metadata=metadata, timeout=CALL_LIMIT)).tokens.refresh_token

            async def refresh_session(old: str) -> str:
                request = authentication_pb2.RefreshSessionRequest(refresh_token=old)
                return (await identity.RefreshSession(request, timeout=CALL_LIMIT)).tokens.refresh_token

            return await chains.run({"RefreshToken": refresh_token, "RefreshSession": refresh_session}[method], job["seconds"])

        await work(run)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
