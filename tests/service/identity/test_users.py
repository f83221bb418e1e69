"""Administering accounts: in one's own tenant, once per request, and effective elsewhere before OK."""

import secrets
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from services.identity.tasks import BATCH
from tests.service.identity.conftest import OTHER_PASSWORD, PASSWORD, TENANT, Stack, gather
from watchword.errors import (
    AlreadyExists,
    CredentialsMissing,
    DependencyUnavailable,
    EtagMismatch,
    FanoutPending,
    IdempotencyConflict,
    InvalidCredentials,
    InvalidRequest,
    NotFound,
    PageTokenInvalid,
    PasswordRejected,
    PermissionDenied,
    PreconditionFailed,
    TokenInvalid,
)
from watchword.identity.v1 import authentication_pb2 as pb
from watchword.identity.v1 import user_pb2

UNKNOWN = "018f0000-0000-7000-8000-00000000dead"


async def update(stack: Stack, user_id: str, *paths: str, etag: str = "", client: Any = None, **values: str) -> Any:
    """Update an account; with paths, by mask."""
    mask = FieldMask(paths=list(paths)) if paths else None
    request = user_pb2.UpdateUserRequest(user_id=user_id, user=user_pb2.UserUpdate(**values), update_mask=mask, etag=etag)
    return (await (client or stack.admin()).users("UpdateUser", request)).user


