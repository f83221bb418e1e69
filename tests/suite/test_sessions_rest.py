"""Sessions, refresh, exchange and introspection as the world meets them: over REST, with every token instance asked."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx

from tests.suite.conftest import Person, Suite, Tenant, login, new_person, reason, sql
from tests.suite.test_authority import holder
from tests.suite.test_promise import statuses, tenant_of
from watchword.token.v1 import token_pb2

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


@dataclass(frozen=True)
class Program:
    """An OAuth client that calls over REST."""

    rest: httpx.AsyncClient
    id: str
    secret: str

    async def post(self, path: str, **form: str) -> httpx.Response:
        return await self.rest.post(path, data=form, auth=(self.id, self.secret))

    async def exchange(self, subject_token: str, **more: str) -> httpx.Response:
        form = {"grant_type": EXCHANGE, "subject_token": subject_token, "subject_token_type": ACCESS_TOKEN, **more}
        return await self.post("/oauth2/token", **form)


async def program(rest: httpx.AsyncClient, admin: Person, *scopes: str) -> Program:
    made = await rest.post("/v1/oauth-clients", json={"display_name": "Reports", "scopes": scopes}, headers=admin.headers)
    assert made.status_code == 200, made.text
    return Program(rest, made.json()["client"]["client_id"], made.json()["client_secret"])


async def test_a_person_lists_and_ends_sessions(suite: Suite, admin: Person) -> None:
    """The telephone that was lost is out before the answer comes; the session at hand goes on."""
    lost = await new_person(suite, admin)
    here = await login(suite, lost.email)
    async with suite.rest as rest:
        listed = (await rest.get("/v1/sessions", headers=here.headers)).json()["sessions"]
        assert [(each["session_id"], each["current"]) for each in listed] == [(here.session_id, True), (lost.session_id, False)]
        assert all(each["subject"] == here.id and each["address"] and each["user_agent"] and each["acr"] == "pwd" for each in listed)

        ended = await rest.delete(f"/v1/sessions/{lost.session_id}", headers=here.headers)
        assert ended.status_code == 200, ended.text
        assert await statuses(suite, lost.token) == {"REVOKED"}
        refreshed = await rest.post("/v1/auth/refresh", json={"refresh_token": lost.refresh_token})
        assert (refreshed.status_code, reason(refreshed)) == (401, "TOKEN_INVALID")

        assert await statuses(suite, here.token) == {"VALID"}
        assert len((await rest.get("/v1/sessions", headers=here.headers)).json()["sessions"]) == 1


async def test_other_peoples_sessions_do_not_exist(suite: Suite, admin: Person, person: Person, other_tenant: Tenant) -> None:
    """Another person's, another tenant's, one that never was: one answer, but for the id of the request; and all go on."""
    async with suite.rest as rest:

        async def answer(session_id: str) -> tuple[int, Any]:
            request_id = str(uuid4())
            refused = await rest.delete(f"/v1/sessions/{session_id}", headers={**person.headers, "x-request-id": request_id})
            given = refused.headers.get("x-request-id", request_id)
            return refused.status_code, refused.text.replace(given, "").replace(request_id, "")

        answers = [await answer(session_id) for session_id in (str(uuid4()), admin.session_id, other_tenant.admin.session_id)]
        malformed = await rest.delete("/v1/sessions/rubbish", headers=person.headers)
        listed = await rest.get("/v1/sessions", params={"subject": admin.id}, headers=person.headers)

    assert answers[0][0] == 404
    assert answers == [answers[0]] * 3
    assert (malformed.status_code, listed.status_code) == (400, 400)
    assert [await statuses(suite, other.token) for other in (admin, other_tenant.admin)] == [{"VALID"}] * 2


async def test_an_administrator_lists_and_ends_a_persons_sessions(suite: Suite, admin: Person) -> None:
    """Round after round: when the answer is there, no instance accepts a token of that session, and the person's other one goes on."""
    kept = await new_person(suite, admin)
    async with suite.rest as rest:
        for _ in range(20):
            lost = await login(suite, kept.email)
            listed = (await rest.get(f"/v1/users/{kept.id}/sessions", headers=admin.headers)).json()["sessions"]
            assert [(each["session_id"], each["user_id"], each["current"]) for each in listed] == [
                (lost.session_id, kept.id, False),
                (kept.session_id, kept.id, False),
            ]
            ended = await rest.delete(f"/v1/users/{kept.id}/sessions/{lost.session_id}", headers=admin.headers)
            assert (ended.status_code, bool(ended.json()["consistency_token"])) == (200, True), ended.text
            assert await statuses(suite, lost.token) == {"REVOKED"}
        assert await statuses(suite, kept.token) == {"VALID"}
        refreshed = await rest.post("/v1/auth/refresh", json={"refresh_token": lost.refresh_token})
        assert (refreshed.status_code, reason(refreshed)) == (401, "TOKEN_INVALID")
        first = (await rest.get(f"/v1/users/{admin.id}/sessions", params={"page_size": 1}, headers=admin.headers)).json()
        assert (len(first["sessions"]), len((await rest.get("/v1/sessions", headers=kept.headers)).json()["sessions"])) == (1, 1)
    written = "SELECT actor_id, context FROM suite.audit_event WHERE type = 'user_session_revoked' AND details->>'session_id' = $1"
    assert [tuple(row) for row in await sql(suite, written, lost.session_id)] == [(admin.id, "identity")]


