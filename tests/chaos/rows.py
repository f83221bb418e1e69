"""What rows share: how long things last, and how what was seen is said."""

from tests.chaos.calls import Log
from tests.chaos.load import Load
from tests.conftest import eventually
from tests.service.token.inquiry import now


async def last(seconds: float) -> None:
    """Let what is broken be broken for so long."""
    until = now() + seconds

    async def is_over() -> bool:
        return now() >= until

    await eventually(is_over, within=seconds + 5)


def failures(log: Log) -> str:
    """Say how many of these calls failed."""
    return f"{len(log.failed)} of {len(log.calls):,}"


async def sound(load: Load) -> str:
    """Fail on any answer that must not have been, and on any acknowledged change that is not there exactly once; say how much was looked at."""
    assert load.wrongs[:5] == []
    assert await load.lost_or_doubled() == []
    assert load.asked_afterwards > 0
    made = sum(load.roles.values())
    return f"0 accepted of {load.asked_afterwards:,} asked after {load.taken_away} OKs; {made} of {made} acknowledged roles there once"
