"""A real Envoy with the committed configuration, in front of stand-ins: what gets through, and what callers are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.suite.edge_standin import SERVING, Context, Edge, Instance, contract, edge, everywhere, instance, message, until

GOOD_ORIGIN = "https://app.example"
UUID = "7b0f3a52-4c36-4d8e-9a54-0d3c8c1f2b11"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Instance]:
    async with instance() as standin:
        yield standin


@pytest.fixture(scope="module")
async def front(upstream: Instance, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    directory = tmp_path_factory.mktemp("edge")
    async with edge(directory, everywhere(upstream.address), is_patient=True, cors_origins=[GOOD_ORIGIN]) as running:
        yield running


@pytest.fixture(autouse=True)
async def _fresh(upstream: Instance) -> None:
    upstream.seen.clear()
    upstream.strays.clear()
    upstream.answers.clear()


def reason_of(answer: httpx.Response | bytes) -> str:
    """The reason in an answer that has the shape of a transcoded google.rpc.Status, which is asserted."""
    if isinstance(answer, httpx.Response):
        assert answer.headers["content-type"] == "application/json"
        answer = answer.content
    status = json.loads(answer)
    info = status["details"][0]
    assert isinstance(status["code"], int)
    assert status["message"]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info["domain"] == "watchword"
    return str(info["reason"])


def violation_of(answer: httpx.Response) -> str:
    return str(answer.json()["details"][1]["field_violations"][0]["field"])


# --- what exists -------------------------------------------------------------------------------------------------


async def test_no_rpc_can_be_called_by_its_grpc_path_on_the_edge(front: Edge, upstream: Instance) -> None:
    """A125, A126: IssueToken, reflection and health are not for strangers."""
    paths = [f"/{f.package}.{s.name}/{m.name}" for f in contract().file for s in f.service for m in s.method]
    paths += ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
    paths += ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/GetServers", "/config_dump", "/stats"]

    for path in paths:
        for content_type in ("application/json", "application/grpc", "application/grpc-web", "Application/GRPC+proto"):
            answer = await front.http.post(path, content=b"\0\0\0\0\0", headers={"content-type": content_type})
            assert (answer.status_code, reason_of(answer)) == (404, "NOT_FOUND"), (path, content_type)
    async with grpc.aio.insecure_channel(f"{front.rest[0]}:{front.rest[1]}") as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(b"")

    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert upstream.seen == []


async def test_a_rest_path_carries_no_grpc(front: Edge, upstream: Instance) -> None:
    """The transcoder passes what says it is gRPC on as it is: a listed path must not become a way in."""
    for method, path in (("POST", "/v1/auth/login"), ("GET", "/v1/me"), ("GET", "/health")):
        answer = await front.http.request(method, path, headers={"content-type": "application/grpc"})
        assert (answer.status_code, reason_of(answer)) == (404, "NOT_FOUND")
    assert upstream.seen == []
    assert upstream.strays == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "CONNECT", "HEAD", "OPTIONS", "GET"])
async def test_a_method_that_a_path_does_not_have_is_404(front: Edge, upstream: Instance, method: str) -> None:
    """A128."""
    target = "login:443" if method == "CONNECT" else "/v1/auth/login"

    status, _ = await front.raw(f"{method} {target} HTTP/1.1\r\nhost: a\r\nx-http-method-override: POST\r\nconnection: close\r\n\r\n")

    assert status == 404
    assert upstream.seen == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *[
            (path, 404)
            for path in ("/", "/V1/users", "/v1/users/", "/v1/users;x=1", "/v1", "/v1/users/a:nope", "/v1/users/a/b", "/v1/usersx", "/health/")
        ],
        *[(path, 400) for path in ("/v1%2fusers", "/v1/%5cusers", "/v1/users/..%2f..%2fhealth", "/v1/users%00", "/v1/users/a%00b")],
        *[(path, 200) for path in ("//v1/users", "/v1//users", "/v1/./users", "/v1/x/../users", "/v1/%2e%2e/v1/users")],
    ],
)
async def test_a_path_has_one_spelling(front: Edge, upstream: Instance, path: str, status: int) -> None:
    """A135, A136: refused, or the very route of the canonical path."""
    got, body = await front.raw(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")

    assert got == status
    if status == 200:
        assert [call.rpc for call in upstream.seen] == ["ListUsers"]
    else:
        assert reason_of(body) == {404: "NOT_FOUND", 400: "INVALID_REQUEST"}[status]
        assert upstream.seen == []


async def test_http_1_0_is_answered_for_proxies_that_speak_it(front: Edge) -> None:
    """nginx as in the seed's example does, on /health."""
    status, body = await front.raw("GET /health HTTP/1.0\r\n\r\n")

    assert status == 200
    assert json.loads(body)["status"] == ""


