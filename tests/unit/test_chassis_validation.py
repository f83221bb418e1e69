"""Requests are checked against their protos before any code of ours sees them; each breach is named by its path."""

from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.validation import MAX_VIOLATIONS, Validator
from watchword import status
from watchword.errors import InvalidRequest
from watchword.identity.v1 import audit_pb2, authentication_pb2, oauth_pb2, tenant_pb2, user_pb2
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.token.v1 import token_pb2

ID = "0198c0de-0000-7000-8000-00000000000a"
VALIDATOR = Validator()
SUBJECT = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=ID)


def breaches(request: Message) -> dict[str, str]:
    """Return path -> words of each breach."""
    try:
        VALIDATOR.check(request)
    except InvalidRequest as error:
        return {violation.field: violation.description for violation in error.violations}
    return {}


def check(**fields: Any) -> permission_pb2.CheckPermissionRequest:
    return permission_pb2.CheckPermissionRequest(**{"subject": SUBJECT, "permission": "invoices.read", **fields})


def test_a_good_request_passes() -> None:
    """The control."""
    assert breaches(check(resource="folder/a", tenant_id=ID)) == {}
    assert breaches(permission_pb2.BatchCheckPermissionsRequest(requests=[check()] * 1000)) == {}


def test_what_is_required_must_be_there() -> None:
    """Messages, strings, enums and lists alike."""
    assert breaches(permission_pb2.CheckPermissionRequest()) == {"subject": "is required", "permission": "is required"}
    assert breaches(check(subject=rbac_pb2.Subject())) == {"subject.type": "is required"}
    assert breaches(permission_pb2.BatchCheckPermissionsRequest()) == {"requests": "is required"}


def test_a_breach_is_named_by_its_path() -> None:
    """Through messages and lists, as the JSON form spells it."""
    bad = check(subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id="x"))
    role = rbac_pb2.CreateRoleRequest(name="clerk", permissions=["a.b", "nonsense", "c.d", "*"], parent_role_ids=[ID, "x"])
    good = rbac_pb2.CreateRoleBindingRequest(subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_ANY), role_id=ID)
    worse = rbac_pb2.CreateRoleBindingRequest(subject=bad.subject, role_id=ID)
    batch = rbac_pb2.BatchCreateRoleBindingsRequest(requests=[good, worse, rbac_pb2.CreateRoleBindingRequest()], request_id="t")

    assert set(breaches(bad)) == {"subject.id"}
    assert set(breaches(role)) == {"permissions[1]", "permissions[3]", "parent_role_ids[1]"}
    assert set(breaches(batch)) == {"requests[1].subject.id", "requests[2].subject", "request_id"}
    assert set(breaches(rbac_pb2.UpdateRoleRequest(role_id=ID, role=rbac_pb2.RoleUpdate(permissions=["x"])))) == {"role.permissions[0]"}


@pytest.mark.parametrize(
    "text",
    [
        ID.upper(),
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        f" {ID}",
        f"{ID}\n",
        ID[:-1],
        "0198c0de-0000-7000-8000-00000000000g",
        "\u0660198c0de-0000-7000-8000-00000000000a",
    ],
)
def test_a_uuid_has_one_spelling(text: str) -> None:
    """Two spellings of one id would be two keys of a cache, or of a limit."""
    assert set(breaches(user_pb2.GetUserRequest(user_id=text))) == {"user_id"}


PERMISSIONS = ["*", "*.*", "a.*", "*.b", "a", "a.b.c", ".b", "a.", "A.b", "a b.c", "a.b ", "a.b\n", "é.b", "a" * 64 + ".b"]


@pytest.mark.parametrize("text", PERMISSIONS)
def test_a_check_asks_for_one_permission_and_not_for_a_pattern(text: str) -> None:
    assert set(breaches(check(permission=text))) == {"permission"}


@pytest.mark.parametrize(
    ("text", "passes"), [("*.*", True), ("a.*", True), ("*.b", True), ("a-1.b_2", True), ("*", False), ("a*.b", False), ("a.**", False)]
)
def test_a_grant_may_be_a_pattern(text: str, passes: bool) -> None:
    assert (breaches(rbac_pb2.CreateRoleRequest(name="clerk", permissions=[text])) == {}) is passes


@pytest.mark.parametrize(
    "text", ["folder", "folder/", "/a", "folder/a/b", "Folder/a", "folder/a b", "folder/é", "folder/a\n", "folder/%2e", "folder/" + "a" * 181]
)
def test_a_resource_is_a_type_and_an_id(text: str) -> None:
    """A113: the slash separates once, so that no two resources look alike."""
    assert set(breaches(check(resource=text))) == {"resource"}


@pytest.mark.parametrize("text", ["Acme", "-acme", ".a", "a b", "a/b", "a\n", "ä"])
def test_a_slug_is_lower_case(text: str) -> None:
    assert set(breaches(tenant_pb2.CreateTenantRequest(name=text, admin_email="a@b", request_id=str(uuid4())))) == {"name"}


CONTROLS = ["a\0b", "a\nb", "a\rb", "a\tb", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "a\u202egnp", "\u2066a\u2069", "\u202a"]


