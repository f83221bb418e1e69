"""The snippet for people who verify at an Envoy of their own: what it keeps out, and what it cannot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from services import embedded
from tests.conftest import ROOT, eventually, free_port, process
from tests.suite.conftest import Person, Suite, new_person
from watchword.token.v1 import token_pb2

SNIPPET = ROOT / "docs" / "examples" / "envoy-jwt-authn.yaml"


def configuration(suite: Suite, port: int) -> dict[str, Any]:
    """Return an Envoy that answers 200 to whom the snippet lets through; the addresses are the stack's."""
    watchword = urlsplit(suite.endpoints.rest)
    text = SNIPPET.read_text().replace("https://auth.example.com", suite.endpoints.rest)
    routes = [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "in"}}}]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "own",
        "route_config": {"virtual_hosts": [{"name": "own", "domains": ["*"], "routes": routes}]},
        **yaml.safe_load(text),
    }
    endpoint = {"endpoint": {"address": {"socket_address": {"address": watchword.hostname, "port_value": watchword.port}}}}
    cluster = {"name": "watchword", "load_assignment": {"cluster_name": "watchword", "endpoints": [{"lb_endpoints": [endpoint]}]}}
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@pytest.fixture(scope="module")
def own_edge(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That Envoy."""
    home, port = tmp_path_factory.mktemp("own-envoy"), free_port()
    written: Path = home / "envoy.yaml"
    written.write_text(yaml.safe_dump(configuration(suite, port)))
    with process(embedded.envoy_command(written), log=home / "log"):
        yield f"http://127.0.0.1:{port}"


async def test_the_snippet_keeps_out_what_the_key_set_can_tell_and_nothing_else(suite: Suite, admin: Person, own_edge: str) -> None:
    """Its stated limit is shown: a revoked token still passes here, while Watchword refuses it."""
    person = await new_person(suite, admin)
    head, body, signature = person.token.split(".")
    async with httpx.AsyncClient(base_url=own_edge, timeout=5) as edge:

        async def status(token: str) -> int:
            return (await edge.get("/", headers={"authorization": f"Bearer {token}"})).status_code

        async def lets_in() -> bool:
            try:
                return await status(person.token) == 200
            except httpx.TransportError:
                return False

        await eventually(lets_in, within=20)
        assert (await edge.get("/")).status_code == 401
        assert await status(f"{head}.{body}.{signature[:-8]}AAAAAAAA") == 401
        assert await status(f"{head}.{body[:-4]}AAAA.{signature}") == 401
        assert await status("rubbish") == 401

        await suite.grpc.tokens.RevokeToken(token_pb2.RevokeTokenRequest(token=person.token), metadata=person.metadata)
        question = token_pb2.VerifyTokenRequest(token=person.token)
        answer = await suite.grpc.tokens.VerifyToken(question, metadata=suite.peer("identity", to="token"))
        assert answer.status == token_pb2.REVOKED
        assert await status(person.token) == 200
