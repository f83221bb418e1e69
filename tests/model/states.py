"""What the model knows: a state is a tuple of small numbers, and time is held as ages that stop where nobody can tell the difference.

So runs of any length fold into finitely many states. Writes are bits: memory 0b01 holds write 0 but not write 1.
A step may always be late: pauses, slow messages and partitions need no step of their own, the others simply go on without it.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

OUTSIDE = -1  # a writer that is no reader
NO, ASKED, GRANTED, WAITED_FOR, REFUSED = range(5)  # how a RENEW stands
LEASED, DIRECT = 1, 2  # what a row of `instance` says; 0: no row, or no write of it under way
IDLE, COMMITTED, APPLIED, WAITING, DONE = range(5)  # how far a writer is
OLD, ANY = -1, -2  # a turn that is over; any turn at all
RENEW, LEAVE, ROW = range(3)  # messages whose sender has stopped waiting for them

EPOCH_WAIT = "no OK before the writer has known the epoch for L"
RUN_BOUND = "a server that has restarted starts a new epoch"
REPLICATION_BOUND = "a primary that was a replica meanwhile starts a new epoch"
EPOCH_BOUND = "a position counts in its own epoch only"
SENT_TIME = "a lease counts from the time of sending"
SNAPSHOT_ORDER = "the position is noted before the snapshot is loaded"
CATCH_UP = "a new lease of one who lags is believed only once it is renewed"
STUCK_REFUSED = "a renewal needs applied >= seen"
EXPEL_WAIT = "EXPEL comes after L of an unchanged turn"
EXPEL_TURN = "EXPEL removes only the turn that was watched"
UNIQUE_TURNS = "a turn is never given twice"
DENSE = "the next id is the previous one + 1"
REGISTERED_FIRST = "the row says 'leased' before the snapshot is loaded"
TRUST_BEFORE_DIRECT = "the row says 'direct' after trust has ended"
FULL_REJOIN = "after 'direct' comes a join by all steps"
LOCAL_FIRST = "a change is applied locally before the own lease is excluded"
ROW_AGE = "trust ends when the row is P old"
MARGIN = "trust ends delta before L"
# What the first text of the protocol left open, and what this model asks for.
LEAVE_TURN = "LEAVE removes only the turn that was granted"
ROW_ORDER = "a late write of the row does not overwrite a later one"
NO_REVIVAL = "trust that the row's age has ended comes back only by a join"
LOCAL_IN_LOADING = "a local change reaches a snapshot that is being loaded"
RELAY_APPLIES = "a relay applies what it publishes before it excludes its own lease"
RELAY_WAITS = "a relay deletes from the outbox after the wait, not after PUBLISH"
OWN_NAME = "a name belongs to one process"


@dataclass(frozen=True, slots=True)
class Setting:
    """How many take part, how long things last, in ticks, what may break, and which guards are missing."""

    readers: int = 1
    writers: tuple[int, ...] = (OUTSIDE,)  # for each write, the instance that makes it
    relay: bool = False  # the writer of write 0 gives up after its commit, and instance 0 relays the change
    lease: int = 2  # L
    margin: int = 0  # delta
    row_life: int = 0  # P; 0: nobody uses rows
    faults: int = 0
    kinds: frozenset[str] = frozenset()  # of "flush", "trim", "lose a reply", "slow clock", "clock jump"
    strays: int = 0  # messages given up by their senders that may still arrive, at any one time
    late_renewals: bool = True  # time may pass between a RENEW's sending, its running and its reply
    late_replies: bool = False  # the same for what a writer asks
    warm: bool = False  # writers have known the epoch for long
    stuck: bool = False  # readers renew in every tick, and never read the stream
    without: frozenset[str] = frozenset()

    # What follows from these.
    joining: tuple[str, ...] = field(init=False)  # the steps of a join in order
    has_insider: bool = field(init=False)  # some instance writes
    compares_turns: bool = field(init=False)

    def __post_init__(self) -> None:
        """Work out what every step asks for."""
        object.__setattr__(self, "has_insider", self.relay or any(owner != OUTSIDE for owner in self.writers))
        object.__setattr__(self, "compares_turns", not self.without & {EXPEL_TURN, UNIQUE_TURNS, LEAVE_TURN})
        object.__setattr__(self, "joining", join_order(self))


def join_order(setting: Setting) -> tuple[str, ...]:
    """Return how an instance joins: register, open, load; `install` is apart from `load` only where a local change may come between."""
    order = ["open", "load"] if SNAPSHOT_ORDER not in setting.without else ["load", "open"]
    if setting.row_life:
        order.insert(0 if REGISTERED_FIRST not in setting.without else 2, "register")
    return (*order, "install") if setting.has_insider else tuple(order)


class Lease(NamedTuple):
    """A record in Redis; turn 0 is no record."""

    turn: int = 0
    applied: int = 0
    seen: int = 0


class Redis(NamedTuple):
    """The hash `state` with its leases by name, and the stream `log` as (id, write)."""

    epoch: int
    seq: int
    log: tuple[tuple[int, int], ...]
    leases: tuple[Lease, ...]


class Row(NamedTuple):
    """What Postgres says of an instance."""

    mode: int = 0
    age: int = 0


class Postgres(NamedTuple):
    """The committed writes, those still in the outbox, and the rows of `instance`."""

    committed: int
    pending: int
    rows: tuple[Row, ...]


class Renewal(NamedTuple):
    """A RENEW under way, and how long ago it was sent."""

    stand: int = NO
    age: int = 0
    applied: int = 0
    turn: int = 0


class RowWrite(NamedTuple):
    """An upsert under way: what it says, how long ago it began, whether Postgres has committed it."""

    mode: int = 0
    age: int = 0
    committed: bool = False


class Instance(NamedTuple):
    """A reader. `phase` counts the steps of the join that are done; after them come the loop, and the lapse."""

    phase: int = 0
    epoch: int = 0
    position: int = 0
    memory: int = 0
    loading: int = 0
    trust: int = 0  # ticks left of the lease
    turn: int = 0  # of its last grant
    renewal: Renewal = Renewal()
    row_age: int = 0  # since its last successful upsert began
    row_write: RowWrite = RowWrite()


class Watch(NamedTuple):
    """The turn of a reader that lags, and for how long the writer has seen it unchanged; turn 0 is none."""

    turn: int = 0
    age: int = 0


class Writer(NamedTuple):
    """A writer, or a relay. `reply` is on its way: the epoch, then for each name the turn of a lease that lags, or 0."""

    write: int
    owner: int
    relays: bool
    phase: int = IDLE
    known: int = 0  # the epoch it knows; 0: none
    known_for: int = 0
    epoch: int = 0  # in which it has published
    seq: int = 0
    watches: tuple[Watch, ...] = ()
    reply: tuple[int, ...] = ()


class Stray(NamedTuple):
    """A message whose sender no longer waits for it: RENEW(epoch, applied), LEAVE(turn) or ROW(mode)."""

    kind: int
    instance: int
    first: int
    second: int = 0


class State(NamedTuple):
    """The whole world."""

    redis: Redis
    postgres: Postgres
    instances: tuple[Instance, ...]
    writers: tuple[Writer, ...]
    strays: tuple[Stray, ...]
    acknowledged: int
    faults: int
    saved: tuple[Redis, ...]  # on Redis's disk or at its replica; kept only where it could come back


Step = tuple[str, State]


def beginning(setting: Setting) -> State:
    """Return the world before anybody has done anything: Redis is fresh, nobody has joined, nothing is written."""
    known, known_for = (1, setting.lease) if setting.warm else (0, 0)
    writers = [Writer(write, owner, False, IDLE, known, known_for) for write, owner in enumerate(setting.writers)]
    if setting.relay:
        writers.append(Writer(0, 0, True))
    redis = Redis(1, 0, (), (Lease(),) * setting.readers)
    postgres = Postgres(0, 0, (Row(),) * setting.readers)
    return State(redis, postgres, (Instance(),) * setting.readers, tuple(writers), (), 0, setting.faults, ())


def name_of(setting: Setting, instance: int) -> int:
    """Return the name that an instance goes by."""
    return 0 if OWN_NAME in setting.without else instance


def with_instance(state: State, index: int, instance: Instance) -> State:
    """Return the state with one instance changed."""
    instances = state.instances
    return state._replace(instances=(*instances[:index], instance, *instances[index + 1 :]))


def with_writer(state: State, index: int, writer: Writer) -> State:
    """Return the state with one writer changed."""
    writers = state.writers
    return state._replace(writers=(*writers[:index], writer, *writers[index + 1 :]))


def with_stray(state: State, stray: Stray) -> State:
    """Return the state with one more message of which nobody waits for the end."""
    return state._replace(strays=tuple(sorted((*state.strays, stray))))
