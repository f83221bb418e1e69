"""REDIS_URL in its three forms, each against real servers: a single one, a Sentinel with its primary, and a cluster."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis.asyncio as aioredis
from redis.exceptions import RedisError

from services import embedded
from services.chassis.limits import GCRA
from services.chassis.redis import Redis, RedisDown
from services.chassis.settings import ChassisSettings, load
from tests.conftest import SALT, Keys, Stores, eventually, free_port, process


def settings(keys: Keys, url: str) -> ChassisSettings:
    return load(
        ChassisSettings,
        {
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
            "REDIS_URL": url,
            "SECURITY_SALT": SALT,
            "SERVICE_KEY": keys.private["token"],
            "SERVICE_PUBLIC_KEYS": keys.public_json,
        },
    )


async def spend(redis: Redis, key: str) -> list[int]:
    """Take four from a budget of three, and say what each had to wait for."""
    return [int(await redis.run(GCRA, [key], [60_000_000, 3, 1])) for _ in range(4)]


def started(stack: ExitStack, home: Path, name: str, lines: list[str], *arguments: str) -> None:
    configuration = home / f"{name}.conf"
    configuration.write_text("\n".join([*lines, f'dir "{home}"', ""]))
    stack.enter_context(process([str(embedded.valkey_binary()), str(configuration), *arguments], log=home / f"{name}.log"))


async def answers(port: int, *command: str) -> str:
    """Send one command; return the answer, or why there is none."""
    async with aioredis.Redis(port=port, decode_responses=True, socket_timeout=1) as client:
        try:
            return str(await client.execute_command(*command))  # type: ignore[no-untyped-call]
        except RedisError as error:
            return f"{type(error).__name__}: {error}"


@pytest.fixture
async def sentinel(tmp_path: Path) -> AsyncIterator[tuple[str, int]]:
    """A primary and the Sentinel that knows it; yields the URL and the primary's port."""
    primary, watcher = free_port(), free_port()
    with ExitStack() as stack:
        started(stack, tmp_path, "primary", ["bind 127.0.0.1", f"port {primary}", "save ''"])
        lines = ["bind 127.0.0.1", f"port {watcher}", f"sentinel monitor primary-of-the-tests 127.0.0.1 {primary} 1"]
        started(stack, tmp_path, "sentinel", lines, "--sentinel")

        async def knows() -> bool:
            return str(primary) in await answers(watcher, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "primary-of-the-tests")

        await eventually(knows)
        yield f"redis+sentinel://127.0.0.1:{watcher}/primary-of-the-tests", primary


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[str]:
    """Three nodes that share the slots; yields the URL."""
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        for number, port in enumerate(ports):
            lines = ["bind 127.0.0.1", f"port {port}", "save ''", "cluster-enabled yes", f"cluster-config-file nodes-{number}.conf"]
            started(stack, tmp_path, f"node-{number}", [*lines, f"cluster-port {free_port()}"])
        for port in ports:

            async def is_up(port: int = port) -> bool:
                return await answers(port, "PING") == "True"

            await eventually(is_up)
        buses = {port: (await answers(port, "CONFIG", "GET", "cluster-port")).split("'")[3] for port in ports}
        for (low, high), port in zip(((0, 5460), (5461, 10922), (10923, 16383)), ports, strict=True):
            assert await answers(port, "CLUSTER", "ADDSLOTSRANGE", str(low), str(high)) in ("OK", "True")
        for port in ports[1:]:
            await answers(ports[0], "CLUSTER", "MEET", "127.0.0.1", str(port), buses[port])

        async def agrees() -> bool:
            states = [(await answers(port, "CLUSTER", "INFO")).replace("'", "").replace(": ", ":") for port in ports]
            return all("cluster_state:ok" in state and "cluster_known_nodes:3" in state for state in states)

        await eventually(agrees, within=20)
        yield f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"


async def test_a_single_server(stores: Stores, service_keys: Keys) -> None:
    """The everyday form."""
    async with Redis.open(settings(service_keys, stores.redis)) as redis:
        await redis.ping()
        assert [wait > 0 for wait in await spend(redis, "topology:single")] == [False, False, False, True]


async def test_a_primary_found_through_sentinel(sentinel: tuple[str, int], service_keys: Keys) -> None:
    """The client asks Sentinel where the primary is, and writes there."""
    url, primary = sentinel
    async with Redis.open(settings(service_keys, url)) as redis:
        await redis.ping()
        assert [wait > 0 for wait in await spend(redis, "topology:sentinel")] == [False, False, False, True]
    assert int(await answers(primary, "EXISTS", "topology:sentinel")) == 1


async def test_a_sentinel_that_hangs_does_not_hide_the_others(sentinel: tuple[str, int], service_keys: Keys) -> None:
    """It accepts, and does not answer. Several who connect at once lose neither their calls nor a Sentinel."""
    with socket.create_server(("127.0.0.1", 0)) as hung:
        url = sentinel[0].replace("://", f"://127.0.0.1:{hung.getsockname()[1]},", 1)
        async with Redis.open(settings(service_keys, url), timeout=2.0) as redis:
            await asyncio.gather(*(redis.call("PING") for _ in range(5)))
            assert [wait > 0 for wait in await spend(redis, "topology:sentinel:hung")] == [False, False, False, True]
            asked = redis._client.connection_pool.sentinel_manager.sentinels
            assert len({str(one) for one in asked}) == len(asked) == 2
            assert redis.failures == 0


async def test_a_cluster(cluster: str, service_keys: Keys) -> None:
    """Each script has one key, so any slot will do; keys spread over the nodes."""
    async with Redis.open(settings(service_keys, cluster)) as redis:
        await redis.ping()
        spent = await asyncio.gather(*(spend(redis, f"topology:cluster:{number}") for number in range(20)))
    assert [[wait > 0 for wait in waits] for waits in spent] == [[False, False, False, True]] * 20


@pytest.mark.parametrize("form", ["redis://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/primary", "redis+cluster://127.0.0.1:{}"])
async def test_a_dead_server_is_down_in_every_form(service_keys: Keys, form: str) -> None:
    """One exception, whatever the form."""
    async with Redis.open(settings(service_keys, form.format(free_port()))) as redis:
        with pytest.raises(RedisDown):
            await redis.ping()
        with pytest.raises(RedisDown):
            await redis.run(GCRA, ["topology:dead"], [1, 1, 1])
