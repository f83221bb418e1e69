"""How a process that verifies proves itself: RFC 6749 section 4.4, renewed in time, and no hammering when it fails."""

import asyncio
import base64
from datetime import timedelta

import grpc
import pytest

from tests.conftest import eventually
from tests.service.watchword.fake import CLIENT, OTHER_TENANT, QUICK, FakeSuite, token
from watchword import TokenVerifier
from watchword.credentials import ClientCredentials, OwnToken
from watchword.errors import InvalidCredentials, Unavailable


def own(fake: FakeSuite, credentials: ClientCredentials = CLIENT) -> OwnToken:
    return OwnToken(credentials, grpc.aio.insecure_channel(fake.address))


async def test_the_token_request_is_the_rfcs(fake: FakeSuite) -> None:
    """Both halves of Basic are form-encoded before they are joined: a secret may hold a colon."""
    assert await own(fake, ClientCredentials("client", "secret:with %&", ("tokens.verify",))).get()
    ((request, authorization),) = fake.issued
    assert (request.content_type, request.data) == ("application/x-www-form-urlencoded", b"grant_type=client_credentials&scope=tokens.verify")
    assert base64.b64decode(authorization.removeprefix("Basic ")).decode() == "client:secret%3Awith+%25%26"


def test_a_secret_is_not_shown() -> None:
    """Not in a traceback, not in a log."""
    assert "secret" not in repr(ClientCredentials("client", "secret:with %&")).replace("client_secret", "")


async def test_one_token_serves_many_calls(fake: FakeSuite) -> None:
    """Also when they come at once."""
    mine = own(fake)
    assert len(set(await asyncio.gather(*(mine.get() for _ in range(20))))) == 1
    assert len(fake.issued) == 1


async def test_a_token_is_renewed_before_it_expires(fake: FakeSuite) -> None:
    """At two thirds of its life; and again when the suite has refused it."""
    fake.own_life = 0
    mine = own(fake)
    await mine.get()
    assert mine.is_due
    fake.own_life = 300
    second = await mine.get()
    assert not mine.is_due
    mine.forget()
    assert await mine.get() != second
    assert len(fake.issued) == 3


@pytest.mark.parametrize(("status", "failure"), [("401", InvalidCredentials), ("400", InvalidCredentials), ("503", Unavailable)])
async def test_a_failure_is_not_repeated_at_once(fake: FakeSuite, status: str, failure: type[Exception]) -> None:
    """Identity counts wrong secrets: a verifier must not lock its own client out."""
    fake.oauth_status = status
    mine = own(fake)
    for _ in range(5):
        with pytest.raises(failure):
            await mine.get()
    assert len(fake.issued) == 1


async def test_a_token_that_lives_serves_while_renewal_fails(fake: FakeSuite) -> None:
    """A short outage of identity ends nothing."""
    mine = own(fake)
    first = await mine.get()
    assert mine._held is not None
    mine._held = type(mine._held)(first, 0.0, mine._held.expires_at)
    fake.oauth_status = "503"
    assert [await mine.get(), await mine.get()] == [first, first]
    assert len(fake.issued) == 2


async def test_the_stream_gets_a_new_token_before_its_own_expires(fake: FakeSuite) -> None:
    """The server ends streams whose caller's token is over."""
    fake.own_life = 0
    async with fake.verifier() as verifier:
        third = await fake.opened(3)
        assert third.authorization != fake.streams[0].authorization
        assert third.cursor
        assert verifier.verify(token())


async def test_a_refused_stream_gets_a_new_token(fake: FakeSuite) -> None:
    """The secret was rotated, or the client's tokens revoked: the next token may be good."""
    async with fake.verifier():
        fake.stream.refuse()
        await fake.opened(2)
        assert len(fake.issued) == 2


async def test_any_coroutine_function_can_be_the_source(fake: FakeSuite) -> None:
    """Its token tells the tenant; one that does not needs tenant_id."""

    async def source() -> str:
        return token()

    async def opaque() -> str:
        return "opaque"

    async with fake.verifier(credentials=source) as verifier:
        assert verifier.verify(token())
    verifier = fake.verifier(credentials=opaque)
    await verifier.start(within=timedelta(seconds=0.1))
    assert verifier.staleness == timedelta.max
    await verifier.stop()
    assert fake.issued == []


async def test_tokens_of_another_tenant_than_ones_own_are_not_verified(fake: FakeSuite) -> None:
    """The stream tells of the caller's tenant alone: what is revoked in the other would never come, and checkpoints would."""
    verifier = fake.verifier(tenant_id=OTHER_TENANT)
    await verifier.start(within=timedelta(seconds=0.2))

    assert verifier.staleness == timedelta.max
    assert fake.streams == []
    await verifier.stop()


async def test_a_source_that_fails_ends_nothing(fake: FakeSuite) -> None:
    """Whatever it raises."""
    failures = [ValueError("no vault"), KeyError("x")]

    async def source() -> str:
        if failures:
            raise failures.pop()
        return token()

    verifier = TokenVerifier(fake.address, credentials=source, issuer="https://auth.test", patience=QUICK)
    await verifier.start()

    async def is_fresh() -> bool:
        return verifier.staleness < timedelta(seconds=1)

    await eventually(is_fresh)
    await verifier.stop()
