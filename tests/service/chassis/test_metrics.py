"""What an edge counts and what Prometheus is told: over a real channel, and over real HTTP."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.chassis.access import Gate
from services.chassis.call import Call, Caller, CallerKind
from services.chassis.edge import Edge
from services.chassis.exposition import PATH, Exposition, exposed
from services.chassis.metrics import BOUNDS, Family, Histogram, LoopLag, Sample, gauge, histogram, rpcs
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.settings import ChassisSettings
from tests.conftest import ROOT, SALT, Keys, Stores, free_port, instance
from tests.service.chassis.conftest import Configure
from watchword.errors import DependencyUnavailable, FanoutPending, InvalidRequest, TokenInvalid
from watchword.token.v1 import token_pb2

SERVICE = token_pb2.DESCRIPTOR.services_by_name["TokenService"]
NAME = SERVICE.full_name
REQUEST = token_pb2.VerifyTokenRequest(token="x").SerializeToString()
SOON = token_pb2.VerifyTokenRequest(token="soon").SerializeToString()
DEFECT = token_pb2.VerifyTokenRequest(token="defect").SerializeToString()

Numbers = dict[tuple[str, str], float]  # (sample name, its sorted labels but those that all have) -> value


class Servicer:
    """Verifies from memory what begins with `x`, what is asked `soon` when the test says so, and fails in several ways."""

    def __init__(self) -> None:
        self.prompts = {"VerifyToken": self._recall}
        self.shedding: dict[str, Any] = {}
        self.soon: list[asyncio.Future[bytes]] = []

    def _recall(self, raw: bytes, _caller: Caller) -> bytes | asyncio.Future[bytes] | None:
        if raw == DEFECT:
            raise ValueError("a defect of the prompt way")
        if raw == SOON:
            self.soon.append(asyncio.get_running_loop().create_future())
            return self.soon[-1]
        return b"" if raw == REQUEST else None

    async def VerifyToken(self, request: token_pb2.VerifyTokenRequest, call: Call) -> token_pb2.VerifyTokenResponse:
        if request.token == "wait":
            await asyncio.Event().wait()
        if request.token == "unavailable":
            raise DependencyUnavailable
        call.response_headers.append(("x-http-status", "304"))
        return token_pb2.VerifyTokenResponse()

    async def WatchRevocations(self, requests: AsyncIterator[Any], _call: Call) -> AsyncIterator[token_pb2.WatchRevocationsResponse]:
        async for _request in requests:
            yield token_pb2.WatchRevocationsResponse()
            yield token_pb2.WatchRevocationsResponse()

    def __getattr__(self, name: str) -> Any:
        async def unused(_request: Any, _call: Call) -> Any:
            raise InvalidRequest(name)

        return unused


@dataclass
class Door:
    """A served edge."""

    edge: Edge
    servicer: Servicer
    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]
    limits: SimpleNamespace

    async def ask_soon(self, **fields: Any) -> "asyncio.Task[grpc.StatusCode]":
        """Ask what is answered soon, and return once it waits for that."""
        already = len(self.servicer.soon)
        asking = asyncio.create_task(self.verify("soon", **fields))
        async with asyncio.timeout(5):
            while len(self.servicer.soon) == already:  # noqa: ASYNC110  (the call has to arrive)
                await asyncio.sleep(0)
        return asking

    async def verify(self, token: str, *, timeout: float = 2.0, metadata: tuple[tuple[str, str], ...] | None = None) -> grpc.StatusCode:
        rpc: Any = self.channel.unary_unary(f"/{NAME}/VerifyToken")
        request = token_pb2.VerifyTokenRequest(token=token).SerializeToString()
        try:
            await rpc(request, metadata=self.metadata if metadata is None else metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def numbers(self, method: str = "VerifyToken") -> Numbers:
        """Return what Prometheus is told of one method, once all that was asked has ended."""
        families = [
            Family(one.name, one.kind, one.text, [sample for sample in one.samples if method in sample.labels.values()])
            for one in rpcs(self.edge.meters.values())
        ]
        return {
            (family.name + sample.suffix, "".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key in WANTED)): sample.value
            for family in families
            for sample in family.samples
        }


WANTED = {"grpc_code", "grpc_type", "le", "reason", "status", "outcome"}


@pytest.fixture
async def door(service_keys: Keys) -> AsyncIterator[Door]:
    """Serve without limits; only services of the suite may call."""
    unlimited: Any = SimpleNamespace(spend=lambda *_: True, take=_nothing)
    edge, servicer = Edge(Gate(service_keys.identity("token"), _Nobody(), None), unlimited), Servicer()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((edge.handler(SERVICE, servicer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Door(edge, servicer, channel, service_keys.metadata("identity", to="token"), unlimited)
    await server.stop(None)


async def _nothing(*_: object) -> None: ...


class _Nobody:
    async def authenticate(self, _token: str) -> Caller:
        raise TokenInvalid

    def recall(self, token: str) -> Caller | None:
        """Know one client that nobody else knows."""
        return Caller(CallerKind.CLIENT, "client", scopes=frozenset({"tokens.verify"})) if token == "remembered" else None


async def test_a_defect_of_the_prompt_way_leaves_the_answer_to_the_patient_one(door: Door, capfd: pytest.CaptureFixture[str]) -> None:
    """It would else leave the service raw: neither counted nor written down, and with the defect's own words for the caller."""
    await door.verify("x")  # a stranger's identity is checked once by the patient way

    assert await door.verify("defect") is grpc.StatusCode.OK

    numbers = await door.numbers()
    assert numbers["grpc_server_handled_total", "grpc_code=OKgrpc_type=unary"] == 2
    assert numbers["watchword_cache_requests_total", "outcome=miss"] == 2
    assert "prompt_failed" in "".join(capfd.readouterr())


