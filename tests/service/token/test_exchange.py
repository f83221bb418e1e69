"""Token exchange: what is handed out is the subject's token with less, and what ends that one ends it."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest

from tests.forgery import Original, claims_of, good_claims
from tests.service.token.conftest import ISSUER, KID, TENANT, TokenInstances
from tests.service.token.test_sessions import refused
from watchword.errors import DepthExceeded, IdempotencyConflict, InsufficientScope, InvalidRequest, PermissionDenied, TokenInvalid
from watchword.token.v1 import session_pb2, session_pb2_grpc, token_pb2

SCOPES = ["account", "tokens.verify", "tokens.introspect"]
CLIENTS = ["tokens.verify", "tokens.introspect", "tokens.revoke"]
COMMON = ["tokens.verify", "tokens.introspect"]


async def exchange(token: TokenInstances, subject_token: str, client_id: str = "", *, at: int = 0, **fields: Any) -> token_pb2.ExchangeTokenResponse:
    """Trade a token, by a client that may have CLIENTS."""
    known: dict[str, Any] = {"client_id": client_id or str(uuid4()), "tenant_id": TENANT, "client_scopes": CLIENTS}
    revision = fields.pop("revision", None)
    asked = {**known, "revision": await token.revision() if revision is None else revision, **fields}
    request = token_pb2.ExchangeTokenRequest(subject_token=subject_token, **asked)
    answer: token_pb2.ExchangeTokenResponse = await token.stubs[at].ExchangeToken(request, metadata=token.identity)
    return answer


async def login(token: TokenInstances, **fields: Any) -> token_pb2.TokenSet:
    return await token.issue(**{"scopes": SCOPES, "roles": ["clerk"], "acr": "pwd", **fields})


async def statuses(token: TokenInstances, text: str, **fields: Any) -> set[str]:
    """Return what the instances say of a token, all asked at once."""
    return set(await asyncio.gather(*(token.status(text, at=at, **fields) for at in range(len(token.stubs)))))


def signed(token: TokenInstances) -> Original:
    """Return the makings of tokens that the suite itself would sign."""
    return Original.of(token.private_key, KID, good_claims(issuer=ISSUER, tenant_id=TENANT, scope=" ".join(SCOPES)))


async def rows(token: TokenInstances, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(token.database_url)
    try:
        return [tuple(row) for row in await connection.fetch(statement, *arguments)]
    finally:
        await connection.close()


async def test_an_exchanged_token_is_the_subjects_with_less(token: TokenInstances) -> None:
    """A078: the same person, session and proof; fewer scopes, no roles, no refresh token; and it says who acts."""
    client_id, tokens = str(uuid4()), await login(token, subject=(subject := str(uuid4())))
    answer = await exchange(token, tokens.access_token, client_id)
    old, new = claims_of(tokens.access_token), claims_of(answer.tokens.access_token)
    verified = await token.stubs[2].VerifyToken(token_pb2.VerifyTokenRequest(token=answer.tokens.access_token), metadata=token.identity)

    assert (answer.tokens.refresh_token, answer.tokens.session_id, answer.tokens.token_type) == ("", "", "Bearer")
    assert answer.tokens.scope == " ".join(COMMON)
    assert verified.status == token_pb2.VALID
    assert verified.principal == answer.principal
    principal = verified.principal
    assert (principal.subject, principal.session_id, principal.client_id) == (subject, tokens.session_id, client_id)
    assert (list(principal.scopes), list(principal.roles), principal.acr) == (COMMON, [], "pwd")
    assert (principal.actor.subject, principal.actor.HasField("actor")) == (client_id, False)
    kept = ("iss", "sub", "aud", "iat", "tenant_id", "sub_type", "sid", "auth_time", "acr", "rev")
    assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
    assert new["exp"] <= old["exp"]
    assert (new["act"], new["parents"]) == ({"sub": client_id}, [old["jti"]])
    assert new["jti"] != old["jti"]


async def test_only_identity_may_exchange(token: TokenInstances) -> None:
    """It has proved the client; nobody else has."""
    tokens = await login(token)
    request = token_pb2.ExchangeTokenRequest(subject_token=tokens.access_token, client_id=str(uuid4()), tenant_id=TENANT, client_scopes=CLIENTS)
    callers = [token.keys.metadata(name, to="token") for name in ("rbac", "gateway")] + [(("authorization", f"Bearer {tokens.access_token}"),)]

    for caller in callers:
        assert isinstance(await refused(token.stubs[0].ExchangeToken(request, metadata=caller)), PermissionDenied)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"scopes": ["tokens.verify", "tokens.revoke"]}, "scopes"),  # the client's alone
        ({"scopes": ["account"]}, "scopes"),  # the subject's alone
        ({"scopes": ["users.read"]}, "scopes"),  # nobody's
        ({"scopes": ["tokens.verify tokens.revoke"]}, "scopes"),  # two in one
        ({"client_scopes": ["users.read"]}, "scopes"),  # none in common
        ({"client_scopes": []}, "scopes"),
        ({"audience": str(uuid4())}, "audience"),
        ({"audience": "https://elsewhere.test"}, "audience"),
    ],
)
async def test_nothing_is_gained_by_an_exchange(token: TokenInstances, asked: dict[str, Any], field: str) -> None:
    """A078: neither what the subject has not, nor what the client has not."""
    failure = await refused(exchange(token, (await login(token)).access_token, **asked))

    assert type(failure) is InvalidRequest
    assert [violation.field for violation in failure.violations] == [field]


async def test_what_was_given_up_is_gone(token: TokenInstances) -> None:
    """An exchanged token is exchanged for as much or less, by whichever client, and ends no later."""
    first = await exchange(token, (await login(token)).access_token, scopes=["tokens.verify"])
    narrow = first.tokens.access_token

    assert type(await refused(exchange(token, narrow, scopes=["tokens.introspect"]))) is InvalidRequest
    again = await exchange(token, narrow)
    assert again.tokens.scope == "tokens.verify"
    assert claims_of(again.tokens.access_token)["exp"] <= claims_of(narrow)["exp"]


async def test_a_token_for_one_service_is_that_services_alone(token: TokenInstances) -> None:
    """Once its audience is a client's own id, the suite refuses it, another client cannot trade it, and its own cannot widen it again."""
    mine, other = str(uuid4()), str(uuid4())
    own = (await exchange(token, (await login(token)).access_token, mine, audience=mine)).tokens.access_token

    assert await statuses(token, own, audience=mine) == {"VALID"}
    assert await statuses(token, own) == {"WRONG_AUDIENCE"}
    assert type(await refused(exchange(token, own, other))) is TokenInvalid
    assert type(await refused(exchange(token, own, mine, audience="watchword"))) is InvalidRequest
    again = (await exchange(token, own, mine)).tokens.access_token
    assert (await statuses(token, again, audience=mine), await statuses(token, again)) == ({"VALID"}, {"WRONG_AUDIENCE"})


