"""An instance: it joins, it reads the stream and renews its lease, it lapses."""

from collections.abc import Iterator

from tests.model.states import (
    ANY,
    ASKED,
    DENSE,
    DIRECT,
    FULL_REJOIN,
    GRANTED,
    LEASED,
    LEAVE,
    LEAVE_TURN,
    MARGIN,
    NO,
    NO_REVIVAL,
    OLD,
    REFUSED,
    RENEW,
    ROW,
    ROW_AGE,
    SENT_TIME,
    TRUST_BEFORE_DIRECT,
    WAITED_FOR,
    Instance,
    Renewal,
    RowWrite,
    Setting,
    State,
    Step,
    Stray,
    name_of,
    with_instance,
    with_stray,
)
from tests.model.stores import remove, renew, write_row

SAYS = {GRANTED: "grants a lease to", WAITED_FOR: "grants a lease, not to be believed yet, to", REFUSED: "refuses"}


def trusts(setting: Setting, instance: Instance) -> bool:
    """Tell whether the instance would answer a read from its memory now."""
    return instance.trust > 0 and not row_is_old(setting, instance)


def row_is_old(setting: Setting, instance: Instance) -> bool:
    return 0 < setting.row_life <= instance.row_age and ROW_AGE not in setting.without


def instance_steps(setting: Setting, state: State, index: int) -> Iterator[Step]:
    """Yield every step that one instance may take now."""
    instance, loop = state.instances[index], len(setting.joining)
    if instance.phase < loop:
        yield from join_steps(setting, state, index, instance)
    elif instance.phase == loop:
        yield from stream_steps(setting, state, index, instance)
        yield from renewal_steps(setting, state, index, instance)
        yield from lapse_steps(setting, state, index, instance)
    if setting.row_life:
        yield from row_steps(setting, state, index, instance)


