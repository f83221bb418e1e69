"""OAuth clients and endpoints, to the letter of RFC 6749, 7009 and 7662."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote_plus, urlencode
from uuid import uuid4

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody

from tests.service.identity.conftest import TENANT, Stack
from watchword.errors import FanoutPending, IdempotencyConflict, InvalidRequest, NotFound
from watchword.identity.v1 import oauth_pb2, oauth_pb2_grpc
from watchword.token.v1 import token_pb2

FORM = "application/x-www-form-urlencoded"
CLIENT: dict[str, Any] = {"type": token_pb2.PRINCIPAL_TYPE_CLIENT, "session_id": ""}


@dataclass
class HttpAnswer:
    """What an HTTP caller would see."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outcome(self) -> tuple[int, str]:
        """The status and the error, empty for none."""
        return self.status, self.json.get("error", "") if self.body else ""


async def post(stack: Stack, method: str, form: Any, *, basic: str = "", content_type: str = FORM, at: int = 0, address: str = "") -> HttpAnswer:
    """Post a form, as Envoy hands it on."""
    data = form if isinstance(form, bytes) else urlencode(form).encode()
    metadata = [("x-forwarded-for", address or stack.client().address)] + ([("authorization", basic)] if basic else [])
    stub: Any = oauth_pb2_grpc.OAuthServiceStub(stack.instances[at].channel)
    call = getattr(stub, method)(HttpBody(content_type=content_type, data=data), metadata=metadata, timeout=10)
    answer = await call
    headers = {key: str(value) for key, value in await call.initial_metadata()}
    assert headers["cache-control"] == "no-store"
    return HttpAnswer(int(headers["x-http-status"]), answer.data, headers)


def basic(client_id: str, secret: str) -> str:
    """Return an HTTP Basic header, its parts form-encoded first (RFC 6749 section 2.3.1)."""
    return "Basic " + base64.b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()).decode()


@dataclass
class Known:
    """A client and its secret."""

    id: str
    secret: str

    @property
    def form(self) -> dict[str, str]:
        return {"client_id": self.id, "client_secret": self.secret}

    @property
    def basic(self) -> str:
        return basic(self.id, self.secret)


async def client(stack: Stack, *scopes: str, admin: Any = None) -> Known:
    """Make a client."""
    request = oauth_pb2.CreateOAuthClientRequest(display_name="Reports", scopes=scopes or ["tokens.verify", "permissions.check"])
    shown = await (admin or stack.admin()).clients("CreateOAuthClient", request)
    return Known(shown.client.client_id, shown.client_secret)


async def test_a_client_gets_a_token_for_itself(stack: Stack) -> None:
    """By header or by form, with its scopes or fewer, with its roles, and without a refresh token."""
    known = await client(stack)
    stack.peers.permissions.roles[known.id] = ["checker"]

    by_header = await post(stack, "Token", {"grant_type": "client_credentials"}, basic=known.basic)
    by_form = await post(stack, "Token", {"grant_type": "client_credentials", "scope": "tokens.verify", **known.form}, at=1)

    assert by_header.status == by_form.status == 200
    assert by_header.json.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert by_header.json["scope"] == "tokens.verify permissions.check"
    assert by_form.json["scope"] == "tokens.verify"
    issued = stack.peers.token.issued[-1]
    assert (issued.subject, issued.client_id, issued.type, issued.with_refresh_token) == (known.id, known.id, token_pb2.PRINCIPAL_TYPE_CLIENT, False)
    assert list(issued.roles) == ["checker"]


