"""Alerts and dashboard, as they are written: that Prometheus and Grafana can read them, and that nothing of the seed's list is missing.

That every number in them is really told by a running stack is shown by tests/suite/test_observed.py.
"""

import re
from collections import Counter
from itertools import combinations
from typing import Any

import promql_parser
import pytest
import yaml

from tests.contracts.monitoring import MONITORING, ROOT, alerts, dashboard, expressions, wanted

# What the deployment guide wants to be told or shown, and where it is.
ALERTS_OF_THE_SEED = {
    "status is not healthy for more than two minutes": "WatchwordUnhealthy",
    "database unhealthy": "WatchwordDatabaseDown",
    "Redis unhealthy": "WatchwordRedisDown",
    "CPU over 70 % for five minutes": "WatchwordScaleUp",
    "p95 over 200 ms": "WatchwordSlow",
    "pool over 80 %": "WatchwordDatabasePoolFull",
    "CPU under 30 % for fifteen minutes and more than three": "WatchwordScaleDown",
    "request counts are roughly equal": "WatchwordLoadUneven",
    "4xx": "WatchwordRestRefusals",
    "5xx": "WatchwordRestErrors",
    "failed logins": "WatchwordFailedLogins",
    "cache hit ratio": "WatchwordCacheCold",
    "Redis memory": "WatchwordRedisMemory",
    "Redis pool": "WatchwordRedisPoolFull",
    "the same settings everywhere": "WatchwordSettingsDiffer",
    "an instance fails": "WatchwordInstanceDown",
    "too few instances are left": "WatchwordFewInstances",
}
PANELS_OF_THE_SEED = {
    *("grpc_server_handling_seconds_bucket", "grpc_server_handled_total", "envoy_http_downstream_rq_xx", "watchword_database_connections"),
    *("watchword_redis_connections", "watchword_cache_requests_total", "watchword_token_issued_total", "watchword_identity_logins_total"),
    *("watchword_gateway_healthy", "watchword_gateway_redis_memory_bytes", "watchword_gateway_redis_keys", "watchword_database_use_seconds_bucket"),
    *(
        "watchword_lease_current",
        "watchword_propagation_seconds_bucket",
        "watchword_token_revocations_held",
        "watchword_event_loop_lag_seconds_bucket",
    ),
}
SEVERITIES = {"page", "ticket", "scale"}


def test_every_expression_is_promql() -> None:
    """Prometheus refuses the whole file for one that is not; a panel shows nothing."""
    assert len(list(expressions())) > 70
    assert {one.name for one in wanted()} >= {"up", "watchword_ready"}


@pytest.mark.parametrize("broken", ["sum by (", "rate(a)", "a{b=c}", "histogram_quantile(rate(a[5m]))"])
def test_what_is_no_promql_is_seen(broken: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the library's words are its own)
        promql_parser.parse(broken)


def test_there_is_an_alert_for_each_thing_that_the_seed_names() -> None:
    present = {rule["alert"] for rule in alerts()}

    assert {why: name for why, name in ALERTS_OF_THE_SEED.items() if name not in present} == {}


def test_the_dashboard_shows_what_the_seed_wants_watched() -> None:
    panels = {one["title"] for one in dashboard()["panels"]}
    shown = {one.name for one in wanted() if one.where in panels}

    assert PANELS_OF_THE_SEED - shown == set()


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_urgent_it_is_what_it_means_and_where_to_look(rule: dict[str, Any]) -> None:
    """Who is woken by it has not read the rules."""
    annotations = rule["annotations"]

    assert rule["labels"]["severity"] in SEVERITIES
    assert annotations["summary"]
    assert annotations["description"].endswith(".")
    assert (ROOT / annotations["runbook"]).is_file()


def test_every_alert_is_tried() -> None:
    """In the tests that promtool runs: each has a time at which it fires, and one at which it does not."""
    tried = yaml.safe_load((MONITORING / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    outcomes = {one["name"]: {bool(sample["exp_samples"]) for sample in one["promql_expr_test"]} for one in tried}

    assert outcomes == {rule["alert"]: {True, False} for rule in alerts()}


def test_no_two_panels_share_an_id_or_a_place() -> None:
    panels = dashboard()["panels"]
    ids = Counter(panel["id"] for panel in panels)

    assert max(ids.values()) == 1
    assert [(one["title"], other["title"]) for one, other in combinations(panels, 2) if _overlap(one["gridPos"], other["gridPos"])] == []
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels) == 24


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[start] < other[start] + other[size] and other[start] < one[start] + one[size] for start, size in (("x", "w"), ("y", "h")))


def test_prometheus_asks_every_kind_of_process_where_it_answers() -> None:
    """The ports are those that compose and Kubernetes open."""
    jobs = {job["job_name"]: job for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]}
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")

    assert set(jobs) == {"token", "rbac", "identity", "gateway", "envoy"}
    ports = {name: job["dns_sd_configs"][0]["port"] for name, job in jobs.items()}
    assert ports == {"token": 9464, "rbac": 9464, "identity": 9464, "gateway": 9464, "envoy": 9902}
    assert "METRICS_ADDRESS: 0.0.0.0:9464" in compose
    assert '"--metrics", "0.0.0.0:9902"' in compose


@pytest.mark.parametrize(
    "path", ["prometheus-kubernetes.yml", "compose.yaml", "grafana/datasources/prometheus.yml", "grafana/dashboards/watchword.yml"]
)
def test_the_other_files_are_yaml_and_name_files_that_exist(path: str) -> None:
    text = (MONITORING / path).read_text(encoding="utf-8")

    assert yaml.safe_load(text)
    for mounted in re.findall(r"- (\./deploy/\S+?):", text):
        assert (ROOT / mounted).exists(), mounted


def test_monitoring_images_are_pinned_and_confined() -> None:
    services = yaml.safe_load((MONITORING / "compose.yaml").read_text(encoding="utf-8"))["services"]

    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
