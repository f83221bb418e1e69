"""What an instance remembers of policies, in two layers.

Nodes are facts: one holder, role or resource each, with the revision of the state that they were read from. What is compiled from nodes (all that a
subject holds, all that a resource lies below) is what checks look at. A change names the nodes that it touched; they die, and with them whatever was
compiled from them, without anyone looking for it: who changes a role of 50,000 holders kills one node. So a warm check compares one number, and
after a change of the tenant it looks once whether the nodes of its entry live.

Everything here is of one tenant's state at its `head`, the revision of the last change that was heard of. A node counts while it lives and its
revision lies between `floor` and `head`: below, it is from before a change whose notice was missed; above, it is of a state that other nodes may not
be of yet. Only compiled entries are bounded and kept; nodes live as long as entries need them.

Keys are tuples, never joined strings, so no two questions share one (CVE-2026-33729).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from services.rbac.holdings import Holdings, Incomplete, Parts, compile_holdings, places_of
from services.rbac.model import Subject
from services.rbac.nodes import Holder, Revision, RoleFacts, Snapshot

V = TypeVar("V")
F = TypeVar("F")
K = TypeVar("K", bound=Hashable)

# The revision decides. This is for a database that was restored from a backup, whose counter comes by old numbers again.
TTL = timedelta(minutes=5)
STANDS = 60.0  # seconds
PART_BYTES = 128  # about, of one holding, pattern, place or node
DEFAULT_WEIGHT = 64 * 1024 * 1024 // PART_BYTES
ANSWER_PARTS = 2  # of one answer that is kept with a subject's holdings
ROOM = 7 / 8  # of the weight: what is looked through once, page by page, may fill no more
MAX_TENANTS = 100_000  # whose heads are known; about 30 MB

Places = tuple[str, ...]


class Node(Generic[F]):
    """A fact of one state."""

    __slots__ = ("__weakref__", "fact", "is_alive", "load_time", "revision")

    def __init__(self, fact: F, revision: Revision, load_time: datetime) -> None:
        self.fact = fact
        self.revision = revision
        self.load_time = load_time
        self.is_alive = True


@dataclass(slots=True)
class Entry(Generic[V]):
    """Something compiled, the nodes it stands on, and the head at which these were last seen to live."""

    value: V
    nodes: tuple[Node[object], ...]
    weight: int
    load_time: datetime
    seen_at: int
    answers: int = 0  # that the weight is with


class Standing:
    """One state of one tenant as it was known for a while. Only its identity counts: what was answered of it holds until another takes its place."""

    __slots__ = ("since",)

    def __init__(self, since: float) -> None:
        self.since = since  # seconds since 1970


@dataclass(slots=True)
class Tenant:
    """What is known of one tenant. `head` and `floor` are revisions of its policy; `revision` is the tenant's own, at least `head`."""

    head: Revision
    floor: Revision
    revision: Revision
    _standing: Standing | None = None
    holders: "WeakValueDictionary[Subject, Node[Holder]]" = field(default_factory=WeakValueDictionary)
    roles: "WeakValueDictionary[UUID, Node[RoleFacts]]" = field(default_factory=WeakValueDictionary)
    places: "WeakValueDictionary[str, Node[str]]" = field(default_factory=WeakValueDictionary)

    def counts(self, node: Node[F]) -> bool:
        """Whether a node is a fact of the state at `head`."""
        return node.is_alive and self.floor <= node.revision <= self.head

    def standing(self, now: float) -> Standing:
        """Return what stands for the state known now. Every change that is heard of ends it, and so does STANDS: see TTL."""
        if self._standing is None or abs(now - self._standing.since) > STANDS:
            self._standing = Standing(now)
        return self._standing

    def advance(self, head: Revision) -> None:
        """Go to the state that follows. What has not died of it is known of it."""
        self.head = head
        self._standing = None
        self.reach(head)

    def forget(self, head: Revision) -> None:
        """Go to a state of which nothing is known."""
        self.floor = head
        self.advance(head)

    def reach(self, revision: Revision) -> None:
        """Know that the tenant's own revision is at least this one: answers name it."""
        if revision > self.revision:
            self.revision = revision
            self._standing = None


@dataclass(frozen=True, slots=True)
class Touched:
    """The nodes that a change touched: holders whose own bindings or memberships changed, roles, resources; or more than can be named."""

    holders: frozenset[Subject] = frozenset()
    roles: frozenset[UUID] = frozenset()
    places: frozenset[str] = frozenset()
    everything: bool = False


