"""The floor under every gRPC figure: the echo, made to answer exactly as VerifyToken does in this run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from bench.load import write_requests
from bench.slices import Load
from bench.stack import Instance, Stack
from bench.workers import Worker
from watchword.token.v1 import token_pb2, token_pb2_grpc


def question(token: str) -> token_pb2.VerifyTokenRequest:
    """Return what asks about `token`."""
    return token_pb2.VerifyTokenRequest(token=token)


@asynccontextmanager
async def echoing(stack: Stack, like: Instance, worker: Worker, seconds: float) -> AsyncIterator[Load]:
    """Run the echo while inside; yields the load of one client that asks it about one token over and over.

    like  the instance whose answer is given
    """
    authorization, one, sample = f"Bearer {stack.signer.client_token('tokens.verify')}", stack.home / "one", stack.home / "answer"
    request = question(stack.signer.user_token())
    write_requests(one, [request.SerializeToString()])
    sample.write_bytes(await _answer(like, authorization, request))
    async with stack.echo(sample) as echo:
        yield Load(worker, echo, "VerifyToken", str(one), "VALID", lambda: authorization, seconds)


async def _answer(instance: Instance, authorization: str, request: token_pb2.VerifyTokenRequest) -> bytes:
    async with grpc.aio.insecure_channel(instance.address) as channel:
        stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(channel)
        return (await stub.VerifyToken(request, metadata=(("authorization", authorization),))).SerializeToString()
