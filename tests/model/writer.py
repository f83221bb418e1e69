"""A writer: commit, apply locally, publish, wait for the leases that lag, answer OK. A relay does it for what it finds in the outbox."""

from collections.abc import Iterator

from tests.model.states import (
    ANY,
    APPLIED,
    COMMITTED,
    DIRECT,
    DONE,
    EPOCH_WAIT,
    EXPEL_TURN,
    EXPEL_WAIT,
    IDLE,
    LOCAL_FIRST,
    LOCAL_IN_LOADING,
    OUTSIDE,
    RELAY_APPLIES,
    RELAY_WAITS,
    WAITING,
    Redis,
    Setting,
    State,
    Step,
    Watch,
    Writer,
    name_of,
    with_instance,
    with_writer,
)
from tests.model.stores import lagging, publish, remove


def writer_steps(setting: Setting, state: State, index: int) -> Iterator[Step]:
    """Yield every step that one writer may take now."""
    writer = state.writers[index]
    if writer.phase == IDLE:
        yield from begin_steps(setting, state, index, writer)
    elif writer.phase == COMMITTED:
        yield f"{name(writer)} applies the change locally", with_writer(applied(setting, state, writer), index, writer._replace(phase=APPLIED))
    elif setting.relay and not writer.relays:
        return  # it answered FANOUT_PENDING
    elif writer.phase == APPLIED:
        yield from publish_steps(setting, state, index, writer)
    elif writer.phase == WAITING:
        yield from wait_steps(setting, state, index, writer)
    if setting.row_life and writer.phase in (APPLIED, WAITING) and everybody_is_direct(setting, state):
        yield f"{name(writer)} sees only direct or old rows: OK", finished(state, index, writer)


def name(writer: Writer) -> str:
    return f"{'relay of' if writer.relays else 'writer of'} write {writer.write}"


def begin_steps(setting: Setting, state: State, index: int, writer: Writer) -> Iterator[Step]:
    """Learn the epoch if it has not, commit, or for a relay find a change in the outbox."""
    bit, postgres = 1 << writer.write, state.postgres
    if writer.known != state.redis.epoch:
        yield f"{name(writer)} learns epoch {state.redis.epoch}", with_writer(state, index, writer._replace(known=state.redis.epoch, known_for=0))
    next_phase = APPLIED if writer.owner == OUTSIDE else COMMITTED
    if writer.relays and postgres.pending & bit:
        yield f"{name(writer)} finds it in the outbox", with_writer(state, index, writer._replace(phase=next_phase))
    elif not writer.relays:
        after = state._replace(postgres=postgres._replace(committed=postgres.committed | bit, pending=postgres.pending | bit))
        yield f"{name(writer)} commits", with_writer(after, index, writer._replace(phase=next_phase))


def applied(setting: Setting, state: State, writer: Writer) -> State:
    """Apply the change to the memory of the instance that makes it, and to the snapshot that it may be loading."""
    if (RELAY_APPLIES if writer.relays else LOCAL_FIRST) in setting.without:
        return state
    own, bit = state.instances[writer.owner], 1 << writer.write
    loads = setting.joining[own.phase : own.phase + 1] == ("install",) and LOCAL_IN_LOADING not in setting.without
    memory = own.memory | bit if own.phase >= len(setting.joining) else own.memory
    return with_instance(state, writer.owner, own._replace(memory=memory, loading=own.loading | bit if loads else own.loading))


def publish_steps(setting: Setting, state: State, index: int, writer: Writer) -> Iterator[Step]:
    """PUBLISH; the reply may be late, or lost, and then the writer publishes again."""
    redis = publish(state.redis, writer.write)
    after = state._replace(redis=redis)
    waiting = writer._replace(phase=WAITING, epoch=redis.epoch, seq=redis.seq, watches=(Watch(),) * len(redis.leases))
    if writer.relays and RELAY_WAITS in setting.without:
        yield f"{name(writer)} publishes and forgets", finished(after, index, writer)
    else:
        yield from replies(setting, after, index, waiting, f"{name(writer)} publishes entry {redis.seq}")
    if state.faults and "lose a reply" in setting.kinds:
        yield f"{name(writer)} publishes entry {redis.seq} and loses the reply", after._replace(faults=state.faults - 1)