MISTAKES: list[tuple[str, dict[str, Any], tuple[int, str]]] = [
    ("no grant type", {"form": {}}, (400, "invalid_request")),
    ("empty grant type", {"form": {"grant_type": ""}}, (400, "invalid_request")),
    ("password grant", {"form": {"grant_type": "password", "username": "a", "password": "b"}}, (400, "unsupported_grant_type")),
    ("code grant", {"form": {"grant_type": "authorization_code", "code": "x"}}, (400, "unsupported_grant_type")),
    ("a foreign scope", {"form": {"grant_type": "client_credentials", "scope": "tokens.verify users.read"}}, (400, "invalid_scope")),
    ("people's scope", {"form": {"grant_type": "client_credentials", "scope": "account"}}, (400, "invalid_scope")),
    ("no refresh token", {"form": {"grant_type": "refresh_token"}}, (400, "invalid_request")),
    ("an unknown refresh token", {"form": {"grant_type": "refresh_token", "refresh_token": "x"}}, (400, "invalid_grant")),
    ("a long refresh token", {"form": {"grant_type": "refresh_token", "refresh_token": "x" * 600}}, (400, "invalid_grant")),
    ("twice", {"form": [("grant_type", "client_credentials"), ("grant_type", "client_credentials")]}, (400, "invalid_request")),
    ("JSON", {"form": b'{"grant_type":"client_credentials"}', "content_type": "application/json"}, (400, "invalid_request")),
    ("no content type", {"form": {"grant_type": "client_credentials"}, "content_type": ""}, (400, "invalid_request")),
    ("utf-7", {"form": {"grant_type": "client_credentials"}, "content_type": f"{FORM}; charset=utf-7"}, (400, "invalid_request")),
    ("not UTF-8", {"form": b"grant_type=client_credentials&scope=\xff"}, (400, "invalid_request")),
    ("not UTF-8, encoded", {"form": b"grant_type=client_credentials&scope=%ff"}, (400, "invalid_request")),
    ("NUL", {"form": b"grant_type=client_credentials&scope=a%00b"}, (400, "invalid_request")),
    ("too many parameters", {"form": {f"p{n}": "x" for n in range(50)}}, (400, "invalid_request")),
]