async def test_an_exchanged_token_ends_when_the_subjects_does(token: TokenInstances) -> None:
    """Otherwise exchange upon exchange would be a refresh without end. A token in the leeway after its end is traded no more."""
    now = int(time.time())
    short = signed(token).with_body(iat=now - 290, exp=now + 10)
    answer = await exchange(token, short)
    late = signed(token).with_body(iat=now - 302, exp=now - 2)

    assert claims_of(answer.tokens.access_token)["exp"] == now + 10
    assert 0 < answer.tokens.expires_in <= 10
    assert await token.status(late) == "VALID"
    assert type(await refused(exchange(token, late))) is TokenInvalid


async def test_a_subject_token_must_be_good_and_the_tenants_own(token: TokenInstances) -> None:
    """A077: revoked, expired, forged, of another tenant, for another service, or no access token at all: one answer."""
    revoked, foreign, now = await login(token), await login(token, tenant_id=str(uuid4()), revision=0), int(time.time())
    await token.stubs[1].RevokeToken(token_pb2.RevokeTokenRequest(token=revoked.access_token), metadata=token.identity)
    disabled = await login(token, subject=(subject := str(uuid4())))
    gone = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject, subject_disabled=True)
    await token.stubs[1].RevokeTokens(gone, metadata=token.identity)
    bad = {
        "revoked": revoked.access_token,
        "of a disabled account": disabled.access_token,
        "of another tenant": foreign.access_token,
        "refresh": (await login(token)).refresh_token,
        "malformed": "rubbish",
        "expired": signed(token).with_body(iat=now - 400, exp=now - 100),
        "not yet valid": signed(token).with_body(iat=now + 100, exp=now + 400),
        "of another issuer": signed(token).with_body(iss="https://other.test"),
        "for another service": signed(token).with_body(aud=str(uuid4())),
        "of an unknown key": signed(token).with_head(kid="nobody's"),
        "changed": signed(token).edited(body={"scope": " ".join([*SCOPES, "tokens.revoke"])}),
    }

    async def answer(text: str) -> tuple[Any, ...]:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await exchange(token, text)
        return failure.value.code(), failure.value.details()

    assert {name: await answer(text) for name, text in bad.items()} == dict.fromkeys(bad, await answer("eyJ.eyJ.x"))
    assert type(await refused(exchange(token, revoked.access_token, at=2))) is TokenInvalid
    assert type(await refused(exchange(token, (await login(token)).access_token, tenant_id=str(uuid4())))) is TokenInvalid


