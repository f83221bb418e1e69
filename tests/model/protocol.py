"""The lease protocol as steps from state to state: the steps of instances and writers, the clock, and what may break.

The promise: no state is reachable in which an instance would answer from a memory that lacks an acknowledged write.
A read that begins in such a state began after the OK, and it answers at once, so looking at states is enough.
"""

from collections.abc import Iterator

from tests.model.instance import instance_steps, trusts
from tests.model.states import (
    ANY,
    LEAVE,
    LEAVE_TURN,
    OLD,
    RENEW,
    REPLICATION_BOUND,
    RUN_BOUND,
    Instance,
    Setting,
    State,
    Step,
    Stray,
    Watch,
    Writer,
    name_of,
)
from tests.model.stores import flush, remove, renew, write_row
from tests.model.writer import repeat_steps, writer_steps


def is_stale(setting: Setting, state: State) -> bool:
    """Tell whether some instance would answer from before an OK."""
    return any(trusts(setting, instance) and state.acknowledged & ~instance.memory for instance in state.instances)


def steps(setting: Setting, state: State) -> Iterator[Step]:
    """Yield everything that may happen next, in words, and the state after it."""
    for index in range(len(state.instances)):
        yield from instance_steps(setting, state, index)
    for index in range(len(state.writers)):
        yield from writer_steps(setting, state, index)
    yield from repeat_steps(setting, state)
    yield from stray_steps(setting, state)
    yield from fault_steps(setting, state)
    if may_tick(setting, state):
        yield "time passes", tick(setting, state)


def stray_steps(setting: Setting, state: State) -> Iterator[Step]:
    """A message arrives that nobody waits for. (Or never: that needs no step, except to make room for another.)"""
    for place, stray in enumerate(state.strays):
        others = state._replace(strays=(*state.strays[:place], *state.strays[place + 1 :]))
        yield "a stray message is lost", others
        yield f"a late {('RENEW', 'LEAVE', 'row')[stray.kind]} of instance {stray.instance} arrives", arrived(setting, others, stray)


def arrived(setting: Setting, state: State, stray: Stray) -> State:
    """Run what has arrived late; nobody listens to the reply."""
    if stray.kind == RENEW:
        return renew(setting, state, stray.instance, stray.first, stray.second)[0]
    if stray.kind == LEAVE:
        return remove(setting, state, name_of(setting, stray.instance), ANY if LEAVE_TURN in setting.without else stray.first)
    return write_row(setting, state, stray.instance, stray.first)


def fault_steps(setting: Setting, state: State) -> Iterator[Step]:
    """Break something, as long as the budget lasts."""
    if not state.faults:
        return
    less, redis = state._replace(faults=state.faults - 1), state.redis
    if "flush" in setting.kinds:
        yield "Redis is flushed, or comes back with old data that it throws away", flush(setting, less)
        if RUN_BOUND in setting.without:
            yield from comeback_steps(state, less, "disk, and restarts with it")
        if REPLICATION_BOUND in setting.without:
            yield from comeback_steps(state, less, "replica, which takes over for a moment and gives it back")
    if "trim" in setting.kinds and redis.log:
        yield "the stream loses its entries", less._replace(redis=redis._replace(log=()))
    if "clock jump" in setting.kinds:
        rows = tuple(row._replace(age=setting.row_life) if row.mode else row for row in less.postgres.rows)
        yield "the clock of Postgres jumps by P", less._replace(postgres=less.postgres._replace(rows=rows))
    if "slow clock" in setting.kinds:
        yield "time passes, but not on the clock of instance 0", tick(setting, less, slow=0)


def comeback_steps(state: State, less: State, how: str) -> Iterator[Step]:
    """Copy to disk or replica, once; go on with the copy. (Where it is thrown away, what it holds is of no consequence.)"""
    if not state.saved:
        yield "what Redis holds is copied", state._replace(saved=(state.redis,))
    else:
        yield f"Redis has the copy of its {how}", less._replace(redis=state.saved[0])


def may_tick(setting: Setting, state: State) -> bool:
    """A stuck reader renews in every tick for as long as it has a lease: time waits for it."""
    return not setting.stuck or all(
        instance.trust == setting.lease or not state.redis.leases[index].turn for index, instance in enumerate(state.instances)
    )


def tick(setting: Setting, state: State, *, slow: int = -1) -> State:
    """Let one tick pass on every clock, except the one of a slow instance."""
    instances = tuple(instance if index == slow else older_instance(setting, instance) for index, instance in enumerate(state.instances))
    rows = tuple(row._replace(age=min(row.age + 1, setting.row_life)) if row.mode else row for row in state.postgres.rows)
    writers = tuple(older_writer(setting, writer) for writer in state.writers)
    return state._replace(instances=instances, writers=writers, postgres=state.postgres._replace(rows=rows))


def older_instance(setting: Setting, instance: Instance) -> Instance:
    """Age what an instance measures: its trust, its RENEW, its row and the write of that."""
    renewal, writing = instance.renewal, instance.row_write
    return instance._replace(
        trust=max(0, instance.trust - 1),
        turn=0 if instance.turn == OLD and instance.trust <= 1 else instance.turn,
        renewal=renewal._replace(age=min(renewal.age + 1, setting.lease)) if renewal.stand else renewal,
        row_age=min(instance.row_age + 1, setting.row_life) if instance.phase else 0,
        row_write=writing._replace(age=min(writing.age + 1, setting.row_life)) if writing.mode else writing,
    )


def older_writer(setting: Setting, writer: Writer) -> Writer:
    """Age what a writer measures: how long it has known the epoch, and how long the turns that it watches have stood."""
    watches = tuple(Watch(watch.turn, min(watch.age + 1, setting.lease)) if watch.turn else watch for watch in writer.watches)
    return writer._replace(known_for=min(writer.known_for + 1, setting.lease) if writer.known else 0, watches=watches)