@pytest.mark.parametrize(("arguments", "outcome"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
async def test_a_mistake_is_answered_in_the_words_of_the_rfc(stack: Stack, arguments: dict[str, Any], outcome: tuple[int, str]) -> None:
    """Never as a failure of the call, and with a description."""
    known = await client(stack)

    answer = await post(stack, "Token", **arguments, basic=known.basic)

    assert answer.outcome == outcome
    assert answer.json["error_description"]


async def test_unknown_parameters_and_charset_are_no_mistakes(stack: Stack) -> None:
    """RFC 6749 section 3.2: unrecognised parameters must be ignored."""
    known = await client(stack)
    form = {"grant_type": "client_credentials", "flavour": "vanilla", "scope": ""}

    answer = await post(stack, "Token", form, basic=known.basic.replace("Basic", "basic"), content_type=f"{FORM}; charset=UTF-8")

    assert answer.status == 200


async def test_failed_client_authentication_is_one_answer(stack: Stack) -> None:
    """Unknown client, wrong secret, nonsense: the same bytes, with a challenge (A084)."""
    known = await client(stack)
    token = {"grant_type": "client_credentials"}
    answers = [
        await post(stack, "Token", token),
        await post(stack, "Token", token, basic=basic(known.id, "wrong")),
        await post(stack, "Token", token, basic=basic(str(uuid4()), known.secret)),
        await post(stack, "Token", token, basic=basic(f"{{{known.id}}}", known.secret)),
        await post(stack, "Token", token, basic=basic("not an id \u00e9", known.secret)),
        await post(stack, "Token", token, basic="Basic !!!"),
        await post(stack, "Token", token, basic="Basic " + base64.b64encode(b"no colon").decode()),
        await post(stack, "Token", token, basic="Basic " + base64.b64encode(b"\xff:\xff").decode()),
        await post(stack, "Token", token, basic=f"Bearer {known.secret}"),
        await post(stack, "Token", {**token, "client_id": known.id}),
        await post(stack, "Token", {**token, "client_id": known.id, "client_secret": "wrong"}),
        await post(stack, "Token", {**token, "client_id": str(uuid4()), "client_secret": known.secret}, at=1),
        await post(stack, "Introspect", {"token": "x"}),
        await post(stack, "Revoke", {"token": "x"}, basic=basic(known.id, "wrong")),
    ]

    assert {answer.outcome for answer in answers} == {(401, "invalid_client")}
    assert len({answer.body for answer in answers}) == 1
    assert all(answer.headers["www-authenticate"].startswith("Basic ") for answer in answers)


async def test_a_client_authenticates_in_one_way(stack: Stack) -> None:
    """Both at once is a mistake, even when both are right (RFC 6749 section 2.3)."""
    known, other = await client(stack), await client(stack)
    token = {"grant_type": "client_credentials"}

    assert (await post(stack, "Token", {**token, **known.form}, basic=known.basic)).outcome == (400, "invalid_request")
    assert (await post(stack, "Token", {**token, "client_id": other.id}, basic=known.basic)).outcome == (400, "invalid_request")
    assert (await post(stack, "Token", {**token, "client_id": known.id}, basic=known.basic)).status == 200


async def test_failures_of_a_client_are_limited_on_all_instances_together(stack: Stack) -> None:
    """Ten from one place, then a pause."""
    known, outcomes = await client(stack), []
    for number in range(12):
        try:
            answer = await post(stack, "Token", {"grant_type": "x"}, basic=basic(known.id, "wrong"), at=number % 2, address="198.51.100.9")
            outcomes.append(answer.status)
        except grpc.aio.AioRpcError as error:
            outcomes.append(error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and 429)

    assert outcomes == [401] * 10 + [429] * 2


async def test_an_outage_is_503(stack: Stack) -> None:
    """The one answer that is not the client's doing."""
    known = await client(stack, "tokens.introspect")
    requests = [("Token", {"grant_type": "client_credentials"}), ("Introspect", {"token": "x"}), ("Revoke", {"token": "x"})]
    stack.peers.token.is_down = True

    for method, form in requests:
        assert (await post(stack, method, form, basic=known.basic)).outcome == (503, "temporarily_unavailable")


async def test_a_refresh_token_is_its_clients_own(stack: Stack) -> None:
    """A session of the suite's own login is not refreshed here, another client's neither (A072); a second use ends it (A068)."""
    mine, other, email = await client(stack), await client(stack), stack.email()
    user = (await stack.account(email=email)).user
    own_session = (await stack.login(email)).tokens.refresh_token
    stack.peers.token.grant(user.id, client_id=mine.id)
    bound = next(t for t, p in stack.peers.token.principals.items() if t.startswith("refresh") and p.client_id == mine.id)

    def form(token: str) -> dict[str, str]:
        return {"grant_type": "refresh_token", "refresh_token": token}

    assert (await post(stack, "Token", form(own_session), basic=mine.basic)).outcome == (400, "invalid_grant")
    assert (await post(stack, "Token", form(bound), basic=other.basic)).outcome == (400, "invalid_grant")
    answer = await post(stack, "Token", form(bound), basic=mine.basic)
    assert answer.status == 200
    assert answer.json["refresh_token"] != bound
    assert (await post(stack, "Token", form(bound), basic=mine.basic)).outcome == (400, "invalid_grant")
    await stack.sql("UPDATE account SET state = 'disabled' WHERE email = $1", email)
    assert (await post(stack, "Token", form(answer.json["refresh_token"]), basic=mine.basic)).outcome == (400, "invalid_grant")


async def test_revocation_answers_the_same_for_all_tokens(stack: Stack) -> None:
    """RFC 7009: 200 whether the token was known or not; token decides whose it is by the client's id."""
    known = await client(stack)

    for token, hint in (("anything", ""), ("x" * 9000, ""), ("other", "refresh_token"), ("odd", "made_up_hint")):
        answer = await post(stack, "Revoke", {"token": token, "token_type_hint": hint}, basic=known.basic)
        assert (answer.status, answer.body) == (200, b"")

    heard = [(each.token, each.token_type_hint, each.client_id) for each in stack.peers.token.revoked[-3:]]
    assert heard == [("anything", "", known.id), ("other", "refresh_token", known.id), ("odd", "", known.id)]
    assert (await post(stack, "Revoke", {}, basic=known.basic)).outcome == (400, "invalid_request")


async def test_introspection_tells_what_a_token_is(stack: Stack) -> None:
    """RFC 7662, for tokens of people and of clients."""
    known, email = await client(stack, "tokens.introspect"), stack.email()
    user = (await stack.account(email=email)).user
    of_user = (await stack.login(email)).tokens
    of_client = stack.peers.token.grant(known.id, client_id=known.id, **CLIENT)

    access = (await post(stack, "Introspect", {"token": of_user.access_token}, basic=known.basic)).json
    refresh = (await post(stack, "Introspect", {"token": of_user.refresh_token, "token_type_hint": "access_token"}, basic=known.basic)).json
    own = (await post(stack, "Introspect", {"token": of_client}, basic=known.basic)).json

    assert access == {
        "active": True,
        "scope": "account tokens.verify",
        "token_type": "Bearer",
        "exp": 1_700_000_300,
        "iat": 1_700_000_000,
        "sub": user.id,
        "aud": "watchword",
        "iss": "https://auth.test",
        "tenant_id": TENANT,
        "jti": "jti",
        "username": email,
    }
    assert (refresh["token_type"], "jti" in refresh) == ("refresh_token", False)
    assert (own["client_id"], own["sub"], "username" in own) == (known.id, known.id, False)


async def test_what_may_not_be_known_is_not_active(stack: Stack) -> None:
    """Unknown, malformed, oversized, of another tenant: the same bytes (A076)."""
    known = await client(stack, "tokens.introspect")
    foreign = stack.peers.token.grant(str(uuid4()), tenant_id=str(uuid4()))

    for token in ("unknown", "x" * 9000, foreign, "\u00e9"):
        answer = await post(stack, "Introspect", {"token": token}, basic=known.basic)
        assert (answer.status, answer.body) == (200, b'{"active":false}')


async def test_introspection_needs_its_scope(stack: Stack) -> None:
    """Knowing a token is not enough to read it."""
    known = await client(stack, "tokens.verify")

    assert (await post(stack, "Introspect", {"token": "x"}, basic=known.basic)).outcome == (403, "insufficient_scope")


async def test_a_secret_is_shown_once_and_kept_as_a_digest(stack: Stack) -> None:
    """A repeat of the request shows it again, a read never does (D11)."""
    admin, request_id = stack.admin(), str(uuid4())
    request = oauth_pb2.CreateOAuthClientRequest(display_name="Once", scopes=["tokens.verify"], request_id=request_id)

    first = await admin.clients("CreateOAuthClient", request)
    second = await stack.again(admin, 1).clients("CreateOAuthClient", request)

    assert first == second
    assert first.client_secret.startswith("wwcs_")
    kept = await stack.sql("SELECT * FROM oauth_client WHERE id = $1::uuid", first.client.client_id)
    requests = await stack.sql("SELECT * FROM request WHERE request_id = $1::uuid", request_id)
    assert first.client_secret not in str([dict(row) for row in (*kept, *requests)])
    assert len(kept) == 1
    request.display_name = "Another"
    with pytest.raises(IdempotencyConflict):
        await admin.clients("CreateOAuthClient", request)


@pytest.mark.parametrize("scope", ["account", "made.up", "users.*", "tokens.verify ", "Tokens.Verify", ""])
async def test_a_client_has_scopes_of_the_suite_only(stack: Stack, scope: str) -> None:
    """Neither people's own, nor patterns, nor inventions."""
    with pytest.raises(InvalidRequest) as refusal:
        await client(stack, "tokens.verify", scope)

    assert refusal.value.violations[0].field == "scopes[1]"


async def test_the_old_secret_holds_for_the_overlap(stack: Stack) -> None:
    """Long enough to hand out the new one, and not a second longer."""
    admin, known = stack.admin(), await client(stack)

    async def rotate(seconds: int) -> str:
        request = oauth_pb2.RotateOAuthClientSecretRequest(client_id=known.id, overlap_seconds=seconds)
        return str((await admin.clients("RotateOAuthClientSecret", request)).client_secret)

    async def works(secret: str) -> bool:
        return (await post(stack, "Token", {"grant_type": "client_credentials"}, basic=basic(known.id, secret))).status == 200

    newer = await rotate(3600)
    assert [await works(known.secret), await works(newer)] == [True, True]
    stack.clock.ahead = timedelta(hours=1, seconds=1)
    assert [await works(known.secret), await works(newer)] == [False, True]
    newest = await rotate(0)
    assert [await works(known.secret), await works(newer), await works(newest)] == [False, False, True]
    for seconds in (-1, 604_801):
        with pytest.raises(InvalidRequest):
            await rotate(seconds)


async def test_a_deleted_client_is_out_before_ok(stack: Stack) -> None:
    """Its secret and its tokens; with token away the same request_id asks again."""
    known, admin = await client(stack), stack.admin()
    request = oauth_pb2.DeleteOAuthClientRequest(client_id=known.id, request_id=str(uuid4()))
    with stack.revocation_refused(), pytest.raises(FanoutPending):
        await admin.clients("DeleteOAuthClient", request)
    assert (await post(stack, "Token", {"grant_type": "client_credentials"}, basic=known.basic)).outcome == (401, "invalid_client")

    assert (await admin.clients("DeleteOAuthClient", request)).consistency_token

    assert [each.client_id for each in stack.peers.token.revocations_of(known.id)] == [known.id]


async def test_a_deleted_client_is_not_found_only_when_its_tokens_are_refused(stack: Stack) -> None:
    """Whoever repeats the deletion has no request_id, and may not take "there is none" for done."""
    known, admin = await client(stack), stack.admin()
    request = oauth_pb2.DeleteOAuthClientRequest(client_id=known.id)
    with stack.revocation_refused():
        for _ in range(2):
            with pytest.raises(FanoutPending):
                await admin.clients("DeleteOAuthClient", request)
    with pytest.raises(NotFound):
        await admin.clients("DeleteOAuthClient", request)

    assert [each.client_id for each in stack.peers.token.revocations_of(known.id)] == [known.id]


async def test_another_tenants_clients_do_not_exist(stack: Stack) -> None:
    """In no RPC (A122)."""
    known, stranger = await client(stack), stack.admin(tenant_id=str(uuid4()))

    for client_id in (known.id, str(uuid4())):
        for method, request in (
            ("GetOAuthClient", oauth_pb2.GetOAuthClientRequest),
            ("RotateOAuthClientSecret", oauth_pb2.RotateOAuthClientSecretRequest),
            ("DeleteOAuthClient", oauth_pb2.DeleteOAuthClientRequest),
        ):
            with pytest.raises(NotFound):
                await stranger.clients(method, request(client_id=client_id))
    assert (await stranger.clients("ListOAuthClients", oauth_pb2.ListOAuthClientsRequest())).clients == []
    assert (await stack.admin().clients("GetOAuthClient", oauth_pb2.GetOAuthClientRequest(client_id=known.id))).client.display_name == "Reports"


async def test_clients_are_listed_oldest_first(stack: Stack) -> None:
    """In pages."""
    admin = stack.admin()
    made = [(await client(stack, admin=admin)).id for _ in range(3)]
    seen, token = [], ""
    while True:
        page = await admin.clients("ListOAuthClients", oauth_pb2.ListOAuthClientsRequest(page_size=2, page_token=token))
        seen += [each.client_id for each in page.clients]
        if not (token := page.next_page_token):
            break

    assert [each for each in seen if each in made] == made
