"""Every RPC of the contract, fed with what no honest client sends: an accurate code, a reason or field that a program can read, nothing leaked."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from services.chassis.access import Rule, rule_of
from tests.suite.conftest import PASSWORD, Client, Person, Suite, Tenant, reason, sql
from watchword import status
from watchword.errors import CredentialsMissing, InvalidRequest, PermissionDenied, TokenInvalid, WatchwordError
from watchword.gateway.v1 import health_pb2 as gateway_health_pb2
from watchword.identity.v1 import audit_pb2, authentication_pb2, oauth_pb2, tenant_pb2, user_pb2
from watchword.options.v1 import field_pb2
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.token.v1 import key_pb2, token_pb2

FILES = (authentication_pb2, user_pb2, oauth_pb2, audit_pb2, tenant_pb2, token_pb2, key_pb2, rbac_pb2, permission_pb2, gateway_health_pb2)
METHODS = [method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods]
TYPED = [method for method in METHODS if method.input_type.full_name != "google.api.HttpBody"]  # raw bodies have their own tests
FIELDED = [method for method in TYPED if method.input_type.fields]
GUARDED = [method for method in METHODS if not rule_of(method).public]
ID_FIELDS = ("user_id", "role_id", "group_id", "role_binding_id", "client_id")


def required_fields(method: MethodDescriptor) -> set[str]:
    return {field.name for field in method.input_type.fields if field.GetOptions().Extensions[field_pb2.field].required}


def id_fields(method: MethodDescriptor) -> list[str]:
    return [field.name for field in method.input_type.fields if field.name in ID_FIELDS]


# Those that name one thing of the caller's tenant by its id.
BY_ID = [method for method in TYPED if rule_of(method).permission and len(id_fields(method)) == 1 and id_fields(method)[0] in required_fields(method)]


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def context_of(method: MethodDescriptor) -> str:
    return str(method.full_name.split(".")[1])


async def call(suite: Suite, method: MethodDescriptor, request: Message | bytes, metadata: Any = ()) -> WatchwordError | None:
    """Call a method through Envoy's internal listener; return what it raised, None if it answered."""
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    rpc: Any = suite.channel().unary_unary(path(method))
    running = rpc(raw, metadata=metadata, timeout=10)
    code, words = await running.code(), await running.details()
    assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (path(method), code, words)
    assert "Traceback" not in (words or "")
    try:
        await running
    except grpc.aio.AioRpcError as error:
        return status.decode(error)
    return None


def credentials(suite: Suite, method: MethodDescriptor, admin: Person, operator: Client) -> Any:
    """Return metadata that may call `method`, if anything may."""
    rule: Rule = rule_of(method)
    if rule.public:
        return ()
    if rule.peers:
        return suite.peer(sorted(rule.peers)[0], to=context_of(method))
    return operator.metadata if rule.scope == "signing-keys.manage" else admin.metadata


def spoilt(message: Any, prefix: str = "") -> Iterator[tuple[str, Message]]:
    """Yield requests of a type in which one field is spoilt, with that field's name."""
    for field in message.DESCRIPTOR.fields:
        rules = field.GetOptions().Extensions[field_pb2.field]
        if field.type == FieldDescriptor.TYPE_STRING:
            for value in spoilt_strings(rules):
                request = type(message)()
                if field.is_repeated:
                    getattr(request, field.name).append(value)
                else:
                    setattr(request, field.name, value)
                yield prefix + field.name, request
            if field.is_repeated:
                request = type(message)()
                getattr(request, field.name).extend(["a"] * 1001)
                yield prefix + field.name, request
        elif field.type == FieldDescriptor.TYPE_ENUM:
            request = type(message)()
            setattr(request, field.name, 999)
            yield prefix + field.name, request


def spoilt_strings(rules: field_pb2.FieldRules) -> Iterator[str]:
    yield "x" * ((rules.max_bytes or 256) + 1)
    if not rules.secret:
        yield "a\0b"
        yield "line\nbreak"
    if rules.format == field_pb2.FORMAT_UUID:
        yield "not-a-uuid"
        yield str(uuid4()).upper()
    elif rules.format != field_pb2.FORMAT_UNSPECIFIED:
        yield "UPPER CASE!"


