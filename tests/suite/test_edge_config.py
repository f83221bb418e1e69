"""The edge's configuration against the contract, without running it: which routes there are, and what they promise."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2

from gateway.certificates import Certificate, EdgeTls
from gateway.documents import parsed
from gateway.render import main, render
from gateway.upstreams import CONTEXTS, ConfigurationInvalid, clusters
from services.embedded import envoy_binary
from tests.suite.edge_standin import ROOT, contract, everywhere
from watchword.options.v1 import access_pb2

LISTENERS = parsed(ROOT / "envoy.yaml")["static_resources"]["listeners"]
CALLER_MAY_REPEAT = (access_pb2.LIMIT_CLASS_UNSPECIFIED, access_pb2.LIMIT_CLASS_NONE, access_pb2.LIMIT_CLASS_READ, access_pb2.LIMIT_CLASS_CHECK)


@dataclass(frozen=True, slots=True)
class Rpc:
    """A method of the contract with its REST bindings as (HTTP method, what a route must match)."""

    name: str
    context: str
    bindings: tuple[tuple[str, str], ...]
    is_read: bool
    tests_a_secret: bool
    is_stream: bool


def rpcs() -> Iterator[Rpc]:
    for file in contract().file:
        for service in file.service:
            if file.package.startswith("watchword."):
                yield from (_rpc(file.package, service.name, method) for method in service.method)


def _rpc(package: str, service: str, method: descriptor_pb2.MethodDescriptorProto) -> Rpc:
    access = method.options.Extensions[access_pb2.access]
    rule: http_pb2.HttpRule = method.options.Extensions[cast(Any, annotations_pb2.http)]
    bindings = tuple(_binding(one) for one in (rule, *rule.additional_bindings) if one.WhichOneof("pattern"))
    is_read = not access.mutates and access.limit_class in CALLER_MAY_REPEAT
    secret = access.limit_class == access_pb2.LIMIT_CLASS_CREDENTIAL
    return Rpc(f"/{package}.{service}/{method.name}", package.split(".")[1], bindings, is_read, secret, method.server_streaming)


def _binding(rule: http_pb2.HttpRule) -> tuple[str, str]:
    verb = str(rule.WhichOneof("pattern"))
    # A variable is one segment without a colon, which begins a custom verb.
    pattern = "".join("[^/:]+" if part.startswith("{") else part.replace(".", "[.]") for part in re.split(r"(\{[^}]*\})", getattr(rule, verb)))
    return verb.upper(), pattern


def routes(listener: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = LISTENERS[listener]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    return found


def rest_routes() -> dict[tuple[str, str], dict[str, Any]]:
    """The edge's routes by (HTTP method, pattern), without the one for CORS preflights."""
    keyed = {}
    for route in routes(0):
        match = route["match"]
        method = match["headers"][0]["string_match"]["exact"]
        if method != "OPTIONS":
            keyed[method, match["path"].replace(".", "[.]") if "path" in match else match["safe_regex"]["regex"]] = route
    return keyed


def internal_route(path: str) -> dict[str, Any]:
    for route in routes(1):
        match = route["match"]
        regex = match.get("safe_regex", {}).get("regex")
        if path == match.get("path") or (regex and re.fullmatch(regex, path)) or path.startswith(match.get("prefix", "\0")):
            return dict(route["route"])
    raise AssertionError(f"no internal route for {path}")


def resends_anything(route: dict[str, Any]) -> bool:
    return "unavailable" in route["retry_policy"]["retry_on"].split(",")


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_edge_carries_exactly_the_rest_bindings_of_the_contract() -> None:
    """A new RPC is unreachable until it has a route, and a route that outlives its RPC is an open door."""
    declared = {binding: rpc.name for rpc in rpcs() for binding in rpc.bindings}
    carried = rest_routes()

    missing = [
        f"{rpc}: give {method} {pattern} a route in envoy.yaml" for (method, pattern), rpc in declared.items() if (method, pattern) not in carried
    ]
    surplus = [f"{method} {pattern}: no RPC has it; take it out of envoy.yaml" for method, pattern in carried if (method, pattern) not in declared]

    assert missing + surplus == []


