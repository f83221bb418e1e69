"""The answer VALID that is written straight to the wire says what protobuf would have said."""

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as some

from services.chassis.call import Caller, CallerKind
from services.chassis.wire import member, varint
from services.token.messages import verdict_of
from services.token.valid_messages import valid_answer
from services.token.verifier import Answer, Verdict
from watchword.token.v1 import token_pb2
from watchword.tokens import MAX_SECONDS, Claims, SubjectKind

PEER = Caller(CallerKind.SERVICE, "rbac")
texts = some.text(min_size=1, max_size=200)
seconds = some.integers(0, MAX_SECONDS)
claims = some.builds(
    Claims,
    iss=texts,
    sub=some.uuids().map(str),
    aud=some.tuples(texts),
    exp=seconds,
    iat=seconds,
    jti=some.uuids().map(str),
    tenant_id=some.uuids(),
    kind=some.sampled_from(SubjectKind),
    rev=some.integers(0, 2**63 - 1),
    client_id=some.none() | some.uuids(),
    sid=some.none() | some.uuids().map(str),
    scope=some.lists(texts, max_size=5).map(tuple),
    roles=some.lists(texts, max_size=5).map(tuple),
    auth_time=seconds,
    acr=some.just("") | texts,
    actors=some.lists(some.uuids(), max_size=3).map(tuple),
)
LARGEST = Claims("i", str(UUID(int=1)), ("a",), MAX_SECONDS, 0, str(UUID(int=2)), UUID(int=3), SubjectKind.USER, 0, roles=("r" * 2048,) * 100)


@given(claims)
@example(LARGEST)
def test_it_says_what_protobuf_says(token: Claims) -> None:
    """A caller must not see by which way an answer was made."""
    expected = verdict_of(Answer(Verdict.VALID, token, token.tenant_id), PEER)

    found = token_pb2.VerifyTokenResponse.FromString(valid_answer(token))

    assert found == expected
    assert found.principal.subject == token.sub
    assert len(valid_answer(token)) <= len(expected.SerializeToString()) + 2 * len(b"\x08\x00")  # protobuf leaves a zero out


@given(some.integers(0, 2**63 - 1))
def test_numbers_are_written_as_protobuf_writes_them(value: int) -> None:
    """Up to the largest that a Timestamp holds."""
    written = token_pb2.VerifyTokenResponse()
    written.expire_time.seconds = value
    body = b"\x08" + varint(value) if value else b""
    assert written.SerializeToString() == member(3, body)


def test_two_tokens_of_one_kind_keep_their_own_times() -> None:
    """What is shared is remembered, and must hold nothing of one token."""
    first = LARGEST._replace(exp=1, auth_time=2)
    second = LARGEST._replace(exp=3, auth_time=4, sub=str(UUID(int=9)))
    for token in (first, second, first):
        found = token_pb2.VerifyTokenResponse.FromString(valid_answer(token))
        assert found.expire_time.ToDatetime(UTC) == datetime.fromtimestamp(token.exp, UTC)
        assert (found.principal.auth_time.seconds, found.principal.subject) == (token.auth_time, token.sub)
