"""The Kubernetes manifests keep the seed's names and figures, and give nobody more than it needs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.chassis.settings import known_names

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
CONTEXTS = ("identity", "token", "rbac", "gateway")
EDGE = "auth-server"
Node = dict[str, Any]

MANIFESTS: dict[tuple[str, str], Node] = {
    (document["kind"], document["metadata"]["name"]): document
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}


def _named(kind: str) -> dict[str, Node]:
    return {name: document for (found, name), document in MANIFESTS.items() if found == kind}


PODS: dict[str, Node] = {name: document["spec"]["template"]["spec"] for kind in ("Deployment", "Job") for name, document in _named(kind).items()}


def _containers() -> Iterator[tuple[str, Node]]:
    for name, pod in PODS.items():
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield name, container


def _secrets(container: Node) -> dict[str, Node]:
    """Return variable -> the secret that it comes from."""
    references = {entry["name"]: entry.get("valueFrom", {}).get("secretKeyRef") for entry in container.get("env", ())}
    return {name: reference for name, reference in references.items() if reference}


def test_every_variable_is_a_setting_and_no_secret_is_written_down() -> None:
    """A misspelt name would be refused at start-up; what is committed once is known for ever."""
    plain = {name for document in _named("ConfigMap").values() for name in document["data"]}
    plain |= {entry["name"] for _, container in _containers() for entry in container.get("env", ()) if "value" in entry}
    secret = {name for _, container in _containers() for name in _secrets(container)}

    assert (plain | secret) - known_names() == set()
    assert {name for name in plain if re.search(r"(KEY|KEYS|PASSWORD|SALT|_URL)$", name)} == {"PUBLIC_BASE_URL"}
    assert {value for document in _named("Secret").values() for value in document["stringData"].values()} == {"replace-me"}


def test_images_are_those_of_compose() -> None:
    """One image for all services, one Envoy, whichever way they are deployed."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]

    assert {container["image"] for _, container in _containers()} == {compose["token"]["image"], compose["envoy"]["image"]}


def test_each_service_holds_its_own_key_only() -> None:
    """Whoever breaks into one must not be able to pose as another, least of all as identity."""
    for name in CONTEXTS:
        references = _secrets(PODS[name]["containers"][0])
        assert {reference["name"] for reference in references.values()} == {"auth-secrets", f"{name}-secrets"}
        assert references["SERVICE_KEY"] == {"name": f"{name}-secrets", "key": "service-key"}
        assert references["DATABASE_URL"] == {"name": "auth-secrets", "key": "database-url"}
        assert references["REDIS_URL"] == {"name": "auth-secrets", "key": "redis-url"}


def test_nothing_runs_as_root_or_writes_to_its_image() -> None:
    """A hole in a service must not become a hole in the cluster."""
    for name, pod in PODS.items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert not pod["automountServiceAccountToken"], name
    for name, container in _containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_every_secret_that_is_referred_to_exists_in_the_example() -> None:
    """Kubernetes says so only when the pod hangs."""
    offered = {(name, key) for name, document in _named("Secret").items() for key in document["stringData"]}
    needed = {
        (reference["name"], reference["key"])
        for _, container in _containers()
        for reference in _secrets(container).values()
        if not reference.get("optional")
    }

    assert needed == offered
    assert {"database-url", "redis-url", "security-salt"} <= set(_named("Secret")["auth-secrets"]["stringData"])


def test_kubernetes_adds_no_variables_of_its_own() -> None:
    """A Service named redis would give every pod REDIS_PORT, which the settings refuse as unknown."""
    assert all(pod["enableServiceLinks"] is False for pod in PODS.values())


def test_the_services_are_probed_by_grpc() -> None:
    """`live` never depends on Postgres or Redis, so an outage there restarts nobody; "" decides about traffic."""
    for name in CONTEXTS:
        container = PODS[name]["containers"][0]
        assert container["livenessProbe"] == {"grpc": {"port": 50051, "service": "live"}, "initialDelaySeconds": 10, "periodSeconds": 10}
        assert container["readinessProbe"] == {"grpc": {"port": 50051, "service": ""}, "initialDelaySeconds": 5, "periodSeconds": 5}
        assert container["startupProbe"]["grpc"]["service"] == "live"
        assert MANIFESTS["Service", name]["spec"]["clusterIP"] == "None"


