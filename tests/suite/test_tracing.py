"""One login is one trace: Envoy, identity, Envoy again, token and rbac, in one tree, and the logs name it. And its request id goes the same way."""

import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.up import walkthrough
from services.up.endpoints import Endpoints, RunningInstance
from tests.conftest import eventually
from tests.suite.conftest import Suite, run

FAST = ("OTEL_BSP_SCHEDULE_DELAY=100", "OTEL_TRACES_SAMPLER_ARG=1", "BCRYPT_COST=10", "LOG_LEVEL=debug")
SMALL = ("--rest-port", "0", "--grpc-port", "0", "--unsafe-speed", "--replicas", "token=1,rbac=1,identity=1,gateway=1")
SERVER = 2  # SpanKind of opentelemetry.proto
CLIENTS_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass(frozen=True, slots=True)
class Span:
    """What a process said that it did."""

    process: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    facts: Mapping[str, str]
    is_error: bool


@dataclass
class Collector:
    """A collector that keeps what it gets."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)

    async def Export(self, request: Any, _context: Any) -> Any:
        for group in request.resource_spans:
            resource = {one.key: one.value.string_value for one in group.resource.attributes}
            for span in (span for scope in group.scope_spans for span in scope.spans):
                facts = {one.key: one.value.string_value or str(one.value.int_value) for one in span.attributes}
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                self.spans.append(Span(resource["service.name"], span.name, *ids, span.kind, facts, span.status.code == 2))
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if name in span.name]


@pytest.fixture(scope="module")
async def collector() -> AsyncIterator[Collector]:
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(None)


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A small stack that sends its spans to the collector."""
    home = tmp_path_factory.mktemp("traced") / "home"
    settings = [part for setting in (*FAST, f"OTEL_EXPORTER_OTLP_ENDPOINT={collector.endpoint}") for part in ("--env", setting)]
    started = run(sys.executable, "-m", "services.up", "--detach", "--home", str(home), *SMALL, *settings)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        raw = json.loads((home / "endpoints.json").read_text())
        instances = tuple(RunningInstance(**one) for one in raw.pop("instances"))
        yield Suite(home, Endpoints(**raw, instances=instances))
    finally:
        run(sys.executable, "-m", "services.up.down", "--home", str(home))


def one_time_password(suite: Suite) -> str:
    return Path(suite.endpoints.admin_password_file).read_text().strip()


def log_of(suite: Suite, service: str) -> list[dict[str, Any]]:
    """Return the events that the processes of a service have logged."""
    text = "".join(Path(one.log).read_text() for one in suite.instances(service))
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


@pytest.fixture(scope="module")
async def login(traced: Suite, collector: Collector) -> httpx.Response:
    """Log in once over REST, as a stranger who brings a trace of his own, and wait for the spans."""
    one_time = one_time_password(traced)
    body = {"login": traced.endpoints.admin_email, "password": one_time, "new_password": walkthrough.new_password(one_time)}
    header = {"traceparent": f"00-{CLIENTS_TRACE}-00f067aa0ba902b7-01"}
    async with traced.rest as rest:
        answer = await rest.post("/v1/auth/login", json=body, headers=header)
    assert answer.status_code == 200, answer.text

    async def is_there() -> bool:
        ids = {span.id for span in collector.spans}
        return {"identity", "token", "rbac"} <= {span.process for span in collector.spans} and all(
            not span.parent or span.parent in ids for span in collector.named("IssueToken") + collector.named("Login")
        )

    await eventually(is_there, within=30)
    return answer


async def test_a_login_is_one_tree_from_envoy_over_identity_to_token(collector: Collector, login: httpx.Response) -> None:
    (served,) = [span for span in collector.named("AuthenticationService/Login") if span.process == "identity"]
    (issued,) = [span for span in collector.named("TokenService/IssueToken") if span.process == "token"]
    by_id = {span.id: span for span in collector.spans}

    ancestors = list(up(issued, by_id))

    assert [span.process for span in ancestors] == ["envoy", "identity", "identity", "envoy"]
    assert ancestors[2] is served
    assert ancestors[-1].parent == ""
    assert {span.trace for span in (issued, *ancestors)} == {served.trace} != {CLIENTS_TRACE}
    assert served.facts["rpc.grpc.status_code"] == "0"
    assert {span.process for span in collector.spans if span.trace == served.trace} == {"envoy", "identity", "token", "rbac"}
    assert {span.facts["guid:x-request-id"] for span in (served, issued, ancestors[-1])} == {login.headers["x-request-id"]}


