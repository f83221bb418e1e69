"""Where the instances are, as Envoy is told it.

Host names are resolved by Envoy (STRICT_DNS, as gateway/clusters.yaml says). Instances that are given by address are in a
file a context (EDS): Envoy follows each, keeps what it knows of those that stay, and takes in or lets go of the others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gateway.certificates import EdgeTls, upstream_socket
from gateway.documents import Node, parsed, write

COMMITTED = Path(__file__).resolve().parent / "clusters.yaml"
CONTEXTS = ("identity", "token", "rbac", "gateway")
ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

Address = tuple[str, int]


class ConfigurationInvalid(Exception):
    """A value that the edge cannot be configured with. The message says which, and how to mend it."""


def clusters(directory: Path, upstreams: Mapping[str, Sequence[Address]], *, tls: EdgeTls | None = None) -> Path:
    """Replace clusters.yaml in `directory`, and the files of endpoints, by renames, which a running Envoy follows at once.

    Raises    ConfigurationInvalid
    """
    directory = directory.resolve()
    if set(upstreams) != set(CONTEXTS):
        raise ConfigurationInvalid(f"upstreams: give addresses for exactly {', '.join(CONTEXTS)}; these were given: {', '.join(upstreams) or 'none'}")
    document = parsed(COMMITTED)
    for cluster in document["resources"]:
        _aim(directory, cluster, upstreams[cluster["name"]])
        if tls and tls.upstream_ca:
            cluster["transport_socket"] = upstream_socket(directory, cluster["name"], tls.upstream_ca, certificate=tls.upstream)
    return write(directory / "clusters.yaml", document)


def endpoints(directory: Path, context: str, addresses: Sequence[Address], *, resting: Collection[Address] = ()) -> Path:
    """Say where the instances of one context are, to an Envoy that was given them by address.

    resting   instances that finish their calls and get no new ones, while Envoy goes on asking for their health
    """
    assignment = {"@type": ASSIGNMENT, **_assignment(context, addresses, resting)}
    return write(_endpoints_file(directory.resolve(), context), {"resources": [assignment]})


def socket_address(address: Address) -> Node:
    """Return an address as Envoy writes it."""
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _aim(directory: Path, cluster: Node, addresses: Sequence[Address]) -> None:
    name = cluster["name"]
    if not all(_is_ip(host) for host, _ in addresses):
        cluster["load_assignment"] = _assignment(name, addresses)
        return
    cluster["type"] = "EDS"
    del cluster["dns_refresh_rate"], cluster["load_assignment"]
    source = {"resource_api_version": "V3", "path_config_source": {"path": str(endpoints(directory, name, addresses))}}
    cluster["eds_cluster_config"] = {"eds_config": source}


def _assignment(context: str, addresses: Sequence[Address], resting: Collection[Address] = ()) -> Node:
    return {"cluster_name": context, "endpoints": [{"lb_endpoints": [_endpoint(one, is_resting=one in resting) for one in addresses]}]}


def _endpoint(address: Address, *, is_resting: bool) -> Node:
    endpoint: Node = {"endpoint": {"address": socket_address(address)}}
    return {**endpoint, "health_status": "DRAINING"} if is_resting else endpoint


def _endpoints_file(directory: Path, context: str) -> Path:
    return directory / f"endpoints-{context}.yaml"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
