"""Redis's scripts and Postgres's statements, each of them atomic."""

from tests.model.states import (
    ANY,
    CATCH_UP,
    EPOCH_BOUND,
    GRANTED,
    LEAVE,
    OLD,
    REFUSED,
    ROW,
    ROW_ORDER,
    STUCK_REFUSED,
    UNIQUE_TURNS,
    WAITED_FOR,
    Instance,
    Lease,
    Redis,
    Row,
    Setting,
    State,
    Stray,
    Watch,
    Writer,
    name_of,
)


def with_lease(redis: Redis, name: int, lease: Lease) -> Redis:
    """Return Redis with one record changed."""
    return redis._replace(leases=(*redis.leases[:name], lease, *redis.leases[name + 1 :]))


def renew(setting: Setting, state: State, index: int, epoch: int, applied: int) -> tuple[State, int, int]:
    """Run RENEW: the state after it, how it stands then, and the turn granted, or 0 for a refusal."""
    redis, name = state.redis, name_of(setting, index)
    lease = redis.leases[name]
    if refuses(setting, redis, lease, epoch, applied):
        return state, REFUSED, 0
    turn, is_level = next_turn(setting, state, name), lease.turn or applied == redis.seq or CATCH_UP in setting.without
    granted = outdate(setting, state._replace(redis=with_lease(redis, name, Lease(turn, applied, redis.seq))), name)
    return granted, GRANTED if is_level else WAITED_FOR, turn


def refuses(setting: Setting, redis: Redis, lease: Lease, epoch: int, applied: int) -> bool:
    """Tell whether RENEW says no: another epoch, or a lease whose holder did not even reach what was there last time."""
    if epoch != redis.epoch and EPOCH_BOUND not in setting.without:
        return True
    return bool(lease.turn) and applied < lease.seen and STUCK_REFUSED not in setting.without


def next_turn(setting: Setting, state: State, name: int) -> int:
    """Return a turn that nobody remembers, which is as good as a counter's: turns are only compared for being the same."""
    if UNIQUE_TURNS in setting.without:
        return state.redis.leases[name].turn + 1
    if setting.compares_turns:
        return 1  # see outdate
    remembered = {turn for instance in state.instances for turn in (instance.turn, instance.renewal.turn)}
    remembered |= {turn for writer in state.writers for turn in (*writer.reply[1:], *(watch.turn for watch in writer.watches))}
    remembered |= {stray.first for stray in state.strays} | {lease.turn for lease in state.redis.leases}
    return next(turn for turn in range(1, 100) if turn not in remembered)


def outdate(setting: Setting, state: State, name: int) -> State:
    """Let everybody who remembers an older turn of this name remember only that it is old.

    No later lease will have that turn, so it equals nothing any more, and one number is enough for the turn that is current.
    """
    if not setting.compares_turns:
        return state
    writers = tuple(unwatch(writer, name) if writer.watches else writer for writer in state.writers)
    instances = tuple(past(setting, state, index, name) for index in range(len(state.instances)))
    strays = state.strays and tuple(stray for stray in state.strays if stray.kind != LEAVE or name_of(setting, stray.instance) != name)
    return state._replace(writers=writers, instances=instances, strays=strays)


def unwatch(writer: Writer, name: int) -> Writer:
    """Watch no longer what has changed; a reply that is on its way still says that the name lags."""
    if not writer.watches[name].turn and not writer.reply:
        return writer
    watches = (*writer.watches[:name], Watch(), *writer.watches[name + 1 :])
    reply = writer.reply and (*writer.reply[: name + 1], writer.reply[name + 1] and OLD, *writer.reply[name + 2 :])
    return writer._replace(watches=watches, reply=reply)


def past(setting: Setting, state: State, index: int, name: int) -> Instance:
    """Return an instance whose turn, if it has this name, is old; without trust it may as well have none."""
    instance = state.instances[index]
    if name_of(setting, index) != name or not (instance.turn or instance.renewal.turn):
        return instance
    renewal = instance.renewal._replace(turn=OLD) if instance.renewal.turn else instance.renewal
    return instance._replace(turn=instance.turn and instance.trust and OLD, renewal=renewal)


def remove(setting: Setting, state: State, name: int, turn: int) -> State:
    """Run EXPEL, or LEAVE: remove a record if its turn is still that one; turn ANY removes whatever is there."""
    if state.redis.leases[name].turn and turn in (ANY, state.redis.leases[name].turn):
        return outdate(setting, state._replace(redis=with_lease(state.redis, name, Lease())), name)
    return state


def publish(redis: Redis, write: int) -> Redis:
    """Run PUBLISH."""
    return redis._replace(seq=redis.seq + 1, log=(*redis.log, (redis.seq + 1, write)))


def lagging(redis: Redis, seq: int, except_name: int) -> tuple[int, ...]:
    """Return the epoch, then for each name the turn of its lease if that lags behind seq, otherwise 0."""
    return (redis.epoch, *(0 if name == except_name or lease.applied >= seq else lease.turn for name, lease in enumerate(redis.leases)))


def flush(setting: Setting, state: State) -> State:
    """Start a new epoch with nothing else in it."""
    for name in range(len(state.redis.leases)):
        state = outdate(setting, state, name)
    return state._replace(redis=Redis(state.redis.epoch + 1, 0, (), (Lease(),) * len(state.redis.leases)))


def write_row(setting: Setting, state: State, index: int, mode: int) -> State:
    """Upsert the row of an instance. Writes are numbered, so what was sent before and arrives later changes nothing any more."""
    name, rows = name_of(setting, index), state.postgres.rows
    postgres = state.postgres._replace(rows=(*rows[:name], Row(mode), *rows[name + 1 :]))
    if ROW_ORDER in setting.without:
        return state._replace(postgres=postgres)
    return state._replace(postgres=postgres, strays=tuple(stray for stray in state.strays if not outdated(stray, index)))


def outdated(stray: Stray, index: int) -> bool:
    return stray.kind == ROW and stray.instance == index
