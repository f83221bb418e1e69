"""Why a verifier in another process does not accept a token.

To whoever sent the token all refusals are one, TOKEN_INVALID, as everywhere in the suite: `verdict` is for the process that verified, its log and its
metrics. `VerificationStale` is no refusal: what is asked cannot be known now.
"""

from collections.abc import Mapping
from typing import ClassVar

from watchword.errors import TokenInvalid, Unavailable
from watchword.rules import Verdict


class TokenRefused(TokenInvalid):
    """The token is not good; `verdict` says why."""

    verdict: ClassVar[Verdict]


class TokenExpired(TokenRefused):
    """Its time is over."""

    verdict = Verdict.EXPIRED


class TokenNotYetValid(TokenRefused):
    """Its time has not come: some host's clock is wrong."""

    verdict = Verdict.NOT_YET_VALID


class TokenRevoked(TokenRefused):
    """It, its session, its subject, its client, its tenant or its key was revoked."""

    verdict = Verdict.REVOKED


class SubjectDisabled(TokenRevoked):
    """Its subject is disabled or deleted."""

    verdict = Verdict.SUBJECT_DISABLED


class TokenMalformed(TokenRefused):
    """Not a token of the form that the suite issues."""

    verdict = Verdict.MALFORMED


class SignatureInvalid(TokenRefused):
    """Not signed by the key that it names."""

    verdict = Verdict.BAD_SIGNATURE


class KeyUnknown(TokenRefused):
    """Names a key that is not in the key set, or is of another tenant."""

    verdict = Verdict.UNKNOWN_KEY


class WrongIssuer(TokenRefused):
    """Issued by somebody else."""

    verdict = Verdict.WRONG_ISSUER


class WrongAudience(TokenRefused):
    """Meant for somebody else."""

    verdict = Verdict.WRONG_AUDIENCE


class VerificationStale(Unavailable):
    """Whether the token is revoked is not known well enough now, and could not be asked."""

    message = "tokens cannot be verified at the moment; try again"


REFUSALS: Mapping[Verdict, type[TokenRefused]] = {
    refusal.verdict: refusal
    for refusal in (
        TokenExpired,
        TokenNotYetValid,
        TokenRevoked,
        SubjectDisabled,
        TokenMalformed,
        SignatureInvalid,
        KeyUnknown,
        WrongIssuer,
        WrongAudience,
    )
}