async def test_an_answer_that_comes_soon_is_memorys_too(door: Door) -> None:
    """And a drain waits for it."""
    await door.verify("x")  # a stranger's identity is checked once by the patient way
    asking = await door.ask_soon()
    in_flight = door.edge.activity.in_flight
    door.servicer.soon[0].set_result(b"")

    assert await asking is grpc.StatusCode.OK
    assert (in_flight, door.edge.activity.in_flight) == (1, 0)
    numbers = await door.numbers()
    assert numbers["watchword_cache_requests_total", "outcome=hit"] == 1
    assert numbers["grpc_server_handled_total", "grpc_code=OKgrpc_type=unary"] == 2
    assert numbers["grpc_server_handling_seconds_count", "grpc_type=unary"] == 2


async def test_an_answer_that_does_not_come_is_given_by_the_patient_way(door: Door, capfd: pytest.CaptureFixture[str]) -> None:
    await door.verify("x")
    asking = await door.ask_soon()
    door.servicer.soon[0].set_exception(ValueError("a defect"))

    assert await asking is grpc.StatusCode.OK
    assert (await door.numbers())["watchword_cache_requests_total", "outcome=miss"] == 2
    assert "prompt_failed" in "".join(capfd.readouterr())


async def test_who_is_over_the_limit_gets_nothing_soon(door: Door) -> None:
    door.limits.spend = lambda *_: False
    asking = await door.ask_soon(metadata=(("authorization", "Bearer remembered"),))

    assert await asking is grpc.StatusCode.UNAUTHENTICATED  # by the patient way, which knows nobody
    assert door.servicer.soon[0].cancelled()


async def test_who_gives_up_an_answer_that_comes_soon_is_no_longer_waited_for(door: Door) -> None:
    await door.verify("x")
    asking = await door.ask_soon()
    asking.cancel()
    async with asyncio.timeout(5):
        while door.edge.activity.in_flight:  # noqa: ASYNC110  (the cancellation has to arrive)
            await asyncio.sleep(0)

    assert door.servicer.soon[0].cancelled()
    numbers = await door.numbers()
    assert numbers["grpc_server_handled_total", "grpc_code=Canceledgrpc_type=unary"] == 1
    assert numbers["grpc_server_started_total", "grpc_type=unary"] == 2


async def test_calls_are_counted_by_how_they_ended_under_the_names_that_dashboards_know(door: Door) -> None:
    await door.verify("x")  # a stranger's identity is checked once by the patient way
    for token in ("x", "x", "patient", "unavailable"):
        await door.verify(token)
    assert await door.verify("x", metadata=()) is grpc.StatusCode.UNAUTHENTICATED

    numbers = await door.numbers()

    unary = "grpc_type=unary"
    assert numbers["grpc_server_started_total", unary] == 6
    assert numbers["grpc_server_handled_total", f"grpc_code=OK{unary}"] == 4
    assert numbers["grpc_server_handled_total", f"grpc_code=Unavailable{unary}"] == 1
    assert numbers["grpc_server_handled_total", f"grpc_code=Unauthenticated{unary}"] == 1
    assert numbers["grpc_server_msg_received_total", unary] == 6
    assert numbers["grpc_server_msg_sent_total", unary] == 4
    assert numbers["grpc_server_handling_seconds_count", unary] == 6
    assert numbers["grpc_server_handling_seconds_bucket", f"{unary}le=+Inf"] == 6
    assert 0 < numbers["grpc_server_handling_seconds_sum", unary] < 6
    assert numbers["watchword_failures_total", "reason=DEPENDENCY_UNAVAILABLE"] == 1


