"""What Envoy tells Prometheus about the calls it carries, and what its metrics listener keeps to itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.render import main
from gateway.tracing import Tracing
from services.top.scrape import Sample, parse
from tests.suite.edge_standin import LOOPBACK, Edge, Instance, edge, everywhere, free_ports, instance, until

VERIFY = "watchword.token.v1.TokenService/VerifyToken"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Instance]:
    async with instance() as standin:
        yield standin


@pytest.fixture(scope="module")
def metrics() -> str:
    """Where the listener is to be."""
    return f"http://{LOOPBACK}:{free_ports(1)[0]}"


@pytest.fixture(scope="module")
async def front(upstream: Instance, metrics: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    address = (LOOPBACK, int(metrics.rpartition(":")[2]))
    async with edge(tmp_path_factory.mktemp("edge"), everywhere(upstream.address), is_patient=True, metrics=address) as running:
        yield running


async def test_calls_are_counted_by_service_method_and_code(front: Edge, metrics: str) -> None:
    """Envoy's own extractor would say that the service is `watchword` and the method `token`."""
    assert (await front.http.post("/v1/tokens:verify", json={"token": "x"})).status_code == 200
    await front.call(VERIFY)

    labels = {"envoy_cluster_name": "token", "grpc_service": "watchword.token.v1.TokenService", "grpc_method": "VerifyToken"}
    counted: dict[str, Sample] = {}

    async def is_told() -> bool:
        """Envoy puts histograms together every five seconds."""
        counted.update({sample.name: sample for sample in await told(metrics) if sample.labels.items() >= labels.items()})
        return "envoy_cluster_grpc_upstream_rq_time_count" in counted

    await until(is_told, seconds=20)
    assert counted["envoy_cluster_grpc"].labels == {**labels, "grpc_code": "0"}
    assert counted["envoy_cluster_grpc_success"].value >= 2
    assert counted["envoy_cluster_grpc_upstream_rq_time_count"].value >= 2


async def test_no_number_has_a_label_that_is_wrong(front: Edge, metrics: str) -> None:
    await front.http.post("/v1/tokens:verify", json={"token": "x"})

    samples = await told(metrics)

    assert not [name for sample in samples for name in sample.labels if "bridge" in name]
    assert "2" in {sample.labels["envoy_response_code_class"] for sample in samples if sample.name == "envoy_http_downstream_rq_xx"}


async def told(metrics: str) -> list[Sample]:
    """Return what Prometheus would read."""
    async with httpx.AsyncClient() as client:
        return list(parse((await client.get(f"{metrics}/stats/prometheus?usedonly")).text))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/stats"),
        ("GET", "/config_dump"),
        ("GET", "/stats/prometheus/../../config_dump"),
        ("GET", "/stats/prometheus/%2e%2e/%2e%2e/config_dump"),
        ("POST", "/stats/prometheus"),
        ("POST", "/quitquitquit"),
        ("POST", "/stats/prometheus/../../quitquitquit"),
    ],
)
async def test_nothing_else_of_the_admin_interface_is_behind_the_metrics_listener(front: Edge, metrics: str, method: str, path: str) -> None:
    """Who reaches the admin interface can stop the proxy."""
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, httpx.URL(metrics, raw_path=path.encode()))

    assert answer.status_code in (400, 404)
    assert (await front.http.get("/health")).status_code == 200


async def test_a_strangers_trace_is_not_carried_on_and_a_services_is(front: Edge, upstream: Instance) -> None:
    """Who decides what is recorded could fill the collector."""
    upstream.seen.clear()
    theirs = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "vendor=1"}

    await front.http.post("/v1/tokens:verify", json={"token": "x"}, headers=theirs)
    await front.call(VERIFY, metadata=tuple(theirs.items()))

    by_rest, by_grpc = upstream.calls("VerifyToken")
    assert "traceparent" not in by_rest.metadata
    assert "tracestate" not in by_rest.metadata
    assert by_grpc.metadata["traceparent"] == [theirs["traceparent"]]


async def test_every_line_of_the_access_log_has_room_for_the_trace(front: Edge) -> None:
    answer = await front.http.post("/v1/tokens:verify", json={"token": "x"})
    wanted = answer.headers["x-request-id"]

    async def is_logged() -> bool:
        return any(line.get("request_id") == wanted and "trace_id" in line for line in lines(front.log))

    await until(is_logged, what=lambda: front.log.read_text(encoding="utf-8"))


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{") and line.endswith("}")]


@pytest.mark.parametrize(
    ("endpoint", "ratio", "expected"),
    [
        ("", "", None),
        ("http://collector:4317", "", Tracing("collector", 4317)),
        ("http://collector", "0.25", Tracing("collector", 4317, ratio=0.25)),
        ("https://collector:443", "1", Tracing("collector", 443, is_encrypted=True)),
    ],
)
def test_the_standard_variables_say_where_spans_go(endpoint: str, ratio: str, expected: Tracing | None) -> None:
    assert Tracing.parse(endpoint, ratio) == expected


@pytest.mark.parametrize(("endpoint", "ratio"), [("collector:4317", ""), ("ftp://collector", ""), ("http://c", "2"), ("http://c", "often")])
def test_an_endpoint_that_cannot_be_used_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: str, ratio: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)

    assert main(["--directory", str(tmp_path)]) == 2
    assert "OTEL_" in capsys.readouterr().err


async def test_envoy_accepts_a_collector_that_speaks_tls(upstream: Instance, tmp_path: Path) -> None:
    """And serves on when there is none at its address."""
    nowhere = Tracing(LOOPBACK, free_ports(1)[0], is_encrypted=True)
    async with edge(tmp_path, everywhere(upstream.address), is_patient=True, tracing=nowhere) as running:
        assert (await running.http.get("/health")).status_code == 200