class Memory:
    """Nodes and what is compiled from them, of all tenants."""

    def __init__(self, max_weight: int = DEFAULT_WEIGHT) -> None:
        self._tenants: dict[UUID, Tenant] = {}
        self._old_tenants: dict[UUID, Tenant] = {}  # not asked about since half of MAX_TENANTS others were
        self._holdings: OrderedDict[tuple[UUID, Subject], Entry[Holdings]] = OrderedDict()
        self._places: OrderedDict[tuple[UUID, str], Entry[Places]] = OrderedDict()
        self._max_weight = max_weight
        self.weight = 0
        self.generation = 0  # moves when a tenant is forgotten: what was read before may not be learnt after

    def __len__(self) -> int:
        return len(self._holdings) + len(self._places)

    def clear(self) -> None:
        """Forget everything."""
        self.generation += 1
        self._tenants.clear()
        self._old_tenants.clear()
        self._holdings.clear()
        self._places.clear()
        self.weight = 0

    def tenant(self, tenant_id: UUID) -> Tenant | None:
        """Return what is known of a tenant."""
        found = self._tenants.get(tenant_id)
        if found is None and (found := self._old_tenants.pop(tenant_id, None)) is not None:
            self._admit(tenant_id, found)
        return found

    @property
    def is_full(self) -> bool:
        """Whether what is learnt now may soon displace what is asked for again and again."""
        return self.weight > self._max_weight * ROOM

    def begin(self, tenant_id: UUID, head: Revision, revision: Revision) -> Tenant:
        """Return a tenant of which nothing is known but where it stands."""
        found = Tenant(head, head, revision)
        self._admit(tenant_id, found)
        return found

    def _admit(self, tenant_id: UUID, tenant: Tenant) -> None:
        """Know a tenant, and forget those who were not asked about for long. What is compiled of them goes when it is not used.

        If such a tenant is begun anew at the head that it had, nothing changed meanwhile and the entries are right; at a later one, their nodes are
        below its floor.
        """
        if len(self._tenants) >= MAX_TENANTS // 2:
            self.generation += bool(self._old_tenants)
            self._old_tenants, self._tenants = self._tenants, {}
        self._tenants[tenant_id] = tenant

    def holdings(self, tenant_id: UUID, tenant: Tenant, subject: Subject, now: datetime) -> Holdings | None:
        """Return all that a subject holds at the tenant's head, if that is known."""
        entry = self._holdings.get((tenant_id, subject))
        if entry is not None and entry.seen_at == tenant.head and _is_fresh(entry, now):
            self._holdings.move_to_end((tenant_id, subject))
            if entry.answers != len(entry.value.answers):
                self._weigh(entry)
            return entry.value
        return self._compile(self._holdings, (tenant_id, subject), tenant, now, lambda parts: _compiled_holdings(parts, subject))

    def places(self, tenant_id: UUID, tenant: Tenant, resource: str, now: datetime) -> Places | None:
        """Return the whole tenant, a resource, and all it lies below at the tenant's head, if that is known."""
        entry = self._places.get((tenant_id, resource))
        if entry is not None and entry.seen_at == tenant.head and _is_fresh(entry, now):
            self._places.move_to_end((tenant_id, resource))
            return entry.value
        return self._compile(self._places, (tenant_id, resource), tenant, now, lambda parts: _compiled_places(parts, resource))

    def _compile(
        self,
        shelf: "OrderedDict[tuple[UUID, K], Entry[V]]",
        key: "tuple[UUID, K]",
        tenant: Tenant,
        now: datetime,
        compiled: "Callable[[Known], tuple[V, int]]",
    ) -> V | None:
        """Return an entry whose nodes still count, or one compiled anew of nodes that do, or None."""
        entry = shelf.get(key)
        if entry is not None and _is_fresh(entry, now) and all(map(tenant.counts, entry.nodes)):
            entry.seen_at = tenant.head
            shelf.move_to_end(key)
            return entry.value
        known = Known(tenant, now)
        try:
            value, weight = compiled(known)
        except Incomplete:
            return None
        nodes = tuple(known.used)
        self._keep(shelf, key, Entry(value, nodes, weight + len(nodes), min(node.load_time for node in nodes), tenant.head))
        return value

    def learn(
        self, tenant_id: UUID, tenant: Tenant, snapshot: Snapshot, *, asked: Iterable[Subject], resources: Iterable[str], now: datetime
    ) -> None:
        """Remember a snapshot, which is of the tenant's head or later, and compile what was asked for."""
        policy = snapshot.state.policy
        nodes: list[object] = []  # held until the entries hold them
        nodes += [_refresh(tenant, tenant.holders, subject, Node(holder, policy, now)) for subject, holder in snapshot.holders.items()]
        nodes += [_refresh(tenant, tenant.roles, role_id, Node(role, policy, now)) for role_id, role in snapshot.roles.items()]
        nodes += [_refresh(tenant, tenant.places, place, Node(parent, policy, now)) for place, parent in snapshot.places.items()]
        for subject in asked:
            self.holdings(tenant_id, tenant, subject, now)
        for resource in resources:
            self.places(tenant_id, tenant, resource, now)

    def kill(self, tenant: Tenant, touched: Touched, revision: Revision) -> None:
        """Let the nodes die that a change of `revision` touched, unless they were read from a state with it."""
        _kill(tenant.holders, touched.holders, revision)
        _kill(tenant.roles, touched.roles, revision)
        _kill(tenant.places, touched.places, revision)

    def _keep(self, shelf: "OrderedDict[tuple[UUID, K], Entry[V]]", key: "tuple[UUID, K]", entry: Entry[V]) -> None:
        """Remember `entry`, if it fits at all."""
        old = shelf.pop(key, None)
        self.weight -= 0 if old is None else old.weight
        if entry.weight > self._max_weight:
            return
        shelf[key] = entry
        self._grow(entry.weight)

    def _weigh(self, entry: Entry[Holdings]) -> None:
        """Count the answers that were kept with an entry since it was used last."""
        count = len(entry.value.answers)
        more = (count - entry.answers) * ANSWER_PARTS
        entry.answers = count
        entry.weight += more
        self._grow(more)

    def _grow(self, weight: int) -> None:
        """Count what is kept, and forget what was used least and no longer fits."""
        self.weight += weight
        while self.weight > self._max_weight:
            self._forget_one()

    def _forget_one(self) -> None:
        if len(self._places) > len(self._holdings):
            self.weight -= self._places.popitem(last=False)[1].weight
        else:
            self.weight -= self._holdings.popitem(last=False)[1].weight