async def test_ambiguous_framing_is_refused_and_the_connection_closed(front: Edge, upstream: Instance) -> None:
    """A139: what two servers may read as two different requests."""
    heads = ["content-length: 2\r\ntransfer-encoding: chunked", "content-length: 2\r\ncontent-length: 3", "transfer-encoding: xchunked"]
    heads += ["content-length : 2", "content-length: -2", "content-length: 2\r\nx-a: \0"]
    requests = [f"POST /v1/auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{head}\r\n\r\n{{}}" for head in heads]

    answers = await asyncio.gather(*(front.raw(request, until_closed=True) for request in requests))

    assert {status for status, _ in answers} <= {400, 501}
    assert upstream.seen == []


# --- what services are told about the caller ---------------------------------------------------------------------


async def test_forged_headers_do_not_reach_a_service(front: Edge, upstream: Instance) -> None:
    """A130-A133: what a service might take for Envoy's word is Envoy's word."""
    forged = ["x-user-id", "x-auth-subject", "x-internal-role", "x-envoy-retry-on", "x-envoy-upstream-rq-timeout-ms", "x-real-ip", "forwarded"]
    forged += ["x-http-status", "x-watchword-service", "x-forwarded-host", "x-forwarded-client-cert", "grpc-metadata-sub", "x-http-method-override"]
    headers = [*((name, "forged") for name in forged), *((name.upper(), "forged, twice") for name in forged)]
    chain = ", ".join(f"10.1.{n // 250}.{n % 250}" for n in range(700))
    headers += [
        ("x-forwarded-for", chain),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "forged"),
        ("grpc-timeout", "1n"),
        ("authorization", "Bearer mine"),
    ]

    answer = await front.http.get("/v1/me", headers=headers)

    (call,) = upstream.seen
    assert call.metadata["x-forwarded-for"] == ["127.0.0.1"]
    assert call.metadata["x-forwarded-proto"] == ["http"]
    assert call.metadata["authorization"] == ["Bearer mine"]
    assert call.metadata["x-request-id"] == [answer.headers["x-request-id"]] != ["forged"]
    assert not set(forged) & set(call.metadata)
    assert not [value for values in call.metadata.values() for value in values if "forged" in value]


async def test_header_names_with_underscores_are_refused(front: Edge, upstream: Instance) -> None:
    """A131: many servers read x_user_id as x-user-id."""
    answer = await front.http.get("/v1/me", headers={"x_user_id": "root"})

    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_REQUEST")
    assert upstream.seen == []


async def test_one_trusted_proxy_is_believed_about_one_address(upstream: Instance, tmp_path: Path) -> None:
    """nginx in front: the address it appended is the client, what the client wrote before it is not."""
    async with edge(tmp_path, everywhere(upstream.address), is_patient=True, trusted_hops=1) as behind_nginx:
        await behind_nginx.http.get("/v1/me", headers={"x-forwarded-for": "6.6.6.6, 203.0.113.9"})

    assert upstream.calls("GetMe")[0].metadata["x-forwarded-for"] == ["203.0.113.9"]


async def test_services_learn_the_deadline_that_envoy_holds_them_to(front: Edge, upstream: Instance) -> None:
    await front.http.post("/v1/tokens:verify", json={})
    await front.http.post("/v1/auth/login", json={})
    await front.call("watchword.rbac.v1.PermissionService/CheckPermission", timeout=0.25)
    await front.call("watchword.token.v1.TokenService/IssueToken", timeout=None)

    left = [call.seconds_left or 0 for call in upstream.seen]
    assert [most - 0.25 < seconds <= most for seconds, most in zip(left, (0.3, 15.0, 0.25, 15.0), strict=True)] == [True] * 4, left