def test_the_transcoder_knows_every_service_with_a_rest_binding() -> None:
    filters = LISTENERS[0]["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    transcoder = next(f["typed_config"] for f in filters if f["name"].endswith("grpc_json_transcoder"))

    assert set(transcoder["services"]) == {rpc.name[1:].split("/")[0] for rpc in rpcs() if rpc.bindings}


def test_only_reads_are_resent_after_they_may_have_arrived() -> None:
    """Envoy reports a crash after the request was sent as UNAVAILABLE: a write sent again could happen twice."""
    carried = rest_routes()
    for rpc in rpcs():
        on_edge = [carried[binding]["route"] for binding in rpc.bindings]
        for route in [*on_edge, internal_route(rpc.name)]:
            assert route["cluster"] == rpc.context, rpc.name
            if rpc.is_stream:
                assert "retry_policy" not in route, "who watches says himself from where to go on"
            else:
                assert resends_anything(route) is rpc.is_read, rpc.name


def test_every_rest_route_tells_the_service_its_deadline_and_leaves_time_for_password_hashes() -> None:
    units = {"S": 1.0, "m": 0.001}
    for rpc in rpcs():
        for binding in rpc.bindings:
            route = rest_routes()[binding]
            (header,) = (h["header"] for h in route["request_headers_to_add"])
            deadline = float(header["value"][:-1]) * units[header["value"][-1]]
            per_try = route["route"]["retry_policy"].get("per_try_timeout", route["route"]["timeout"])
            assert header["key"] == "grpc-timeout", rpc.name
            assert deadline == seconds(per_try), rpc.name
            assert not rpc.tests_a_secret or deadline >= 15, rpc.name


def test_the_committed_configuration_and_a_rendered_one_are_valid_for_envoy(tmp_path: Path) -> None:
    pem = tmp_path / "a.pem"
    pem.touch()
    tls = EdgeTls(edge=Certificate(pem, pem), internal=Certificate(pem, pem), internal_client_ca=pem, upstream_ca=pem, upstream=Certificate(pem, pem))
    rendered = render(
        tmp_path / "out",
        rest=("::", 443),
        grpc=("::", 9090),
        admin=("127.0.0.1", 9901),
        upstreams=everywhere(("10.0.0.1", 50051), ("10.0.0.2", 50051)),
        cors_origins=["https://app.example"],
        tls=tls,
        trusted_hops=1,
    )

    for path in (ROOT / "envoy.yaml", rendered):
        checked = subprocess.run(
            [envoy_binary(), "--mode", "validate", "--disable-hot-restart", "-l", "warning", "-c", path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
        assert "eprecated" not in checked.stderr


def test_clusters_are_by_name_as_committed_and_follow_a_file_for_addresses(tmp_path: Path) -> None:
    committed = parsed(ROOT / "gateway" / "clusters.yaml")["resources"]
    rendered = parsed(clusters(tmp_path, everywhere(("10.0.0.1", 50051))))["resources"]
    named = parsed(clusters(tmp_path, everywhere(("one.example", 50051))))["resources"]

    assert [(c["name"], c["type"]) for c in committed] == [(name, "STRICT_DNS") for name in CONTEXTS]
    assert [(c["name"], c["type"]) for c in rendered] == [(name, "EDS") for name in CONTEXTS]
    assert [(c["name"], c["type"]) for c in named] == [(name, "STRICT_DNS") for name in CONTEXTS]
    # Nothing but the addresses may differ.
    for before, *after in zip(committed, rendered, named, strict=True):
        changed = {"type", "dns_refresh_rate", "load_assignment", "eds_cluster_config"}
        for one in after:
            assert {k: v for k, v in one.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://*.example", "https://App.example", "https://app.example/", "app.example", "https://u@app.example", "https:///"]
)
def test_what_is_not_an_exact_origin_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], origin: str
) -> None:
    """A wildcard or a misspelt origin would be open to all or to none, silently."""
    monkeypatch.setenv("CORS_ORIGINS", f"https://good.example, {origin}")

    assert main(["--directory", str(tmp_path)]) == 2
    assert "CORS_ORIGINS" in capsys.readouterr().err


def test_settings_may_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "origins").write_text("https://a.example,http://localhost:3000\n", encoding="utf-8")
    monkeypatch.setenv("CORS_ORIGINS_FILE", str(tmp_path / "origins"))
    monkeypatch.setenv("EDGE_TLS_CERT_FILE", str(tmp_path / "c.pem"))
    monkeypatch.setenv("EDGE_TLS_KEY", "-----BEGIN-----\\nkey")

    assert main(["--directory", str(tmp_path), "--rest", "[::1]:8443", "--upstream", "token=10.0.0.1:1,10.0.0.2:2"]) == 0

    text = (tmp_path / "envoy.yaml").read_text(encoding="utf-8")
    assert "https://a.example" in text
    assert "http://localhost:3000" in text
    key = tmp_path / "edge_tls_key.pem"
    assert key.read_text(encoding="utf-8") == "-----BEGIN-----\nkey"
    assert key.stat().st_mode & 0o777 == 0o600


def test_an_unknown_or_missing_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="identity"):
        clusters(tmp_path, {"token": [("10.0.0.1", 1)]})
