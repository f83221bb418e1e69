"""The floor under every gRPC figure: the echo, made to answer exactly as the method that is measured does in this run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc

from bench.load import read_requests, write_requests
from bench.methods import METHODS
from bench.slices import Load
from bench.stack import Instance, Stack
from bench.workers import Worker
from watchword.token.v1 import token_pb2


def question(token: str) -> token_pb2.VerifyTokenRequest:
    """Return what asks about `token`."""
    return token_pb2.VerifyTokenRequest(token=token)


@asynccontextmanager
async def echoing(stack: Stack, like: Instance, worker: Worker, seconds: float) -> AsyncIterator[Load]:
    """Run the echo while inside; yields the load of one client that asks it about one token over and over.

    like  the instance whose answer is given
    """
    authorization, one = f"Bearer {stack.signer.client_token('tokens.verify')}", stack.home / "one"
    write_requests(one, [question(stack.signer.user_token()).SerializeToString()])
    load = Load(worker, like, "VerifyToken", str(one), "VALID", lambda: authorization, seconds)
    async with echo_of(stack, load) as echo:
        yield echo


@asynccontextmanager
async def echo_of(stack: Stack, load: Load) -> AsyncIterator[Load]:
    """Run the echo of `load` while inside: yields the same load of a server that gives the answer to its first request, whatever is asked."""
    _answer_file(stack, load.method).write_bytes(await _answer(load))
    async with stack.echo(load.method, _answer_file(stack, load.method)) as echo:
        yield replace(load, instance=echo, cold=None)


@asynccontextmanager
async def same_echo_as_service(stack: Stack, echo: Load) -> AsyncIterator[Load]:
    """Run the echo of `echo` on the event loop and the threads of our services while inside."""
    async with stack.echo(echo.method, _answer_file(stack, echo.method), as_service=True) as other:
        yield replace(echo, instance=other)


def _answer_file(stack: Stack, method: str) -> Path:
    return stack.home / f"answer.{method}"


async def _answer(load: Load) -> bytes:
    path, metadata = METHODS[load.method].path, (("authorization", load.authorization()),)
    async with grpc.aio.insecure_channel(load.instance.address) as channel:
        rpc = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        answer: bytes = await rpc(read_requests(load.requests)[0], metadata=metadata)
        return answer