# --- bad requests ------------------------------------------------------------------------------------------------


async def test_a_query_parameter_that_no_field_has_is_named(front: Edge, upstream: Instance) -> None:
    answer = await front.http.get("/v1/users?page_sice=5")

    assert (answer.status_code, reason_of(answer), violation_of(answer)) == (400, "INVALID_REQUEST", "page_sice")
    assert upstream.seen == []


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", "/v1/users?page_size=many", None, "page_size"),
        ("POST", "/v1/auth/login", {"password": 12345}, "password"),
        ("POST", "/v1/role-bindings", {"subject": {"type": "NOBODY"}}, "subject.type"),
        ("PATCH", f"/v1/users/{UUID}", {"user_id": "another"}, "user_id"),
    ],
)
async def test_a_field_of_the_wrong_type_or_said_twice_is_named(
    front: Edge, upstream: Instance, method: str, path: str, body: Any, field: str
) -> None:
    """A127."""
    answer = await front.http.request(method, path, json=body)

    assert (answer.status_code, reason_of(answer), violation_of(answer)) == (400, "INVALID_REQUEST", field)
    assert upstream.seen == []


@pytest.mark.parametrize(
    "body",
    [b'{"password": s3cret', b'{"password": "s3cret" "x": 1}', b'"s3cret"', b'{"password": "s3cret\xff"}', b'{"password": "s3cret\\ud800"}', b"[1]"],
)
async def test_malformed_json_is_400_and_quotes_nothing(front: Edge, upstream: Instance, body: bytes) -> None:
    """The transcoder's own words hold the text around the mistake, which may be a password."""
    answer = await front.http.post("/v1/auth/login", content=body, headers=JSON)

    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_REQUEST")
    assert "s3cret" not in answer.text
    assert "x-watchword-quotes" not in answer.headers
    assert upstream.seen == []


async def test_a_password_in_the_query_is_refused(front: Edge, upstream: Instance) -> None:
    answer = await front.http.post("/v1/auth/login?password=s3cret", json={})

    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_REQUEST")
    assert "s3cret" not in answer.text + front.log.read_text(encoding="utf-8")
    assert upstream.seen == []


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": "application/json; charset=utf-7"}, {}, {**JSON, "content-encoding": "gzip"}]
)
async def test_a_body_of_another_kind_is_415(front: Edge, upstream: Instance, headers: dict[str, str]) -> None:
    """A129. A page of another origin may send text/plain without a preflight."""
    answer = await front.http.post("/v1/auth/login", content=b"{}", headers=headers)

    assert (answer.status_code, reason_of(answer)) == (415, "INVALID_REQUEST")
    assert upstream.seen == []


async def test_json_in_utf_8_and_no_body_at_all_are_taken(front: Edge) -> None:
    assert (await front.http.post("/v1/auth/login", content=b"{}", headers={"content-type": "application/json; charset=UTF-8"})).status_code == 200
    assert (await front.http.post("/v1/auth/logout")).status_code == 200


async def test_a_large_body_is_413_and_a_batch_may_be_larger(front: Edge, upstream: Instance) -> None:
    batch = {"requests": [{"token": "x" * 4096}] * 100}

    answers = [await front.http.post("/v1/tokens:verify", json={"token": "x" * 70_000}), await front.http.post("/v1/tokens:batchVerify", json=batch)]
    endless = await front.http.post("/v1/auth/login", content=_chunks(), headers=JSON)

    assert [answer.status_code for answer in (*answers, endless)] == [413, 200, 413]
    assert reason_of(answers[0]) == reason_of(endless) == "REQUEST_TOO_LARGE"
    assert len(upstream.calls("BatchVerifyTokens")[0].request.requests) == 100


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(100):
        yield b" " * 1000


async def test_large_headers_are_431(front: Edge) -> None:
    answer = await front.http.get("/v1/me", headers={"x-large": "x" * 20_000})

    assert (answer.status_code, reason_of(answer)) == (431, "REQUEST_TOO_LARGE")


# --- answers -----------------------------------------------------------------------------------------------------


async def _rate_limited(request: Any, context: Context) -> Message:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="RATE_LIMITED", domain="watchword", metadata={"request_id": "r"}))
    status = status_pb2.Status(code=8, message="too many requests", details=[detail])
    trailers = (("retry-after", "7"), ("grpc-status-details-bin", status.SerializeToString()))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests", trailers)
    raise AssertionError


