"""Time, handed in rather than taken, so that tests can move it."""

from datetime import UTC, datetime


class Clock:
    """The wall clock, in UTC."""

    def now(self) -> datetime:
        """Return the present instant, aware, in UTC."""
        return datetime.now(UTC)
