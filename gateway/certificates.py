"""What the edge encrypts, as transport sockets of Envoy.

Certificates are named as secrets in files of their own, so that Envoy takes a renewed one without a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.documents import Node, write

TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its private key, both PEM files. Replace them by a rename and Envoy takes the new ones."""

    chain: Path
    key: Path


@dataclass(frozen=True, slots=True)
class EdgeTls:
    """What the edge encrypts. None means plaintext, or no check, on that hop.

    edge                certificate of the REST listener
    internal            certificate of the internal gRPC listener
    internal_client_ca  CA that its callers' certificates must chain to (mTLS)
    upstream_ca         CA that the instances' certificates chain to; each names its context as a DNS SAN, such as "identity"
    upstream            certificate that Envoy shows to the instances
    """

    edge: Certificate | None = None
    internal: Certificate | None = None
    internal_client_ca: Path | None = None
    upstream_ca: Path | None = None
    upstream: Certificate | None = None


def listener_socket(directory: Path, name: str, certificate: Certificate, *, client_ca: Path | None, protocols: Sequence[str]) -> Node:
    """Return the socket of a listener that shows `certificate`, and asks callers for one of `client_ca` if that is given."""
    common: Node = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": list(protocols),
        "tls_certificate_sds_secret_configs": [_certificate_secret(directory, name, certificate)],
    }
    context: Node = {"@type": TYPE + "DownstreamTlsContext", "common_tls_context": common}
    if client_ca:
        common["validation_context_sds_secret_config"] = _ca_secret(directory, f"{name}-client-ca", client_ca)
        context["require_client_certificate"] = True
    return _socket(context)


def upstream_socket(directory: Path, name: str, ca: Path, *, certificate: Certificate | None) -> Node:
    """Return the socket towards the instances of the context `name`, which they prove by a certificate of `ca`."""
    # The name in the certificate, not only its issuer: another member of the same CA must not pose as this context.
    names = {"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}]}
    checks = {"default_validation_context": names, "validation_context_sds_secret_config": _ca_secret(directory, "upstream-ca", ca)}
    common: Node = {"alpn_protocols": ["h2"], "combined_validation_context": checks}
    if certificate:
        common["tls_certificate_sds_secret_configs"] = [_certificate_secret(directory, "upstream", certificate)]
    return _socket({"@type": TYPE + "UpstreamTlsContext", "sni": name, "common_tls_context": common})


def _socket(context: Node) -> Node:
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _certificate_secret(directory: Path, name: str, certificate: Certificate) -> Node:
    chain, key = certificate.chain.absolute(), certificate.key.absolute()
    files = {"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}
    return _secret(directory, name, {"tls_certificate": {**files, "watched_directory": {"path": str(chain.parent)}}})


def _ca_secret(directory: Path, name: str, ca: Path) -> Node:
    ca = ca.absolute()
    return _secret(directory, name, {"validation_context": {"trusted_ca": {"filename": str(ca)}, "watched_directory": {"path": str(ca.parent)}}})


def _secret(directory: Path, name: str, content: Node) -> Node:
    """Write one secret into a file of its own and return the reference to it."""
    path = write(directory / f"tls-{name}.yaml", {"resources": [{"@type": TYPE + "Secret", "name": name, **content}]})
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}}
