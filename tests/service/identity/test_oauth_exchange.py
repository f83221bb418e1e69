"""Token exchange at the OAuth endpoint, to the letter of RFC 8693, and refresh after a lost answer."""

from typing import Any
from uuid import uuid4

import pytest

from services.identity.oauth import ACCESS_TOKEN, EXCHANGE, JWT
from tests.service.identity.conftest import TENANT, Stack
from tests.service.identity.test_oauth import Known, client, post
from watchword.token.v1 import token_pb2


def form(subject_token: str, **more: str) -> dict[str, str]:
    return {"grant_type": EXCHANGE, "subject_token": subject_token, "subject_token_type": ACCESS_TOKEN, **more}


async def parties(stack: Stack) -> tuple[Known, str]:
    """Return a client that may verify and check, and a person's access token."""
    return await client(stack), stack.peers.token.grant(str(uuid4()))


async def test_a_client_trades_a_persons_token_for_one_that_it_acts_with(stack: Stack) -> None:
    """RFC 8693 section 2.2.1; what token is asked is what identity itself knows of the client."""
    known, subject_token = await parties(stack)
    revision = (await stack.sql("SELECT suite.bump_revision($1)", TENANT))[0][0]
    answer = await post(stack, "Token", form(subject_token), basic=known.basic)

    assert answer.status == 200
    assert answer.json.keys() == {"access_token", "issued_token_type", "token_type", "expires_in", "scope"}
    assert (answer.json["issued_token_type"], answer.json["token_type"], answer.json["scope"]) == (ACCESS_TOKEN, "Bearer", "tokens.verify")
    asked = stack.peers.token.exchanged[-1]
    assert (asked.subject_token, asked.client_id, asked.tenant_id, asked.revision) == (subject_token, known.id, TENANT, revision)
    assert (list(asked.client_scopes), list(asked.scopes), asked.audience) == (["tokens.verify", "permissions.check"], [], "")
    written = "SELECT count(*) FROM suite.audit_event WHERE type = 'client_token_exchanged' AND actor_id = $1"
    assert (await stack.sql(written, known.id))[0][0] == 1


async def test_what_is_asked_for_is_handed_on(stack: Stack) -> None:
    """Scopes, audience, and the other name of an access token of this suite."""
    known, subject_token = await parties(stack)
    asked = form(subject_token, scope="tokens.verify tokens.verify", audience=known.id, requested_token_type=ACCESS_TOKEN, flavour="vanilla")
    by_form = await post(stack, "Token", {**asked, "subject_token_type": JWT, **known.form}, at=1)

    assert by_form.status == 200
    heard = stack.peers.token.exchanged[-1]
    assert (list(heard.scopes), heard.audience) == (["tokens.verify"], known.id)


MISTAKES: list[tuple[str, dict[str, Any], tuple[int, str]]] = [
    ("no subject token", {"subject_token": ""}, (400, "invalid_request")),
    ("no type of it", {"subject_token_type": ""}, (400, "invalid_request")),
    ("a refresh token", {"subject_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, (400, "invalid_request")),
    ("an ID token", {"subject_token_type": "urn:ietf:params:oauth:token-type:id_token"}, (400, "invalid_request")),
    ("a short type", {"subject_token_type": "access_token"}, (400, "invalid_request")),
    ("a refresh token wanted", {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, (400, "invalid_request")),
    ("an actor token", {"actor_token": "x", "actor_token_type": ACCESS_TOKEN}, (400, "invalid_request")),
    ("an actor token's type", {"actor_token_type": ACCESS_TOKEN}, (400, "invalid_request")),
    ("a resource", {"resource": "https://api.test/"}, (400, "invalid_target")),
    ("a foreign audience", {"audience": "https://api.test"}, (400, "invalid_target")),
    ("a foreign scope", {"scope": "users.read"}, (400, "invalid_scope")),
    ("the person's scope", {"scope": "account"}, (400, "invalid_scope")),
    ("an unknown token", {"subject_token": "unknown"}, (400, "invalid_request")),
    ("a long token", {"subject_token": "x" * 9000}, (400, "invalid_request")),
]


@pytest.mark.parametrize(("changes", "outcome"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
async def test_a_mistake_is_told_in_the_words_of_the_rfc(stack: Stack, changes: dict[str, str], outcome: tuple[int, str]) -> None:
    """RFC 8693 section 2.2.2."""
    known, subject_token = await parties(stack)
    answer = await post(stack, "Token", {**form(subject_token), **changes}, basic=known.basic)

    assert answer.outcome == outcome
    assert answer.json["error_description"]


async def test_a_token_of_another_tenant_is_as_unknown_as_any(stack: Stack) -> None:
    """A077: the same bytes."""
    known, _ = await parties(stack)
    foreign = stack.peers.token.grant(str(uuid4()), tenant_id=str(uuid4()))
    answers = [await post(stack, "Token", form(text), basic=known.basic) for text in (foreign, "unknown", "x" * 9000)]

    assert len({(answer.status, answer.body) for answer in answers}) == 1


async def test_only_a_client_that_proves_itself_exchanges(stack: Stack) -> None:
    """Holding a person's token is not enough; and an outage is no refusal."""
    known, subject_token = await parties(stack)
    assert (await post(stack, "Token", form(subject_token))).outcome == (401, "invalid_client")
    assert (await post(stack, "Token", form(subject_token, client_id=known.id))).outcome == (401, "invalid_client")
    stack.peers.token.is_down = True
    assert (await post(stack, "Token", form(subject_token), basic=known.basic)).outcome == (503, "temporarily_unavailable")


async def test_introspection_tells_who_acts(stack: Stack) -> None:
    """RFC 8693 section 4.1: the present actor outermost. A token that was exchanged too often is a request that cannot be met."""
    first, second, reader = await client(stack), await client(stack), await client(stack, "tokens.introspect")
    once = (await post(stack, "Token", form(stack.peers.token.grant(str(uuid4()))), basic=first.basic)).json["access_token"]
    twice = (await post(stack, "Token", form(once), basic=second.basic)).json["access_token"]

    seen = [(await post(stack, "Introspect", {"token": text}, basic=reader.basic)).json for text in (once, twice)]

    assert [body["act"] for body in seen] == [{"sub": first.id}, {"sub": second.id, "act": {"sub": first.id}}]
    assert [body["client_id"] for body in seen] == [first.id, second.id]
    assert (await post(stack, "Token", form(twice), basic=first.basic)).outcome == (400, "invalid_request")


async def test_a_refresh_that_is_repeated_is_known_by_its_request_id(stack: Stack) -> None:
    """The id travels to token, which answers the same; what is no id is a mistake."""
    known, request_id = await client(stack), str(uuid4())
    user = (await stack.account(email=stack.email())).user
    stack.peers.token.grant(user.id, client_id=known.id)
    bound = next(t for t, p in stack.peers.token.principals.items() if t.startswith("refresh") and p.client_id == known.id)
    asked = {"grant_type": "refresh_token", "refresh_token": bound}

    assert (await post(stack, "Token", {**asked, "request_id": "again"}, basic=known.basic)).outcome == (400, "invalid_request")
    assert (await post(stack, "Token", {**asked, "request_id": request_id}, basic=known.basic)).status == 200
    assert (await post(stack, "Token", {**asked, "request_id": request_id}, basic=known.basic)).outcome == (400, "invalid_grant")
    heard: list[token_pb2.RefreshTokenRequest] = [each for each in stack.peers.token.refreshed if each.refresh_token == bound]
    assert [each.request_id for each in heard] == [request_id] * 2
