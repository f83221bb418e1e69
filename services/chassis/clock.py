"""Time, handed in rather than taken, so that tests can move it."""

import time
from datetime import UTC, datetime


class Clock:
    """The wall clock, in UTC."""

    def seconds(self) -> float:
        """Return the present instant in seconds since 1970."""
        return time.time()

    def now(self) -> datetime:
        """Return the present instant, aware, in UTC."""
        return datetime.fromtimestamp(self.seconds(), UTC)