@pytest.mark.parametrize("method", FIELDED, ids=lambda method: method.full_name)
async def test_spoilt_fields_are_named(suite: Suite, admin: Person, operator: Client, method: MethodDescriptor) -> None:
    """Oversized, NUL, control characters, wrong shapes, unknown enum values: INVALID_ARGUMENT with the field's name, for each field alone."""
    metadata = credentials(suite, method, admin, operator)
    cases = list(spoilt(message_factory.GetMessageClass(method.input_type)()))
    for field, failure in zip(
        [name for name, _ in cases], await asyncio.gather(*(call(suite, method, request, metadata) for _, request in cases)), strict=True
    ):
        assert isinstance(failure, InvalidRequest), (path(method), field, failure)
        assert field in {violation.field.split("[")[0].split(".")[0] for violation in failure.violations}, (field, failure.violations)


@pytest.mark.parametrize("method", [method for method in TYPED if required_fields(method)], ids=lambda method: method.full_name)
async def test_an_empty_request_names_what_is_missing(suite: Suite, admin: Person, operator: Client, method: MethodDescriptor) -> None:
    """All required fields at once."""
    failure = await call(suite, method, b"", credentials(suite, method, admin, operator))
    assert isinstance(failure, InvalidRequest)
    assert required_fields(method) <= {violation.field for violation in failure.violations}


@pytest.mark.parametrize("method", FIELDED, ids=lambda method: method.full_name)
async def test_bytes_that_are_no_message_are_an_invalid_argument(suite: Suite, admin: Person, operator: Client, method: MethodDescriptor) -> None:
    """A143: truncated, wrong wire types, invalid UTF-8."""
    metadata = credentials(suite, method, admin, operator)
    for raw in (b"\x0a\xff", b"\x0f\x01", b"\xff\xff\xff\xff", b"\x0a\x05ab"):
        assert isinstance(await call(suite, method, raw, metadata), InvalidRequest), (path(method), raw)


@pytest.mark.parametrize("method", GUARDED, ids=lambda method: method.full_name)
async def test_nobody_comes_in_who_may_not(suite: Suite, person: Person, method: MethodDescriptor) -> None:
    """Absent, forged, expired, foreign and powerless callers, against what the proto declares."""
    rule = rule_of(method)
    assert type(await call(suite, method, b"")) is CredentialsMissing
    for value in ("Bearer rubbish", f"Bearer {person.token[:-6]}AAAAAA", "Basic YTpi", f"Bearer {person.token} x", "Bearer"):
        failure = await call(suite, method, b"", (("authorization", value),))
        assert type(failure) is TokenInvalid, (value, failure)
    stranger = next((name for name in ("gateway", "rbac", "token", "identity") if name not in rule.peers and name != context_of(method)), "")
    if stranger:
        failure = await call(suite, method, b"", suite.peer(stranger, to=context_of(method)))
        assert type(failure) is PermissionDenied, (stranger, failure)
    if not rule.authenticated and rule.scope not in ("account", "tokens.verify"):
        assert isinstance(await call(suite, method, b"", person.metadata), PermissionDenied)


@pytest.mark.parametrize("method", BY_ID, ids=lambda method: method.full_name)
async def test_another_tenants_ids_are_like_unknown_ones(suite: Suite, admin: Person, other_tenant: Tenant, method: MethodDescriptor) -> None:
    """A122: NOT_FOUND for both, byte for byte the same; the request id aside."""
    name = id_fields(method)[0]
    foreign = await foreign_id(suite, name, other_tenant)
    answers = []
    for value in (foreign, str(uuid4())):
        request = message_factory.GetMessageClass(method.input_type)(**{name: value})
        fill(request)
        failure = await call(suite, method, request, admin.metadata)
        assert failure is not None, path(method)
        failure.metadata.pop("request_id", None)
        answers.append((type(failure).__name__, failure.text, failure.metadata, failure.violations))
    assert answers[0] == answers[1]
    assert answers[0][0] == "NotFound", (path(method), answers[0])


# Something to change of each, which could be changed.
UPDATES = {"RoleUpdate": "description", "UserUpdate": "display_name", "GroupUpdate": "description", "RoleBindingUpdate": "condition"}