async def test_the_chain_of_actors_is_told_and_ends_at_four(token: TokenInstances) -> None:
    """A078: who acts stands first, then on whose behalf. A fifth would not fit into what others can read."""
    clients, text = [str(uuid4()) for _ in range(4)], (await login(token)).access_token
    for number, client_id in enumerate(clients):
        text = (await exchange(token, text, client_id, at=number % 3)).tokens.access_token

    actor = (await token.stubs[1].VerifyToken(token_pb2.VerifyTokenRequest(token=text), metadata=token.identity)).principal.actor
    told = [actor.subject]
    while actor.HasField("actor"):
        actor = actor.actor
        told.append(actor.subject)
    assert told == clients[::-1]
    assert len(claims_of(text)["parents"]) == 4
    assert len(text) <= 4096
    assert type(await refused(exchange(token, text))) is DepthExceeded


async def test_the_client_that_obtained_the_first_token_stays_in_the_chain(token: TokenInstances) -> None:
    """Otherwise its deletion would not reach what was made of its token. A client that acts for itself need not be named twice."""
    obtained, acting, own = str(uuid4()), str(uuid4()), str(uuid4())
    exchanged = (await exchange(token, (await login(token, client_id=obtained)).access_token, acting)).tokens.access_token
    itself = await login(token, subject=own, client_id=own, type=token_pb2.PRINCIPAL_TYPE_CLIENT, with_refresh_token=False)
    of_itself = (await exchange(token, itself.access_token, acting)).tokens.access_token

    assert claims_of(exchanged)["act"] == {"sub": acting, "act": {"sub": obtained}}
    assert claims_of(of_itself)["act"] == {"sub": acting}
    for client_id, text in ((obtained, exchanged), (own, of_itself)):
        await token.stubs[0].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, client_id=client_id), metadata=token.identity)
        assert await statuses(token, text) == {"REVOKED"}


@pytest.mark.parametrize("ended", ["parent", "grandparent", "session", "subject", "first actor", "present actor"])
async def test_whatever_ends_the_subjects_token_or_an_actor_ends_the_exchanged_one(token: TokenInstances, ended: str) -> None:
    """On every instance, the moment that the call has answered; and no successor is made of it any more."""
    subject, clients = str(uuid4()), [str(uuid4()), str(uuid4())]
    first = await login(token, subject=subject)
    second = (await exchange(token, first.access_token, clients[0])).tokens.access_token
    third = (await exchange(token, second, clients[1], at=1)).tokens.access_token
    assert await statuses(token, third) == {"VALID"}
    targets: dict[str, dict[str, Any]] = {
        "session": {"session_id": first.session_id},
        "subject": {"subject": subject},
        "first actor": {"client_id": clients[0]},
        "present actor": {"client_id": clients[1]},
    }

    if ended in targets:
        request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, **targets[ended])
        await token.stubs[2].RevokeTokens(request, metadata=token.identity)
    else:
        text = {"parent": second, "grandparent": first.access_token}[ended]
        await token.stubs[2].RevokeToken(token_pb2.RevokeTokenRequest(token=text), metadata=token.identity)

    assert await statuses(token, third) == {"REVOKED"}
    assert type(await refused(exchange(token, third))) is TokenInvalid


async def test_an_exchange_makes_no_token_younger(token: TokenInstances) -> None:
    """What was issued before a time is refused with all that was made of it, however late that was."""
    subject, now = str(uuid4()), int(time.time())
    old = signed(token).with_body(sub=subject, iat=now - 60, exp=now + 200)
    exchanged = (await exchange(token, old)).tokens.access_token
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject)
    request.issued_before.FromSeconds(now - 30)
    await token.stubs[0].RevokeTokens(request, metadata=token.identity)

    assert await statuses(token, exchanged) == {"REVOKED"}


async def test_a_tenant_that_is_revoked_as_a_whole_takes_exchanged_tokens_along(token: TokenInstances) -> None:
    tenant_id = str(uuid4())
    tokens = await login(token, tenant_id=tenant_id, revision=0)
    exchanged = (await exchange(token, tokens.access_token, tenant_id=tenant_id, revision=0)).tokens.access_token
    await token.stubs[1].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=tenant_id, all_of_tenant=True), metadata=token.identity)

    assert await statuses(token, exchanged) == {"REVOKED"}


