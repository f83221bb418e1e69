"""What a guest knows of its hosts: as much as a writer would say OK by, and nothing while they are not there."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from services.chassis.coherence import Sightings
from services.chassis.guest import NAME, Guest, HostedLog
from services.chassis.lease_log import Lease, Standing
from services.chassis.redis import RedisDown

OWN = f"{NAME}1"
make: Any = Standing


def standing(seq: int, epoch: str = "epoch", **applied: int) -> Standing:
    """Return a reply in which each lease holder has applied so much."""
    found: Standing = make(0, epoch, seq, {name.replace("own", OWN): Lease("1", number) for name, number in applied.items()})
    return found


@dataclass
class Member:
    """A membership in a test's hands."""

    sightings: Sightings = field(default_factory=Sightings)
    position: tuple[str, int] = ("epoch", 7)
    is_current: bool = True


def guest(member: Member, *, settled_after: float = 0.0) -> Guest:
    anything: Any = member
    return Guest(anything, settled_after=settled_after)


def test_what_the_slowest_host_has_not_applied_is_unsettled() -> None:
    member = Member()

    member.sightings.see(standing(9, own=7, a=9, b=4))

    assert guest(member).unsettled == 3


def test_nothing_is_unsettled_once_all_have_applied_what_the_guest_has() -> None:
    member = Member()

    member.sightings.see(standing(9, own=7, a=9, b=8))

    assert guest(member).unsettled == 0


def test_nothing_is_known_before_the_first_look() -> None:
    assert guest(Member(position=("", 0))).unsettled is None


def test_nothing_is_known_of_another_epoch() -> None:
    member = Member()

    member.sightings.see(standing(9, "another", own=9, a=9))

    assert guest(member).unsettled is None


def test_nothing_is_known_of_a_young_epoch() -> None:
    """Leases that a flushed Redis forgot are still believed by their holders, and no reply names them."""
    member = Member()

    member.sightings.see(standing(7, own=7, a=7))

    assert guest(member, settled_after=60).unsettled is None


class Replies(HostedLog):
    """A log whose Redis says what a test says."""

    def __init__(self, reply: Standing) -> None:
        self._reply = reply

    async def _run(self, *_args: object) -> Standing:
        return self._reply


@pytest.mark.parametrize("reply", [standing(7), standing(7, own=7)])
async def test_a_log_that_no_host_follows_is_none(reply: Standing) -> None:
    log = Replies(reply)

    with pytest.raises(RedisDown):
        await log.standing()
    with pytest.raises(RedisDown):
        await log.rehearse()
    with pytest.raises(RedisDown):
        await log.renew(OWN, "epoch", 7)


async def test_a_log_that_a_host_follows_is_one() -> None:
    log = Replies(standing(7, own=7, a=5))

    assert await log.standing() == await log.rehearse() == await log.renew(OWN, "epoch", 7) == standing(7, own=7, a=5)