@pytest.mark.parametrize("text", CONTROLS, ids=ascii)
def test_no_text_holds_control_or_bidi_characters(text: str) -> None:
    """Logs, terminals and mails would show something else than what is stored; Postgres cannot store NUL at all (A156)."""
    assert set(breaches(user_pb2.CreateUserRequest(email="a@b", display_name=text))) == {"display_name"}
    assert set(breaches(oauth_pb2.CreateOAuthClientRequest(display_name="a", scopes=[text]))) == {"scopes[0]"}


def test_a_password_may_hold_anything_but_nul() -> None:
    """Not our business to narrow; but NUL ends strings in too many libraries."""
    request = authentication_pb2.LoginRequest(login="a", password="tab\t line\n bidi\u202e bell\a")

    assert breaches(request) == {}
    assert set(breaches(authentication_pb2.LoginRequest(login="a", password="a\0b"))) == {"password"}


def test_lengths_are_counted_in_bytes() -> None:
    """256 unless said otherwise."""
    assert breaches(user_pb2.CreateUserRequest(email="a@b", display_name="é" * 128)) == {}
    assert breaches(user_pb2.CreateUserRequest(email="a@b", display_name="é" * 128 + "a")) == {"display_name": "must be at most 256 bytes"}
    assert set(breaches(authentication_pb2.LoginRequest(login="a", password="x" * 1025))) == {"password"}
    assert breaches(token_pb2.VerifyTokenRequest(token="x" * 8192)) == {}
    assert set(breaches(token_pb2.VerifyTokenRequest(token="x" * 8193))) == {"token"}


def test_lists_have_limits_and_no_empty_members() -> None:
    many = token_pb2.BatchVerifyTokensRequest(requests=[token_pb2.VerifyTokenRequest(token="x")] * 101)

    assert breaches(many) == {"requests": "must hold at most 100 members"}
    assert breaches(oauth_pb2.CreateOAuthClientRequest(display_name="a", scopes=["a", ""])) == {"scopes[1]": "must not be empty"}
    assert set(breaches(rbac_pb2.CreateRoleRequest(name="a", permissions=["a.b"] * 1001))) == {"permissions"}


def test_an_enum_value_from_nowhere_is_refused() -> None:
    """Proto3 keeps unknown numbers; a handler would take them for none of its cases."""
    assert breaches(check(subject=rbac_pb2.Subject(type=77, id=ID))) == {"subject.type": "is not one of the known values"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("moment", "passes"),
    [
        (Timestamp(seconds=0), True),
        (Timestamp(seconds=-62_135_596_800), True),
        (Timestamp(seconds=253_402_300_799, nanos=999_999_999), True),
        (Timestamp(seconds=-62_135_596_801), False),
        (Timestamp(seconds=253_402_300_800), False),
        (Timestamp(seconds=2**62), False),
        (Timestamp(nanos=-1), False),
        (Timestamp(nanos=1_000_000_000), False),
    ],
    ids=str,
)
def test_a_moment_lies_in_the_years_that_python_and_postgres_know(moment: Timestamp, passes: bool) -> None:
    """Otherwise its conversion raises, which is a 500."""
    assert (breaches(audit_pb2.ListAuditEventsRequest(start_time=moment)) == {}) is passes


def test_a_field_mask_is_left_to_its_handler() -> None:
    """Which paths there are is the domain's knowledge."""
    request = user_pb2.UpdateUserRequest(user_id=ID, user=user_pb2.UserUpdate(), update_mask=FieldMask(paths=["email", "no.such_path"]))
    assert breaches(request) == {}


def test_absent_messages_are_not_looked_into() -> None:
    """An update without a user is judged by `required` alone."""
    assert breaches(audit_pb2.ListAuditEventsRequest()) == {}


def test_the_answer_to_a_bad_batch_fits_into_trailers() -> None:
    """A thousand violations would be a status that proxies refuse: the caller would see an outage instead of its mistake."""
    request = rbac_pb2.BatchCreateRoleBindingsRequest(requests=[rbac_pb2.CreateRoleBindingRequest()] * 1000)

    with pytest.raises(InvalidRequest) as failure:
        VALIDATOR.check(request)

    assert len(failure.value.violations) == MAX_VIOLATIONS
    assert len(status.encode(failure.value).SerializeToString()) < 4096


def test_members_that_are_for_the_handler_to_check_are_not_checked_here() -> None:
    """Each question of a batch fails alone. How many there are is still bounded."""
    batch = permission_pb2.BatchCheckPermissionsRequest(requests=[check(permission="")], tenant_id=ID)

    assert breaches(batch) == {}
    assert set(breaches(permission_pb2.BatchCheckPermissionsRequest(requests=[check()] * 1001))) == {"requests"}


def test_violations_never_repeat_the_value() -> None:
    """The field may be a password."""
    canary = "canary-" + "x" * 2000
    for request in (authentication_pb2.LoginRequest(login=canary, password=canary), user_pb2.GetUserRequest(user_id=canary)):
        with pytest.raises(InvalidRequest) as failure:
            VALIDATOR.check(request)
        assert b"canary" not in status.encode(failure.value).SerializeToString()