async def test_revoking_the_exchanged_token_leaves_the_subjects_alone(token: TokenInstances) -> None:
    """Only what is below falls."""
    tokens = await login(token)
    exchanged = (await exchange(token, tokens.access_token)).tokens.access_token
    below = (await exchange(token, exchanged)).tokens.access_token
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=exchanged), metadata=token.identity)

    assert [await statuses(token, text) for text in (exchanged, below)] == [{"REVOKED"}] * 2
    assert await statuses(token, tokens.access_token) == {"VALID"}


async def test_a_client_that_was_revoked_since_it_was_found_good_gets_nothing(token: TokenInstances) -> None:
    """Whether identity found it good before, or the subject's token is older than the revocation: neither may be refreshed by the other."""
    client_id = str(uuid4())
    tokens, seen = await login(token), await token.revision()
    await token.stubs[0].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, client_id=client_id), metadata=token.identity)

    later = await login(token)

    assert type(await refused(exchange(token, later.access_token, client_id, at=1, revision=seen))) is TokenInvalid
    assert type(await refused(exchange(token, tokens.access_token, client_id, at=1))) is TokenInvalid
    assert await token.status((await exchange(token, later.access_token, client_id)).tokens.access_token) == "VALID"


async def test_a_later_revision_of_the_client_does_not_renew_the_subject(token: TokenInstances) -> None:
    """The subject was found good when its token was issued, and not again at the exchange."""
    subject, seen = str(uuid4()), await token.revision()
    tokens = await login(token, subject=subject, revision=seen)
    exchanged = (await exchange(token, tokens.access_token, revision=seen + 10**6)).tokens.access_token
    await token.stubs[0].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject), metadata=token.identity)

    assert claims_of(exchanged)["rev"] == seen
    assert await statuses(token, exchanged) == {"REVOKED"}


async def test_an_exchange_is_written_down_and_a_refusal_is_none(token: TokenInstances) -> None:
    """From the audit log alone, a token can be followed back to the login."""
    client_id, tokens = str(uuid4()), await login(token)
    answer = await exchange(token, tokens.access_token, client_id)
    await refused(exchange(token, tokens.access_token, client_id, scopes=["users.read"]))

    written = await rows(
        token,
        "SELECT target_id, actor_type, outcome, details->>'subject_token', details->>'actors', details->>'scopes'"
        " FROM suite.audit_event WHERE type = 'token_exchanged' AND actor_id = $1",
        client_id,
    )
    new, old = claims_of(answer.tokens.access_token), claims_of(tokens.access_token)
    assert written == [(new["jti"], "client", "success", old["jti"], client_id, " ".join(COMMON))]


async def test_the_same_request_exchanges_once(token: TokenInstances) -> None:
    """Also when identity has seen another revision meanwhile. Once the subject's token is revoked, there is nothing to repeat."""
    client_id, request_id, tokens = str(uuid4()), str(uuid4()), await login(token)
    once = await exchange(token, tokens.access_token, client_id, request_id=request_id)
    again = await exchange(token, tokens.access_token, client_id, request_id=request_id, at=1, revision=10**6)

    assert again.tokens.access_token == once.tokens.access_token
    assert type(await refused(exchange(token, tokens.access_token, client_id, request_id=request_id, audience=client_id))) is IdempotencyConflict
    assert type(await refused(exchange(token, tokens.access_token, str(uuid4()), request_id=request_id))) is IdempotencyConflict
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.access_token), metadata=token.identity)
    assert type(await refused(exchange(token, tokens.access_token, client_id, request_id=request_id, at=2))) is TokenInvalid


async def test_an_actor_sees_and_ends_no_sessions(token: TokenInstances) -> None:
    """`account` is a scope that clients cannot have, so it never passes on."""
    tokens = await login(token)
    exchanged = (await exchange(token, tokens.access_token)).tokens.access_token
    metadata = (("authorization", f"Bearer {exchanged}"),)
    async with grpc.aio.insecure_channel(token.addresses[0]) as channel:
        sessions: session_pb2_grpc.SessionServiceAsyncStub = session_pb2_grpc.SessionServiceStub(channel)
        listing = sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=metadata)
        ending = sessions.RevokeSession(session_pb2.RevokeSessionRequest(session_id=tokens.session_id), metadata=metadata)
        assert [type(await refused(call)) for call in (listing, ending)] == [InsufficientScope] * 2