async def test_only_holders_of_the_permission_may(stack: Stack) -> None:
    """Nobody without a token, nobody without the permission, nobody when rbac cannot be asked."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    request = user_pb2.GetUserRequest(user_id=user.id)

    with pytest.raises(CredentialsMissing):
        await stack.client().users("GetUser", request)
    with pytest.raises(TokenInvalid):
        await stack.client(token="access-made-up").users("GetUser", request)
    with pytest.raises(PermissionDenied):
        await (await stack.session(email)).users("GetUser", request)
    admin = stack.admin()
    stack.peers.permissions.is_down = True
    with pytest.raises(DependencyUnavailable):
        await admin.users("GetUser", request)


async def test_parallel_collisions_make_one_account(stack: Stack) -> None:
    """Thirty rounds over two instances: names that are canonically one belong to one account (A090)."""
    spellings = ["ADMIN{0}", "\uff21dmin{0}", "admin{0}", "\uff41\uff44\uff4d\uff49\uff4e{0}"]
    for _ in range(30):
        tail = secrets.token_hex(4)
        requests = [user_pb2.CreateUserRequest(email=f"{stack.email()}", username=spelling.format(tail)) for spelling in spellings] + [
            user_pb2.CreateUserRequest(email=email) for email in (f"Bo-{tail}@example.com", f"bo-{tail}@EXAMPLE.com")
        ]

        outcomes = await gather(*(stack.admin(at=n % 2).users("CreateUser", request) for n, request in enumerate(requests)))

        names, addresses = outcomes[:4], outcomes[4:]
        for group in (names, addresses):
            assert [type(each) for each in group].count(user_pb2.CreateUserResponse) == 1
            assert {type(each) for each in group} == {user_pb2.CreateUserResponse, AlreadyExists}
    await stack.sql("DELETE FROM mail")


async def test_an_account_made_without_a_password_gets_a_mail_to_set_one(stack: Stack) -> None:
    """The administrator never knows it."""
    email = stack.email()
    await stack.account(email=email, password="", email_verified=False)

    await stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=await stack.code(email), new_password=OTHER_PASSWORD))

    assert (await stack.login(email, OTHER_PASSWORD)).user.email_verified


async def test_an_administrators_choice_of_password_is_judged_too(stack: Stack) -> None:
    """There is no back door to weak passwords."""
    with pytest.raises(PasswordRejected):
        await stack.account(password="aaaaaaaaaaaaaaa")


async def test_the_same_request_creates_once(stack: Stack) -> None:
    """And gets the same answer, at any instance (D01, D13)."""
    subject, email, request_id = str(uuid4()), stack.email(), str(uuid4())
    request = user_pb2.CreateUserRequest(email=email, password=PASSWORD, request_id=request_id)

    answers = await gather(*(stack.admin(at=n % 2, subject=subject).users("CreateUser", request) for n in range(4)))

    assert len({str(answer) for answer in answers}) == 1
    request.email = stack.email()
    with pytest.raises(IdempotencyConflict):
        await stack.admin(subject=subject).users("CreateUser", request)
    assert (await stack.admin().users("CreateUser", request)).user.email == request.email  # another caller's ids are his own


async def test_listing_pages_through_all_in_order(stack: Stack) -> None:
    """Oldest first, each once; tokens are good for their own query only (A155)."""
    made = [(await stack.account(password="")).user.id for _ in range(5)]
    admin = stack.admin()
    seen, token = [], ""
    while True:
        page = await admin.users("ListUsers", user_pb2.ListUsersRequest(page_size=2, page_token=token))
        seen += [user.id for user in page.users]
        token = page.next_page_token
        if not token:
            break

    assert [each for each in seen if each in made] == made
    assert len(seen) == len(set(seen))
    first = await admin.users("ListUsers", user_pb2.ListUsersRequest(page_size=2))
    strangers = [user_pb2.ListUsersRequest(page_token=token) for token in (first.next_page_token[:-2] + "xx", "garbage", "!")]
    for request in (*strangers, user_pb2.ListUsersRequest(page_token=first.next_page_token, state=pb.DISABLED)):
        with pytest.raises(PageTokenInvalid):
            await admin.users("ListUsers", request)
    with pytest.raises(InvalidRequest):
        await admin.users("ListUsers", user_pb2.ListUsersRequest(page_size=-1))


async def test_listing_finds_by_login_and_state(stack: Stack) -> None:
    """A login in any spelling; one that nobody can have finds nobody."""
    email, name = stack.email(), f"n{secrets.token_hex(6)}"
    user = (await stack.account(email=email, username=name)).user
    admin = stack.admin()

    async def found(**fields: Any) -> list[str]:
        return [each.id for each in (await admin.users("ListUsers", user_pb2.ListUsersRequest(**fields))).users]

    assert await found(login=email.upper()) == await found(login=name.upper()) == [user.id]
    assert await found(login="not a login") == await found(login=stack.email()) == []
    assert await found(login=email, state=pb.DISABLED) == []
    await admin.users("DisableUser", user_pb2.DisableUserRequest(user_id=user.id))
    assert await found(login=email, state=pb.DISABLED) == [user.id]


async def test_another_tenants_accounts_do_not_exist(stack: Stack) -> None:
    """In no RPC, and in the same bytes as an id that nobody has (A122)."""
    user = (await stack.account()).user
    stranger = stack.admin(tenant_id=str(uuid4()))
    methods: list[tuple[str, Any, dict[str, Any]]] = [
        ("GetUser", user_pb2.GetUserRequest, {}),
        ("UpdateUser", user_pb2.UpdateUserRequest, {"user": user_pb2.UserUpdate(display_name="x")}),
        ("DisableUser", user_pb2.DisableUserRequest, {}),
        ("EnableUser", user_pb2.EnableUserRequest, {}),
        ("UnlockUser", user_pb2.UnlockUserRequest, {}),
        ("DeleteUser", user_pb2.DeleteUserRequest, {}),
        ("RevokeUserTokens", user_pb2.RevokeUserTokensRequest, {}),
    ]

    for method, request, fields in methods:
        failures = []
        for user_id in (user.id, UNKNOWN):
            with pytest.raises(NotFound) as refusal:
                await stranger.users(method, request(user_id=user_id, **fields))
            failures.append((refusal.value.text, refusal.value.violations))
        assert failures[0] == failures[1]
    assert (await stranger.users("ListUsers", user_pb2.ListUsersRequest())).users == []
    assert (await stack.admin().users("GetUser", user_pb2.GetUserRequest(user_id=user.id))).user.state == pb.ACTIVE


async def test_ids_that_are_none_are_named(stack: Stack) -> None:
    """Never INTERNAL, never NOT_FOUND."""
    for user_id in ("", "1", UNKNOWN.upper(), f"{{{UNKNOWN}}}", "' OR 1=1--"):
        with pytest.raises(InvalidRequest) as refusal:
            await stack.admin().users("GetUser", user_pb2.GetUserRequest(user_id=user_id))
        assert refusal.value.violations[0].field == "user_id"


@pytest.mark.parametrize("path", ["email_verified", "verified", "tenant_id", "create_time", "password_hash", "state", "*", "", "user.email", "id"])
async def test_a_mask_names_what_may_be_changed_only(stack: Stack, path: str) -> None:
    """Mass assignment (A123, CVE-2026-27946)."""
    user = (await stack.account(password="")).user

    with pytest.raises(InvalidRequest) as refusal:
        await update(stack, user.id, path, "display_name", display_name="changed")

    assert refusal.value.violations[0].field.startswith("update_mask")
    assert (await stack.admin().users("GetUser", user_pb2.GetUserRequest(user_id=user.id))).user == user


async def test_an_update_changes_what_the_mask_names(stack: Stack) -> None:
    """Without a mask what is not empty; with one also emptiness."""
    name = f"n{secrets.token_hex(6)}"
    user = (await stack.account(username=name, display_name="Before", password="")).user

    plain = await update(stack, user.id, display_name="After")
    masked = await update(stack, user.id, "username", username="", display_name="Ignored")

    assert (plain.username, plain.display_name) == (name, "After")
    assert (masked.username, masked.display_name, masked.email) == ("", "After", user.email)
    assert len({user.etag, plain.etag, masked.etag}) == 3
    with pytest.raises(InvalidRequest) as refusal:
        await update(stack, user.id, "email", email="")
    assert refusal.value.violations[0].field == "user.email"


async def test_a_new_address_is_not_verified(stack: Stack) -> None:
    """Another spelling of the same one still is."""
    email, moved = stack.email(), stack.email("moved")
    user = (await stack.account(email=email)).user

    respelt = await update(stack, user.id, email=email.upper())
    changed = await update(stack, user.id, email=moved)

    assert (respelt.email, respelt.email_verified) == (email.upper(), True)
    assert (changed.email, changed.email_verified) == (moved, False)
    with pytest.raises(InvalidCredentials):
        await stack.login(email)
    await stack.client().auth("VerifyEmail", pb.VerifyEmailRequest(code=await stack.code(moved)))
    assert (await stack.login(moved)).user.email_verified


async def test_a_stale_etag_changes_nothing(stack: Stack) -> None:
    """Two administrators at once: the second is told to look again."""
    user = (await stack.account(password="")).user
    await update(stack, user.id, etag=user.etag, display_name="First")

    with pytest.raises(EtagMismatch):
        await update(stack, user.id, etag=user.etag, display_name="Second")
    with pytest.raises(EtagMismatch):
        await stack.admin().users("DeleteUser", user_pb2.DeleteUserRequest(user_id=user.id, etag=user.etag))


async def test_taken_names_stay_with_their_owners(stack: Stack) -> None:
    """Also when both want one at the same moment."""
    owner, name = stack.email(), f"n{secrets.token_hex(6)}"
    await stack.account(email=owner, username=name, password="")
    users = [(await stack.account(password="")).user for _ in range(6)]

    with pytest.raises(AlreadyExists):
        await update(stack, users[0].id, email=owner.upper())
    with pytest.raises(AlreadyExists):
        await update(stack, users[0].id, username=name.upper())
    wanted = f"n{secrets.token_hex(6)}"
    outcomes = await gather(*(update(stack, user.id, username=wanted, client=stack.admin(at=n % 2)) for n, user in enumerate(users)))
    assert [type(each) for each in outcomes].count(pb.User) == 1
    assert {type(each) for each in outcomes} == {pb.User, AlreadyExists}


async def test_a_disabled_account_is_out_everywhere_before_ok(stack: Stack) -> None:
    """Its login, its sessions, its refresh tokens; and enabling it revives none of them."""
    email = stack.email()
    await stack.account(email=email)
    session = await stack.login(email)
    mine = stack.client(token=session.tokens.access_token)

    answer = await stack.admin().users("DisableUser", user_pb2.DisableUserRequest(user_id=session.user.id))

    assert answer.user.state == pb.DISABLED
    assert answer.consistency_token.startswith("revoked-")
    revocation = stack.peers.token.revocations_of(session.user.id)[0]
    assert revocation.subject_disabled
    for attempt in (stack.login(email), mine.auth("GetMe", pb.GetMeRequest())):
        assert isinstance((await gather(attempt))[0], (InvalidCredentials, TokenInvalid))
    enabled = await stack.admin().users("EnableUser", user_pb2.EnableUserRequest(user_id=session.user.id))
    assert enabled.user.state == pb.ACTIVE
    with pytest.raises(TokenInvalid):
        await mine.auth("GetMe", pb.GetMeRequest())
    await stack.login(email)


async def test_a_deleted_account_leaves_its_names(stack: Stack) -> None:
    """And nothing that works."""
    email, name = stack.email(), f"n{secrets.token_hex(6)}"
    user = (await stack.account(email=email, username=name)).user
    session = await stack.session(email)

    await stack.admin().users("DeleteUser", user_pb2.DeleteUserRequest(user_id=user.id, etag=(await stack.login(email)).user.etag))

    with pytest.raises(InvalidCredentials):
        await stack.login(email)
    with pytest.raises(TokenInvalid):
        await session.auth("GetMe", pb.GetMeRequest())
    again = (await stack.account(email=email, username=name)).user
    assert again.id != user.id


async def test_nobody_shuts_himself_out(stack: Stack) -> None:
    """The last administrator would."""
    user = (await stack.account(password="")).user
    admin = stack.admin(subject=user.id)

    with pytest.raises(PreconditionFailed):
        await admin.users("DisableUser", user_pb2.DisableUserRequest(user_id=user.id))
    with pytest.raises(PreconditionFailed):
        await admin.users("DeleteUser", user_pb2.DeleteUserRequest(user_id=user.id))


@pytest.mark.parametrize("method", ["DisableUser", "DeleteUser", "RevokeUserTokens"])
async def test_ok_comes_only_when_the_tokens_are_refused(stack: Stack, method: str) -> None:
    """Token away: the change stands, the answer is FANOUT_PENDING, and the same request_id gets OK once it is done (D03)."""
    email = stack.email()
    user = (await stack.account(email=email, password="")).user
    request = getattr(user_pb2, f"{method}Request")(user_id=user.id, request_id=str(uuid4()))
    admin = stack.admin()
    stack.peers.token.is_down = True
    with pytest.raises(DependencyUnavailable):  # even the administrator's own token cannot be verified
        await admin.users(method, request)
    stack.peers.token.is_down = False

    with stack.revocation_refused():
        for at in (0, 1):
            with pytest.raises(FanoutPending):
                await stack.again(admin, at).users(method, request)
    assert stack.peers.token.revocations_of(user.id) == []
    answer = await stack.again(admin, 1).users(method, request)

    assert answer.consistency_token
    assert (await admin.users(method, request)).consistency_token == answer.consistency_token
    assert len(stack.peers.token.revocations_of(user.id)) == 1


@pytest.mark.parametrize("method", ["DisableUser", "DeleteUser", "RevokeUserTokens", "RevokeUserSession"])
async def test_not_found_comes_only_when_the_tokens_are_refused(stack: Stack, method: str) -> None:
    """Who repeats a deletion without its request_id must not take "there is none" for "its tokens are refused"; strangers' tenants are none of it."""
    user = (await stack.account(password="")).user
    fields = {"session_id": str(uuid4())} if method == "RevokeUserSession" else {}
    request, admin = getattr(user_pb2, f"{method}Request")(user_id=user.id, **fields), stack.admin()

    with stack.revocation_refused():
        with pytest.raises(FanoutPending):
            await admin.users("DeleteUser", user_pb2.DeleteUserRequest(user_id=user.id))
        with pytest.raises(FanoutPending):
            await stack.again(admin, 1).users(method, request)
        with pytest.raises(NotFound):
            await stack.admin(tenant_id=str(uuid4())).users(method, request)
        with pytest.raises(NotFound):
            await admin.users("GetUser", user_pb2.GetUserRequest(user_id=user.id))
    assert stack.peers.token.revocations_of(user.id) == []
    with pytest.raises(NotFound):
        await stack.again(admin, 1).users(method, request)

    assert len(stack.peers.token.revocations_of(user.id)) == 1


