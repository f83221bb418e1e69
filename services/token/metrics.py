"""What only token can tell Prometheus: tokens issued, revocations held, who follows them, and whether it can sign."""

from collections.abc import Iterator, Mapping

from services.chassis.metrics import Family, Meter, Sample, Source, gauge
from services.token.feed import Feed
from services.token.joint_signing import JointSigning
from services.token.keys import KeyRing
from services.token.revoked import Revoked

SERVICE = "/watchword.token.v1.TokenService/"
ISSUING = {"login": "IssueToken", "refresh": "RefreshToken", "exchange": "ExchangeToken"}


def told(meters: Mapping[str, Meter], memory: Revoked, feed: Feed, ring: KeyRing, signing: JointSigning) -> Source:
    """Read the calls that end in a new token, and memory."""

    def source() -> Iterator[Family]:
        issued = [Sample(meters[SERVICE + method].answered, {"by": by}) for by, method in ISSUING.items()]
        yield Family("watchword_token_issued_total", "counter", "Calls that were answered with a new access token.", issued)
        yield gauge("watchword_token_revocations_held", "Live revocations in memory.", memory.count)
        yield gauge("watchword_token_watchers", "Verifiers elsewhere that follow the revocations.", feed.watchers)
        signed = [Sample(signing.alone, {"how": "alone"}), Sample(signing.together, {"how": "together"})]
        yield Family("watchword_token_signatures_total", "counter", "Access tokens without a session, by whether they were signed together.", signed)
        yield gauge("watchword_token_can_sign", "Whether there is a key to sign with.", ring.can_sign)

    return source
