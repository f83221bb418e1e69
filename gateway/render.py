"""Turn envoy.yaml and gateway/clusters.yaml into a configuration for one place.

What the edge does is written in those two files, by hand, once. This module changes only what differs between places:
ports, the addresses of the instances, CORS origins, certificates, and how many trusted proxies stand in front. It works
on the parsed document, so nothing that it is given can become configuration syntax.

    python -m gateway.render --directory DIRECTORY

does it from flags and the environment, for docker compose and Kubernetes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from gateway.certificates import Certificate, EdgeTls, listener_socket
from gateway.documents import Node, parsed, write
from gateway.tracing import Tracing
from gateway.upstreams import CONTEXTS, Address, ConfigurationInvalid, clusters, socket_address

ROOT = Path(__file__).resolve().parent.parent
EDGE, INTERNAL, METRICS = 0, 1, 2  # the listeners of envoy.yaml, in its order


def render(
    directory: Path,
    *,
    rest: Address,
    grpc: Address,
    admin: Address,
    upstreams: Mapping[str, Sequence[Address]],
    cors_origins: Sequence[str] = (),
    tls: EdgeTls | None = None,
    trusted_hops: int = 0,
    metrics: Address | None = None,
    tracing: Tracing | None = None,
) -> Path:
    """Write a complete configuration into `directory`; return the file to start Envoy with, from any working directory.

    upstreams     context -> addresses of its instances; host names are resolved by Envoy, again every second
    cors_origins  exact origins, such as "https://app.example"
    trusted_hops  how many proxies in front append to X-Forwarded-For and are believed
    metrics       where Prometheus may ask for Envoy's numbers; None: nowhere but at the admin address
    tracing       where spans go; None: nowhere
    Raises        ConfigurationInvalid
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "gateway" / "descriptors.pb", directory / "descriptors.pb")
    clusters(directory, upstreams, tls=tls)

    config = parsed(ROOT / "envoy.yaml")
    listeners = config["static_resources"]["listeners"]
    for place, address in ((config["admin"], admin), (listeners[EDGE], rest), (listeners[INTERNAL], grpc)):
        place["address"] = socket_address(address)
    config["dynamic_resources"]["cds_config"]["path_config_source"]["path"] = str(directory / "clusters.yaml")
    edge = _connection_manager(listeners[EDGE])
    edge["xff_num_trusted_hops"] = trusted_hops
    _transcoder(edge)["proto_descriptor"] = str(directory / "descriptors.pb")
    _allow_origins(edge, cors_origins)
    _encrypt(directory, listeners, tls or EdgeTls())
    if tracing:
        config["static_resources"]["clusters"].append(tracing.cluster())
        for listener in (EDGE, INTERNAL):
            _connection_manager(listeners[listener])["tracing"] = tracing.manager()
    _expose(config["static_resources"], metrics, admin)
    return write(directory / "envoy.yaml", config)


def _connection_manager(listener: Node) -> Node:
    manager: Node = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _transcoder(manager: Node) -> Node:
    found: Node = next(f["typed_config"] for f in manager["http_filters"] if f["name"] == "envoy.filters.http.grpc_json_transcoder")
    return found


def _allow_origins(manager: Node, origins: Sequence[str]) -> None:
    host = manager["route_config"]["virtual_hosts"][0]
    policy = host["typed_per_filter_config"]["envoy.filters.http.cors"]
    policy["allow_origin_string_match"] = [{"exact": _origin(text)} for text in origins]


def _expose(resources: Node, metrics: Address | None, admin: Address) -> None:
    """Aim the listener of the numbers, and the cluster behind it, which is Envoy's own admin interface; or take both out."""
    if metrics is None:
        del resources["listeners"][METRICS]
        resources["clusters"] = [cluster for cluster in resources["clusters"] if cluster["name"] != "admin"]
        return
    resources["listeners"][METRICS]["address"] = socket_address(metrics)
    admin_cluster = next(cluster for cluster in resources["clusters"] if cluster["name"] == "admin")
    admin_cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [{"endpoint": {"address": socket_address(admin)}}]}]


