"""A running instance: what it says of its health, what it refuses, and how it leaves without failing a call."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.chassis.coherence import Coherence, Lapsed
from services.chassis.health import PROBE_TIMEOUT, UNREADY_AFTER, Health, watched
from services.chassis.lease_log import Entry, Grant, Lease, Standing
from services.chassis.postgres import Database
from services.chassis.redis import RedisDown
from tests.conftest import SALT, Keys, Stores, eventually, free_port, instance, serving
from tests.service.chassis.conftest import Configure, hold_the_loop
from tests.service.chassis.fault_proxy import FaultProxy
from tests.service.chassis.test_postgres import proxied, through
from watchword import status
from watchword.errors import DependencyUnavailable, ResourceExhausted, ShuttingDown
from watchword.token.v1 import token_pb2, token_pb2_grpc

TOKEN, KEY = "watchword.token.v1.TokenService", "watchword.token.v1.KeyService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN_TOKEN = token_pb2.VerifyTokenRequest(token="rubbish")


@dataclass
class Running:
    """An instance of token and what speaks with it."""

    process: "Popen[bytes]"
    log: Path
    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]

    @property
    def health(self) -> Any:
        return health_pb2_grpc.HealthStub(self.channel)  # type: ignore[no-untyped-call]

    async def verify(self) -> None:
        stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(self.channel)
        answer = await stub.VerifyToken(UNKNOWN_TOKEN, metadata=self.metadata, timeout=2)
        assert answer.status == token_pb2.MALFORMED

    async def state(self, service: str = "") -> int:
        return int((await self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)).status)

    async def ended(self, *, within: float) -> int | None:
        """Return the status that the process ends with in time, or None."""
        try:
            return await asyncio.to_thread(self.process.wait, within)
        except TimeoutError:
            return None


@asynccontextmanager
async def run(keys: Keys, environment: Mapping[str, str], log: Path) -> AsyncIterator[Running]:
    """Run an instance of token while inside."""
    base = {"SECURITY_SALT": SALT, "SERVICE_KEY": keys.private["token"], "SERVICE_PUBLIC_KEYS": keys.public_json}
    with instance("services.token", environment={**base, **environment}, log=log) as (address, process):
        await serving(address, process, log)
        async with grpc.aio.insecure_channel(address) as channel:
            yield Running(process, log, channel, keys.metadata("identity", to="token"))


@pytest.fixture
def environment(database_url: str, stores: Stores) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "REDIS_URL": stores.redis, "LOG_LEVEL": "debug"}


@pytest.fixture(scope="module")
async def running(service_keys: Keys, database_url: str, stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One instance for all tests that do not end it."""
    log = tmp_path_factory.mktemp("running") / "token.log"
    async with run(service_keys, {"DATABASE_URL": database_url, "REDIS_URL": stores.redis}, log) as started:
        yield started


@pytest.mark.parametrize("name", ["", TOKEN, KEY, "live"])
async def test_health_is_told_by_name(running: Running, name: str) -> None:
    """Balancers ask for "", clients for the service they use, kubelets for `live`."""
    assert await running.state(name) == SERVING


async def test_redis_has_a_name_of_its_own_and_decides_nothing(service_keys: Keys, environment: dict[str, str], tmp_path: Path) -> None:
    """An operator sees what is wrong; balancers and kubelets do not act upon it."""
    async with run(service_keys, {**environment, "REDIS_URL": f"redis://127.0.0.1:{free_port()}"}, tmp_path / "log") as alone:
        await eventually(lambda: is_state(alone, "ready.redis", NOT_SERVING))

        assert [await alone.state(name) for name in ("", TOKEN, "live")] == [SERVING] * 3


async def is_state(instance: Running, name: str, state: int) -> bool:
    try:
        return await instance.state(name) == state
    except grpc.aio.AioRpcError:  # nothing is said of it before it was asked
        return False


