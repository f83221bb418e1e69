"""Sessions of accounts, as administrators see and end them."""

from typing import Any
from uuid import uuid4

import pytest

from tests.service.identity.conftest import TENANT, Client, Stack
from watchword.errors import FanoutPending, IdempotencyConflict, NotFound, PageTokenInvalid, PermissionDenied
from watchword.identity.v1 import user_pb2

UNKNOWN = "018f0000-0000-7000-8000-000000000000"


async def page(admin: Client, user_id: str, **fields: Any) -> user_pb2.ListUserSessionsResponse:
    answer: user_pb2.ListUserSessionsResponse = await admin.users("ListUserSessions", user_pb2.ListUserSessionsRequest(user_id=user_id, **fields))
    return answer


async def revoke(admin: Client, user_id: str, session_id: str, **fields: Any) -> str:
    request = user_pb2.RevokeUserSessionRequest(user_id=user_id, session_id=session_id, **fields)
    return str((await admin.users("RevokeUserSession", request)).consistency_token)


async def refusal(admin: Client, method: str, **fields: Any) -> tuple[Any, ...]:
    """Return what a caller sees of a refusal as not found."""
    with pytest.raises(NotFound) as caught:
        await admin.users(method, getattr(user_pb2, f"{method}Request")(**fields))
    return caught.value.text, caught.value.violations


async def test_an_administrator_sees_the_sessions_of_an_account(stack: Stack) -> None:
    """Latest first, page by page; and which one the question came from, if it is of them."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    ids = [(await stack.login(email)).tokens.session_id for _ in range(3)]
    admin = stack.admin()

    first = await page(admin, user.id)
    second = await page(admin, user.id, page_token=first.next_page_token)

    assert [each.session_id for each in (*first.sessions, *second.sessions)] == ids[::-1]
    assert {(each.user_id, each.acr, each.current) for each in first.sessions} == {(user.id, "pwd", False)}
    assert second.next_page_token == ""
    mine = await stack.session(email)
    stack.peers.permissions.administrators.add(user.id)
    assert [each.current for each in (await page(mine, user.id)).sessions] == [True, False]
    with pytest.raises(PageTokenInvalid):
        await page(admin, user.id, page_token="rubbish")


async def test_one_session_of_an_account_is_ended(stack: Stack) -> None:
    """By a revocation of its own under a durable order, written down with who ordered it; the account's other session goes on."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    lost, kept = [(await stack.login(email)).tokens for _ in range(2)]
    subject = str(uuid4())
    admin, request_id = stack.admin(subject=subject), str(uuid4())

    once = await revoke(admin, user.id, lost.session_id, request_id=request_id)

    assert once
    assert await revoke(stack.again(admin, 1), user.id, lost.session_id, request_id=request_id) == once
    (revocation,) = stack.peers.token.revocations_of(lost.session_id)
    assert (revocation.tenant_id, revocation.session_id, revocation.cause) == (TENANT, lost.session_id, "revoked_by_administrator")
    assert [each.session_id for each in (await page(admin, user.id)).sessions] == [kept.session_id]
    rows = await stack.sql(
        "SELECT actor_id, details->>'session_id' AS session_id FROM suite.audit_event WHERE type = 'user_session_revoked' AND target_id = $1", user.id
    )
    assert [tuple(row) for row in rows] == [(subject, lost.session_id)]
    with pytest.raises(IdempotencyConflict):
        await revoke(admin, user.id, kept.session_id, request_id=request_id)


async def test_a_session_is_ended_by_its_owners_account_only(stack: Stack) -> None:
    """Somebody else's, another tenant's, one that never was: one answer; nothing happens, and nothing is written down."""
    email = stack.email()
    user, other = (await stack.account(email=email)).user, (await stack.account()).user
    session_id = (await stack.login(email)).tokens.session_id
    admin, stranger = stack.admin(), stack.admin(tenant_id=str(uuid4()))

    never = await refusal(admin, "RevokeUserSession", user_id=other.id, session_id=UNKNOWN)

    assert await refusal(admin, "RevokeUserSession", user_id=other.id, session_id=session_id) == never
    assert await refusal(admin, "RevokeUserSession", user_id=UNKNOWN, session_id=session_id) == never
    assert await refusal(stranger, "RevokeUserSession", user_id=user.id, session_id=session_id) == never
    for client, user_id in ((stranger, user.id), (admin, UNKNOWN)):
        assert await refusal(client, "ListUserSessions", user_id=user_id) == never
    assert stack.peers.token.revocations_of(session_id) == []
    assert await stack.sql("SELECT FROM suite.audit_event WHERE type = 'user_session_revoked' AND target_id = $1", user.id) == []


async def test_nobody_ends_sessions_of_who_may_do_more(stack: Stack) -> None:
    """The rule of all administration; the refusal is written down."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    session_id = (await stack.login(email)).tokens.session_id
    subject, powers = str(uuid4()), stack.peers.permissions.powers
    powers[user.id], powers[subject] = {"invoices.approve"}, {"tokens.revoke"}
    clerk = stack.client(token=stack.peers.token.grant(subject))

    with pytest.raises(PermissionDenied) as caught:
        await revoke(clerk, user.id, session_id)

    assert "invoices.approve" in caught.value.text
    assert stack.peers.token.revocations_of(session_id) == []
    assert await stack.sql("SELECT FROM suite.audit_event WHERE type = 'access_denied' AND actor_id = $1 AND target_id = $2", subject, user.id)
    powers[subject].add("invoices.approve")
    assert await revoke(clerk, user.id, session_id)
    powers[subject].clear()
    with pytest.raises(PermissionDenied):
        await page(clerk, user.id)


async def test_ok_comes_only_when_the_session_is_refused(stack: Stack) -> None:
    """Token away: the order stands, the answer is FANOUT_PENDING, and the same request_id gets OK once it is done (D03)."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    session_id, request_id = (await stack.login(email)).tokens.session_id, str(uuid4())
    admin = stack.admin()
    with stack.revocation_refused():
        for at in (0, 1):
            with pytest.raises(FanoutPending):
                await revoke(stack.again(admin, at), user.id, session_id, request_id=request_id)
    assert stack.peers.token.revocations_of(session_id) == []

    assert await revoke(stack.again(admin, 1), user.id, session_id, request_id=request_id)

    assert len(stack.peers.token.revocations_of(session_id)) == 1