def fill(request: Any) -> None:
    """Set the other required fields."""
    for field in request.DESCRIPTOR.fields:
        rules = field.GetOptions().Extensions[field_pb2.field]
        if rules.required and rules.format == field_pb2.FORMAT_UUID and not getattr(request, field.name):
            setattr(request, field.name, str(uuid4()))
        if field.message_type is not None and field.message_type.name in UPDATES:
            setattr(getattr(request, field.name), UPDATES[field.message_type.name], "true")
        if field.message_type is not None and field.message_type.name == "Subject":
            getattr(request, field.name).CopyFrom(rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=str(uuid4())))


async def foreign_id(suite: Suite, name: str, tenant: Tenant) -> str:
    """Return the id of something of another tenant."""
    async with suite.rest as rest:
        if name == "user_id":
            return tenant.admin.id
        if name == "client_id":
            made = await rest.post("/v1/oauth-clients", json={"display_name": "theirs"}, headers=tenant.admin.headers)
            return str(made.json()["client"]["client_id"])
        if name == "group_id":
            made = await rest.post("/v1/groups", json={"name": f"g{uuid4().hex}"}, headers=tenant.admin.headers)
            return str(made.json()["group"]["id"])
        if name == "role_binding_id":
            return str((await rest.get("/v1/role-bindings", headers=tenant.admin.headers)).json()["role_bindings"][0]["id"])
        made = await rest.post("/v1/roles", json={"name": f"r{uuid4().hex}", "permissions": ["x.read"]}, headers=tenant.admin.headers)
        return str(made.json()["role"]["id"])


@pytest.mark.parametrize(
    ("body", "status_code"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"login": 5, "password": "x"}', 400),
        (b'{"login": "a\\u0000b", "password": "x"}', 400),
        (b'{"login": "\\ud800", "password": "x"}', 400),
        (b'{"login": {}, "password": "x"}', 400),
        (b"", 400),
        (b"\xff\xfe", 400),
        (b'{"login": "' + b"x" * 100_000 + b'"}', 413),
    ],
    ids=str,
)
async def test_rest_bodies_that_are_no_request_get_json_with_a_reason(suite: Suite, body: bytes, status_code: int) -> None:
    """Never an empty body, never HTML, never a 500."""
    async with suite.rest as rest:
        answer = await rest.post("/v1/auth/login", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status_code, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert reason(answer) in ("INVALID_REQUEST", "REQUEST_TOO_LARGE")


async def test_a_deadline_that_has_passed_ends_the_call(suite: Suite, person: Person) -> None:
    """A153."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await suite.grpc.tokens.VerifyToken(token_pb2.VerifyTokenRequest(token=person.token), metadata=person.metadata, timeout=0)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_unknown_method_is_unimplemented(suite: Suite) -> None:
    """Not UNKNOWN, and not a hint of what exists."""
    rpc: Any = suite.channel().unary_unary("/watchword.token.v1.TokenService/Nonsense")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await rpc(b"", timeout=5)
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_every_rpc_is_covered() -> None:
    """A new proto file must be added to FILES."""
    served = {method.full_name for method in METHODS}
    assert len(served) == len(METHODS)
    assert {name.split(".")[1] for name in served} == {"identity", "token", "rbac", "gateway"}


AGENTS = {"tab": b"tab\there", "utf-8": b"caf\xc3\xa9", "bytes": b"\xff\xfe\x80", "override": b"\xe2\x80\xaeevil", "long": b"x" * 4000, "none": b""}


@pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
async def test_a_strange_user_agent_breaks_no_login(suite: Suite, admin: Person, person: Person, agent: bytes) -> None:
    """It is written beside the session, and is never a reason to refuse the right password."""
    async with suite.rest as rest:
        answer = await rest.post("/v1/auth/login", json={"login": person.email, "password": PASSWORD}, headers={b"user-agent": agent})
    assert answer.status_code == 200, answer.text
    (kept,) = await sql(suite, "SELECT user_agent FROM token.session WHERE id::text = $1", answer.json()["tokens"]["session_id"])
    assert kept["user_agent"].isprintable()
    assert len(kept["user_agent"].encode()) <= 1024