async def test_an_unknown_service_is_not_found(running: Running) -> None:
    """As grpc.health.v1 has it: a misspelt probe must not look healthy."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await running.state("watchword.token.v1.NoService")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_what_is_served(running: Running) -> None:
    """grpcurl needs no protos."""
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)  # type: ignore[no-untyped-call]
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]), timeout=5)

    answer = await call.read()
    call.cancel()

    assert {service.name for service in answer.list_services_response.service} >= {TOKEN, KEY, "grpc.health.v1.Health"}


async def test_reflection_may_be_off(service_keys: Keys, environment: dict[str, str], tmp_path: Path) -> None:
    async with run(service_keys, {**environment, "REFLECTION": "false"}, tmp_path / "log") as quiet:
        stub = reflection_pb2_grpc.ServerReflectionStub(quiet.channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5).read()
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_that_is_too_large_is_refused_unread(running: Running) -> None:
    """Memory is not the caller's to spend."""
    rpc: Any = running.channel.unary_unary(f"/{TOKEN}/VerifyToken")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await rpc(b"\x0a" + b"x" * (1024 * 1024 + 1), metadata=running.metadata, timeout=5)

    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(status.decode(failure.value), ResourceExhausted)
    await running.verify()


async def test_headers_that_are_too_large_are_refused(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await running.health.Check(health_pb2.HealthCheckRequest(), metadata=(("x-big", "x" * 64 * 1024),), timeout=5)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await running.verify()


async def test_without_a_lease_readiness_follows_postgres_and_liveness_does_not(
    service_keys: Keys, environment: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    """A restart mends no database: only `live` may have an instance killed. Watchers are told of both turns."""
    environment = {**environment, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    proxy: FaultProxy
    async with proxied(database_url) as proxy:
        behind = {**environment, "DATABASE_URL": through(proxy.port, database_url)}
        async with run(service_keys, behind, tmp_path / "log") as started:
            watch = started.health.Watch(health_pb2.HealthCheckRequest(service=TOKEN))
            assert (await watch.read()).status == SERVING

            await proxy.cut()
            assert (await asyncio.wait_for(watch.read(), 5)).status == NOT_SERVING
            assert (await started.state(""), await started.state("live")) == (NOT_SERVING, SERVING)

            await proxy.restore()
            assert (await asyncio.wait_for(watch.read(), 5)).status == SERVING
            watch.cancel()


async def test_with_a_lease_an_instance_stays_ready_without_postgres(
    service_keys: Keys, environment: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    """Nothing can be changed then, and memory answers what is asked. Asked for longer than a failing probe is borne."""
    async with proxied(database_url) as proxy:
        behind = {**environment, "DATABASE_URL": through(proxy.port, database_url)}
        async with run(service_keys, behind, tmp_path / "log") as started:
            await eventually(partial(_has_lease, started.log))
            await proxy.cut()
            began = time.monotonic()

            async def outlasted() -> bool:
                assert await started.state() == SERVING
                return time.monotonic() - began > 2 * UNREADY_AFTER

            await eventually(outlasted)


async def _has_lease(log: Path) -> bool:
    return b"lease_taken" in log.read_bytes()  # noqa: ASYNC240  (a few lines)


async def test_readiness_does_not_follow_redis(service_keys: Keys, environment: dict[str, str], tmp_path: Path) -> None:
    """One blip of Redis would empty the fleet; and start-up does not need it."""
    async with run(service_keys, {**environment, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}, tmp_path / "log") as started:
        assert await started.state() == SERVING
        await started.verify()


@dataclass
class Load:
    """Twenty clients that call without a pause until told to stop, and what became of their calls."""

    running: Running
    passed: int = 0
    failures: list[BaseException] = field(default_factory=list)
    stopped: bool = False
    leaves_when_refused: bool = False

    async def client(self) -> None:
        while not self.stopped:
            try:
                await self.running.verify()
                self.passed += 1
            except Exception as error:
                self.failures.append(error)
                if self.leaves_when_refused:
                    return
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self.client()) for _ in range(20)]

        async def flows() -> bool:
            return self.passed > 100

        await eventually(flows)
        try:
            yield
        finally:
            self.stopped = True
            await asyncio.gather(*clients)


def after(seconds: float) -> Callable[[], Awaitable[bool]]:
    """Return a question that is answered with yes from that many seconds on."""
    until = time.monotonic() + seconds

    async def is_over() -> bool:
        return time.monotonic() >= until

    return is_over


def said(log: Path) -> list[str]:
    return [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]


async def test_an_instance_drains_without_failing_a_call(service_keys: Keys, environment: dict[str, str], tmp_path: Path) -> None:
    """A balancer probes four times a second, and sends nothing more once it was told NOT_SERVING."""
    async with run(service_keys, environment, tmp_path / "log") as started:
        load = Load(started)
        async with load.flowing():
            before = load.passed
            started.process.terminate()

            async def is_told() -> bool:
                return await started.state() == NOT_SERVING

            await eventually(is_told, within=5)
            for _ in range(2):  # the balancer's next probes, while calls still flow
                await eventually(after(0.25))
                assert await is_told()
            during = load.passed - before
        gone = time.monotonic()

        assert await started.ended(within=10) == 0
        assert time.monotonic() - gone < 5
        assert load.failures == []
        assert during > 50
        assert {"draining", "stopped"} <= set(said(started.log))


async def test_an_instance_that_nobody_balances_drains_when_its_callers_are_done(
    service_keys: Keys, environment: dict[str, str], tmp_path: Path
) -> None:
    """Without probes there is nobody to wait for but the callers themselves."""
    async with run(service_keys, environment, tmp_path / "log") as started:
        load = Load(started)
        async with load.flowing():
            before = load.passed
            started.process.terminate()

            async def went_on() -> bool:
                return load.passed > before + 300

            await eventually(went_on)

        assert await started.ended(within=10) == 0
        assert load.failures == []


async def test_callers_who_outstay_the_drain_are_told_to_go_elsewhere(service_keys: Keys, environment: dict[str, str], tmp_path: Path) -> None:
    """After DRAIN_TIMEOUT. UNAVAILABLE is repeated at another instance; CANCELLED, which grpc's own stop answers, would be lost."""
    async with run(service_keys, {**environment, "DRAIN_TIMEOUT": "0.5"}, tmp_path / "log") as started:
        load = Load(started, leaves_when_refused=True)
        async with load.flowing():
            started.process.terminate()
            assert await started.ended(within=10) == 0

        failures = [status.decode(failure) for failure in load.failures if isinstance(failure, grpc.aio.AioRpcError)]
        assert [type(failure) for failure in failures] == [ShuttingDown] * 20


async def test_settings_that_cannot_work_end_the_start_in_words(environment: dict[str, str], service_keys: Keys, tmp_path: Path) -> None:
    """One line that says what to do, and no traceback, which would show values."""
    base = {"SECURITY_SALT": SALT, "SERVICE_KEY": service_keys.private["token"], "SERVICE_PUBLIC_KEYS": service_keys.public_json, **environment}
    wrong_password = environment["DATABASE_URL"].replace("://watchword:", "://watchword:canary")
    broken = {
        "SERVICE_KEY": service_keys.private["rbac"],
        "DATABASE_URL": wrong_password,
        "SERVICE_PUBLIC_KEYS": "{}",
        "KEY_ENCRYPTION_KEY": "short",
        "DATABASE_POOL_SIZ": "5",
    }

    async def start(number: int, change: dict[str, str]) -> tuple[int, str]:
        log = tmp_path / f"{number}.log"
        with instance("services.token", environment={**base, **change}, log=log) as (_, process):
            return await asyncio.to_thread(process.wait, 20), log.read_text()

    for number, (name, value) in enumerate(broken.items()):
        code, words = await start(number, {name: value})
        assert (code, name, "Traceback" in words) == (1, name, False), words
        assert "cannot start: " in words
        assert "canary" not in words


async def test_an_instance_whose_pool_is_full_stays_ready(configure: Configure) -> None:
    """Busy is not broken: if every busy instance left, the next would be busier. Counted over four probes, longer than it takes to leave."""
    health, asked = Health([TOKEN]), list[str]()
    await health.start()

    async with Database.open(configure(DATABASE_POOL_SIZE=1, DATABASE_MAX_OVERFLOW=0), "token") as narrow, narrow.connection():

        async def probe() -> None:
            try:
                await narrow.ping()
            except BaseException as error:
                asked.append(type(error).__name__)
                raise

        async with watched(health, probe):

            async def is_asked_often() -> bool:
                return len(asked) >= 4

            await eventually(is_asked_often, within=15)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=TOKEN), None)  # type: ignore[arg-type]
    assert answer.status == SERVING, asked


