"""The one verifier: every question whether an access token is good ends here.

Read strictly, find the key by kid in our own ring, verify with that key's one algorithm, check issuer, audience and times, and ask whether it is
revoked. There is no path that skips a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from services.chassis.clock import Clock
from services.token import claims as claims_module
from services.token.claims import Claims, Malformed
from services.token.keys import KeyRing
from services.token.revocations import Revocations, Standing

LEEWAY = 5  # seconds that two hosts' clocks may differ


class Verdict(StrEnum):
    """What a token is; the names of TokenStatus in token.proto."""

    VALID = "VALID"
    EXPIRED = "EXPIRED"
    NOT_YET_VALID = "NOT_YET_VALID"
    REVOKED = "REVOKED"
    MALFORMED = "MALFORMED"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    WRONG_ISSUER = "WRONG_ISSUER"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    INSUFFICIENT_SCOPE = "INSUFFICIENT_SCOPE"
    SUBJECT_DISABLED = "SUBJECT_DISABLED"


_BY_STANDING = {Standing.REVOKED: Verdict.REVOKED, Standing.SUBJECT_DISABLED: Verdict.SUBJECT_DISABLED}


@dataclass(frozen=True, slots=True)
class Question:
    """A token, the audience that it must be meant for (empty: the suite's own), and scopes that it must carry."""

    token: str
    audience: str = ""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict, with the claims if they may be believed. `tenant_id` is the tenant of a token that we signed, whatever became of it."""

    verdict: Verdict
    claims: Claims | None = None
    tenant_id: UUID | None = None


class Verifier:
    """Says what tokens are."""

    def __init__(self, keys: KeyRing, revocations: Revocations, clock: Clock, *, issuer: str, audience: str) -> None:
        self._keys = keys
        self._revocations = revocations
        self._clock = clock
        self._issuer = issuer
        self._audience = audience

    async def verify(self, question: Question) -> Answer:
        """Return what a token is. Cost: one signature check, one indexed read. Raises DependencyUnavailable."""
        return (await self.verify_all([question]))[0]

    async def verify_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Return what tokens are, in order; one read for all."""
        answers = [await self._examine(question) for question in questions]
        believed = [(index, answer.claims) for index, answer in enumerate(answers) if answer.claims is not None]
        standings = await self._revocations.standings([claims for _, claims in believed]) if believed else []
        for (index, claims), standing in zip(believed, standings, strict=True):
            answers[index] = self._judge(questions[index], claims, standing)
        return answers

    async def read(self, token: str) -> Claims | None:
        """Return the claims of a token that we signed, expired or revoked as it may be; None for anything else."""
        answer = await self._authenticate(token)
        return answer.claims

    async def _examine(self, question: Question) -> Answer:
        """All but revocation and scopes."""
        answer = await self._authenticate(question.token)
        claims = answer.claims
        if claims is None:
            return answer
        now = self._clock.now().timestamp()
        if claims.iss != self._issuer:
            return Answer(Verdict.WRONG_ISSUER, tenant_id=claims.tenant_id)
        if claims.aud != (question.audience or self._audience,):  # RFC 8725 section 3.9: a token for several is for none
            return Answer(Verdict.WRONG_AUDIENCE, tenant_id=claims.tenant_id)
        if claims.exp + LEEWAY < now:
            return Answer(Verdict.EXPIRED, tenant_id=claims.tenant_id)
        if claims.iat - LEEWAY > now:
            return Answer(Verdict.NOT_YET_VALID, tenant_id=claims.tenant_id)
        return answer

    async def _authenticate(self, token: str) -> Answer:
        try:
            header, body, signed, signature = claims_module.split(token)
        except Malformed:
            return Answer(Verdict.MALFORMED)
        key = await self._keys.find(header.kid)
        if key is None:
            return Answer(Verdict.UNKNOWN_KEY)
        if header.alg != key.algorithm or not key.verifies(signed, signature):
            return Answer(Verdict.BAD_SIGNATURE)
        try:
            claims = claims_module.parse(body)
        except Malformed:
            return Answer(Verdict.MALFORMED)
        return Answer(Verdict.VALID, claims, claims.tenant_id)

    def _judge(self, question: Question, claims: Claims, standing: Standing) -> Answer:
        if standing is not Standing.GOOD:
            return Answer(_BY_STANDING[standing], tenant_id=claims.tenant_id)
        if not set(question.scopes) <= set(claims.scope):
            return Answer(Verdict.INSUFFICIENT_SCOPE, claims, claims.tenant_id)
        return Answer(Verdict.VALID, claims, claims.tenant_id)
