"""Who may call: each alternative alone, and everything else refused."""

from dataclasses import dataclass, field
from uuid import UUID

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from services.chassis.access import AccessUndeclared, Gate, LimitClass, Rule, bearer, rule_of, rules_of
from services.chassis.call import ANONYMOUS, Caller, CallerKind
from services.chassis.service_identity import ServiceIdentity
from tests.conftest import Keys
from watchword.errors import CredentialsMissing, InsufficientScope, PermissionDenied, TokenInvalid, WatchwordError
from watchword.options.v1 import access_pb2
from watchword.token.v1 import token_pb2

ID = "0198c0de-0000-7000-8000-000000000001"


def person(*scopes: str) -> Caller:
    return Caller(CallerKind.USER, ID, scopes=frozenset(scopes))


def client(*scopes: str) -> Caller:
    return Caller(CallerKind.CLIENT, ID, scopes=frozenset(scopes))


def service(name: str) -> Caller:
    return Caller(CallerKind.SERVICE, name)


def rule(**fields: object) -> Rule:
    nothing: dict[str, object] = {"public": False, "authenticated": False, "permission": "", "scope": "", "peers": frozenset()}
    return Rule(**{**nothing, "limit": LimitClass.READ, "mutates": False, **fields})  # type: ignore[arg-type]


@dataclass
class Accounts:
    """Stands at the two seams: who a token speaks for, and what an account may do."""

    holds: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    async def authenticate(self, token: str) -> Caller:
        self.asked.append(token)
        return person("account")

    async def allows(self, caller: Caller, permission: str) -> bool:
        self.asked.append(permission)
        return permission in self.holds


def gate(keys: Keys, *holds: str, decides: bool = True) -> tuple[Gate, Accounts]:
    accounts = Accounts(frozenset(holds))
    identity: ServiceIdentity = keys.identity("rbac")
    return Gate(identity, accounts, accounts if decides else None), accounts


async def outcome(door: Gate, asked: Rule, caller: Caller) -> type[WatchwordError] | None:
    try:
        await door.admit(asked, caller)
    except WatchwordError as error:
        return type(error)
    return None


EVERYONE = {
    "anonymous": ANONYMOUS,
    "person": person("account"),
    "client": client("account"),
    "identity": service("identity"),
    "gateway": service("gateway"),
}
MATRIX = {
    "public": (rule(public=True), {"anonymous", "person", "client", "identity", "gateway"}),
    "authenticated": (rule(authenticated=True), {"person", "client"}),
    "scope": (rule(scope="account"), {"person", "client"}),
    "another scope": (rule(scope="tokens.revoke"), set()),
    "permission": (rule(permission="roles.read"), {"person"}),
    "peers": (rule(peers=frozenset({"identity"})), {"identity"}),
    "nobody": (rule(), set()),
}


@pytest.mark.parametrize("name", MATRIX)
async def test_each_alternative_admits_those_it_names_and_nobody_else(service_keys: Keys, name: str) -> None:
    """`authenticated` names people and clients: a service of the suite has its own list."""
    asked, expected = MATRIX[name]
    door, _ = gate(service_keys, "roles.read")

    admitted = {who for who, caller in EVERYONE.items() if caller is not ANONYMOUS or asked.public if await outcome(door, asked, caller) is None}

    assert admitted == expected


async def test_alternatives_add_up(service_keys: Keys) -> None:
    """One that holds is enough; none of them weakens another."""
    asked = rule(scope="permissions.check", permission="permissions.check", peers=frozenset({"gateway"}))
    holder, _ = gate(service_keys, "permissions.check")
    stranger, _ = gate(service_keys)

    assert await outcome(stranger, asked, client("permissions.check")) is None
    assert await outcome(holder, asked, person()) is None
    assert await outcome(stranger, asked, service("gateway")) is None
    assert await outcome(stranger, asked, person()) is PermissionDenied
    assert await outcome(holder, asked, service("token")) is PermissionDenied


async def test_a_clients_scopes_are_the_upper_limit_of_its_permissions(service_keys: Keys) -> None:
    """A client that an administrator registered for one thing does not get the administrator's others."""
    door, accounts = gate(service_keys, "roles.read", "roles.delete")

    assert await outcome(door, rule(permission="roles.read"), client("roles.read")) is None
    assert await outcome(door, rule(permission="roles.delete"), client("roles.read")) is PermissionDenied
    assert await outcome(door, rule(permission="roles.create"), client("roles.create")) is PermissionDenied
    assert accounts.asked == ["roles.read", "roles.create"]


async def test_a_lacking_scope_is_told_as_such(service_keys: Keys) -> None:
    """So that a client knows to ask for a wider token (RFC 6750 section 3.1)."""
    door, _ = gate(service_keys)
    assert await outcome(door, rule(scope="tokens.revoke"), client("account")) is InsufficientScope


async def test_a_public_rpc_asks_nobody_who_calls(service_keys: Keys) -> None:
    """An expired token in a forgotten header must not keep anybody from logging in."""
    door, accounts = gate(service_keys)

    for authorization in ("", "Bearer rubbish", "Basic YTpi", "several"):
        assert await door.identify(rule(public=True), authorization) is ANONYMOUS
    assert accounts.asked == []


