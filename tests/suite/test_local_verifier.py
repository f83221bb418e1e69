"""`watchword.TokenVerifier` in another process than the suite's, through Envoy, as those who install the package use it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

from tests.conftest import eventually
from tests.suite.conftest import Client, Person, Suite, new_client, new_person
from watchword import ClientCredentials, TokenVerifier, WhenStale
from watchword.errors import TokenInvalid
from watchword.refusals import TokenRevoked, VerificationStale
from watchword.token.v1 import session_pb2, session_pb2_grpc, token_pb2


@pytest.fixture(scope="module")
async def client(suite: Suite, admin: Person) -> Client:
    """A program that verifies."""
    return await new_client(suite, admin, "tokens.verify")


def verifier_of(suite: Suite, client: Client, **more: object) -> TokenVerifier:
    """Return a verifier that is not started."""
    credentials = ClientCredentials(client.id, client.secret)
    return TokenVerifier(suite.endpoints.grpc, credentials=credentials, issuer=suite.endpoints.rest, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def verifier(suite: Suite, client: Client) -> AsyncIterator[TokenVerifier]:
    """One that follows the feed, and would rather refuse than ask: what it says it says from memory."""
    async with verifier_of(suite, client, when_stale=WhenStale.REFUSE) as started:
        yield started


async def is_revoked(verifier: TokenVerifier, token: str) -> bool:
    """Whether the verifier refuses a token as revoked."""
    try:
        verifier.verify(token)
    except TokenRevoked:
        return True
    return False


async def test_a_token_is_verified_from_memory_and_refused_once_revoked(suite: Suite, admin: Person, verifier: TokenVerifier, person: Person) -> None:
    assert verifier.verify(person.token).subject == person.id

    await suite.grpc.tokens.RevokeToken(token_pb2.RevokeTokenRequest(token=person.token), metadata=person.metadata)

    await eventually(lambda: is_revoked(verifier, person.token), within=2)


async def test_every_kind_of_revocation_arrives(suite: Suite, admin: Person, verifier: TokenVerifier) -> None:
    """Of a session by its owner, of a subject by an administrator who disables it."""
    first, second = await new_person(suite, admin), await new_person(suite, admin)
    assert [verifier.verify(one.token).subject for one in (first, second)] == [first.id, second.id]

    stub = session_pb2_grpc.SessionServiceStub(suite.channel())
    await stub.RevokeSession(session_pb2.RevokeSessionRequest(session_id=first.session_id), metadata=first.metadata)
    async with suite.rest as rest:
        assert (await rest.post(f"/v1/users/{second.id}:disable", json={}, headers=admin.headers)).status_code == 200

    async def both_are_refused() -> bool:
        for one in (first, second):
            try:
                verifier.verify(one.token)
            except TokenInvalid:
                continue
            return False
        return True

    await eventually(both_are_refused, within=2)


async def test_what_was_revoked_before_the_verifier_started_is_refused_from_the_start(suite: Suite, admin: Person, client: Client) -> None:
    """The snapshot; and nothing is answered before it is complete."""
    person = await new_person(suite, admin)
    await suite.grpc.tokens.RevokeToken(token_pb2.RevokeTokenRequest(token=person.token), metadata=person.metadata)

    async with verifier_of(suite, client) as late:
        with pytest.raises(TokenRevoked):
            late.verify(person.token)


async def test_the_feed_outlives_the_instance_it_comes_from(suite: Suite, admin: Person, verifier: TokenVerifier) -> None:
    """One after the other is killed; the verifier goes on at another instance, from its cursor, and misses nothing."""
    for name in ("token-1", "token-2"):
        person = await new_person(suite, admin)
        verifier.verify(person.token)
        suite.stop(name, "KILL")
        try:
            request = token_pb2.RevokeTokenRequest(token=person.token, request_id=str(uuid4()))
            await suite.grpc.tokens.RevokeToken(request, metadata=person.metadata, timeout=5)
            await eventually(lambda token=person.token: is_revoked(verifier, token), within=8)  # type: ignore[misc]
        finally:
            suite.start(name)


async def test_without_the_suite_a_verifier_refuses_rather_than_guess(suite: Suite, admin: Person, client: Client) -> None:
    """Beyond `max_staleness` memory is worth nothing."""
    person = await new_person(suite, admin)
    async with verifier_of(suite, client, max_staleness=timedelta(seconds=1.5), when_stale=WhenStale.REFUSE) as alone:
        assert alone.verify(person.token).subject == person.id
        await alone.stop()

        async def is_stale() -> bool:
            try:
                alone.verify(person.token)
            except VerificationStale:
                return True
            await asyncio.sleep(0.05)
            return False

        await eventually(is_stale, within=5)
