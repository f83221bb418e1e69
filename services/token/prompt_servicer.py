"""Answers that need no waiting: while the lease lives, a verification is a few microseconds of memory, and most of a call would be its surroundings.

So VerifyToken, BatchVerifyTokens and IssueToken without a session are answered from the encoded request, before anything is made for a call that
may have to wait. What was remembered of a verification is its question and the encoded answer for VALID; whether the token is valid is found out
anew each time.
"""

from asyncio import Future
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from google.protobuf.message import DecodeError

from services.chassis.call import Caller
from services.chassis.clock import Clock
from services.chassis.validation import Validator
from services.chassis.wire import member
from services.token.issuer import AccessToken
from services.token.joint_signing import JointSigning
from services.token.messages import login_of, may_see, question_of, tokens_of, verdict_of
from services.token.sessions import Sessions, without_session
from services.token.valid_messages import valid_answer
from services.token.verifier import Answer, Question, Verifier
from watchword.errors import InvalidRequest, WatchwordError
from watchword.rules import VALID
from watchword.token.v1 import token_pb2
from watchword.tokens import MAX_TOKEN_BYTES

REMEMBERED = 4096  # requests, of some 3 KB each
MAX_REMEMBERED_BYTES = MAX_TOKEN_BYTES + 1024  # a longer request is read each time
TOKENS, ACCESS_TOKEN = token_pb2.IssueTokenResponse.TOKENS_FIELD_NUMBER, token_pb2.TokenSet.ACCESS_TOKEN_FIELD_NUMBER
RESPONSES = token_pb2.BatchVerifyTokensResponse.RESPONSES_FIELD_NUMBER


class Known(NamedTuple):
    """A request that asked about a valid token for the second time, and the answer: who comes once is not worth the memory."""

    question: Question
    valid: bytes


class PromptVerification:
    """Answers at once, or not at all."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._validator = Validator()
        self._known: dict[bytes, Known] = {}

    def verify(self, raw: bytes, caller: Caller) -> bytes | None:
        """Answer a VerifyTokenRequest. None if it has to wait, or is refused."""
        known = self._known.get(raw)
        question = known.question if known is not None else self._question(raw)
        if question is None:
            return None
        is_repeated = known is None and self._verifier.remembers(question.token)
        answer = self._verifier.recall(question)
        if answer is None:
            return None
        if known is not None and answer.verdict is VALID and may_see(caller, answer.tenant_id):
            return known.valid
        encoded = _encoded(answer, caller)
        if is_repeated and answer.verdict is VALID and may_see(caller, answer.tenant_id):
            self._remember(raw, Known(question, encoded))
        return encoded

    def verify_batch(self, raw: bytes, caller: Caller) -> bytes | None:
        """Answer a BatchVerifyTokensRequest. None if it has to wait, or is refused."""
        try:
            batch = token_pb2.BatchVerifyTokensRequest.FromString(raw)
            self._validator.check(batch)
        except (DecodeError, RecursionError, InvalidRequest):
            return None
        answers = [self._verifier.recall(question_of(request)) for request in batch.requests]
        if None in answers:
            return None
        return b"".join([member(RESPONSES, _encoded(answer, caller)) for answer in answers if answer is not None])

    def _question(self, raw: bytes) -> Question | None:
        token = _token_alone(raw)
        if token is not None:
            return Question(token)
        try:
            request = token_pb2.VerifyTokenRequest.FromString(raw)
            self._validator.check(request)
        except (DecodeError, RecursionError, InvalidRequest):
            return None  # said properly on the way that waits
        return question_of(request)

    def _remember(self, raw: bytes, known: Known) -> None:
        if len(raw) > MAX_REMEMBERED_BYTES:
            return
        if len(self._known) >= REMEMBERED:
            for oldest in list(islice(self._known, REMEMBERED // 8)):
                del self._known[oldest]
        self._known[raw] = known


class PromptIssuing:
    """Signs at once, or soon with others, what needs no session: an access token alone."""

    def __init__(self, sessions: Sessions, signing: JointSigning, clock: Clock) -> None:
        self._sessions = sessions
        self._signing = signing
        self._clock = clock
        self._validator = Validator()

    def issue(self, raw: bytes, _caller: Caller) -> bytes | Future[bytes] | None:
        """Answer an IssueTokenRequest. None if it has to wait, or is refused."""
        try:
            request = token_pb2.IssueTokenRequest.FromString(raw)
            self._validator.check(request)
            if request.with_refresh_token:
                return None
            now = self._clock.now()
            draft = self._sessions.draft(login_of(request, now), now)
        except (DecodeError, RecursionError, WatchwordError):
            return None
        return self._signing.sign(draft.key, draft.text, lambda signature: issued(draft.signed(signature)))


def issued(access: AccessToken) -> bytes:
    """Return an IssueTokenResponse: what is the token's own beside what it shares with others, for fields may stand in any order."""
    return member(TOKENS, member(ACCESS_TOKEN, access.text.encode("ascii")) + _shared(access.expires_in, access.claims.scope))


@lru_cache(maxsize=1024)
def _shared(expires_in: int, scopes: tuple[str, ...]) -> bytes:
    return tokens_of(without_session("", expires_in, scopes)).SerializeToString()


def _encoded(answer: Answer, caller: Caller) -> bytes:
    """Return an answer as `caller` may see it."""
    if answer.verdict is VALID and answer.claims is not None and may_see(caller, answer.tenant_id):
        return valid_answer(answer.claims)
    return verdict_of(answer, caller).SerializeToString()


def _token_alone(raw: bytes) -> str | None:
    """Return the token of a request that says nothing else and keeps its rules; None for any other, which is then read as a message.

    Source  protobuf.dev/programming-guides/encoding: field 1, a length of two bytes, the text
    """
    size = len(raw) - 3
    if not (0x80 <= size <= MAX_TOKEN_BYTES and raw[0] == 0x0A and raw[1] == size & 0x7F | 0x80 and raw[2] == size >> 7):
        return None
    token = raw[3:]
    return token.decode("ascii") if token.isascii() and b"\0" not in token else None