async def test_a_service_identity_is_never_asked_of_the_authenticator(service_keys: Keys) -> None:
    """Nor does a forged one fall through to it."""
    door, accounts = gate(service_keys)
    good = service_keys.identity("identity").token_for("rbac")

    assert await door.identify(rule(authenticated=True), f"Bearer {good}") == service("identity")
    with pytest.raises(TokenInvalid):
        await door.identify(rule(authenticated=True), f"Bearer {good[:-4]}AAAA")
    assert accounts.asked == []


async def test_the_authenticator_gets_the_bare_token(service_keys: Keys) -> None:
    door, accounts = gate(service_keys)

    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
        assert (await door.identify(rule(authenticated=True), f"{scheme} abc.def")).kind is CallerKind.USER
    assert accounts.asked == ["abc.def"] * 4


BROKEN = [
    "Bearer",
    "Bearer ",
    "Bearer  a",
    "Bearer a b",
    "Bearer a,b",
    "Bearer a, Bearer b",
    "Basic YTpi",
    "DPoP a",
    "a.b.c",
    "several",
    " Bearer a",
    "Bearer\ta",
]


@pytest.mark.parametrize("authorization", BROKEN)
def test_what_is_not_one_bearer_token_is_refused(authorization: str) -> None:
    """Two tokens in one header are where proxies and servers disagree on who calls."""
    with pytest.raises(TokenInvalid):
        bearer(authorization)


def test_no_credential_is_told_from_a_bad_one() -> None:
    """RFC 6750: a challenge without an error code."""
    with pytest.raises(CredentialsMissing):
        bearer("")


def declared(**access: object) -> MethodDescriptor:
    """Build an RPC at run time, with these access options, or with none."""
    file = descriptor_pb2.FileDescriptorProto(
        name="test/door.proto", package="test", syntax="proto3", dependency=["watchword/options/v1/access.proto"]
    )
    file.message_type.add(name="Empty")
    method = file.service.add(name="Door").method.add(name="Open", input_type=".test.Empty", output_type=".test.Empty")
    if access:
        method.options.Extensions[access_pb2.access].CopyFrom(access_pb2.Access(**access))  # type: ignore[arg-type]
    pool = descriptor_pool.DescriptorPool()
    for name in ("google/protobuf/descriptor.proto", "watchword/options/v1/access.proto"):
        copy = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(name).CopyToProto(copy)
        pool.Add(copy)
    pool.Add(file)
    return pool.FindServiceByName("test.Door").methods[0]


@pytest.mark.parametrize("access", [{}, {"mutates": True}, {"limit_class": access_pb2.LIMIT_CLASS_READ}], ids=str)
def test_an_rpc_that_says_nothing_stops_start_up(access: dict[str, object]) -> None:
    """Closed by default, and loudly: not an RPC that nobody can call until somebody opens it to all."""
    with pytest.raises(AccessUndeclared, match=r"test\.Door\.Open"):
        rule_of(declared(**access))


@pytest.mark.parametrize(
    "access", [{"public": True}, {"authenticated": True}, {"permission": "a.b"}, {"scope": "a.b"}, {"peers": ["identity"]}], ids=str
)
def test_any_one_alternative_is_enough_of_a_declaration(access: dict[str, object]) -> None:
    found = rule_of(declared(**access))
    assert {name for name in ("public", "authenticated", "permission", "scope", "peers") if getattr(found, name)} == set(access)


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ({"public": True}, LimitClass.READ),
        ({"public": True, "mutates": True}, LimitClass.WRITE),
        ({"public": True, "mutates": True, "limit_class": access_pb2.LIMIT_CLASS_CREDENTIAL}, LimitClass.CREDENTIAL),
        ({"public": True, "limit_class": access_pb2.LIMIT_CLASS_NONE}, LimitClass.NONE),
    ],
    ids=str,
)
def test_a_call_is_limited_by_its_kind_unless_said_otherwise(access: dict[str, object], expected: LimitClass) -> None:
    assert rule_of(declared(**access)).limit is expected


def test_a_service_that_cannot_decide_permissions_serves_no_rpc_that_asks_for_one(service_keys: Keys) -> None:
    """Token has no roles: such an RPC would refuse everybody, for ever."""
    door, _ = gate(service_keys, decides=False)

    with pytest.raises(AccessUndeclared, match=r"roles\.read"):
        door.accept("/test.Door/Open", rule(permission="roles.read"))
    door.accept("/test.Door/Open", rule(scope="roles.read"))


def test_issuing_tokens_is_for_identity_alone() -> None:
    rules = rules_of(token_pb2.DESCRIPTOR.services_by_name["TokenService"])
    assert rules["IssueToken"] == rule(peers=frozenset({"identity"}), limit=LimitClass.NONE, mutates=True)


def test_only_people_and_clients_have_an_account_id() -> None:
    assert person().uuid == UUID(ID)
    for caller in (ANONYMOUS, service("identity")):
        with pytest.raises(TokenInvalid):
            _ = caller.uuid
