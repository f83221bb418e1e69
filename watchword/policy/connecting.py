"""Where the tool connects to, and as whom: from the environment, never from the command line, which every process of a machine can read."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path

import grpc

from watchword.client import Connection
from watchword.credentials import ClientCredentials, TokenSource

WORDS = """\
environment:
  WATCHWORD_TARGET        host:port of the suite's internal gRPC listener
  CLIENT_ID               of an OAuth client, with
  CLIENT_SECRET           its secret; or instead of both
  WATCHWORD_ACCESS_TOKEN  an access token, such as an administrator's
  WATCHWORD_TLS           on or off; without it off for loopback, on for all else
  WATCHWORD_CA            a file of the authorities to trust, in PEM; without it those of the system
Each of the secrets may be in a file instead, named by CLIENT_SECRET_FILE or WATCHWORD_ACCESS_TOKEN_FILE.
"""


class EnvironmentLacking(Exception):
    """The environment does not say how to connect; the text says what is missing."""


def connection_of(environment: Mapping[str, str]) -> Connection:
    """Return a connection, not opened yet. Raises EnvironmentLacking."""
    target = environment.get("WATCHWORD_TARGET", "")
    if not target:
        raise EnvironmentLacking("WATCHWORD_TARGET must be host:port of the suite's internal gRPC listener")
    return Connection(target, _credentials(environment), _tls(environment, target))


def _credentials(environment: Mapping[str, str]) -> ClientCredentials | TokenSource:
    if token := _secret(environment, "WATCHWORD_ACCESS_TOKEN"):

        async def given() -> str:
            return token

        return given
    client_id, secret = environment.get("CLIENT_ID", ""), _secret(environment, "CLIENT_SECRET")
    if not client_id or not secret:
        raise EnvironmentLacking("CLIENT_ID and CLIENT_SECRET must be set, or WATCHWORD_ACCESS_TOKEN")
    return ClientCredentials(client_id, secret)


def _secret(environment: Mapping[str, str], name: str) -> str:
    path = environment.get(f"{name}_FILE", "")
    return _content(path, f"{name}_FILE").decode("utf-8", "replace").strip() if path else environment.get(name, "")


def _tls(environment: Mapping[str, str], target: str) -> grpc.ChannelCredentials | None:
    wish, authorities = environment.get("WATCHWORD_TLS", ""), environment.get("WATCHWORD_CA", "")
    if wish not in ("", "on", "off"):
        raise EnvironmentLacking("WATCHWORD_TLS must be on or off")
    if wish == "off" or (not wish and not authorities and _is_loopback(target)):
        return None
    return grpc.ssl_channel_credentials(_content(authorities, "WATCHWORD_CA") if authorities else None)


def _is_loopback(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _content(path: str, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EnvironmentLacking(f"{name} cannot be read: {error.strerror}") from None