async def test_a_deletion_that_has_begun_is_not_refused_for_its_etag(stack: Stack) -> None:
    """Its roles are gone by then: who heard ETAG_MISMATCH would think that nothing had happened."""
    user, other, admin = (await stack.account(password="")).user, (await stack.account(password="")).user, stack.admin()

    stack.peers.bindings.meanwhile = partial(update, stack, user.id, display_name="Other")
    await admin.users("DeleteUser", user_pb2.DeleteUserRequest(user_id=user.id, etag=user.etag))
    await update(stack, other.id, display_name="Other")
    with pytest.raises(EtagMismatch):
        await admin.users("DeleteUser", user_pb2.DeleteUserRequest(user_id=other.id, etag=other.etag))

    with pytest.raises(NotFound):
        await admin.users("GetUser", user_pb2.GetUserRequest(user_id=user.id))
    assert (user.id in stack.peers.bindings.deleted, other.id in stack.peers.bindings.deleted) == (True, False)


async def test_any_instances_relay_finishes_what_is_pending(stack: Stack) -> None:
    """Nobody needs to ask again; and it is done once."""
    user = (await stack.account(password="")).user
    request = user_pb2.DisableUserRequest(user_id=user.id, request_id=str(uuid4()))
    admin = stack.admin()
    with stack.revocation_refused():
        with pytest.raises(FanoutPending):
            await admin.users("DisableUser", request)
        await stack.sql("UPDATE task SET next_attempt_time = now() WHERE done_time IS NULL")
        assert await stack.instances[1].identity.tasks.do_due() == 0

    await stack.sql("UPDATE task SET next_attempt_time = now() WHERE done_time IS NULL")
    done = await gather(*(each.identity.tasks.do_due() for each in stack.instances))

    assert sum(done) == 1
    assert len(stack.peers.token.revocations_of(user.id)) == 1
    answer = await admin.users("DisableUser", request)
    assert answer.consistency_token == f"revoked-{stack.peers.token.revocations_of(user.id)[0].request_id}"