class Known:
    """The nodes of a tenant that count, and those of them that were looked at."""

    def __init__(self, tenant: Tenant, now: datetime) -> None:
        self._tenant = tenant
        self._now = now
        self.used: list[Node[object]] = []

    @property
    def parts(self) -> Parts:
        """Return the parts of what a subject holds."""
        return Parts(lambda subject: self._fact(self._tenant.holders, subject), lambda role_id: self._fact(self._tenant.roles, role_id))

    def parent(self, resource: str) -> str:
        """Return what a resource lies directly below. Raises Incomplete."""
        return self._fact(self._tenant.places, resource)

    def _fact(self, nodes: Mapping[K, Node[F]], key: K) -> F:
        node = nodes.get(key)
        if node is None or not self._tenant.counts(node) or abs(self._now - node.load_time) > TTL:
            raise Incomplete
        self.used.append(node)  # type: ignore[arg-type]
        return node.fact


def _compiled_holdings(known: Known, subject: Subject) -> tuple[Holdings, int]:
    holdings = compile_holdings(known.parts, subject)
    return holdings, holdings.weight


def _compiled_places(known: Known, resource: str) -> tuple[Places, int]:
    places = places_of(known.parent, resource)
    return places, len(places)


def _is_fresh(entry: Entry[V], now: datetime) -> bool:
    return abs(now - entry.load_time) <= TTL


def _refresh(tenant: Tenant, nodes: "WeakValueDictionary[K, Node[F]]", key: K, fresh: Node[F]) -> Node[F]:
    """Put `fresh` in the place of a node that no longer counts or says otherwise, which dies. One that says the same stays, with its entries."""
    old = nodes.get(key)
    if old is not None:
        if tenant.counts(old) and old.fact == fresh.fact:
            old.load_time = fresh.load_time
            return old
        old.is_alive = False
    nodes[key] = fresh
    return fresh


def _kill(nodes: "WeakValueDictionary[K, Node[F]]", keys: Iterable[K], revision: Revision) -> None:
    for key in keys:
        node = nodes.get(key)
        if node is not None and node.revision < revision:
            node.is_alive = False