async def _unauthenticated(request: Any, context: Context) -> Message:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no", (("www-authenticate", 'Bearer error="invalid_token"'),))
    raise AssertionError


async def test_a_refusal_reaches_rest_with_its_details_and_headers(front: Edge, upstream: Instance) -> None:
    upstream.answers.update(Login=_rate_limited, GetMe=_unauthenticated)

    limited, refused = await front.http.post("/v1/auth/login", json={}), await front.http.get("/v1/me")

    assert (limited.status_code, reason_of(limited), limited.headers["retry-after"]) == (429, "RATE_LIMITED", "7")
    assert limited.json()["details"][0]["metadata"] == {"request_id": "r"}
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    assert not [name for answer in (limited, refused) for name in answer.headers if name.startswith("grpc-")]


async def _invalid_grant(request: Any, context: Context) -> Message:
    await context.send_initial_metadata((("x-http-status", "400"), ("pragma", "no-cache")))
    return message("google.api.HttpBody", content_type="application/json", data=b'{"error":"invalid_grant"}')


async def test_an_oauth_form_and_its_rfc_6749_error_pass_through(front: Edge, upstream: Instance) -> None:
    upstream.answers["Token"] = _invalid_grant

    answer = await front.http.post("/oauth2/token", data={"grant_type": "refresh_token"}, auth=("client", "secret"))

    (call,) = upstream.seen
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (400, b'{"error":"invalid_grant"}', "application/json")
    assert answer.headers["cache-control"] == "no-store"
    assert "x-http-status" not in answer.headers
    assert (call.request.content_type, call.request.data) == ("application/x-www-form-urlencoded", b"grant_type=refresh_token")
    assert call.metadata["authorization"][0].startswith("Basic ")


async def _jwks(request: Any, context: Context) -> Message:
    current = ("etag", '"one"')
    cached = ("if-none-match", '"one"') in [(key, value) for key, value in context.invocation_metadata() or ()]
    await context.send_initial_metadata((current, ("cache-control", "public, max-age=300"), ("x-http-status", "304" if cached else "200")))
    return message("google.api.HttpBody", content_type="application/json", data=b'{"keys":[]}')


async def test_the_key_set_is_cacheable_and_304_has_no_body(front: Edge, upstream: Instance) -> None:
    upstream.answers["GetJwks"] = _jwks

    full = await front.http.get("/.well-known/jwks.json")
    again = await front.http.get("/.well-known/jwks.json", headers={"if-none-match": full.headers["etag"]})

    assert (full.status_code, full.json(), full.headers["cache-control"]) == (200, {"keys": []}, "public, max-age=300")
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", '"one"')
    assert "content-type" not in again.headers


async def test_the_key_set_is_never_compressed_and_has_no_head(front: Edge, upstream: Instance) -> None:
    """A055. What holds secrets beside what a stranger chose must not be compressed (BREACH), and a key set is too small to gain by it.

    HEAD is not offered: Envoy's transcoder writes the body all the same, and the next answer on that connection would be read as the rest of it.
    """
    upstream.answers["GetJwks"] = _jwks

    full = await front.http.get("/.well-known/jwks.json", headers={"accept-encoding": "gzip, br"})
    head = await front.http.head("/.well-known/jwks.json")
    again = await front.http.get("/.well-known/jwks.json")

    assert (full.json(), full.headers.get("content-encoding")) == ({"keys": []}, None)
    assert (head.status_code, head.content) == (404, b"")
    assert (again.status_code, again.json()) == (200, {"keys": []})


async def _odd_status(request: Any, context: Context) -> Message:
    await context.send_initial_metadata((("x-http-status", "7xx"), ("set-cookie", "a=1"), ("set-cookie", "b=2")))
    return message("watchword.gateway.v1.GetReadinessResponse", status="not_ready")


async def test_an_odd_x_http_status_changes_nothing(front: Edge, upstream: Instance) -> None:
    upstream.answers["GetReadiness"] = _odd_status

    answer = await front.http.get("/health/ready")

    assert (answer.status_code, answer.json()["status"]) == (200, "not_ready")
    assert "x-http-status" not in answer.headers


