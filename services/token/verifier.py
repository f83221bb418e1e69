"""The one verifier: every question whether an access token is good ends here.

Read strictly, find the key by kid in our own ring, verify with that key's one algorithm, check issuer, audience and times, and ask whether it is
revoked. There is no path that skips a step. What a token says and that its signature is good never changes, so that much is remembered; whether its
key still verifies, its time, and whether it is revoked are asked anew each time.
"""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from services.chassis.clock import Clock
from services.token.keys import KeyRing
from services.token.revocations import GOOD, Revocations, Signed, Standing, names_of
from watchword import tokens as claims_module
from watchword.rules import LEEWAY, VALID, Verdict, judge, lifetime
from watchword.tokens import Claims, Malformed

__all__ = ["LEEWAY", "Answer", "Question", "Verdict", "Verifier"]

REMEMBERED = 8192  # tokens, of some 3 KB each

_BY_STANDING = {Standing.REVOKED: Verdict.REVOKED, Standing.SUBJECT_DISABLED: Verdict.SUBJECT_DISABLED}


class Question(NamedTuple):
    """A token, the audience that it must be meant for (empty: the suite's own), and scopes that it must carry."""

    token: str
    audience: str = ""
    scopes: tuple[str, ...] = ()


class Answer(NamedTuple):
    """A verdict, with the claims if they may be believed. `tenant_id` is the tenant of a token that we signed, whatever became of it."""

    verdict: Verdict
    claims: Claims | None = None
    tenant_id: UUID | None = None


class Known(NamedTuple):
    """A token that one of our keys signed.

    valid         what it is for this suite, unless time, its key or a revocation speaks against it; None if it is not meant for it
    begins, ends  seconds since 1970, between which time does not
    """

    kid: str
    signed: Signed
    valid: Answer | None
    begins: float
    ends: float


class Verifier:
    """Says what tokens are."""

    def __init__(self, keys: KeyRing, revocations: Revocations, clock: Clock, *, issuer: str, audience: str) -> None:
        self._keys = keys
        self._revocations = revocations
        self._clock = clock
        self._issuer = issuer
        self._audience = audience
        self._known: dict[str, Known] = {}

    def recall(self, question: Question) -> Answer | None:
        """Return what a token is, from memory and without waiting. None without a lease, and for a key that is not in memory.

        Cost    one signature check if the token is new here, else some microseconds
        """
        found = self._read(question.token)
        if found is None:
            return None
        if isinstance(found, Verdict):
            return Answer(found)
        standing = self._revocations.recall(found.signed)
        if standing is None:
            return None
        is_plain = standing is GOOD and not question.audience and not question.scopes
        if is_plain and found.valid is not None and found.begins <= self._clock.seconds() <= found.ends:
            return found.valid
        return self._refusal(question, found.signed.claims) or self._judge(question, found.signed.claims, standing)

    def remembers(self, token: str) -> bool:
        """Whether a token that one of our keys signed was asked about here before."""
        return token in self._known

    async def verify(self, question: Question) -> Answer:
        """Return what a token is. Raises DependencyUnavailable."""
        return self.recall(question) or (await self.verify_all([question]))[0]

    async def verify_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Return what tokens are, in order; without a lease by one read for all. Raises DependencyUnavailable."""
        answers: list[Answer] = []
        good: list[tuple[int, Signed]] = []
        for index, question in enumerate(questions):
            found = await self._authenticate(question.token)
            if isinstance(found, Verdict):
                answers.append(Answer(found))
            elif (refusal := self._refusal(question, found.claims)) is not None:
                answers.append(refusal)
            else:
                answers.append(Answer(VALID))
                good.append((index, found))
        standings = await self._revocations.standings([signed for _, signed in good])
        for (index, signed), standing in zip(good, standings, strict=True):
            answers[index] = self._judge(questions[index], signed.claims, standing)
        return answers

    async def read(self, token: str) -> Claims | None:
        """Return the claims of a token that we signed, expired or revoked as it may be; None for anything else."""
        found = await self._authenticate(token)
        return None if isinstance(found, Verdict) else found.claims

    async def _authenticate(self, token: str) -> Signed | Verdict:
        found = self._read(token)
        if found is None:
            await self._keys.find(claims_module.split(token)[0].kid)
            found = self._read(token)
        if found is None:
            return Verdict.UNKNOWN_KEY
        return found if isinstance(found, Verdict) else found.signed

    def _read(self, token: str) -> Known | Verdict | None:
        """Return what a token says that one of our keys signed, why it is none, or None for a key that is not in memory."""
        known = self._known.get(token)
        if known is not None and self._keys.peek(known.kid) is not None:
            return known
        try:
            header, body, signed, signature = claims_module.split(token)
            key = self._keys.peek(header.kid)
            if key is None:
                return None
            if header.alg != key.algorithm or not key.verifies(signed, signature):
                return Verdict.BAD_SIGNATURE
            claims = claims_module.parse(body)
        except Malformed:
            return Verdict.MALFORMED
        is_ours = judge(claims, issuer=self._issuer, audience=self._audience, now=claims.iat) is VALID
        valid = Answer(VALID, claims, claims.tenant_id) if is_ours else None
        return self._remember(token, Known(key.kid, Signed(claims, names_of(claims, key.kid)), valid, *lifetime(claims)))

    def _remember(self, token: str, known: Known) -> Known:
        if len(self._known) >= REMEMBERED:
            for oldest in list(islice(self._known, REMEMBERED // 8)):
                del self._known[oldest]
        self._known[token] = known
        return known

    def _refusal(self, question: Question, claims: Claims) -> Answer | None:
        """Return why a token is refused by what it says, or None."""
        verdict = judge(claims, issuer=self._issuer, audience=question.audience or self._audience, now=self._clock.seconds())
        return None if verdict is VALID else Answer(verdict, tenant_id=claims.tenant_id)

    def _judge(self, question: Question, claims: Claims, standing: Standing) -> Answer:
        if standing is not GOOD:
            return Answer(_BY_STANDING[standing], tenant_id=claims.tenant_id)
        if question.scopes and not set(question.scopes) <= set(claims.scope):
            return Answer(Verdict.INSUFFICIENT_SCOPE, claims, claims.tenant_id)
        return Answer(VALID, claims, claims.tenant_id)