@pytest.mark.parametrize(("failure", "expected"), [(ResourceExhausted, SERVING), (ValueError, NOT_SERVING)], ids=["busy", "broken"])
async def test_a_probe_that_finds_much_to_do_is_answered(failure: type[Exception], expected: int) -> None:
    """And every other failure of the probe is a reason to leave."""
    health, asked = Health([TOKEN]), 0
    await health.start()

    async def probe() -> None:
        nonlocal asked
        asked += 1
        raise failure

    async with watched(health, probe):

        async def is_asked_often() -> bool:
            return asked >= 6  # more than a second of failing probes

        await eventually(is_asked_often, within=5)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=TOKEN), None)  # type: ignore[arg-type]
    assert answer.status == expected


async def told(probe: Callable[[], Awaitable[None]], times: int) -> set[bool]:
    """Return what an instance said of its readiness, so many times."""
    health, readiness = Health([TOKEN]), list[bool]()
    set_ready = health.set_ready

    async def note(ready: bool) -> None:
        readiness.append(ready)
        await set_ready(ready)

    health.set_ready = note  # type: ignore[method-assign]
    async with watched(health, probe):

        async def is_told() -> bool:
            return len(readiness) >= times

        await eventually(is_told, within=15)
    return set(readiness)


async def test_an_instance_that_stood_still_does_not_leave_when_it_wakes(configure: Configure) -> None:
    """The answer to its probe has arrived meanwhile. If a whole machine stood still, all its instances would leave at once."""
    async with Database.open(configure(), "token") as database:

        async def probe() -> None:
            answer = asyncio.create_task(database.fetch("SELECT pg_sleep(0.2)"))
            await asyncio.sleep(0.1)  # it is asked
            hold_the_loop(PROBE_TIMEOUT + 0.5)
            await answer

        assert await told(probe, 2) == {True}