def up(span: Span, by_id: Mapping[str, Span]) -> Iterator[Span]:
    while span.parent:
        span = by_id[span.parent]
        yield span


async def test_the_logs_of_every_process_name_the_trace_and_the_request(traced: Suite, collector: Collector, login: httpx.Response) -> None:
    """From one line to all the others, and to the spans."""
    (served,) = [span for span in collector.named("AuthenticationService/Login") if span.process == "identity"]
    wanted = {"trace_id": served.trace, "request_id": login.headers["x-request-id"]}

    async def is_logged(service: str, **also: str) -> bool:
        return any(line.items() >= {**wanted, **also}.items() for line in log_of(traced, service))

    for listener in ("edge", "internal"):
        await eventually(partial(is_logged, "envoy", listener=listener))
    for service, method in (("identity", "Login"), ("token", "IssueToken")):
        await eventually(partial(is_logged, service, event="call_ended", method=f"/{PATHS[service]}/{method}"))


PATHS = {"identity": "watchword.identity.v1.AuthenticationService", "token": "watchword.token.v1.TokenService"}


async def test_who_verifies_a_caller_does_it_under_the_callers_request(traced: Suite, collector: Collector, login: httpx.Response) -> None:
    """Identity asks token who a bearer is: that question belongs to the request, though the handler does not make it."""
    async with traced.rest as rest:
        answer = await rest.get("/v1/me", headers={"authorization": f"Bearer {login.json()['tokens']['access_token']}"})
    assert answer.status_code == 200, answer.text
    wanted = answer.headers["x-request-id"]

    async def is_told() -> bool:
        return {"envoy", "identity", "token"} == {span.process for span in collector.spans if span.facts.get("guid:x-request-id") == wanted}

    await eventually(is_told, within=20)
    assert [span.process for span in collector.named("VerifyToken") if span.facts.get("guid:x-request-id") == wanted and span.kind == SERVER] == [
        "token"
    ]


async def test_a_refusal_is_no_error_of_the_service_that_refuses(traced: Suite, collector: Collector, login: httpx.Response) -> None:
    assert login
    async with traced.rest as rest:
        answer = await rest.post("/v1/auth/login", json={"login": "nobody@example.com", "password": "a wrong password of some length"})
    assert answer.status_code == 401

    async def is_there() -> bool:
        return any(span.facts.get("rpc.grpc.status_code") == "16" for span in collector.spans if span.process == "identity")

    await eventually(is_there, within=20)
    (refused,) = [span for span in collector.spans if span.process == "identity" and span.facts.get("rpc.grpc.status_code") == "16"]
    assert not refused.is_error


async def test_no_span_tells_a_secret_or_a_name(traced: Suite, collector: Collector, login: httpx.Response) -> None:
    """Traces go to other people's machines."""
    secrets = [login.json()["tokens"]["access_token"], one_time_password(traced), traced.endpoints.admin_email]

    told = " ".join(f"{span.name} {dict(span.facts)}" for span in collector.spans)

    assert [secret for secret in secrets if secret in told] == []


async def test_health_checks_fill_no_traces(traced: Suite, collector: Collector, login: httpx.Response) -> None:
    """There are some every second, for ever: of probes, and of the gateway that asks for all."""
    async with traced.rest as rest:
        for path in ("/health", "/health/ready", "/health/detailed"):
            assert (await rest.get(path)).status_code == 200
        after = await rest.get("/v1/me", headers={"authorization": f"Bearer {login.json()['tokens']['access_token']}"})
    wanted = after.headers["x-request-id"]

    async def is_there() -> bool:
        return "envoy" in {span.process for span in collector.spans if span.facts.get("guid:x-request-id") == wanted}

    await eventually(is_there, within=20)
    assert [
        span for span in collector.spans if "ealth" in f"{span.name} {span.facts.get('http.url', '')} {span.process == 'gateway' and 'health'}"
    ] == []
