"""Sessions as their owners and identity see them: listed, and ended one by one."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest

from tests.service.token.conftest import TENANT, TokenInstances
from tests.service.token.test_sessions import refresh, refused
from watchword.errors import FanoutPending, InsufficientScope, InvalidRequest, NotFound, PageTokenInvalid, PermissionDenied, TokenInvalid
from watchword.token.v1 import session_pb2, session_pb2_grpc, token_pb2

REQUEST_ID = "00000000-0000-4000-8000-000000000001"
Metadata = tuple[tuple[str, str], ...]


@dataclass
class Sessions:
    """SessionService at all instances."""

    stubs: "list[session_pb2_grpc.SessionServiceAsyncStub]"
    token: TokenInstances

    async def page(self, caller: Metadata, *, at: int = 0, **fields: Any) -> session_pb2.ListSessionsResponse:
        answer: session_pb2.ListSessionsResponse = await self.stubs[at].ListSessions(session_pb2.ListSessionsRequest(**fields), metadata=caller)
        return answer

    async def ids(self, caller: Metadata, **fields: Any) -> list[str]:
        return [session.session_id for session in (await self.page(caller, **fields)).sessions]

    async def revoke(self, caller: Metadata, session_id: str, *, at: int = 0, **fields: Any) -> session_pb2.RevokeSessionResponse:
        request = session_pb2.RevokeSessionRequest(session_id=session_id, **fields)
        answer: session_pb2.RevokeSessionResponse = await self.stubs[at].RevokeSession(request, metadata=caller)
        return answer

    async def failure(self, caller: Metadata, session_id: str, **fields: Any) -> tuple[Any, ...]:
        """Return all that a caller can see of a refusal, with a request id that is always the same."""
        try:
            await self.revoke((*caller, ("x-request-id", REQUEST_ID)), session_id, **fields)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details(), sorted(error.trailing_metadata() or ()), sorted(error.initial_metadata() or ())
        raise AssertionError("it should have failed")

    async def statuses(self, text: str) -> set[str]:
        """Return what the instances say of a token, all asked at once."""
        return set(await asyncio.gather(*(self.token.status(text, at=at) for at in range(len(self.stubs)))))

    async def execute(self, statement: str, *arguments: object) -> Any:
        connection = await asyncpg.connect(self.token.database_url, server_settings={"search_path": "token,suite"})
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
async def sessions(token: TokenInstances) -> AsyncIterator[Sessions]:
    """SessionService at all instances."""
    channels = [grpc.aio.insecure_channel(address) for address in token.addresses]
    yield Sessions([session_pb2_grpc.SessionServiceStub(channel) for channel in channels], token)
    for channel in channels:
        await channel.close()


def bearer(tokens: token_pb2.TokenSet) -> Metadata:
    return (("authorization", f"Bearer {tokens.access_token}"),)


async def test_a_person_sees_the_sessions_of_his_own_latest_first(sessions: Sessions) -> None:
    """With what helps him to know them again: from where, with what, since when. And which one he is looking from."""
    subject, client_id = str(uuid4()), str(uuid4())
    first = await sessions.token.issue(subject=subject, address="192.0.2.7", user_agent="Firefox on Linux", acr="pwd")
    second = await sessions.token.issue(subject=subject, at=1, client_id=client_id)
    await sessions.token.issue()
    await refresh(sessions.token, first.refresh_token)

    listed = (await sessions.page(bearer(second), at=2)).sessions

    assert [session.session_id for session in listed] == [second.session_id, first.session_id]
    assert [session.current for session in listed] == [True, False]
    assert [session.client_id for session in listed] == [client_id, ""]
    known = listed[1]
    assert (known.subject, known.address, known.user_agent, known.acr) == (subject, "192.0.2.7", "Firefox on Linux", "pwd")
    assert list(known.scopes) == ["account", "tokens.verify"]
    assert known.create_time.ToDatetime() < known.last_used_time.ToDatetime() < known.expire_time.ToDatetime()
    assert listed[0].create_time == listed[0].last_used_time


async def test_what_is_over_is_not_listed(sessions: Sessions) -> None:
    """Ended, past its time, or idle for too long. A session whose access token may still be good is not over."""
    subject = str(uuid4())
    names = ("ended", "expired", "idle", "just idle", "live")
    made = {name: await sessions.token.issue(subject=subject) for name in names}
    ids = {name: tokens.session_id for name, tokens in made.items()}
    await sessions.revoke(bearer(made["ended"]), ids["ended"])
    await sessions.execute("UPDATE session SET expire_time = now() WHERE id = $1", ids["expired"])
    for name in ("idle", "just idle"):
        await sessions.execute("UPDATE refresh_token SET expire_time = now() WHERE session_id = $1", ids[name])
    await sessions.execute("UPDATE session SET last_used_time = now() - interval '2 hours' WHERE id = ANY($1::uuid[])", [ids["idle"], ids["live"]])

    assert await sessions.ids(bearer(made["live"])) == [ids["live"], ids["just idle"]]


async def test_pages_hold_every_session_once(sessions: Sessions) -> None:
    """Also while others begin and end. A page token is good for its own caller only."""
    subject = str(uuid4())
    made = [await sessions.token.issue(subject=subject, at=number % 3) for number in range(7)]
    caller, seen, page_token = bearer(made[-1]), [], ""
    while True:
        page = await sessions.page(caller, page_size=3, page_token=page_token)
        seen += [session.session_id for session in page.sessions]
        if not page.next_page_token:
            break
        page_token = page.next_page_token
        await sessions.token.issue(subject=subject)

    assert seen == [tokens.session_id for tokens in reversed(made)]
    stranger = bearer(await sessions.token.issue())
    assert type(await refused(sessions.page(stranger, page_token=page_token))) is PageTokenInvalid
    assert type(await refused(sessions.page(caller, page_size=-1))) is InvalidRequest


async def test_a_page_holds_two_hundred_at_most(sessions: Sessions) -> None:
    """However many are asked for; fifty if nothing is said."""
    subject = str(uuid4())
    tokens = await sessions.token.issue(subject=subject)
    copy = """
        INSERT INTO session SELECT gen_random_uuid(), tenant_id, subject, client_id, kind, scopes, audience, acr, auth_time, address, user_agent,
                                   create_time, last_used_time, expire_time, end_time, end_cause
        FROM session, generate_series(1, 250) WHERE id = $1
    """
    await sessions.execute(copy, tokens.session_id)

    assert len(await sessions.ids(bearer(tokens), page_size=1000)) == 200
    assert len(await sessions.ids(bearer(tokens))) == 50


async def test_services_say_whose_sessions(sessions: Sessions) -> None:
    """Identity acts for others; people cannot say that they are somebody else."""
    tokens, tenant_id = await sessions.token.issue(), str(uuid4())
    subject = (await sessions.page(bearer(tokens))).sessions[0].subject
    elsewhere = await sessions.token.issue(tenant_id=tenant_id, subject=subject, revision=0)
    identity = sessions.token.identity

    assert await sessions.ids(identity, tenant_id=TENANT, subject=subject) == [tokens.session_id]
    assert await sessions.ids(identity, tenant_id=tenant_id, subject=subject) == [elsewhere.session_id]
    assert not (await sessions.page(identity, tenant_id=TENANT, subject=subject)).sessions[0].current
    incompletes: list[dict[str, Any]] = [{"subject": subject}, {"tenant_id": TENANT}, {}]
    others: list[dict[str, Any]] = [{"subject": str(uuid4())}, {"tenant_id": tenant_id}]
    for incomplete in incompletes:
        assert type(await refused(sessions.page(identity, **incomplete))) is InvalidRequest
    for other in others:
        assert type(await refused(sessions.page(bearer(tokens), **other))) is InvalidRequest
    assert await sessions.ids(bearer(tokens), subject=subject, tenant_id=TENANT) == [tokens.session_id]
    for name in ("rbac", "gateway"):
        assert type(await refused(sessions.page(sessions.token.keys.metadata(name, to="token")))) is PermissionDenied


async def test_identity_asks_whose_a_session_is(sessions: Sessions) -> None:
    """Also of one that is over, for ending it may have to be repeated. People and other services ask by listing, or not at all."""
    tokens, tenant_id = await sessions.token.issue(), str(uuid4())
    subject, identity, get = (await sessions.page(bearer(tokens))).sessions[0].subject, sessions.token.identity, sessions.stubs[1].GetSession
    asked = {"session_id": tokens.session_id, "tenant_id": TENANT, "subject": subject}

    for _ in range(2):
        found = (await get(session_pb2.GetSessionRequest(**asked), metadata=identity)).session
        assert (found.session_id, found.subject, found.current) == (tokens.session_id, subject, False)
        await sessions.revoke(identity, tokens.session_id, tenant_id=TENANT)
    others = [asked | {"subject": str(uuid4())}, asked | {"tenant_id": tenant_id}, asked | {"session_id": str(uuid4())}]
    for other in others:
        assert type(await refused(get(session_pb2.GetSessionRequest(**other), metadata=identity))) is NotFound
    for caller in (bearer(await sessions.token.issue(subject=subject)), sessions.token.keys.metadata("rbac", to="token")):
        assert type(await refused(get(session_pb2.GetSessionRequest(**asked), metadata=caller))) is PermissionDenied


async def test_a_client_of_its_own_has_no_sessions(sessions: Sessions) -> None:
    """client_credentials opens none; and a token without the scope sees nobody's."""
    client_id = str(uuid4())
    client: dict[str, Any] = {"subject": client_id, "client_id": client_id, "type": token_pb2.PRINCIPAL_TYPE_CLIENT, "with_refresh_token": False}
    own = await sessions.token.issue(**client)
    narrow = await sessions.token.issue(**client, scopes=["tokens.verify"])

    assert await sessions.ids(bearer(own)) == []
    assert type(await refused(sessions.page(bearer(narrow)))) is InsufficientScope
    assert type(await refused(sessions.revoke(bearer(narrow), str(uuid4())))) is InsufficientScope