def join_steps(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Join: say 'leased', note epoch and position, load the snapshot. (`register` is done when its row is: see row_steps.)"""
    step, done, who = setting.joining[instance.phase], instance.phase + 1, f"instance {index}"
    if step == "open":
        redis = state.redis
        opened = instance._replace(phase=done, epoch=redis.epoch, position=redis.seq)
        yield f"{who} notes epoch {redis.epoch}, position {redis.seq}", with_instance(state, index, opened)
    elif step == "load":
        snapshot = state.postgres.committed
        loaded = instance._replace(phase=done, loading=snapshot) if setting.has_insider else instance._replace(phase=done, memory=snapshot)
        yield f"{who} loads the snapshot {snapshot:02b}", with_instance(state, index, loaded)
    elif step == "install":
        installed = instance._replace(phase=done, memory=instance.loading, loading=0)
        yield f"{who} puts the snapshot into its memory", with_instance(state, index, installed)


def stream_steps(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Apply the next entry of the stream, or find that one is missing and lapse."""
    if setting.stuck or instance.renewal.stand != NO:
        return
    for seq, write in state.redis.log:
        if seq <= instance.position:
            continue
        if seq != instance.position + 1 and DENSE not in setting.without:
            yield from lapses(setting, state, index, f"instance {index} misses an entry before {seq},")
            return
        applied = instance._replace(position=seq, memory=instance.memory | 1 << write)
        yield f"instance {index} applies entry {seq}, write {write}", with_instance(state, index, applied)
        return


def renewal_steps(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Send RENEW; have Redis run it; take its reply; or stop waiting for it."""
    renewal, who = instance.renewal, f"instance {index}"
    if renewal.stand == NO and not setting.late_renewals:
        yield from prompt_renewal(setting, state, index, instance)
    elif renewal.stand == NO:
        asking = instance._replace(renewal=Renewal(ASKED, 0, instance.position))
        yield f"{who} sends RENEW(applied {instance.position})", with_instance(state, index, asking)
    elif renewal.stand == ASKED:
        after, stand, turn = renew(setting, state, index, instance.epoch, renewal.applied)
        answered = after.instances[index]._replace(renewal=renewal._replace(stand=stand, turn=turn))
        yield f"Redis {SAYS[stand]} {who}{f', turn {turn}' if turn else ''}", with_instance(after, index, answered)
        if len(state.strays) < setting.strays:
            stray = with_stray(state, Stray(RENEW, index, instance.epoch, renewal.applied))
            yield f"{who} stops waiting for its RENEW, which is still under way", with_instance(stray, index, instance._replace(renewal=Renewal()))
    elif renewal.stand == GRANTED:
        yield f"{who} has its lease", with_instance(state, index, granted(setting, instance))
    elif renewal.stand == WAITED_FOR:
        yield f"{who} has a lease, not to be believed yet", with_instance(state, index, waited_for(instance))
    elif not instance.trust:
        yield f"{who}, which is refused, will ask again", with_instance(state, index, instance._replace(renewal=Renewal()))
    if renewal.stand != NO and not setting.stuck:
        yield f"{who} loses its RENEW or the reply", with_instance(state, index, instance._replace(renewal=Renewal()))


def prompt_renewal(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Renew in one step; a first refusal changes nothing."""
    after, stand, turn = renew(setting, state, index, instance.epoch, instance.position)
    answered = instance._replace(renewal=Renewal(stand, 0, instance.position, turn))
    if stand == GRANTED:
        yield f"instance {index} renews its lease, turn {turn}", with_instance(after, index, granted(setting, answered))
    elif stand == WAITED_FOR:
        yield f"instance {index} gets a lease, turn {turn}, not to be believed yet", with_instance(after, index, waited_for(answered))
    elif instance.turn:
        yield f"instance {index} is refused", with_instance(state, index, answered)


def granted(setting: Setting, instance: Instance) -> Instance:
    """Trust the memory for L less delta, counted from the time of sending."""
    since = 0 if SENT_TIME in setting.without else instance.renewal.age
    margin = 0 if MARGIN in setting.without else setting.margin
    return instance._replace(trust=max(0, setting.lease - margin - since), turn=instance.renewal.turn, renewal=Renewal())


def waited_for(instance: Instance) -> Instance:
    """Have a lease, and no more trust than before."""
    return instance._replace(turn=instance.renewal.turn, renewal=Renewal())


def lapse_steps(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Lapse when trust has run out, or when a renewal was refused."""
    if instance.renewal.stand == REFUSED and instance.turn:
        yield from lapses(setting, state, index, f"instance {index}, refused,")
    elif not trusts(setting, instance) and instance.renewal.stand == NO and not setting.stuck:
        yield from lapses(setting, state, index, f"instance {index}, which does not trust its memory,")
    elif TRUST_BEFORE_DIRECT in setting.without and instance.row_write.mode != DIRECT:
        early = instance._replace(row_write=RowWrite(DIRECT))
        yield f"instance {index}, trusting still, begins to write 'direct'", with_instance(state, index, early)


def lapses(setting: Setting, state: State, index: int, why: str) -> Iterator[Step]:
    """Stop trusting at once, then LEAVE: it arrives, it is lost, or it arrives some day."""
    instance = state.instances[index]
    turn = instance.turn if LEAVE_TURN not in setting.without else ANY
    outside = lapsed(setting, instance)
    yield f"{why} lapses, and its LEAVE is lost", with_instance(state, index, outside)
    if instance.turn in (0, OLD):
        return
    yield f"{why} lapses and LEAVEs", with_instance(remove(setting, state, name_of(setting, index), turn), index, outside)
    if len(state.strays) < setting.strays:
        yield f"{why} lapses, and its LEAVE is still under way", with_instance(with_stray(state, Stray(LEAVE, index, turn)), index, outside)


def lapsed(setting: Setting, instance: Instance) -> Instance:
    """Return the instance without trust: it writes its row next if it has one, and otherwise joins anew."""
    if not setting.row_life:
        return Instance()
    if FULL_REJOIN in setting.without:
        return instance._replace(phase=len(setting.joining) + 1, trust=0, turn=0, renewal=Renewal(), row_write=RowWrite())
    return Instance(phase=len(setting.joining) + 1)


def row_steps(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Begin to write the row; have Postgres commit it; take the reply; or stop waiting for it."""
    writing, loop, who = instance.row_write, len(setting.joining), f"instance {index}"
    registering = instance.phase < loop and setting.joining[instance.phase] == "register"
    if not writing.mode and (registering or instance.phase >= loop):
        mode = DIRECT if instance.phase > loop else LEASED
        begun = instance._replace(row_write=RowWrite(mode))
        yield f"{who} begins to write {word(mode)}", with_instance(state, index, begun)
    elif writing.mode and not writing.committed:
        committed = instance._replace(row_write=writing._replace(committed=True))
        yield f"Postgres commits {word(writing.mode)} of {who}", with_instance(write_row(setting, state, index, writing.mode), index, committed)
        yield from given_up(setting, state, index, instance)
    elif writing.committed:
        yield from row_written(setting, state, index, instance)
    if instance.phase > loop:
        yield f"{who} joins anew though its row may not be written", with_instance(state, index, Instance())


def given_up(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Stop waiting for a write of the row, which may still be committed some day, and go on as after a failure."""
    if len(state.strays) < setting.strays:
        after = instance._replace(row_write=RowWrite()) if instance.phase <= len(setting.joining) else Instance()
        stray = with_stray(state, Stray(ROW, index, instance.row_write.mode))
        yield f"instance {index} stops waiting for its {word(instance.row_write.mode)}, which is still under way", with_instance(stray, index, after)


def row_written(setting: Setting, state: State, index: int, instance: Instance) -> Iterator[Step]:
    """Go on: the join, the loop with a younger row, or after 'direct' a join by all steps."""
    age, loop, who = instance.row_write.age, len(setting.joining), f"instance {index}"
    if instance.phase < loop:
        yield f"{who} is registered", with_instance(state, index, instance._replace(phase=instance.phase + 1, row_age=age, row_write=RowWrite()))
    elif instance.phase == loop and instance.row_write.mode == DIRECT:
        yield f"{who} ends its trust after its row", with_instance(state, index, Instance())
    elif instance.phase == loop and row_is_old(setting, instance) and NO_REVIVAL not in setting.without:
        yield from lapses(setting, state, index, f"instance {index}, its row refreshed too late,")
    elif instance.phase == loop:
        yield f"{who} has refreshed its row", with_instance(state, index, instance._replace(row_age=age, row_write=RowWrite()))
    elif FULL_REJOIN in setting.without:
        yield f"{who} goes on where it was", with_instance(state, index, instance._replace(phase=loop, row_age=age, row_write=RowWrite()))
    else:
        yield f"{who} has declared itself direct", with_instance(state, index, Instance())


def word(mode: int) -> str:
    return "'leased'" if mode == LEASED else "'direct'"