def _origin(text: str) -> str:
    # RFC 6454: a browser sends scheme://host[:port] in lower case without a path, and Envoy compares byte by byte.
    parts = urlsplit(text)
    exact = text == f"{parts.scheme}://{parts.netloc}".lower() and not set("*@ ") & set(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not exact:
        raise ConfigurationInvalid(
            f"CORS_ORIGINS: {text!r} is not an origin. Write it like https://app.example or http://localhost:3000, in lower case, without a path"
        )
    return text


def _encrypt(directory: Path, listeners: Sequence[Node], tls: EdgeTls) -> None:
    if tls.edge:
        socket = listener_socket(directory, "edge", tls.edge, client_ca=None, protocols=["h2", "http/1.1"])
        listeners[EDGE]["filter_chains"][0]["transport_socket"] = socket
    if tls.internal:
        socket = listener_socket(directory, "internal", tls.internal, client_ca=tls.internal_client_ca, protocols=["h2"])
        listeners[INTERNAL]["filter_chains"][0]["transport_socket"] = socket


def main(arguments: Sequence[str] | None = None) -> int:
    """Render from flags and the environment; return the exit status: 0, or 2 for a value that cannot be used."""
    options = _options().parse_args(arguments)
    try:
        path = render(
            options.directory,
            rest=_address(options.rest),
            grpc=_address(options.grpc),
            admin=_address(options.admin),
            upstreams=_upstreams(options.upstream),
            cors_origins=[origin.strip() for origin in _setting("CORS_ORIGINS").split(",") if origin.strip()],
            tls=_tls(options.directory),
            trusted_hops=options.trusted_hops,
            metrics=_address(options.metrics),
            tracing=Tracing.parse(_setting("OTEL_EXPORTER_OTLP_ENDPOINT"), _setting("OTEL_TRACES_SAMPLER_ARG")),
        )
    except (ConfigurationInvalid, ValueError, OSError) as refusal:
        print(f"gateway.render: {refusal}", file=sys.stderr)
        return 2
    print(path)
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gateway.render", description="Write Envoy's configuration for this place.")
    parser.add_argument("--directory", type=Path, required=True, help="where to write it")
    parser.add_argument("--rest", default="0.0.0.0:8080", metavar="HOST:PORT", help="the edge listener")
    parser.add_argument("--grpc", default="0.0.0.0:9090", metavar="HOST:PORT", help="the internal listener")
    parser.add_argument("--admin", default="127.0.0.1:9901", metavar="HOST:PORT", help="Envoy's admin interface: keep it on loopback")
    parser.add_argument("--metrics", default="127.0.0.1:9902", metavar="HOST:PORT", help="where Prometheus asks, at /stats/prometheus")
    parser.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="CONTEXT=HOST:PORT,...",
        help="instances of a context; may be repeated; the default is its own name and port 50051",
    )
    parser.add_argument("--trusted-hops", type=int, default=0, metavar="N", help="how many proxies in front are believed about X-Forwarded-For")
    return parser


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationInvalid(f"{text!r} is not an address. Write it like 127.0.0.1:8080 or [::1]:8080")
    return host.strip("[]"), int(port)


def _upstreams(flags: Sequence[str]) -> dict[str, list[Address]]:
    chosen = {context: [(context, 50051)] for context in CONTEXTS}
    for flag in flags:
        context, _, addresses = flag.partition("=")
        if context not in chosen:
            raise ConfigurationInvalid(f"--upstream {flag!r}: the contexts are {', '.join(CONTEXTS)}")
        chosen[context] = [_address(text) for text in addresses.split(",")]
    return chosen


def _setting(name: str) -> str:
    path = os.environ.get(f"{name}_FILE")
    return Path(path).read_text(encoding="utf-8").strip() if path else os.environ.get(name, "")


def _tls(directory: Path) -> EdgeTls:
    own = _certificate(directory, "TLS_CERT", "TLS_KEY")
    return EdgeTls(
        edge=_certificate(directory, "EDGE_TLS_CERT", "EDGE_TLS_KEY"),
        internal=own,
        internal_client_ca=_pem(directory, "TLS_CLIENT_CA"),
        upstream_ca=_pem(directory, "TLS_CA"),
        upstream=own,
    )


def _certificate(directory: Path, chain_name: str, key_name: str) -> Certificate | None:
    chain, key = _pem(directory, chain_name), _pem(directory, key_name)
    if (chain is None) != (key is None):
        raise ConfigurationInvalid(f"{chain_name} and {key_name} belong together: set both or neither")
    return Certificate(chain, key) if chain and key else None


def _pem(directory: Path, name: str) -> Path | None:
    """Return the file of a PEM setting: the one that NAME_FILE names, or one made from the text in NAME."""
    if named := os.environ.get(f"{name}_FILE"):
        return Path(named)
    if not (text := os.environ.get(name, "")):
        return None
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name.lower()}.pem"
    path.touch(mode=0o600)
    path.write_text(text.replace("\\n", "\n"), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