async def test_a_relay_does_all_that_waits_and_leaves_a_peer_alone_that_does_not_answer(stack: Stack) -> None:
    """After an outage of token a hundred thousand may wait: at twenty a second, the last of them would be accepted for an hour and a half."""
    await stack.sql("DELETE FROM task")
    before, waiting = len(stack.peers.token.revocations), "SELECT count(*) AS n FROM task WHERE done_time IS NULL"
    await stack.sql(
        "INSERT INTO task (id, kind, tenant_id, target_id, is_disabled, note, attempts, next_attempt_time, create_time, consistency_token)"
        " SELECT gen_random_uuid(), 'revoke_subject', $1, gen_random_uuid(), false, 'test', 0, now(), now(), '' FROM generate_series(1, 3 * $2::int)",
        UUID(TENANT),
        BATCH,
    )

    with stack.revocation_refused():
        assert await stack.identity.tasks.do_due() == 0
    assert (await stack.sql(f"{waiting} AND attempts = 0"))[0]["n"] == 2 * BATCH

    assert await stack.identity.tasks.do_due() == 2 * BATCH
    assert (await stack.sql(waiting))[0]["n"] == BATCH
    assert len(stack.peers.token.revocations) - before == 2 * BATCH
    await stack.sql("DELETE FROM task")


