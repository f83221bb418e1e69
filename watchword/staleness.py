"""How stale what a stream tells may be, and how long to wait for it.

When a stream is opened, the time is noted by this host's own clock, just before the request leaves. A checkpoint says "e seconds after your request
arrived I had sent you everything": the request arrived after the time noted, so everything acknowledged up to that time plus e is here. A checkpoint
that lingers on its way makes nothing look younger, for e was fixed when it was sent, and no two hosts' clocks are compared.
"""

import time
from dataclasses import dataclass

DRIFT = 0.001  # Linux slews a clock by at most 500 ppm; two of them, apart
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class FeedBroken(Exception):
    """The stream says what this process does not understand, or says nothing: it is opened anew."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds.

    silence      without a message, a stream is taken for dead: the server sends a checkpoint every second
    stream       a stream is opened anew, so that clocks cannot drift apart
    first_pause  before the second attempt; each further pause may be twice as long, up to last_pause, and is shortened at random
    """

    silence: float = 2.5
    stream: float = 300.0
    first_pause: float = 0.05
    last_pause: float = 2.0


def now() -> float:
    """Return seconds of a clock that nobody sets and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(_BOOT_CLOCK)


def known_through(began: float, elapsed: float, present: float) -> float:
    """Return until when everything is known: a stream that began at `began` says so of `elapsed` seconds after it; nobody knows the future."""
    return min(began + elapsed * (1 - DRIFT), present)