def wait_steps(setting: Setting, state: State, index: int, writer: Writer) -> Iterator[Step]:
    """Take a reply that is on its way; otherwise ask STANDINGS, or EXPEL whom it has seen unchanged for L."""
    if writer.reply:
        yield f"{name(writer)} gets its reply", judged(setting, state, index, writer, writer.reply)
        return
    yield from replies(setting, state, index, writer, f"{name(writer)} asks STANDINGS")
    for who, watch in enumerate(writer.watches):
        if watch.turn and (watch.age >= setting.lease or EXPEL_WAIT in setting.without):
            turn = watch.turn if EXPEL_TURN not in setting.without else ANY
            unwatched = writer._replace(watches=(*writer.watches[:who], Watch(), *writer.watches[who + 1 :]))
            expels = f"{name(writer)} expels instance {who}, turn {watch.turn}"
            if writer.epoch == state.redis.epoch:
                yield expels, with_writer(remove(setting, state, who, turn), index, unwatched)


def replies(setting: Setting, state: State, index: int, writer: Writer, what: str) -> Iterator[Step]:
    """Put the reply on its way, or hand it over at once where replies are never late."""
    reply = standings(setting, state.redis, writer)
    if setting.late_replies:
        yield what, with_writer(state, index, writer._replace(reply=reply))
    else:
        yield f"{what} and gets the reply", judged(setting, state, index, writer, reply)


def standings(setting: Setting, redis: Redis, writer: Writer) -> tuple[int, ...]:
    """Return the present epoch and who lags behind what the writer has published."""
    return lagging(redis, writer.seq, OUTSIDE if writer.owner == OUTSIDE else name_of(setting, writer.owner))


def judged(setting: Setting, state: State, index: int, writer: Writer, reply: tuple[int, ...]) -> State:
    """Publish again under a new epoch, finish when nobody lags and the epoch is old enough, or watch those who lag."""
    epoch, turns = reply[0], reply[1:]
    heard = writer._replace(known=epoch, known_for=writer.known_for if writer.known == epoch else 0, reply=())
    if epoch != writer.epoch:
        return with_writer(state, index, heard._replace(phase=APPLIED, epoch=0, seq=0, watches=()))
    if not any(turns) and (heard.known_for >= setting.lease or EPOCH_WAIT in setting.without):
        return finished(state, index, writer)
    watches = tuple(old if old.turn == turn else Watch(max(turn, 0)) for old, turn in zip(writer.watches, turns, strict=True))
    return with_writer(state, index, heard._replace(watches=watches))


def finished(state: State, index: int, writer: Writer) -> State:
    """Answer OK and empty the outbox; a relay only empties the outbox."""
    bit, postgres = 1 << writer.write, state.postgres
    emptied = state._replace(postgres=postgres._replace(pending=postgres.pending & ~bit))
    if not writer.relays:
        emptied = emptied._replace(acknowledged=state.acknowledged | bit)
    return with_writer(emptied, index, Writer(writer.write, writer.owner, writer.relays, DONE))


def everybody_is_direct(setting: Setting, state: State) -> bool:
    """Tell whether every row that is younger than P says 'direct'."""
    return all(row.mode in (0, DIRECT) or row.age >= setting.row_life for row in state.postgres.rows)


def repeat_steps(setting: Setting, state: State) -> Iterator[Step]:
    """A client repeats its request: a change that has left the outbox is OK at once."""
    if not setting.relay:
        return
    for write in range(len(setting.writers)):
        bit = 1 << write
        if bit & state.postgres.committed & ~state.postgres.pending & ~state.acknowledged:
            yield f"write {write} is repeated and is no longer in the outbox: OK", state._replace(acknowledged=state.acknowledged | bit)
