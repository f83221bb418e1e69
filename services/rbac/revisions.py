"""What an instance hears of changes, applied to its memory: the replica of rbac.

Every change of a policy takes the tenant's next revision and tells it to all instances before it is acknowledged: which revision of the policy it
follows, and which nodes it touched. Notices come in no order, since each instance sends its own. One that follows the head moves it, and lets the
touched nodes die. One that follows something else means that a notice is still under way: everything of the tenant is forgotten, and the late one
is then of the past.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec

from services.chassis.tenancy import TenantId
from services.rbac.memory import Memory, Tenant, Touched
from services.rbac.model import Subject, SubjectType
from services.rbac.nodes import Revision, Snapshot

MAX_NAMED = 200  # nodes that a notice names: more are told as everything


class PolicyNotice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tenant's policy has the revision `policy` now, and had `previous` before. `holders` are pairs of a subject's type and id."""

    tenant_id: UUID
    policy: int
    previous: int
    holders: list[tuple[int, UUID]] = []
    roles: list[UUID] = []
    places: list[str] = []
    everything: bool = False

    @property
    def touched(self) -> Touched:
        """The nodes that the change touched."""
        holders = frozenset(Subject(SubjectType(kind), subject_id) for kind, subject_id in self.holders)
        return Touched(holders, frozenset(self.roles), frozenset(self.places), self.everything)


_decoder = msgspec.json.Decoder(PolicyNotice)


def encode(tenant_id: TenantId, policy: int, previous: int, touched: Touched) -> str:
    """Return what to tell of a change."""
    named = len(touched.holders) + len(touched.roles) + len(touched.places)
    if touched.everything or named > MAX_NAMED:
        notice = PolicyNotice(tenant_id, policy, previous, everything=True)
    else:
        holders = [(int(subject.type), subject.id) for subject in touched.holders]
        notice = PolicyNotice(tenant_id, policy, previous, holders, list(touched.roles), list(touched.places))
    return msgspec.json.encode(notice).decode()


class Revisions:
    """Hears of changes, and says so to those who wait for them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._changed: dict[UUID, asyncio.Event] = {}

    async def load(self) -> None:
        """Forget everything. What is read from now on is learnt anew."""
        self._memory.clear()
        self._wake(*self._changed)

    def apply(self, change: str) -> None:
        """Hear of a change. Raises ValueError for what no instance wrote."""
        notice = _decoder.decode(change)
        head, tenant = Revision(notice.policy), self._memory.tenant(notice.tenant_id)
        if tenant is None:
            self._memory.begin(notice.tenant_id, head, head)
        elif head > tenant.head:
            self._advance(tenant, notice)
        self._wake(notice.tenant_id)

    def _advance(self, tenant: Tenant, notice: PolicyNotice) -> None:
        head = Revision(notice.policy)
        if notice.everything or notice.previous != tenant.head:
            tenant.forget(head)
            return
        self._memory.kill(tenant, notice.touched, head)
        tenant.advance(head)

    def learn(
        self,
        tenant_id: TenantId,
        snapshot: Snapshot,
        *,
        subjects: Iterable[Subject],
        resources: Iterable[str],
        began: datetime,
        generation: int,
        is_led: bool,
    ) -> None:
        """Take in what was read from Postgres, if that raced no change.

        generation  of memory, when the reading began
        is_led      whether all changes are heard of; if not, the snapshot itself is the news
        """
        if generation != self._memory.generation:
            return
        state = snapshot.state
        tenant = self._memory.tenant(tenant_id) or self._memory.begin(tenant_id, state.policy, state.revision)
        if state.policy > tenant.head and not is_led:
            tenant.forget(state.policy)
        if state.policy == tenant.head:
            tenant.reach(state.revision)
        if state.policy >= tenant.head:
            self._memory.learn(tenant_id, tenant, snapshot, asked=subjects, resources=resources, now=began)

    async def changed(self, tenant_id: TenantId, after: int, timeout: float) -> None:
        """Return when a change of the tenant's policy later than revision `after` was heard of, or after `timeout` seconds."""
        tenant = self._memory.tenant(tenant_id)
        if tenant is not None and tenant.head > after:
            return
        event = self._changed.setdefault(tenant_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), timeout)

    def head(self, tenant_id: TenantId) -> Revision | None:
        """Return the revision of the last change of the tenant's policy that was heard of; None if nothing is known of the tenant."""
        tenant = self._memory.tenant(tenant_id)
        return None if tenant is None else tenant.head

    @property
    def generation(self) -> int:
        """Moves when everything is forgotten."""
        return self._memory.generation

    def begin(self, tenant_id: TenantId, policy: int, generation: int) -> None:
        """Know where a tenant stands, of which nothing was known, by a read that began in `generation`."""
        if generation == self._memory.generation and self._memory.tenant(tenant_id) is None:
            self._memory.begin(tenant_id, Revision(policy), Revision(policy))

    def _wake(self, *tenants: UUID) -> None:
        for tenant_id in tenants:
            event = self._changed.pop(tenant_id, None)
            if event is not None:
                event.set()