async def test_logging_out_ends_the_session_or_all(stack: Stack) -> None:
    """One session is ended by its token, all by any of them."""
    email = stack.email()
    await stack.account(email=email)
    one, two, three = [await stack.session(email) for _ in range(3)]

    assert (await one.auth("Logout", pb.LogoutRequest())).consistency_token
    with pytest.raises(TokenInvalid):
        await one.auth("GetMe", pb.GetMeRequest())
    await two.auth("GetMe", pb.GetMeRequest())
    assert (await two.auth("LogoutAll", pb.LogoutAllRequest())).consistency_token
    for each in (two, three):
        with pytest.raises(TokenInvalid):
            await each.auth("GetMe", pb.GetMeRequest())


async def test_a_changed_password_keeps_this_session_only(stack: Stack) -> None:
    """Whoever else was in, is out (A108); and a repeat of the request gets the same answer though the old password is wrong by now."""
    email = stack.email()
    await stack.account(email=email)
    mine, other = await stack.session(email), await stack.session(email)
    request = pb.ChangePasswordRequest(current_password=PASSWORD, new_password=OTHER_PASSWORD, request_id=str(uuid4()))

    answer = await mine.auth("ChangePassword", request)

    assert answer == await mine.auth("ChangePassword", request)
    await mine.auth("GetMe", pb.GetMeRequest())
    with pytest.raises(TokenInvalid):
        await other.auth("GetMe", pb.GetMeRequest())
    with pytest.raises(InvalidCredentials):
        await stack.login(email)
    await stack.login(email, OTHER_PASSWORD)
    with pytest.raises(PasswordRejected) as refusal:
        await mine.auth("ChangePassword", pb.ChangePasswordRequest(current_password=OTHER_PASSWORD, new_password="aaaaaaaaaaaaaaa"))
    assert refusal.value.violations[0].field == "new_password"
    with pytest.raises(InvalidCredentials):
        await mine.auth("ChangePassword", pb.ChangePasswordRequest(current_password=PASSWORD, new_password=PASSWORD))


async def test_a_request_id_that_two_sessions_use_logs_out_both(stack: Stack) -> None:
    """A program that numbers its requests the same way on two devices must not be told that it is logged out when it is not."""
    email, request = stack.email(), pb.LogoutRequest(request_id=str(uuid4()))
    await stack.account(email=email)
    one, two = await stack.session(email), await stack.session(email)

    await one.auth("Logout", request)
    await two.auth("GetMe", pb.GetMeRequest())
    with pytest.raises(IdempotencyConflict):
        await two.auth("Logout", request)
    await two.auth("Logout", pb.LogoutRequest(request_id=str(uuid4())))

    for each in (one, two):
        with pytest.raises(TokenInvalid):
            await each.auth("GetMe", pb.GetMeRequest())