async def test_a_probe_that_fails_after_a_standstill_has_failed_once() -> None:
    """Its lease is not back yet, and Postgres is away: that is no longer so than for who did not stand still."""
    asked = 0

    async def probe() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            asyncio.get_running_loop().call_later(0.1, hold_the_loop, 2 * UNREADY_AFTER)
        if asked == 2:
            raise DependencyUnavailable

    assert await told(probe, 3) == {True}


async def test_a_lease_that_comes_back_while_postgres_hangs_counts() -> None:
    """Whoever asked Postgres before it was back hears after it that Postgres hangs."""
    anything: Any = None
    coherence = Coherence(anything, anything, anything, name="token-1")

    async def ping() -> None:
        raise DependencyUnavailable

    async def ping_meanwhile() -> None:
        coherence._trusted_until = math.inf
        raise DependencyUnavailable

    with pytest.raises(DependencyUnavailable):
        await coherence.require(ping)
    await coherence.require(ping_meanwhile)
    await coherence.require(ping)


class Refusing:
    """A log in a Redis that refuses so many calls."""

    def __init__(self, times: int) -> None:
        self._left = times

    async def read(self, after: int, *, wait: float) -> list[Entry]:
        if self._left:
            self._left -= 1
            raise RedisDown
        await asyncio.sleep(wait)
        return []

    async def renew(self, instance: str, epoch: str, applied: int) -> Standing:
        return Standing(Grant.BELIEVED, epoch, applied, {instance: Lease("1", applied)})


@pytest.mark.parametrize(("refusals", "ends"), [(6, "current"), (100, "lapsed")])
async def test_a_lease_that_is_over_is_given_up_after_half_a_second_without_redis(refusals: int, ends: str) -> None:
    """A machine that was moved has no network at first."""
    anything: Any = None
    log: Any = Refusing(refusals)
    coherence = Coherence(log, anything, anything, name="token-1")
    coherence._known_until = math.inf
    staying = asyncio.create_task(coherence._stay())

    async def is_decided() -> bool:
        return coherence.is_current or staying.done()

    await eventually(is_decided)
    if ends == "current":
        assert coherence.is_current
        staying.cancel()
    else:
        with pytest.raises(Lapsed):
            await staying