async def test_a_revoked_session_is_refused_by_every_instance(sessions: Sessions) -> None:
    """One of several, from another one; round after round, all instances asked at once."""
    subject = str(uuid4())
    mine = await sessions.token.issue(subject=subject)
    for round_number in range(50):
        other = await sessions.token.issue(subject=subject, at=round_number % 3)
        answer = await sessions.revoke(bearer(mine), other.session_id, at=(round_number + 1) % 3)
        assert await sessions.statuses(other.access_token) == {"REVOKED"}
        assert answer.consistency_token

    assert type(await refused(refresh(sessions.token, other.refresh_token))) is TokenInvalid
    assert await sessions.statuses(mine.access_token) == {"VALID"}
    assert await sessions.ids(bearer(mine)) == [mine.session_id]


async def test_a_person_may_end_the_session_he_is_in(sessions: Sessions) -> None:
    tokens = await sessions.token.issue()
    await sessions.revoke(bearer(tokens), tokens.session_id)

    assert await sessions.statuses(tokens.access_token) == {"REVOKED"}
    assert type(await refused(sessions.revoke(bearer(tokens), tokens.session_id))) is TokenInvalid


async def test_another_ones_session_is_as_unknown_as_one_that_never_was(sessions: Sessions) -> None:
    """The same bytes, and nothing happens; also to identity, if it names the wrong tenant."""
    mine, theirs = await sessions.token.issue(), await sessions.token.issue()
    elsewhere = await sessions.token.issue(tenant_id=str(uuid4()), revision=0)
    never = await sessions.failure(bearer(mine), str(uuid4()))

    assert await sessions.failure(bearer(mine), theirs.session_id) == never
    assert await sessions.failure(bearer(mine), elsewhere.session_id) == never
    assert never[0] is grpc.StatusCode.NOT_FOUND
    assert type(await refused(sessions.revoke(sessions.token.identity, elsewhere.session_id, tenant_id=TENANT))) is NotFound
    assert type(await refused(sessions.revoke(sessions.token.identity, theirs.session_id))) is InvalidRequest
    for tokens in (theirs, elsewhere):
        assert await sessions.statuses(tokens.access_token) == {"VALID"}
    await sessions.revoke(sessions.token.identity, theirs.session_id, tenant_id=TENANT)
    assert await sessions.statuses(theirs.access_token) == {"REVOKED"}


async def test_ending_a_session_again_is_confirmed_again(sessions: Sessions) -> None:
    """A first call may have been stored and not confirmed everywhere: whoever repeats it, with or without request_id, is told when it is."""
    subject, request_id = str(uuid4()), str(uuid4())
    mine, other = await sessions.token.issue(subject=subject), await sessions.token.issue(subject=subject)
    once = await sessions.revoke(bearer(mine), other.session_id, request_id=request_id)

    assert await sessions.revoke(bearer(mine), other.session_id, request_id=request_id, at=1) == once
    assert not isinstance(await sessions.revoke(bearer(mine), other.session_id, at=2), FanoutPending)
    assert await sessions.statuses(other.access_token) == {"REVOKED"}
    written = "SELECT actor_id, details->>'cause' AS cause FROM audit_event WHERE type = 'tokens_revoked' AND target_id = $1::text ORDER BY id"
    assert [tuple(row) for row in await sessions.execute(written, other.session_id)] == [(subject, "session_revoked")] * 2