async def test_an_administrator_reaches_no_session_elsewhere(suite: Suite, admin: Person, person: Person, other_tenant: Tenant) -> None:
    """Of another person, of another tenant, by another tenant's administrator, one that never was: the same bytes; and all go on."""
    unknown, foreign = str(uuid4()), other_tenant.admin
    pairs = [
        (admin, person.id, unknown),
        (admin, person.id, admin.session_id),
        (admin, person.id, foreign.session_id),
        (admin, unknown, person.session_id),
        (admin, foreign.id, foreign.session_id),
        (foreign, person.id, person.session_id),
        (foreign, admin.id, admin.session_id),
    ]
    async with suite.rest as rest:

        async def answer(method: str, by: Person, path: str) -> tuple[int, str]:
            request_id = str(uuid4())
            refused = await rest.request(method, path, headers={**by.headers, "x-request-id": request_id})
            given = refused.headers.get("x-request-id", request_id)
            return refused.status_code, refused.text.replace(given, "").replace(request_id, "")

        ends = [await answer("DELETE", by, f"/v1/users/{user_id}/sessions/{session_id}") for by, user_id, session_id in pairs]
        lists = [await answer("GET", by, f"/v1/users/{user_id}/sessions") for by, user_id, _ in pairs[3:]]
        plain = [
            await answer("DELETE", person, f"/v1/users/{person.id}/sessions/{person.session_id}"),
            await answer("GET", person, f"/v1/users/{person.id}/sessions"),
        ]

    assert ends[0][0] == 404
    assert ends + lists == [ends[0]] * 11
    assert [status for status, _ in plain] == [403, 403]
    assert [await statuses(suite, one.token) for one in (admin, person, foreign)] == [{"VALID"}] * 3


async def test_who_may_revoke_tokens_ends_no_session_of_an_administrator(suite: Suite, admin: Person) -> None:
    """Of plain people he may; theirs are listed by whoever may read accounts, and ended by nobody else."""
    manager, reader = await holder(suite, admin, "tokens.revoke"), await holder(suite, admin, "users.read")
    plain = await new_person(suite, admin)
    async with suite.rest as rest:
        for target, expected in ((admin, 403), (plain, 200)):
            path = f"/v1/users/{target.id}/sessions"
            assert (await rest.delete(f"{path}/{target.session_id}", headers=reader.headers)).status_code == 403
            assert (await rest.get(path, headers=manager.headers)).status_code == 403
            assert (await rest.get(path, headers=reader.headers)).status_code == 200
            ended = await rest.delete(f"{path}/{target.session_id}", headers=manager.headers)
            assert ended.status_code == expected, ended.text


async def test_of_fifty_refreshes_at_once_one_succeeds(suite: Suite, admin: Person) -> None:
    """A069, through Envoy, two services deep and over three instances of token; and the one does not outlive the others."""
    person = await new_person(suite, admin)
    async with suite.rest as rest:
        for _ in range(3):
            calls = (rest.post("/v1/auth/refresh", json={"refresh_token": person.refresh_token}) for _ in range(50))
            answers = await asyncio.gather(*calls)
            won = [answer for answer in answers if answer.status_code == 200]

            assert len(won) == 1
            assert {answer.status_code for answer in answers} <= {200, 401, 429, 503}
            assert await statuses(suite, won[0].json()["tokens"]["access_token"]) == {"REVOKED"}
            person = await login(suite, person.email)