async def test_what_memory_answers_is_told_from_what_it_could_not(door: Door) -> None:
    """The cache hit ratio of the seed. Who is refused does not make memory look cold."""
    await door.verify("x")
    await door.verify("x", metadata=())
    for token in ("x", "x", "x", "patient"):
        await door.verify(token)

    numbers = await door.numbers()

    assert numbers["watchword_cache_requests_total", "outcome=hit"] == 3
    assert numbers["watchword_cache_requests_total", "outcome=miss"] == 2
    assert numbers["watchword_http_statuses_total", "status=304"] == 2


async def test_a_call_that_its_caller_gave_up_is_cancelled_and_no_failure_of_ours(door: Door) -> None:
    waiting = asyncio.create_task(door.verify("wait", timeout=20))
    async with asyncio.timeout(5):
        while not door.edge.activity.in_flight:  # noqa: ASYNC110  (the call has to arrive)
            await asyncio.sleep(0)
        waiting.cancel()
        while door.edge.activity.in_flight:  # noqa: ASYNC110  (the cancellation has to arrive)
            await asyncio.sleep(0)

    numbers = await door.numbers()

    assert numbers["grpc_server_handled_total", "grpc_code=Canceledgrpc_type=unary"] == 1
    assert not [name for name, _ in numbers if name == "watchword_failures_total"]


async def test_the_messages_of_streams_are_counted(door: Door) -> None:
    rpc: Any = door.channel.stream_stream(f"/{NAME}/WatchRevocations")
    stream = rpc(iter([b"", b"", b""]), metadata=door.metadata)
    answers = [answer async for answer in stream]

    numbers = await door.numbers("WatchRevocations")

    assert len(answers) == 6
    assert numbers["grpc_server_msg_received_total", "grpc_type=bidi_stream"] == 3
    assert numbers["grpc_server_msg_sent_total", "grpc_type=bidi_stream"] == 6
    assert numbers["grpc_server_handled_total", "grpc_code=OKgrpc_type=bidi_stream"] == 1


async def test_no_label_comes_from_a_caller(door: Door) -> None:
    """A thousand names would be a million series: methods, codes and reasons are the contract's."""
    for number in range(20):
        await door.verify(f"token-{number}", metadata=(*door.metadata, ("user-agent", f"agent-{number}")))

    before = len(await door.numbers())
    for number in range(20, 40):
        await door.verify(f"token-{number}", metadata=(*door.metadata, ("x-request-id", f"id-{number}")))

    assert len(await door.numbers()) == before


@pytest.mark.parametrize(("seconds", "bound"), [(0.0, BOUNDS[0]), (BOUNDS[3], BOUNDS[3]), (BOUNDS[3] + 1e-9, BOUNDS[4]), (11.0, float("inf"))])
def test_a_duration_falls_into_the_first_bucket_that_holds_it(seconds: float, bound: float) -> None:
    """Prometheus's `le` includes its bound."""
    noted = Histogram()
    noted.note(seconds)

    holding = [float(sample.labels["le"]) for sample in noted.samples() if sample.suffix == "_bucket" and sample.value]

    assert holding[0] == bound
    assert holding[-1] == float("inf")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Expose a gauge, a counter whose label needs quoting, a histogram, and a source that has to wait."""
    took = Histogram()
    took.note(0.02)

    async def late() -> Iterable[Family]:
        await asyncio.sleep(0)
        return [gauge("watchword_late", "Asked for.", 7)]

    def source() -> Iterable[Family]:
        yield gauge("watchword_now", "Known.", 1, state='a "quoted"\nline')
        yield Family("grpc_server_started_total", "counter", "RPCs.", [Sample(5)])
        yield histogram("watchword_took_seconds", "Long.", took)

    address = f"127.0.0.1:{free_port()}"
    async with exposed(address, Exposition("token", [source, late])):
        yield f"http://{address}"


async def test_prometheus_reads_what_is_exposed(url: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(url + PATH)
    told = {(sample.name, sample.labels.get("le", "")): sample for family in text_string_to_metric_families(answer.text) for sample in family.samples}

    assert answer.headers["content-type"].startswith("text/plain")
    assert told["watchword_now", ""].labels == {"context": "token", "state": 'a "quoted"\nline'}
    assert told["watchword_late", ""].value == 7
    assert told["grpc_server_started_total", ""].labels == {}
    assert told["watchword_took_seconds_bucket", "0.025"].value == 1
    assert told["process_resident_memory_bytes", ""].value > 1e6


async def test_openmetrics_is_spoken_with_those_who_ask_for_it(url: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(url + PATH, headers={"accept": "application/openmetrics-text; version=1.0.0"})

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405), ("GET", "/metrics?x", 200)]
)
async def test_the_door_opens_for_one_path_and_one_method(url: str, method: str, path: str, status: int) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, url + path)

    assert answer.status_code == status


async def test_a_request_of_any_size_takes_no_memory(url: str) -> None:
    """Past 8 KiB of headers the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 10_000)

    async with asyncio.timeout(5):
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
    writer.close()

    assert answer == b""


