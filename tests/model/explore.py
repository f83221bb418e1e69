"""Breadth first through every state: the first violation found is a shortest one."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.model.instance import trusts
from tests.model.protocol import is_stale, steps
from tests.model.states import Setting, State, beginning

MOST_STATES = 400_000


@dataclass(frozen=True, slots=True)
class Finding:
    """How many states there are, the way to a stale answer if there is one, and what was reached on the way."""

    states: int
    trace: tuple[str, ...]
    finishes: bool  # every write acknowledged
    remembers: bool  # and an instance that answers from its memory

    def __str__(self) -> str:
        return "\n".join(f"{number:3} {step}" for number, step in enumerate(self.trace, 1))


def explore(setting: Setting) -> Finding:
    """Visit every state, or stop at the first from which a read would be stale."""
    first, everything = beginning(setting), (1 << len(setting.writers)) - 1
    came: dict[State, tuple[State, str] | None] = {first: None}
    layer, finishes, remembers = [first], False, False
    while layer:
        following: list[State] = []
        for state in layer:
            for what, reached in steps(setting, state):
                after = canonical(setting, reached)
                if after in came:
                    continue
                came[after] = (state, what)
                if is_stale(setting, after):
                    return Finding(len(came), trace(came, after), finishes, remembers)
                following.append(after)
                if after.acknowledged == everything:
                    finishes = True
                    remembers = remembers or any(trusts(setting, instance) for instance in after.instances)
        layer = following
        assert len(came) < MOST_STATES, "the model has grown too big to be explored in a test"
    return Finding(len(came), (), finishes, remembers)


def trace(came: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    """Return in words how a state was reached."""
    words = []
    while (before := came[state]) is not None:
        state, what = before
        words.append(what)
    return tuple(reversed(words))


def canonical(setting: Setting, state: State) -> State:
    """Return one state for those that differ in names only: which instance is 0, which of two writes is 0.

    Ties may leave two, which is harmless. Where a guard is missing, names stay, so that the trace can be read.
    """
    state = forgetful(state)
    if setting.without or "slow clock" in setting.kinds or setting.has_insider:
        return state
    if setting.readers == 2 and state.instances[0] > state.instances[1]:
        state = mirrored(state)
    if len(setting.writers) == 2 and state.writers[0][3:] > state.writers[1][3:]:
        state = exchanged(state)
    return state


def forgetful(state: State) -> State:
    """Return the state without the entries of the stream that everybody has read: a join begins at the end."""
    redis = state.redis
    if not redis.log:
        return state
    needed = min((instance.position for instance in state.instances if instance.epoch), default=redis.seq)
    if redis.log[0][0] > needed:
        return state
    return state._replace(redis=redis._replace(log=tuple(entry for entry in redis.log if entry[0] > needed)))


def mirrored(state: State) -> State:
    """Exchange instances 0 and 1."""
    redis, postgres = state.redis, state.postgres
    return state._replace(
        redis=redis._replace(leases=redis.leases[::-1]),
        postgres=postgres._replace(rows=postgres.rows[::-1]),
        instances=state.instances[::-1],
        writers=tuple(writer._replace(watches=writer.watches[::-1], reply=(*writer.reply[:1], *writer.reply[:0:-1])) for writer in state.writers),
        strays=tuple(sorted(stray._replace(instance=1 - stray.instance) for stray in state.strays)),
        saved=tuple(saved._replace(leases=saved.leases[::-1]) for saved in state.saved),
    )


SWAPPED = (0b00, 0b10, 0b01, 0b11)


def exchanged(state: State) -> State:
    """Exchange writes 0 and 1."""
    redis, postgres = state.redis, state.postgres
    return state._replace(
        redis=redis._replace(log=tuple((seq, 1 - write) for seq, write in redis.log)),
        postgres=postgres._replace(committed=SWAPPED[postgres.committed], pending=SWAPPED[postgres.pending]),
        instances=tuple(one._replace(memory=SWAPPED[one.memory], loading=SWAPPED[one.loading]) for one in state.instances),
        writers=tuple(writer._replace(write=1 - writer.write) for writer in reversed(state.writers)),
        acknowledged=SWAPPED[state.acknowledged],
        saved=tuple(saved._replace(log=tuple((seq, 1 - write) for seq, write in saved.log)) for saved in state.saved),
    )


def dead_ends(setting: Setting, goal: Callable[[State], bool]) -> tuple[int, int]:
    """Return how many states there are, and from how many of them the goal cannot be reached any more."""
    first = beginning(setting)
    before: dict[State, list[State]] = {first: []}
    todo = [first]
    while todo:
        state = todo.pop()
        for _, after in steps(setting, state):
            if after not in before:
                before[after] = []
                todo.append(after)
            before[after].append(state)
    alive = {state for state in before if goal(state)}
    todo = list(alive)
    while todo:
        for state in before[todo.pop()]:
            if state not in alive:
                alive.add(state)
                todo.append(state)
    return len(before), len(before) - len(alive)