def test_the_four_deployments_differ_only_in_name_secrets_and_settings() -> None:
    """What is copied drifts: a limit or a probe that changes here must change there."""

    def shape(name: str) -> str:
        container = {key: value for key, value in PODS[name]["containers"][0].items() if key not in ("args", "env", "envFrom")}
        pod = {**PODS[name], "containers": [container]}
        deployment = {**MANIFESTS["Deployment", name]["spec"], "template": pod}
        return re.sub(rf"'{name}'", "NAME", repr(deployment))

    assert {shape(name) for name in CONTEXTS} == {shape("token")}


def test_the_edge_is_the_auth_server_of_the_seed() -> None:
    """People who followed the guide find their names, ports and figures."""
    service, container = MANIFESTS["Service", EDGE]["spec"], PODS[EDGE]["containers"][0]

    assert (service["type"], service["selector"]) == ("LoadBalancer", {"app": EDGE})
    assert [(port["protocol"], port["port"], port["targetPort"]) for port in service["ports"]] == [("TCP", 80, 8000)]
    assert 8000 in [port["containerPort"] for port in container["ports"]]
    for probe, path, delay, period in (("livenessProbe", "/health/live", 10, 10), ("readinessProbe", "/health/ready", 5, 5)):
        assert container[probe]["httpGet"] == {"path": path, "port": 8000}
        assert (container[probe]["initialDelaySeconds"], container[probe]["periodSeconds"]) == (delay, period)
    # Without this the gateway and Envoy would wait for each other to become ready.
    assert MANIFESTS["Service", "auth-server-internal"]["spec"]["publishNotReadyAddresses"] is True


@pytest.mark.parametrize("name", [EDGE, *CONTEXTS])
def test_every_deployment_scales_spreads_and_rolls_as_the_seed_says(name: str) -> None:
    """Three instances, never fewer while rolling, and time to drain before the kill."""
    deployment, pod = MANIFESTS["Deployment", name]["spec"], PODS[name]
    scaler = MANIFESTS["HorizontalPodAutoscaler", name]["spec"]

    assert deployment["replicas"] == 3
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert pod["terminationGracePeriodSeconds"] > 5 + 20 + 5  # preStop, DRAIN_TIMEOUT, closing
    assert pod["containers"][0]["lifecycle"]["preStop"]
    assert pod["containers"][0]["resources"] == {"requests": {"memory": "256Mi", "cpu": "250m"}, "limits": {"memory": "512Mi", "cpu": "500m"}}
    assert pod["topologySpreadConstraints"]
    assert MANIFESTS["PodDisruptionBudget", name]["spec"]["maxUnavailable"] == 1
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 20)
    assert scaler["scaleTargetRef"]["name"] == name
    assert scaler["metrics"] == [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]
    assert scaler["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 300
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 900


def test_strangers_reach_only_the_edge_and_only_its_rest_port() -> None:
    """A rule without `from` lets everyone in."""
    policies = {name: document["spec"] for name, document in _named("NetworkPolicy").items()}
    open_ports = {
        (name, port["port"]) for name, spec in policies.items() for rule in spec.get("ingress", ()) if "from" not in rule for port in rule["ports"]
    }

    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert open_ports == {("edge", 8000)}
    assert policies["edge"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "edge"}}
    assert policies["contexts"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "context"}}
    assert policies["contexts"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "edge"}}}]


def test_kustomization_holds_every_manifest_but_secrets_and_jobs() -> None:
    """Applying it again must overwrite no secret and trip over no finished job."""
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    present = {path.name for path in KUBERNETES.glob("*.yaml")}

    assert set(listed) == present - {"kustomization.yaml", "secret.example.yaml", "migrate.yaml", "bootstrap.yaml"}
