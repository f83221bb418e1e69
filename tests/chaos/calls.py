"""What became of calls: how many there were, which failed, how long they took."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.service.token.inquiry import NEVER

CHECKS = ("VerifyToken", "CheckPermission", "GetJwks", "tokens:verify")  # reads from memory, of which Envoy gives each try 300 ms
READS = (*CHECKS, "me")
WRITES = ("issue", "revoke", "bind", "unbind", "role", "refresh")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: when it began, how many seconds it took, and how it failed, if it did."""

    kind: str
    began: float
    took: float
    failure: str = ""

    @property
    def ended(self) -> float:
        """When the answer came."""
        return self.began + self.took


@dataclass(slots=True)
class Log:
    """Calls."""

    calls: list[Call] = field(default_factory=list)

    def of(self, *kinds: str) -> "Log":
        """Return the calls of these kinds."""
        return Log([call for call in self.calls if call.kind in kinds])

    def between(self, began: float, ended: float = NEVER) -> "Log":
        """Return the calls that began between two instants."""
        return Log([call for call in self.calls if began <= call.began < ended])

    @property
    def failed(self) -> list[Call]:
        """The calls that failed."""
        return [call for call in self.calls if call.failure]

    @property
    def slowest(self) -> float:
        """The seconds of the slowest."""
        return max((call.took for call in self.calls), default=0.0)

    @property
    def quickest(self) -> float:
        """The seconds of the quickest."""
        return min((call.took for call in self.calls), default=0.0)

    @property
    def p99(self) -> float:
        """The seconds within which 99 of 100 were answered."""
        took = sorted(call.took for call in self.calls)
        return took[int(0.99 * (len(took) - 1))] if took else 0.0

    def recovery(self, since: float, kinds: Sequence[str]) -> float:
        """Return how many seconds after an instant every kind of call was answered well again, NEVER if one was not."""
        later = self.between(since)
        return max(first_good(later, kind) for kind in kinds) - since

    def longest_gap(self, kind: str) -> float:
        """Return the most seconds between two good answers of a kind."""
        ended = sorted(call.ended for call in self.of(kind).calls if not call.failure)
        return max((later - earlier for earlier, later in itertools.pairwise(ended)), default=NEVER)


def first_good(log: Log, kind: str) -> float:
    """Return when the first call of a kind was answered well."""
    return min((call.ended for call in log.of(kind).calls if not call.failure), default=NEVER)


def ms(seconds: float) -> str:
    """Write a duration for people."""
    return f"{seconds * 1000:.0f} ms"
