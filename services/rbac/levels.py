"""How strong logins are: authentication context classes (`acr`), weakest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

DEFAULT_LEVELS = ("pwd", "mfa", "hwk")
SKEW = timedelta(seconds=5)  # by which the clocks of those who write and read `auth_time` may differ


@dataclass(frozen=True, slots=True)
class StepUp:
    """The login that a binding needs: of class `acr` at least, unless that is empty; at most `max_age` ago, unless that is None."""

    acr: str
    max_age: timedelta | None


@dataclass(frozen=True, slots=True)
class Login:
    """A login as a question tells of it. An empty `acr` is weaker than all; without a time it is too long ago for any limit."""

    acr: str = ""
    time: datetime | None = None


UNKNOWN_LOGIN = Login()


class Levels:
    """The deployment's classes of logins."""

    def __init__(self, weakest_first: Sequence[str] = DEFAULT_LEVELS) -> None:
        self._ranks = {name: rank for rank, name in enumerate(weakest_first, start=1)}

    @property
    def names(self) -> list[str]:
        """The classes, weakest first."""
        return list(self._ranks)

    def knows(self, acr: str) -> bool:
        """Whether there is such a class."""
        return acr in self._ranks

    def satisfies(self, needed: StepUp, login: Login, now: datetime) -> bool:
        """Whether `login` is strong and fresh enough. A class that is not known satisfies nothing, and nothing satisfies one that is asked for."""
        if needed.acr and self._ranks.get(login.acr, 0) < self._ranks.get(needed.acr, len(self._ranks) + 1):
            return False
        return needed.max_age is None or (login.time is not None and now - login.time <= needed.max_age + SKEW)

    def weakest(self, needed: Sequence[StepUp]) -> StepUp:
        """Return the one of `needed` that is easiest to satisfy."""
        return min(needed, key=lambda one: (self._ranks.get(one.acr, 0 if not one.acr else len(self._ranks) + 1), -_seconds(one.max_age)))


def _seconds(age: timedelta | None) -> float:
    return float("inf") if age is None else age.total_seconds()