async def test_a_refresh_may_be_repeated_after_a_lost_answer(suite: Suite, admin: Person) -> None:
    """The same request_id gets the same tokens; the same token with another one is a copy, and ends the session everywhere."""
    person = await new_person(suite, admin)
    asked = {"refresh_token": person.refresh_token, "request_id": str(uuid4())}
    async with suite.rest as rest:
        repeats = await asyncio.gather(*(rest.post("/v1/auth/refresh", json=asked) for _ in range(6)))
        repeats.append(await rest.post("/v1/auth/refresh", json=asked))
        assert [answer.status_code for answer in repeats] == [200] * 7
        assert [answer.json() for answer in repeats] == [repeats[0].json()] * 7
        token = repeats[0].json()["tokens"]["access_token"]
        assert await statuses(suite, token) == {"VALID"}
        wrong = await rest.post("/v1/auth/refresh", json={**asked, "request_id": "again"})
        assert (wrong.status_code, reason(wrong)) == (400, "INVALID_REQUEST")

        copied = await rest.post("/v1/auth/refresh", json={**asked, "request_id": str(uuid4())})
        assert (copied.status_code, reason(copied)) == (401, "REFRESH_TOKEN_REUSED")
        assert await statuses(suite, token) == {"REVOKED"}
        late = await rest.post("/v1/auth/refresh", json=asked)
        assert (late.status_code, reason(late)) == (401, "TOKEN_INVALID")


async def test_a_revocation_by_time_ends_what_was_refreshed_since(suite: Suite, admin: Person) -> None:
    """A stolen session that goes on refreshing has tokens younger than any time that an operator names: they end with it, on all instances."""
    person = await new_person(suite, admin)
    await sql(suite, "UPDATE token.session SET create_time = create_time - interval '1 hour' WHERE id = $1", person.session_id)
    later = await login(suite, person.email)
    async with suite.rest as rest:
        young = (await rest.post("/v1/auth/refresh", json={"refresh_token": person.refresh_token})).json()["tokens"]["access_token"]
    assert await statuses(suite, young) == {"VALID"}

    request = token_pb2.RevokeTokensRequest(tenant_id=await tenant_of(suite, person), subject=person.id)
    request.issued_before.FromDatetime(datetime.now(UTC) - timedelta(minutes=30))
    await suite.grpc.tokens.RevokeTokens(request, metadata=suite.peer("identity", to="token"))

    assert await statuses(suite, young) == {"REVOKED"}
    assert await statuses(suite, later.token) == {"VALID"}


async def test_a_request_id_is_good_for_one_refresh_token(suite: Suite, admin: Person) -> None:
    """Taken for another's, it costs neither of them a session."""
    first, second, request_id = await new_person(suite, admin), await new_person(suite, admin), str(uuid4())
    async with suite.rest as rest:
        took = await rest.post("/v1/auth/refresh", json={"refresh_token": first.refresh_token, "request_id": request_id})
        refused = await rest.post("/v1/auth/refresh", json={"refresh_token": second.refresh_token, "request_id": request_id})
        assert (took.status_code, refused.status_code, reason(refused)) == (200, 409, "IDEMPOTENCY_CONFLICT")
        anew = await rest.post("/v1/auth/refresh", json={"refresh_token": second.refresh_token})
        assert anew.status_code == 200


