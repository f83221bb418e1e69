"""The lease protocol keeps its promise in every state that can be reached, and each of its guards is needed for that.

Pauses, slow messages and partitions are in every setting: whoever does not act now may act later, or never. What a setting adds is
what it names: flushes, lost entries, replies and messages that arrive when nobody waits for them any more.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.model.explore import dead_ends, explore
from tests.model.states import (
    APPLIED,
    CATCH_UP,
    DENSE,
    EPOCH_BOUND,
    EPOCH_WAIT,
    EXPEL_TURN,
    EXPEL_WAIT,
    FULL_REJOIN,
    LEAVE_TURN,
    LOCAL_FIRST,
    LOCAL_IN_LOADING,
    MARGIN,
    NO_REVIVAL,
    OUTSIDE,
    OWN_NAME,
    REGISTERED_FIRST,
    RELAY_APPLIES,
    RELAY_WAITS,
    REPLICATION_BOUND,
    ROW_AGE,
    ROW_ORDER,
    RUN_BOUND,
    SENT_TIME,
    SNAPSHOT_ORDER,
    STUCK_REFUSED,
    TRUST_BEFORE_DIRECT,
    UNIQUE_TURNS,
    Setting,
    State,
)

TWO = (OUTSIDE, OUTSIDE)
ALL = frozenset({"flush", "trim", "lose a reply"})
FLUSH, TRIM, SLOW, JUMP = (frozenset({kind}) for kind in ("flush", "trim", "slow clock", "clock jump"))


@pytest.fixture(autouse=True)
def _no_garbage() -> Iterator[None]:
    """Let nobody look through a million small tuples for cycles: there are none."""
    gc.disable()
    yield
    gc.enable()


SETTINGS = {
    "one reader, one write, late replies": Setting(faults=1, kinds=ALL, late_replies=True),
    "one reader, one write, two faults": Setting(lease=1, faults=2, kinds=ALL, late_replies=True),
    "one reader, one write, messages out of order": Setting(lease=1, strays=1, faults=1, kinds=FLUSH),
    "one reader, two writes, two faults": Setting(lease=1, writers=TWO, late_renewals=False, faults=2, kinds=FLUSH | TRIM),
    "two readers, one write, a flush": Setting(readers=2, late_renewals=False, lease=1, faults=1, kinds=FLUSH),
    "two readers, two writes": Setting(readers=2, writers=TWO, lease=1, late_renewals=False, warm=True),
    "the way without Redis": Setting(lease=1, row_life=2, late_renewals=False, strays=1),
    "the way without Redis, a flush, P of three": Setting(lease=1, row_life=3, late_renewals=False, faults=1, kinds=FLUSH),
    "a reader that writes, and one who only writes": Setting(lease=1, writers=(0, OUTSIDE), late_renewals=False, faults=1, kinds=FLUSH),
    "a reader that writes, and one who only reads": Setting(lease=1, readers=2, writers=(0,), late_renewals=False),
    "a relay, and one who only reads": Setting(lease=1, readers=2, relay=True, late_renewals=False),
    "a slow clock": Setting(margin=1, faults=1, kinds=SLOW),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_no_read_that_began_after_an_ok_is_from_before_it(setting: Setting) -> None:
    """Every state is visited. The model is not empty: all writes come to their OK, and memory answers after them."""
    finding = explore(setting)

    assert not finding.trace, f"a stale answer:\n{finding}"
    assert finding.finishes
    assert finding.remembers


GUARDS = {
    EPOCH_WAIT: Setting(lease=1, faults=1, kinds=FLUSH),
    RUN_BOUND: Setting(lease=1, faults=1, kinds=FLUSH),
    REPLICATION_BOUND: Setting(lease=1, faults=1, kinds=FLUSH),
    EPOCH_BOUND: Setting(lease=1, writers=TWO, late_renewals=False, faults=1, kinds=FLUSH),
    SENT_TIME: Setting(lease=1),
    SNAPSHOT_ORDER: Setting(lease=1),
    CATCH_UP: Setting(lease=1),
    STUCK_REFUSED: Setting(lease=1),
    EXPEL_WAIT: Setting(lease=1),
    EXPEL_TURN: Setting(lease=1),
    UNIQUE_TURNS: Setting(lease=1, writers=TWO, late_renewals=False),
    DENSE: Setting(lease=1, writers=TWO, late_renewals=False, faults=1, kinds=TRIM),
    REGISTERED_FIRST: Setting(lease=1, row_life=2, late_renewals=False),
    TRUST_BEFORE_DIRECT: Setting(lease=1, row_life=2, late_renewals=False),
    FULL_REJOIN: Setting(lease=1, row_life=2, late_renewals=False),
    ROW_AGE: Setting(lease=1, row_life=2, late_renewals=False),
    NO_REVIVAL: Setting(lease=1, row_life=2, late_renewals=False),
    ROW_ORDER: Setting(lease=1, row_life=2, late_renewals=False, strays=1),
    LEAVE_TURN: Setting(lease=1, strays=1),
    LOCAL_FIRST: Setting(lease=1, writers=(0,), late_renewals=False),
    LOCAL_IN_LOADING: Setting(lease=1, writers=(0,), late_renewals=False),
    RELAY_APPLIES: Setting(lease=1, relay=True, late_renewals=False),
    RELAY_WAITS: Setting(lease=1, readers=2, relay=True, late_renewals=False),
    OWN_NAME: Setting(lease=1, readers=2, late_renewals=False),
    MARGIN: Setting(margin=1, faults=1, kinds=SLOW),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_without_the_guard_a_read_is_stale(guard: str) -> None:
    """The same setting is kept with the guard (above, in a larger one), so it is the guard that holds. `pytest -s` prints the way."""
    setting = replace(GUARDS[guard], without=frozenset({guard}))

    finding = explore(setting)

    print(f"\nwithout: {guard}\n{finding}")
    assert finding.trace


def is_acknowledged(state: State) -> bool:
    return state.acknowledged == 1


def is_not_waiting(state: State) -> bool:
    """A write that nobody has begun need not end."""
    return is_acknowledged(state) or state.writers[0].phase < APPLIED


def test_from_every_state_the_write_can_still_come_to_its_ok() -> None:
    states, stranded = dead_ends(Setting(lease=1, faults=1, kinds=ALL), is_acknowledged)

    assert states > 1000
    assert stranded == 0


def test_a_stuck_reader_cannot_hold_up_a_write() -> None:
    """It renews in every tick and reads nothing."""
    _, stranded = dead_ends(Setting(stuck=True), is_acknowledged)

    assert stranded == 0


def test_without_refusal_a_stuck_reader_holds_up_a_write_for_ever() -> None:
    """The refusal serves progress and safety: it is also what makes a renewal one to be believed."""
    _, stranded = dead_ends(Setting(stuck=True, without=frozenset({STUCK_REFUSED})), is_not_waiting)

    assert stranded > 0


@pytest.mark.parametrize(
    "setting",
    [Setting(margin=1, faults=2, kinds=SLOW), Setting(lease=1, row_life=2, late_renewals=False, faults=1, kinds=JUMP)],
    ids=["a clock that stands still longer than delta", "the clock of Postgres jumps by P while the writer has no Redis"],
)
def test_the_promise_does_not_cover(setting: Setting) -> None:
    """Say it rather than let somebody find it out: monotonic clocks must not stop, and Postgres's clock must not leap."""
    assert explore(setting).trace
