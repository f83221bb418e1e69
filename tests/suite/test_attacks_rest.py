"""Every attack of the catalogue through Envoy: as the token that is asked about, and as the credential of a request; and tokens where others belong.

The forger holds the suite's own signing key, so that nothing but the defence in question refuses him.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.chassis.sealing import Sealer
from tests import forgery
from tests.attacks import ATTACKS, ECDSA_CHANGES, REFUSED_UNREAD, Attack
from tests.conftest import eventually
from tests.forgery import Original, changed, claims_of
from tests.ring import KINDS as ALGORITHMS
from tests.ring import Ring, new_ring
from tests.suite.conftest import PASSWORD, Person, Suite, login, new_person, reason, sql
from watchword.token.v1 import token_pb2, token_pb2_grpc


@dataclass(frozen=True)
class Signing:
    """The suite's active signing key."""

    kid: str
    key: rsa.RSAPrivateKey


@pytest.fixture(scope="module")
async def signing(suite: Suite) -> Signing:
    """Open the key that Postgres keeps sealed, as only the suite's own secrets can."""
    secret = base64.b64decode((suite.home / "secrets" / "key-encryption-key").read_text())
    (row,) = await sql(suite, "SELECT kid, sealed_private FROM token.signing_key WHERE state = 'ACTIVE'")
    key = load_pem_private_key(Sealer(secret).open(row["sealed_private"], bound_to=row["kid"].encode()), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return Signing(row["kid"], key)


@dataclass
class Trap:
    """A listener that nobody should ever connect to."""

    port: int
    connections: int = 0


@pytest.fixture(scope="module")
async def trap() -> AsyncIterator[Trap]:
    """Where headers point that want a key fetched."""
    found = Trap(0)

    async def spring(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        writer.close()

    async with await asyncio.start_server(spring, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


@pytest.fixture(scope="module")
async def victim(suite: Suite, admin: Person) -> Person:
    """Whose tokens are imitated."""
    return await new_person(suite, admin)


@pytest.fixture
async def original(suite: Suite, signing: Signing, victim: Person, trap: Trap) -> Original:
    """The makings of the victim's own token, good for another minute."""
    now = int(time.time())
    body = changed(claims_of(victim.token), {"iat": now, "exp": now + 60})
    return Original.of(signing.key, signing.kid, body, f"http://127.0.0.1:{trap.port}/jwks.json")


@pytest.fixture
async def rest(suite: Suite) -> AsyncIterator[httpx.AsyncClient]:
    """A REST client."""
    async with suite.rest as client:
        yield client


async def asker(suite: Suite, victim: Person) -> Mapping[str, str]:
    """Return headers of somebody who may ask about tokens, however long the module takes."""
    return (await login(suite, victim.email)).headers


@pytest.fixture(scope="module")
async def headers(suite: Suite, victim: Person) -> Mapping[str, str]:
    """Credentials of somebody who may ask about tokens of his tenant."""
    return await asker(suite, victim)


async def verified(rest: httpx.AsyncClient, text: str, headers: Mapping[str, str]) -> str:
    """Return what POST /v1/tokens:verify says; a refusal carries nothing but its status."""
    answer = await rest.post("/v1/tokens:verify", json={"token": text}, headers=headers)
    if answer.status_code != 200:
        assert answer.status_code in (400, 413), answer.text
        return reason(answer)
    body = answer.json()
    if body["status"] != "VALID":
        assert not body.get("principal"), body
        assert not body.get("token_id"), body
    return str(body["status"])


def told(answer: httpx.Response) -> tuple[int, str, Any]:
    """Return all that a refused caller can see, but for the request's id."""
    body = answer.json()
    for detail in body["details"]:
        detail.get("metadata", {}).pop("request_id", None)
    return answer.status_code, answer.headers.get("www-authenticate", ""), body


async def test_the_original_is_good(rest: httpx.AsyncClient, original: Original, headers: Mapping[str, str], victim: Person) -> None:
    """The control: without it, every refusal below could have another cause."""
    for text in (original.token(), original.with_head(typ="AT+JWT"), original.with_head(typ="application/at+jwt")):  # A006
        assert await verified(rest, text, headers) == "VALID"
        me = await rest.get("/v1/me", headers={"authorization": f"Bearer {text}"})
        assert me.json()["user"]["id"] == victim.id, me.text


@pytest.mark.parametrize("attack", [pytest.param(attack, id=name) for name, attack in ATTACKS.items()])
async def test_a_forged_token_cannot_be_told_from_rubbish(
    rest: httpx.AsyncClient, original: Original, headers: Mapping[str, str], trap: Trap, attack: Attack
) -> None:
    """Asked about, it is invalid. As a credential it gets the one answer that every bad token gets: no hint of which check failed."""
    text = attack.forge(original)
    rubbish = told(await rest.get("/v1/me", headers={"authorization": "Bearer rubbish"}))
    assert rubbish[:2] == (401, 'Bearer error="invalid_token"')

    answers = attack.answers | ({"REQUEST_TOO_LARGE"} if attack.answers == {REFUSED_UNREAD} else set())
    assert await verified(rest, text, headers) in answers
    if attack.fits_header:
        assert told(await rest.get("/v1/me", headers={"authorization": f"Bearer {text}"})) == rubbish
    assert trap.connections == 0


# Keys of every kind, in every state.


@pytest.fixture(scope="module")
async def ring(suite: Suite, victim: Person) -> AsyncIterator[Ring]:
    """Put keys beside the one that signs, until the end of the module."""
    secret = base64.b64decode((suite.home / "secrets" / "key-encryption-key").read_text())
    made = await new_ring(suite.endpoints.database_url, Sealer(secret))
    probe, metadata = made.signed("ring-published", "RS256", claims_of(victim.token)), suite.peer("identity", to="token")
    request = token_pb2.VerifyTokenRequest(token=probe)

    async def is_read() -> bool:
        stubs = suite.stubs("token", token_pb2_grpc.TokenServiceStub)
        answers = await asyncio.gather(*(stub.VerifyToken(request, metadata=metadata) for stub in stubs))
        return {answer.status for answer in answers} == {token_pb2.VALID}

    await eventually(is_read, within=15)
    yield made
    await sql(suite, "DELETE FROM token.signing_key WHERE kid LIKE 'ring-%'")


@dataclass(frozen=True)
class Forger:
    """Shows tokens to the edge: as what is asked about, and as a credential."""

    rest: httpx.AsyncClient
    headers: Mapping[str, str]

    async def says(self, text: str) -> str:
        """Return what is said of a token. As a credential it is good if it is VALID, and else like rubbish."""
        status = await verified(self.rest, text, self.headers)
        borne = await self.rest.get("/v1/me", headers={"authorization": f"Bearer {text}"})
        assert borne.status_code == (200 if status == "VALID" else 401), borne.text
        return status


@pytest.fixture
async def forger(rest: httpx.AsyncClient, headers: Mapping[str, str]) -> Forger:
    """Somebody who tries."""
    return Forger(rest, headers)


@pytest.mark.parametrize("kid", [pytest.param(kid, id=f"A004-{kid}") for kid in (*ALGORITHMS, "ring-published")])
async def test_a_key_verifies_by_its_own_algorithm_and_no_other(forger: Forger, original: Original, ring: Ring, kid: str) -> None:
    """Whatever the header says, and whichever key of ours made the signature."""
    own = ALGORITHMS.get(kid, "RS256")
    assert await forger.says(ring.signed(kid, own, original.body)) == "VALID"
    for alg in {"RS256", *ALGORITHMS.values()} - {own}:
        assert await forger.says(ring.signed(kid, alg, original.body)) == "BAD_SIGNATURE", alg
    for by in {"ring-published", *ALGORITHMS} - {kid}:
        assert await forger.says(ring.signed(kid, own, original.body, by=by)) == "BAD_SIGNATURE", by


@pytest.mark.parametrize("name", ECDSA_CHANGES)
async def test_an_ecdsa_signature_is_r_and_s_and_nothing_else(forger: Forger, original: Original, ring: Ring, name: str) -> None:
    """CVE-2022-21449 and its kin. The right signature is the control above."""
    head = {"alg": "ES256", "kid": "ring-es256", "typ": "at+jwt"}
    text = forgery.ecdsa_token(ring.private["ring-es256"], head, original.body, ECDSA_CHANGES[name])
    assert await forger.says(text) in ("BAD_SIGNATURE", "MALFORMED")


async def test_a_kid_is_required_however_many_keys_there_are(forger: Forger, original: Original, ring: Ring) -> None:
    """A014: otherwise the header's silence would choose among the keys."""
    head = {"alg": "ES256", "typ": "at+jwt"}
    assert await forger.says(forgery.ecdsa_token(ring.private["ring-es256"], head, original.body)) == "MALFORMED"


@pytest.mark.parametrize(
    ("kid", "expected"), [("ring-retiring", "VALID"), ("ring-retired", "UNKNOWN_KEY"), ("ring-published", "VALID")], ids=lambda one: f"A015-{one}"
)
async def test_published_keys_verify_and_others_do_not(forger: Forger, original: Original, ring: Ring, kid: str, expected: str) -> None:
    """What the key set shows to the world is what we accept."""
    assert await forger.says(ring.signed(kid, "RS256", original.body)) == expected


@pytest.mark.parametrize("size", [pytest.param(64 * 1024, id="A025-64-KiB"), pytest.param(2_000_000, id="A025-2-MB")])
async def test_a_huge_token_is_refused_before_it_is_looked_at(
    rest: httpx.AsyncClient, original: Original, headers: Mapping[str, str], size: int
) -> None:
    """By the edge, with a reason; neither an error of ours nor a broken connection."""
    text = forgery.sized(original, size)
    asked = await rest.post("/v1/tokens:verify", json={"token": text}, headers=headers)
    borne = await rest.get("/v1/me", headers={"authorization": f"Bearer {text[:60_000]}"})

    assert (asked.status_code, reason(asked)) in ((413, "REQUEST_TOO_LARGE"), (400, "INVALID_REQUEST"))
    assert borne.status_code == 431


@pytest.mark.parametrize("depth", [pytest.param(100_000, id="A024-100000-deep")])
async def test_a_token_too_deep_for_any_parser_is_refused_unread(
    rest: httpx.AsyncClient, original: Original, headers: Mapping[str, str], depth: int
) -> None:
    """It is too long first."""
    for text in (original.token(head=b"[" * depth), original.token(body=b"[" * depth)):
        assert await verified(rest, text, headers) in ("REQUEST_TOO_LARGE", REFUSED_UNREAD)


@pytest.mark.parametrize(
    ("values", "status_code"),
    [
        pytest.param(["Bearer {}"], 200, id="A030-as-it-should-be"),
        pytest.param(["bearer {}"], 200, id="A030-lower-case"),
        pytest.param(["BEARER {}"], 200, id="A030-upper-case"),
        pytest.param(["Bearer Bearer {}"], 401, id="A030-bearer-twice"),
        pytest.param(["Bearer  {}"], 401, id="A030-two-spaces"),
        pytest.param(["Bearer {}", "Bearer {}"], 401, id="A030-two-headers"),
        pytest.param(["Bearer x", "Bearer {}"], 401, id="A030-two-headers-first-bad"),
        pytest.param(["Bearer {}", "Bearer x"], 401, id="A030-two-headers-second-bad"),
        pytest.param(["Bearer {}, Bearer {}"], 401, id="A030-two-in-one"),
        pytest.param(["Bearer {},"], 401, id="A030-comma"),
        pytest.param(["Bearer {} x"], 401, id="A030-something-after"),
        pytest.param(["Bearer\t{}"], 401, id="A030-tab"),
        pytest.param(["{}"], 401, id="A030-no-scheme"),
        pytest.param(["Basic {}"], 401, id="A030-another-scheme"),
        pytest.param(["DPoP {}"], 401, id="A047-dpop-scheme"),
    ],
)
async def test_a_request_carries_one_bearer_token(rest: httpx.AsyncClient, original: Original, values: list[str], status_code: int) -> None:
    """Two, and a proxy may have checked the one while we take the other. RFC 7235: the scheme ignores case."""
    sent = [("authorization", value.format(original.token(), original.token())) for value in values]
    answer = await rest.get("/v1/me", headers=sent)
    assert (answer.status_code, reason(answer) if status_code == 401 else "") == (status_code, "TOKEN_INVALID" if status_code == 401 else "")


@pytest.mark.parametrize("name", ["access_token", "token", "authorization"])
async def test_a_token_in_the_query_or_a_cookie_is_no_credential(rest: httpx.AsyncClient, original: Original, name: str) -> None:
    """RFC 6750 section 5.3: queries stand in logs."""
    for request in ({"params": {name: original.token()}}, {"headers": {"cookie": f"{name}={original.token()}"}}):
        answer = await rest.get("/v1/me", **request)  # type: ignore[arg-type]
        assert answer.status_code in (400, 401)


@pytest.mark.parametrize("scheme", [pytest.param("Bearer", id="A047-as-bearer"), pytest.param("DPoP", id="A047-as-dpop")])
async def test_a_bound_token_opens_nothing_with_or_without_a_proof(rest: httpx.AsyncClient, original: Original, scheme: str) -> None:
    """We issue none, so nobody may bear one: a stolen one would be as good as an unbound one."""
    bound = original.with_body(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"})
    for proof in ({}, {"dpop": forgery.dpop_proof(original)}, {"dpop": "rubbish"}):
        answer = await rest.get("/v1/me", headers={"authorization": f"{scheme} {bound}", **proof})
        assert (answer.status_code, reason(answer)) == (401, "TOKEN_INVALID")


@pytest.mark.parametrize("audience", [pytest.param(aud, id=f"A037-{aud}") for aud in ("billing", "*")])
async def test_an_empty_audience_means_ours_and_never_any(
    rest: httpx.AsyncClient, original: Original, headers: Mapping[str, str], audience: str
) -> None:
    """Neither for what is asked about, nor for who asks."""
    text = original.with_body(aud=audience)
    for asked, expected in (({}, "WRONG_AUDIENCE"), ({"audience": ""}, "WRONG_AUDIENCE"), ({"audience": audience}, "VALID")):
        answer = await rest.post("/v1/tokens:verify", json={"token": text, **asked}, headers=headers)
        assert answer.json()["status"] == expected
    assert (await rest.get("/v1/me", headers={"authorization": f"Bearer {text}"})).status_code == 401


# What was taken away from a person.


async def opens_nothing(rest: httpx.AsyncClient, person: Person) -> None:
    """Neither the access token nor the refresh token of a person is good for anything."""
    me = await rest.get("/v1/me", headers=person.headers)
    assert (me.status_code, reason(me)) == (401, "TOKEN_INVALID")
    asked = await rest.post("/v1/tokens:verify", json={"token": person.token}, headers=person.headers)
    assert asked.status_code == 401
    refreshed = await rest.post("/v1/auth/refresh", json={"refresh_token": person.refresh_token})
    assert (refreshed.status_code, reason(refreshed)) == (401, "TOKEN_INVALID")


@pytest.mark.parametrize(("method", "path"), [pytest.param("POST", ":disable", id="A043-disabled"), pytest.param("DELETE", "", id="A043-deleted")])
async def test_an_account_that_is_gone_takes_its_tokens_along(
    rest: httpx.AsyncClient, suite: Suite, admin: Person, signing: Signing, method: str, path: str
) -> None:
    """Those that were issued, and those that our own key would sign for it now with the revision of before."""
    person = await new_person(suite, admin)
    done = await rest.request(method, f"/v1/users/{person.id}{path}", json={} if path else None, headers=admin.headers)
    assert done.status_code == 200, done.text

    await opens_nothing(rest, person)
    forged = Original.of(signing.key, signing.kid, claims_of(person.token)).with_body(jti=str(uuid4()), sid=...)
    assert (await rest.get("/v1/me", headers={"authorization": f"Bearer {forged}"})).status_code == 401
    again = await rest.post("/v1/auth/login", json={"login": person.email, "password": PASSWORD})
    assert (again.status_code, reason(again)) == (401, "INVALID_CREDENTIALS")


async def test_an_account_that_strangers_locked_keeps_its_sessions(rest: httpx.AsyncClient, suite: Suite, admin: Person) -> None:
    """A043: a lock is about guessing. If it ended sessions, anybody could log out anybody."""
    person = await new_person(suite, admin)
    for _ in range(12):
        await rest.post("/v1/auth/login", json={"login": person.email, "password": uuid4().hex})
    assert (await rest.post("/v1/auth/login", json={"login": person.email, "password": PASSWORD})).status_code == 429
    assert (await rest.get("/v1/me", headers=person.headers)).status_code == 200


@pytest.mark.parametrize("way", [pytest.param("logout-all", id="A044-logout-all"), pytest.param("revokeTokens", id="A044-by-an-administrator")])
async def test_tokens_from_before_everything_was_revoked_are_refused(rest: httpx.AsyncClient, suite: Suite, admin: Person, way: str) -> None:
    """All sessions of the account; one that begins afterwards is good."""
    first = await new_person(suite, admin)
    second = await login(suite, first.email)
    if way == "logout-all":
        done = await rest.post("/v1/auth/logout-all", json={}, headers=first.headers)
    else:
        done = await rest.post(f"/v1/users/{first.id}:revokeTokens", json={}, headers=admin.headers)
    assert done.status_code == 200, done.text

    await opens_nothing(rest, first)
    await opens_nothing(rest, second)
    third = await login(suite, first.email)
    assert (await rest.get("/v1/me", headers=third.headers)).status_code == 200


async def test_a_role_in_a_token_decides_nothing(rest: httpx.AsyncClient, suite: Suite, admin: Person, signing: Signing) -> None:
    """A046: added after the issue it is not in the token and works; removed, it is in the token and does not, not even if our own key says so."""
    person = await new_person(suite, admin)
    body = {"subject": {"type": "SUBJECT_TYPE_USER", "id": person.id}, "role_name": "watchword.auditor"}
    bound = await rest.post("/v1/role-bindings", json=body, headers=admin.headers)
    assert bound.status_code == 200, bound.text
    assert "watchword.auditor" not in claims_of(person.token).get("roles", [])
    assert (await rest.get("/v1/audit-events", headers=person.headers)).status_code == 200

    with_role = await login(suite, person.email)
    assert "watchword.auditor" in claims_of(with_role.token)["roles"]
    await rest.delete(f"/v1/role-bindings/{bound.json()['role_binding']['id']}", headers=admin.headers)
    forged = Original.of(signing.key, signing.kid, claims_of(with_role.token)).with_body(roles=["watchword.administrator"])
    for text in (with_role.token, forged):
        assert (await rest.get("/v1/audit-events", headers={"authorization": f"Bearer {text}"})).status_code == 403
        subject = {"type": "SUBJECT_TYPE_USER", "id": person.id}
        question = {"subject": subject, "permission": "audit-events.read"}
        decided = await rest.post("/v1/permissions:check", json=question, headers=admin.headers)
        assert decided.json()["decision"] == "DENY"


# T02: every kind of token at every place that takes one.


@dataclass(frozen=True)
class Client:
    """An OAuth client that may introspect."""

    id: str
    secret: str
    token: str

    @property
    def basic(self) -> tuple[str, str]:
        return self.id, self.secret


@pytest.fixture(scope="module")
async def client(suite: Suite, admin: Person) -> Client:
    """A client with a token of its own."""
    async with suite.rest as rest:
        made = await rest.post("/v1/oauth-clients", json={"display_name": "c", "scopes": ["tokens.introspect"]}, headers=admin.headers)
        assert made.status_code == 200, made.text
        credentials = (made.json()["client"]["client_id"], made.json()["client_secret"])
        issued = await rest.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=credentials)
        assert issued.status_code == 200, issued.text
    return Client(*credentials, issued.json()["access_token"])


@dataclass(frozen=True)
class Scene:
    """Who tries what: a person whose session is at stake, and the others' credentials."""

    rest: httpx.AsyncClient
    person: Person
    admin: Person
    client: Client


@pytest.fixture
async def scene(rest: httpx.AsyncClient, suite: Suite, victim: Person, admin: Person, client: Client) -> Scene:
    """A session of the victim's that nothing was done to yet."""
    return Scene(rest, await login(suite, victim.email), admin, client)


async def kinds_of(suite: Suite, signing: Signing, scene: Scene) -> dict[str, str]:
    """Return a token of every kind, those that can be all about one session."""
    original = Original.of(signing.key, signing.kid, claims_of(scene.person.token))
    page = await scene.rest.get("/v1/users", params={"page_size": 1}, headers=scene.admin.headers)
    question = {"subject": {"type": "SUBJECT_TYPE_USER", "id": scene.person.id}, "permission": "users.read"}
    checked = await scene.rest.post("/v1/permissions:check", json=question, headers=scene.admin.headers)

    def service(to: str) -> str:
        return suite.peer("gateway", to=to)[0][1].partition(" ")[2]

    return {
        "access": scene.person.token,
        "refresh": scene.person.refresh_token,
        "service-for-token": service("token"),
        "service-for-identity": service("identity"),
        "page": page.json()["next_page_token"],
        "consistency": checked.json()["consistency_token"],
        "id": forgery.id_token(original, client_id=scene.client.id),
        "logout": forgery.logout_token(original),
        "dpop": forgery.dpop_proof(original),
        "refresh-jwt": original.with_head(typ="rt+jwt"),
        "service-signed-by-us": original.with_head(typ="svc+jwt", kid="identity"),
        "client-secret": scene.client.secret,
        "session-id": scene.person.session_id,
    }


async def verify(scene: Scene, text: str) -> str:
    return await verified(scene.rest, text, scene.person.headers)


async def batch(scene: Scene, text: str) -> str:
    answer = await scene.rest.post("/v1/tokens:batchVerify", json={"requests": [{"token": text}]}, headers=scene.person.headers)
    return str(answer.json()["responses"][0]["status"])


async def introspect(scene: Scene, text: str) -> str:
    answer = await scene.rest.post("/v1/tokens:introspect", json={"token": text}, headers={"authorization": f"Bearer {scene.client.token}"})
    assert answer.status_code == 200, answer.text
    return "ACTIVE" if answer.json().get("active") else "INACTIVE"


async def introspect_as_oauth(scene: Scene, text: str) -> str:
    answer = await scene.rest.post("/oauth2/introspect", data={"token": text}, auth=scene.client.basic)
    assert answer.status_code == 200, answer.text
    return "ACTIVE" if answer.text != '{"active":false}' else "INACTIVE"


async def refresh(scene: Scene, text: str) -> str:
    return _outcome(await scene.rest.post("/v1/auth/refresh", json={"refresh_token": text}))


async def refresh_as_oauth(scene: Scene, text: str) -> str:
    form = {"grant_type": "refresh_token", "refresh_token": text}
    answer = await scene.rest.post("/oauth2/token", data=form, auth=scene.client.basic)
    return f"{answer.status_code} {answer.json().get('error')}"


async def revoke(scene: Scene, text: str) -> str:
    return _outcome(await scene.rest.post("/v1/tokens:revoke", json={"token": text}, headers=scene.person.headers))


async def revoke_as_oauth(scene: Scene, text: str) -> str:
    return f"{(await scene.rest.post('/oauth2/revoke', data={'token': text}, auth=scene.client.basic)).status_code}"


async def bearer(scene: Scene, text: str) -> str:
    return _outcome(await scene.rest.get("/v1/me", headers={"authorization": f"Bearer {text}"}))


async def bearer_at_token(scene: Scene, text: str) -> str:
    return _outcome(await scene.rest.post("/v1/tokens:verify", json={"token": "x"}, headers={"authorization": f"Bearer {text}"}))


async def page(scene: Scene, text: str) -> str:
    return _outcome(await scene.rest.get("/v1/users", params={"page_size": 1, "page_token": text}, headers=scene.admin.headers))


async def consistency(scene: Scene, text: str) -> str:
    question = {"subject": {"type": "SUBJECT_TYPE_USER", "id": scene.person.id}, "permission": "users.read"}
    asked = {**question, "consistency": {"at_least_as_fresh": text}}
    return _outcome(await scene.rest.post("/v1/permissions:check", json=asked, headers=scene.admin.headers))


def _outcome(answer: httpx.Response) -> str:
    return "OK" if answer.status_code == 200 else f"{answer.status_code} {reason(answer)}"


Presented = Callable[[Scene, str], Awaitable[str]]
INVALID = {"MALFORMED", "UNKNOWN_KEY"}
REFUSED = {"401 TOKEN_INVALID"}
UNREAD = {"400 INVALID_REQUEST"}
# Where a token may be presented: what belongs there, what is answered then, and how everything else is refused.
PLACES: dict[str, tuple[Presented, set[str], str, set[str]]] = {
    "tokens:verify": (verify, {"access"}, "VALID", INVALID),
    "tokens:batchVerify": (batch, {"access"}, "VALID", INVALID),
    "tokens:introspect": (introspect, {"access", "refresh"}, "ACTIVE", {"INACTIVE"}),
    "oauth2/introspect": (introspect_as_oauth, {"access", "refresh"}, "ACTIVE", {"INACTIVE"}),
    "auth/refresh": (refresh, {"refresh"}, "OK", REFUSED | UNREAD),
    "oauth2/token": (refresh_as_oauth, set(), "", {"400 invalid_grant"}),
    "tokens:revoke": (revoke, {"access", "refresh"}, "OK", {"OK"}),
    "oauth2/revoke": (revoke_as_oauth, set(), "", {"200"}),
    "bearer of me": (bearer, {"access"}, "OK", REFUSED | {"403 PERMISSION_DENIED"}),  # a service is known, and may not
    "bearer of tokens:verify": (bearer_at_token, {"access"}, "OK", REFUSED | {"403 PERMISSION_DENIED"}),
    "page_token": (page, {"page"}, "OK", {"400 PAGE_TOKEN_INVALID"} | UNREAD),
    "consistency": (consistency, {"consistency"}, "OK", UNREAD),
}
KINDS = (
    "access",
    "refresh",
    "service-for-token",
    "service-for-identity",
    "page",
    "consistency",
    "id",
    "logout",
    "dpop",
    "refresh-jwt",
    "service-signed-by-us",
    "client-secret",
    "session-id",
)


@pytest.mark.parametrize("place", [pytest.param(place, id=f"T02-{place}") for place in PLACES])
async def test_tokens_of_other_kinds_are_refused(suite: Suite, signing: Signing, scene: Scene, place: str) -> None:
    """Each in its own words for nothing; and whatever was tried, the session is as it was."""
    kinds = await kinds_of(suite, signing, scene)
    present, right, _, refusals = PLACES[place]
    assert set(kinds) == set(KINDS)

    outcomes = {kind: await present(scene, kinds[kind]) for kind in KINDS if kind not in right}

    assert {kind: outcome for kind, outcome in outcomes.items() if outcome not in refusals} == {}
    assert (await scene.rest.get("/v1/me", headers=scene.person.headers)).status_code == 200
    assert await refresh(scene, scene.person.refresh_token) == "OK"


@pytest.mark.parametrize(
    ("place", "kind"), [pytest.param(place, kind, id=f"T02-{kind}-at-{place}") for place, each in PLACES.items() for kind in sorted(each[1])]
)
async def test_each_kind_is_good_where_it_belongs(suite: Suite, signing: Signing, scene: Scene, place: str, kind: str) -> None:
    """The control: a place that refuses everything would pass all of the above."""
    present, _, good, _ = PLACES[place]
    assert await present(scene, (await kinds_of(suite, signing, scene))[kind]) == good


async def test_a_client_secret_is_no_token_of_any_kind(suite: Suite, signing: Signing, scene: Scene) -> None:
    """T02: a client proves itself by its secret alone. Few are tried: failures of a client are limited."""
    kinds = await kinds_of(suite, signing, scene)
    for kind in ("access", "refresh", "service-for-identity", "id"):
        answer = await scene.rest.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=(scene.client.id, kinds[kind]))
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), kind
    answer = await scene.rest.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=scene.client.basic)
    assert answer.status_code == 200