async def test_the_pools_tell_how_they_are_used(database: Database, redis: Redis) -> None:
    waited, used, calls = (sum(one.counts) for one in (database.use.waited, database.use.used, redis.taken))
    async with database.connection():
        inside = database.pool
    await redis.call("PING")

    assert inside.used >= 1
    assert inside.most == 10
    assert database.pool.used == inside.used - 1
    assert sum(database.use.waited.counts) == waited + 1
    assert sum(database.use.used.counts) == used + 1
    assert sum(redis.taken.counts) == calls + 1
    assert redis.in_use == redis.waiting == 0


async def test_a_redis_with_every_connection_in_use_tells_who_waits(configure: Configure) -> None:
    async with Redis.open(configure(), pool_size=2) as redis:
        blocked = [asyncio.create_task(redis.call("BLPOP", "nothing-is-here", 0.2, wait=1.0)) for _ in range(3)]
        await asyncio.sleep(0)
        in_use, waiting = redis.in_use, redis.waiting
        await asyncio.gather(*blocked)

    assert (in_use, waiting) == (1, 2)


async def test_a_change_that_is_not_known_everywhere_in_time_is_counted(configure: Configure) -> None:
    """The writer's wait is what revocation propagation means to its caller."""

    class Slow:
        async def spread(self, _posted: object, *, budget: float) -> None:
            raise FanoutPending

        async def settle(self, *, budget: float) -> None: ...

    async with Database.open(configure(), "token") as database:
        database.spread_by(Slow())

        async def effect(change: Any) -> None:
            change.tell("a notice")

        with pytest.raises(FanoutPending):
            await database.change(Call("/test/Do"), type(None), effect)
        await database.execute("DELETE FROM change WHERE payload = 'a notice'")

    assert database.use.pending == 1
    assert sum(database.use.spread.counts) == 1


async def test_a_loop_that_is_held_up_runs_late() -> None:
    lag = LoopLag()
    async with lag.watched(), asyncio.timeout(5):
        await asyncio.sleep(0)  # the look has begun
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            pass
        while not sum(lag.late.counts):  # noqa: ASYNC110  (the look has to come)
            await asyncio.sleep(0.01)

    assert lag.late.seconds > 0.1


def test_the_fingerprint_differs_exactly_where_instances_must_not(configure: Configure) -> None:
    """Seed: the salt, the stores and the keys are the same everywhere, names and log levels need not be."""
    alike = configure()

    assert configure(LOG_LEVEL="debug", INSTANCE_ID="b", GRPC_ADDRESS="127.0.0.1:1", DATABASE_POOL_SIZE=2).fingerprint() == alike.fingerprint()
    assert len({_fingerprint(configure, name) for name in ("", "SECURITY_SALT", "REDIS_URL", "TOKEN_AUDIENCE", "RATE_LIMIT_CHECK")}) == 5


def _fingerprint(configure: Configure, name: str) -> str:
    others = {"SECURITY_SALT": "another-salt-0123456789-abcdefghijkl", "REDIS_URL": "redis://elsewhere", "RATE_LIMIT_CHECK": "1/1"}
    settings: ChassisSettings = configure(**({name: others.get(name, "other")} if name else {}))
    return settings.fingerprint()


def test_who_asks_for_neither_metrics_nor_traces_loads_no_library_of_theirs() -> None:
    """They cost megabytes and milliseconds of every start."""
    program = "import services.token.service, services.identity.service, gateway.service, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    assert [name for name in loaded if name.partition(".")[0] in ("prometheus_client", "opentelemetry")] == []
    assert "services.chassis.exposition" not in loaded


async def test_a_port_for_metrics_that_is_taken_ends_the_start_in_words(
    service_keys: Keys, database_url: str, stores: Stores, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = {"DATABASE_URL": database_url, "REDIS_URL": stores.redis, "SECURITY_SALT": SALT, "METRICS_ADDRESS": place}
        environment |= {"SERVICE_KEY": service_keys.private["token"], "SERVICE_PUBLIC_KEYS": service_keys.public_json}
        with instance("services.token", environment=environment, log=tmp_path / "log") as (_, process):
            status = await asyncio.to_thread(process.wait, 20)

    assert status == 1
    assert f"cannot start: cannot answer for metrics on {place}" in (tmp_path / "log").read_text()