async def _page_of_users(request: Any, context: Context) -> Message:
    return message("watchword.identity.v1.ListUsersResponse", users=[{"id": UUID, "email": "x" * 254, "display_name": "y" * 254}] * 3000)


async def test_a_page_of_more_than_a_megabyte_arrives_whole(front: Edge, upstream: Instance) -> None:
    upstream.answers["ListUsers"] = _page_of_users

    users = (await front.http.get("/v1/users?page_size=1000")).json()["users"]

    assert len(users) == 3000
    # snake_case, and what is false is said.
    assert users[0]["email_verified"] is False


async def test_every_answer_carries_the_security_headers(front: Edge) -> None:
    wanted = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer", "cache-control": "no-store"}
    for answer in (await front.http.get("/health"), await front.http.get("/nothing"), await front.http.post("/v1/auth/login", content=b"{")):
        assert wanted.items() <= dict(answer.headers).items()
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["strict-transport-security"].startswith("max-age=31536000")
        assert answer.headers["x-request-id"]
        assert not [name for name in answer.headers if name == "server" or name.startswith(("x-envoy", "grpc-"))]


async def test_the_access_log_names_the_call_and_no_query(front: Edge) -> None:
    answer = await front.http.get("/v1/audit-events?page_token=somebody%40example.org")
    request_id = answer.headers["x-request-id"]

    async def is_logged() -> bool:
        return request_id in front.log.read_text(encoding="utf-8")

    await until(is_logged)
    lines = [json.loads(line) for line in front.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    (line,) = (line for line in lines if line["request_id"] == request_id)
    assert (line["method"], line["path"], line["rpc"]) == ("GET", "/v1/audit-events", "/watchword.identity.v1.AuditService/ListAuditEvents")
    assert (line["status"], line["client"], line["attempts"]) == (200, "127.0.0.1", 1)
    assert "somebody" not in front.log.read_text(encoding="utf-8")
    assert not [one for one in lines if str(one["path"]).startswith("/health") and one["status"] == 200]


# --- other origins -----------------------------------------------------------------------------------------------


async def test_an_allowed_origin_may_ask_and_read(front: Edge) -> None:
    asked = await front.http.options("/v1/me", headers={"origin": GOOD_ORIGIN, "access-control-request-method": "GET"})
    read = await front.http.get("/v1/me", headers={"origin": GOOD_ORIGIN})

    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, GOOD_ORIGIN)
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert (read.status_code, read.headers["access-control-allow-origin"]) == (200, GOOD_ORIGIN)
    assert "retry-after" in read.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in {*asked.headers, *read.headers}


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.evil", "null", "http://app.example", "https://APP.example"])
async def test_another_origin_gets_no_permission(front: Edge, origin: str) -> None:
    """A138."""
    asked = await front.http.options("/v1/me", headers={"origin": origin, "access-control-request-method": "GET"})
    read = await front.http.get("/v1/me", headers={"origin": origin})

    assert not [name for name in (*asked.headers, *read.headers) if name.startswith("access-control-")]


# --- the internal listener ---------------------------------------------------------------------------------------


async def test_health_of_one_service_is_asked_for_by_a_header(front: Edge) -> None:
    stub = health_pb2_grpc.HealthStub(front.channel)  # type: ignore[no-untyped-call]

    for metadata in ((("x-watchword-service", "token"),), ()):
        assert (await stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata)).status == SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert (await watch.read()).status == SERVING
        watch.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(health_pb2.HealthCheckRequest(), metadata=(("x-watchword-service", "admin"),))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_internal_callers_keep_their_request_id_and_cannot_pose_as_another_address(front: Edge, upstream: Instance) -> None:
    metadata = (
        ("x-request-id", "r-1"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-envoy-max-retries", "9"),
        ("x-user-id", "root"),
        ("authorization", "Bearer peer"),
    )
    await front.call("watchword.token.v1.TokenService/IssueToken", metadata=metadata)

    (call,) = upstream.seen
    assert (call.metadata["x-request-id"], call.metadata["x-forwarded-for"]) == (["r-1"], ["127.0.0.1"])
    assert call.metadata["authorization"] == ["Bearer peer"]
    assert not {"x-user-id", "x-envoy-max-retries"} & set(call.metadata)
