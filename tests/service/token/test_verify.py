"""VerifyToken: what it says of good tokens, of outdated and misdirected ones, and of many at once. What is forged: see test_attacks."""

import json
import time
from typing import Any
from uuid import uuid4

import grpc
import jwt
import pytest

from bench.machine import resident_bytes
from services.chassis.wire import varint
from tests.forgery import Original, good_claims
from tests.service.token.conftest import ISSUER, KID, TENANT, TokenInstances
from watchword.token.v1 import token_pb2

PADDING = 500_000  # bytes; a request may have twice that


@pytest.fixture
def original(token: TokenInstances) -> Original:
    """The makings of a good token."""
    return Original.of(token.private_key, KID, good_claims(issuer=ISSUER, tenant_id=TENANT))


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
async def test_a_well_formed_token_is_valid(token: TokenInstances, original: Original, typ: str) -> None:
    """A006: media types ignore case."""
    assert await token.status(original.with_head(typ=typ)) == "VALID"


@pytest.mark.parametrize("body", [b'{"sub":"%s","sub":"x"}', b'{"exp":NaN}', b'{"exp":1e400}', b'{"a":"\\ud800"}', b"[]", b"\xff", b"{}"])
async def test_a_payload_without_claims_is_malformed(token: TokenInstances, original: Original, body: bytes) -> None:
    """A023, A040."""
    assert await token.status(original.token(body=body)) == "MALFORMED"


async def test_a_duplicated_claim_is_refused_and_not_the_last_taken(token: TokenInstances, original: Original) -> None:
    """A040, with everything else right: PyJWT alone takes the last `sub`."""
    good = json.dumps(original.body)
    doubled = original.token(body=(good[:-1] + f', "sub": "{uuid4()}"}}').encode())
    assert await token.status(doubled) == "MALFORMED"
    assert jwt.decode(doubled, token.private_key.public_key(), algorithms=["RS256"], audience="watchword")


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        pytest.param(-3, "VALID", id="A033-within-the-leeway"),
        pytest.param(0, "VALID", id="A033-now"),
        pytest.param(-8, "EXPIRED", id="A033-beyond-the-leeway"),
        pytest.param(-3600, "EXPIRED", id="A033-an-hour"),
    ],
)
async def test_a_token_ends_with_five_seconds_of_grace(token: TokenInstances, original: Original, offset: int, expected: str) -> None:
    """Two hosts' clocks may differ by so much."""
    now = int(time.time())
    assert await token.status(original.with_body(iat=now - 7200, exp=now + offset)) == expected


@pytest.mark.parametrize(
    ("offset", "expected"), [pytest.param(4, "VALID", id="A034-within-the-leeway"), pytest.param(60, "NOT_YET_VALID", id="A034-beyond-it")]
)
async def test_a_token_from_the_future_is_refused_beyond_five_seconds(token: TokenInstances, original: Original, offset: int, expected: str) -> None:
    """As at its end."""
    now = int(time.time())
    assert await token.status(original.with_body(iat=now + offset, exp=now + 300)) == expected


async def test_scopes_that_are_required_must_all_be_there(token: TokenInstances, original: Original) -> None:
    """INSUFFICIENT_SCOPE still says whose token it is: the caller may want to step up."""
    text = original.with_body(scope="a b")
    assert await token.status(text, required_scopes=["a", "b"]) == "VALID"
    assert await token.status(text, required_scopes=["a", "c"]) == "INSUFFICIENT_SCOPE"


async def test_a_batch_answers_by_position(token: TokenInstances, original: Original) -> None:
    """A mixed batch: each answer is the one that the single call gives."""
    texts = [original.token(), "rubbish", original.with_body(aud="x")] * 10
    request = token_pb2.BatchVerifyTokensRequest(requests=[token_pb2.VerifyTokenRequest(token=text) for text in texts])
    answers = (await token.stubs[1].BatchVerifyTokens(request, metadata=token.identity)).responses

    assert [token_pb2.TokenStatus.Name(answer.status) for answer in answers] == ["VALID", "MALFORMED", "WRONG_AUDIENCE"] * 10
    assert not answers[1].HasField("principal")


async def test_a_request_that_is_padded_is_answered_and_not_remembered(token: TokenInstances, original: Original) -> None:
    """Fields that nobody knows make a request as long as its sender likes: kept, a few thousand of them would be gigabytes."""
    raw = token_pb2.VerifyTokenRequest(token=original.token()).SerializeToString()
    padded = raw + b"\xfa\x07" + varint(PADDING) + bytes(PADDING - 1)  # field 127
    before, same_caller = resident_bytes(token.pids[0]), token.identity

    async with grpc.aio.insecure_channel(token.addresses[0]) as channel:
        rpc: Any = channel.unary_unary("/watchword.token.v1.TokenService/VerifyToken", response_deserializer=token_pb2.VerifyTokenResponse.FromString)
        for number in range(120):
            told = [await rpc(padded + bytes([number]), metadata=same_caller) for _ in range(3)]
            assert {answer.status for answer in told} == {token_pb2.VALID}

    assert resident_bytes(token.pids[0]) - before < 60 * PADDING
