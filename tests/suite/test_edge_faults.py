"""A real Envoy in front of instances that hang, drain, fail and die: what callers notice. Source: reliability, F01-F03."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from gateway.upstreams import CONTEXTS, Address, endpoints
from tests.suite.edge_standin import NOT_SERVING, ROOT, SERVING, Context, Edge, Instance, edge, everywhere, instance, message, until

UUID = "7b0f3a52-4c36-4d8e-9a54-0d3c8c1f2b11"


async def test_with_no_instance_left_callers_are_told_to_try_again(tmp_path: Path) -> None:
    async with instance() as only, edge(tmp_path, everywhere(only.address)) as front:
        await only.say(NOT_SERVING)
        await until(lambda: _healthy(front, 0))

        answer = await front.http.get("/v1/me")
        with pytest.raises(grpc.aio.AioRpcError) as native:
            await front.call("watchword.token.v1.TokenService/VerifyToken")
        await only.say(SERVING)
        await until(lambda: _healthy(front, 1))
        again = await front.http.get("/v1/me")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["details"][0]["reason"] == "DEPENDENCY_UNAVAILABLE"
    assert native.value.code() is grpc.StatusCode.UNAVAILABLE
    assert again.status_code == 200


async def _healthy(front: Edge, count: int) -> bool:
    return {await front.healthy(context) for context in CONTEXTS} == {count}


async def test_an_instance_that_says_not_serving_ends_its_calls_and_gets_no_new_ones(tmp_path: Path) -> None:
    async with instance() as one, instance() as two, edge(tmp_path, everywhere(one.address, two.address)) as front:
        release = asyncio.Event()

        async def held(request: Any, context: Context) -> Message:
            await release.wait()
            return message("watchword.identity.v1.LoginResponse")

        one.answers["Login"] = two.answers["Login"] = held
        login = asyncio.create_task(front.http.post("/v1/auth/login", json={}))
        await until(lambda: _has_calls(one, two, "Login"))
        draining, other = (one, two) if one.calls("Login") else (two, one)
        await draining.say(NOT_SERVING)
        await until(lambda: _healthy(front, 1))
        other.seen.clear()
        before = len(draining.seen)
        for _ in range(50):
            assert (await front.http.post("/v1/tokens:verify", json={})).status_code == 200
        release.set()

        assert (len(draining.seen), len(other.seen)) == (before, 50)
        assert (await login).status_code == 200


async def _has_calls(one: Instance, two: Instance, rpc: str) -> bool:
    return bool(one.calls(rpc) or two.calls(rpc))


async def test_a_hung_or_unavailable_instance_costs_a_read_a_blip_and_a_write_is_not_repeated(tmp_path: Path) -> None:
    async def hang(request: Any, context: Context) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def unavailable(request: Any, context: Context) -> Message:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        raise AssertionError

    async with instance() as good, instance() as bad, edge(tmp_path, everywhere(good.address, bad.address)) as front:
        bad.answers.update(CheckPermission=hang, GetUser=unavailable, Logout=unavailable)
        loop = asyncio.get_running_loop()
        began = loop.time()
        checks = await asyncio.gather(*(front.http.post("/v1/permissions:check", json={}) for _ in range(6)))
        took = loop.time() - began
        reads = [await front.http.get(f"/v1/users/{UUID}") for _ in range(6)]
        writes = await asyncio.gather(*(front.http.post("/v1/auth/logout", json={}) for _ in range(6)))

        assert {answer.status_code for answer in checks} == {200}
        assert bad.calls("CheckPermission")
        assert took < 1.8  # one try of 300 ms lost, not the whole deadline
        assert {answer.status_code for answer in reads} == {200}
        assert len(bad.calls("Logout")) + len(good.calls("Logout")) == 6
        assert [answer.status_code for answer in writes].count(503) == len(bad.calls("Logout")) > 0


@contextlib.asynccontextmanager
async def killable() -> AsyncIterator[tuple[asyncio.subprocess.Process, tuple[str, int]]]:
    """A stand-in as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.suite.edge_standin", cwd=ROOT, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    assert process.stdout
    try:
        yield process, ("127.0.0.1", int(await process.stdout.readline()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_reads_go_on_when_an_instance_is_killed(tmp_path: Path) -> None:
    """F01 in small: kill -9 of one of two under load, and not one read fails."""
    async with killable() as (victim, first), killable() as (_, second), edge(tmp_path, everywhere(first, second)) as front:
        failures: list[str] = []
        done = 0

        async def reader() -> None:
            nonlocal done
            for _ in range(60):
                answer = await front.http.post("/v1/tokens:verify", json={})
                if answer.status_code != 200:
                    failures.append(answer.text)
                try:
                    await front.call("watchword.rbac.v1.PermissionService/CheckPermission")
                except grpc.aio.AioRpcError as failure:
                    failures.append(str(failure))
                done += 1
                if done == 60:
                    os.kill(victim.pid, signal.SIGKILL)

        await asyncio.gather(*(reader() for _ in range(4)))

        assert failures == []
        assert await victim.wait() == -signal.SIGKILL


async def test_instances_come_rest_and_go_by_a_rename(tmp_path: Path) -> None:
    """Scaling and switching need no restart of Envoy and fail no call; one that rests can be called upon at once."""
    async with instance() as first, instance() as second, edge(tmp_path, everywhere(first.address)) as front:

        async def answers_alone(wanted: Instance, other: Instance) -> bool:
            before, others = len(wanted.calls("GetMe")), len(other.calls("GetMe"))
            assert (await front.http.get("/v1/me")).status_code == 200
            return len(wanted.calls("GetMe")) > before and len(other.calls("GetMe")) == others

        def tell(*addresses: Address, resting: tuple[Address, ...] = ()) -> None:
            for context in CONTEXTS:
                endpoints(tmp_path, context, addresses, resting=resting)

        assert await answers_alone(first, second)
        tell(first.address, second.address)
        await until(lambda: answers_alone(second, first))
        tell(first.address, second.address, resting=(first.address,))
        await until(lambda: _healthy(front, 1))
        assert [await answers_alone(second, first) for _ in range(20)] == [True] * 20
        tell(first.address, second.address, resting=(second.address,))
        await until(lambda: answers_alone(first, second))
        assert [await answers_alone(first, second) for _ in range(20)] == [True] * 20
        await second.say(NOT_SERVING)
        tell(first.address)
        await until(lambda: _healthy(front, 1))
        assert [await answers_alone(first, second) for _ in range(20)] == [True] * 20