async def test_a_program_acts_for_a_person_with_less(suite: Suite, admin: Person, person: Person) -> None:
    """RFC 8693 from end to end: what it is, what it may, and that it ends with the person's session on every instance."""
    async with suite.rest as rest:
        acting = await program(rest, admin, "tokens.verify", "tokens.introspect")
        traded = await acting.exchange(person.token)
        assert traded.status_code == 200, traded.text
        body, token = traded.json(), traded.json()["access_token"]
        assert (body["issued_token_type"], body["token_type"], body["scope"]) == (ACCESS_TOKEN, "Bearer", "tokens.verify")
        assert "refresh_token" not in body

        seen = (await acting.post("/oauth2/introspect", token=token)).json()
        assert (seen["active"], seen["sub"], seen["act"], seen["client_id"]) == (True, person.id, {"sub": acting.id}, acting.id)
        principal = (await rest.post("/v1/tokens:verify", json={"token": token}, headers=person.headers)).json()["principal"]
        assert (principal["subject"], principal["actor"]["subject"], principal["session_id"]) == (person.id, acting.id, person.session_id)

        wider = await acting.exchange(person.token, scope="tokens.verify account")
        assert (wider.status_code, wider.json()["error"]) == (400, "invalid_scope")
        elsewhere = await acting.exchange(person.token, audience="https://elsewhere.test")
        assert (elsewhere.status_code, elsewhere.json()["error"]) == (400, "invalid_target")

        assert await statuses(suite, token) == {"VALID"}
        await rest.post("/v1/auth/logout", json={}, headers=person.headers)
        assert await statuses(suite, token) == {"REVOKED"}
        again = await acting.exchange(person.token)
        assert (again.status_code, again.json()["error"]) == (400, "invalid_request")


async def test_an_actor_has_the_scopes_of_its_token_and_not_the_persons_permissions(suite: Suite, admin: Person) -> None:
    """An administrator's token, traded for one that verifies only, administers nothing."""
    async with suite.rest as rest:
        acting = await program(rest, admin, "tokens.verify", "users.read")
        token = (await acting.exchange(admin.token)).json()["access_token"]
        headers = {"authorization": f"Bearer {token}"}
        paths = ("/v1/me", "/v1/sessions", "/v1/users", "/v1/oauth-clients", "/v1/audit-events", "/v1/roles", "/v1/role-bindings")
        answers = {path: (await rest.get(path, headers=headers)).status_code for path in paths}

    assert answers == dict.fromkeys(paths, 403)


async def test_deleting_the_program_ends_what_it_acts_with(suite: Suite, admin: Person, person: Person) -> None:
    """And leaves the person alone."""
    async with suite.rest as rest:
        acting = await program(rest, admin, "tokens.verify")
        token = (await acting.exchange(person.token)).json()["access_token"]
        gone = await rest.delete(f"/v1/oauth-clients/{acting.id}", headers=admin.headers)
        assert gone.status_code == 200, gone.text

        assert await statuses(suite, token) == {"REVOKED"}
        assert await statuses(suite, person.token) == {"VALID"}
        refused = await acting.exchange(person.token)
        assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")


async def test_what_is_not_active_is_one_answer(suite: Suite, admin: Person, person: Person, other_tenant: Tenant) -> None:
    """A076: unknown, malformed, expired, revoked, used, of another tenant: the same bytes, at both doors."""
    idle, used, gone = [await login(suite, person.email) for _ in range(3)]
    async with suite.rest as rest:
        assert (await rest.post("/v1/auth/refresh", json={"refresh_token": used.refresh_token})).status_code == 200
        await rest.delete(f"/v1/sessions/{gone.session_id}", headers=person.headers)
        await sql(suite, "UPDATE token.refresh_token SET expire_time = now() - interval '1 second' WHERE session_id = $1", idle.session_id)
        reader = await program(rest, admin, "tokens.introspect")
        own = (await reader.post("/oauth2/token", grant_type="client_credentials")).json()["access_token"]
        inactive = {
            "unknown access": person.token[:-8] + "AAAAAAAA",
            "unknown refresh": "wwrt_unknown",
            "malformed": "rubbish",
            "expired refresh": idle.refresh_token,
            "used refresh": used.refresh_token,
            "revoked access": gone.token,
            "revoked refresh": gone.refresh_token,
            "foreign access": other_tenant.admin.token,
            "foreign refresh": other_tenant.admin.refresh_token,
        }

        async def answers(text: str) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
            by_form = await reader.post("/oauth2/introspect", token=text)
            by_json = await rest.post("/v1/tokens:introspect", json={"token": text}, headers={"authorization": f"Bearer {own}"})
            return (by_form.status_code, by_form.content), (by_json.status_code, by_json.content)

        seen = {name: await answers(text) for name, text in inactive.items()}
        alive = await answers(person.token)

    assert {first for first, _ in seen.values()} == {(200, b'{"active":false}')}
    assert len({second for _, second in seen.values()}) == 1
    assert seen["malformed"][1][0] == 200
    assert all(b'"active":true' in body.replace(b" ", b"") for _, body in alive)
