"""What a running stack tells: every number that alerts, dashboard and `scripts/top` ask for, and one request id in every log that it touched."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from services.top.scrape import Look, Target, look
from services.up import walkthrough
from tests.conftest import eventually
from tests.contracts.monitoring import OF_PROMETHEUS, OF_SCRAPING, wanted
from tests.suite.conftest import PASSWORD, Client, Person, Suite, run

WRONG = {"login": "nobody@example.com", "password": "a wrong password of some length"}


async def looks(suite: Suite) -> list[Look]:
    """Ask every instance for its numbers, as Prometheus does."""
    return await look([Target(one.name, one.metrics) for one in suite.endpoints.instances if one.metrics])


@pytest.fixture(scope="module")
async def told(suite: Suite, admin: Person, operator: Client) -> dict[str, set[str]]:
    """Do a little of everything, and return the names of all numbers with the labels that they have."""
    async with suite.rest as rest:
        login = await rest.post("/v1/auth/login", json={"login": suite.endpoints.admin_email, "password": await _password(suite)})
        token = login.json()["tokens"]["access_token"]
        headers = {"authorization": f"Bearer {token}"}
        for _ in range(12):  # each instance gets some
            assert (await rest.post("/v1/tokens:verify", json={"token": token}, headers=admin.headers)).status_code == 200
        assert (await rest.post("/v1/auth/login", json=WRONG)).status_code == 401
        assert (await rest.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=(operator.id, "wrong"))).status_code == 401
        assert (await rest.post("/v1/tokens:revoke", json={"token": token}, headers=headers)).status_code == 200
        assert (await rest.get("/health/detailed")).status_code == 200
    found: dict[str, set[str]] = {}

    async def is_complete() -> bool:
        """Envoy puts histograms together every five seconds."""
        for one in await looks(suite):
            assert one.is_up, one.target
            for name, samples in one.samples.items():
                found.setdefault(name, set()).update(*(sample.labels for sample in samples))
        return "envoy_http_downstream_rq_time_bucket" in found

    await eventually(is_complete, within=20)
    return found


async def _password(suite: Suite) -> str:
    return walkthrough.new_password((await asyncio.to_thread(Path(suite.endpoints.admin_password_file).read_text)).strip())


def test_every_number_that_alerts_and_dashboard_ask_for_is_told(told: dict[str, set[str]]) -> None:
    """A misspelt name is an alert that never fires."""
    asked = [one for one in wanted() if one.name not in OF_PROMETHEUS]

    assert len({one.name for one in asked}) > 35
    assert sorted({(one.where, one.name) for one in asked if one.name not in told}) == []


def test_every_label_that_they_ask_by_is_there(told: dict[str, set[str]]) -> None:
    """A misspelt label matches nothing, or sums what should be apart."""
    missing = [
        (one.where, one.name, label)
        for one in wanted()
        for label in one.labels - OF_SCRAPING
        if one.name not in OF_PROMETHEUS and label not in told.get(one.name, {label})
    ]

    assert sorted(set(missing)) == []


async def test_what_happened_is_counted_where_it_happened(suite: Suite, told: dict[str, set[str]]) -> None:
    """The seed's list: tokens, failed logins, pools, cache, leases, propagation, revocations."""
    assert told

    def total(name: str, **labels: str) -> float:
        return sum(one.sum(name, **labels) for one in seen)

    seen = await looks(suite)

    assert total("watchword_identity_logins_total", outcome="INVALID_CREDENTIALS") >= 1
    assert total("watchword_identity_logins_total", outcome="SUCCEEDED") >= 2
    assert total("watchword_http_statuses_total", grpc_method="Token", status="401") >= 1
    assert total("watchword_token_issued_total", by="login") >= 2
    assert total("watchword_cache_requests_total", cache="VerifyToken", outcome="hit") >= 1
    assert total("watchword_propagation_seconds_count", context="token") >= 1
    for one in (one for one in seen if one.target.name.startswith(("identity-", "rbac-"))):
        assert one.sum("watchword_callers_current") == 1, one.target.name
    assert total("watchword_callers_asked_total") >= 1
    assert total("watchword_callers_held") >= 1
    for one in (one for one in seen if one.target.name.startswith("token-")):
        assert one.sum("watchword_token_revocations_held") >= 1, one.target.name
        assert one.sum("watchword_lease_current") == 1, one.target.name
        assert one.sum("watchword_token_can_sign") == 1, one.target.name
    assert {(sample.labels["of"], sample.value) for one in seen for sample in one.of("watchword_gateway_healthy")} == {
        (name, 1.0) for name in ("database", "redis", "identity", "token", "rbac")
    }
    fingerprints = {(sample.labels["context"], sample.labels["fingerprint"]) for one in seen for sample in one.of("watchword_settings_info")}
    assert len(fingerprints) == 4  # one a context: its instances agree


async def test_no_secret_and_no_person_is_among_the_numbers(suite: Suite, told: dict[str, set[str]], person: Person) -> None:
    """Labels are read by whoever may read the dashboard, and each new value costs memory for ever."""
    assert told
    values = {value for one in await looks(suite) for samples in one.samples.values() for sample in samples for value in sample.labels.values()}

    assert not {value for value in values for secret in (PASSWORD, person.id, person.email, person.token, "nobody@example.com") if secret in value}


async def test_top_shows_instances_rates_and_health(suite: Suite, told: dict[str, set[str]], admin: Person) -> None:
    """`scripts/top --once` is the plain-text form."""
    assert told
    command = (sys.executable, "-m", "services.top", "--home", str(suite.home), "--once", "--interval", "1.5")
    shown = asyncio.create_task(asyncio.to_thread(run, *command))
    async with suite.rest as rest:
        while not shown.done():
            await rest.post("/v1/tokens:verify", json={"token": admin.token}, headers=admin.headers)
    picture = (await shown).stdout

    rows = {line.split()[0]: line.split() for line in picture.splitlines() if line}
    assert "database ok  redis ok  identity ok  token ok  rbac ok" in picture
    for one in suite.endpoints.instances:
        assert (one.name in rows) is bool(one.metrics)
        assert not one.metrics or rows[one.name][1] == "ready"
    assert float(rows["token.VerifyToken"][1]) > 0
    assert rows["token-1"][2] == "held"


async def test_one_request_id_is_in_every_log_that_the_request_touched(suite: Suite) -> None:
    """From Envoy to identity, by Envoy again to token, and in the answer: what an operator is told by a caller finds all the rest."""
    async with suite.rest as rest:
        answer = await rest.post("/v1/auth/refresh", json={"refresh_token": "wwrt_" + "x" * 43}, headers={"x-request-id": "a-strangers-choice"})
    assert answer.status_code == 401
    wanted_id = answer.headers["x-request-id"]
    assert wanted_id != "a-strangers-choice"

    def lines(service: str) -> list[dict[str, Any]]:
        text = "".join(Path(one.log).read_text() for one in suite.instances(service))
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}") and wanted_id in line]

    async def is_everywhere() -> bool:
        envoy, *services = await asyncio.gather(*(asyncio.to_thread(lines, service) for service in ("envoy", "identity", "token")))
        return {line["listener"] for line in envoy} == {"edge", "internal"} and all(services)

    await eventually(is_everywhere)
    assert {line["method"].rpartition("/")[2] for line in lines("identity")} == {"RefreshSession"}
    assert {line["reason"] for line in lines("token")} == {"TOKEN_INVALID"}
    assert wanted_id in json.dumps(answer.json())
