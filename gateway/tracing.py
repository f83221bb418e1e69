"""Envoy's spans, sent to an OTLP collector over gRPC: what an endpoint adds to the configuration. Without one there is nothing of this in it."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from gateway.documents import Node

COLLECTOR = "otlp_collector"  # the name of the cluster
DEFAULT_PORT = 4317
CONFIG = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where spans go, and which share of new traces is recorded. A trace that somebody began is recorded if he said so."""

    host: str
    port: int
    is_encrypted: bool = False
    ratio: float = 1.0

    @classmethod
    def parse(cls, endpoint: str, ratio: str = "") -> Self | None:
        """Read OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER_ARG; None without an endpoint. Raises ValueError."""
        if not endpoint:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("OTEL_EXPORTER_OTLP_ENDPOINT must be a URL such as http://collector:4317")
        return cls(parts.hostname, parts.port or DEFAULT_PORT, parts.scheme == "https", _share(ratio))

    def manager(self) -> Node:
        """Return what a connection manager is told."""
        service = {"envoy_grpc": {"cluster_name": COLLECTOR}, "timeout": "1s"}
        provider = {"name": "envoy.tracers.opentelemetry", "typed_config": {"@type": CONFIG, "grpc_service": service, "service_name": "envoy"}}
        return {"provider": provider, "random_sampling": {"value": self.ratio * 100}}

    def cluster(self) -> Node:
        """Return the cluster of the collector."""
        address = {"socket_address": {"address": self.host, "port_value": self.port}}
        options = {"@type": f"type.googleapis.com/{HTTP}", "explicit_http_config": {"http2_protocol_options": {}}}
        found: Node = {
            "name": COLLECTOR,
            "type": "STRICT_DNS",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {HTTP: options},
            "load_assignment": {"cluster_name": COLLECTOR, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
        }
        if self.is_encrypted:
            roots = {"trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"}}
            context = {"@type": TLS, "sni": self.host, "common_tls_context": {"validation_context": roots}}
            found["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
        return found


def _share(ratio: str) -> float:
    try:
        share = float(ratio or 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError("OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1")
    return share
