"""Where each tenant's policy stands, as far as this instance has heard: what lets memory answer without asking Postgres.

Every change of a policy takes the tenant's next revision and tells it to all instances before it is acknowledged. A remembered answer bears the
revision of the policy that it came from. So while the lease lives, it is true exactly if no later revision was told.
"""

from uuid import UUID

import msgspec

from services.chassis.tenancy import TenantId
from services.rbac.holdings import Revision, State

MAX_TENANTS = 100_000  # about 20 MB


class PolicyNotice(msgspec.Struct, frozen=True):
    """A tenant's policy has this revision now."""

    tenant_id: UUID
    policy: int


_decoder = msgspec.json.Decoder(PolicyNotice)


def encode(tenant_id: TenantId, policy: int) -> str:
    """Return what to tell of a change."""
    return msgspec.json.encode(PolicyNotice(tenant_id, policy)).decode()


class Revisions:
    """The replica of rbac. `generation` moves when everything is forgotten: what was read before may not be learnt after."""

    def __init__(self) -> None:
        self._states: dict[UUID, State] = {}
        self.generation = 0

    async def load(self) -> None:
        """Forget everything. What is read from now on is learnt anew."""
        self._forget()

    def apply(self, change: str) -> None:
        """Hear of a change. Raises ValueError for what no instance wrote."""
        notice = _decoder.decode(change)
        self._raise(notice.tenant_id, State(revision=Revision(notice.policy), policy=Revision(notice.policy)))

    def learn(self, tenant_id: TenantId, state: State, *, generation: int) -> None:
        """Take in what was read from Postgres, if the reading began in the present `generation`."""
        if generation == self.generation:
            self._raise(tenant_id, state)

    def find(self, tenant_id: TenantId) -> State | None:
        """Return where a tenant stands. Believe it only while the lease lives."""
        return self._states.get(tenant_id)

    def _raise(self, tenant_id: UUID, state: State) -> None:
        known = self._states.get(tenant_id)
        if known is not None:
            state = State(revision=max(known.revision, state.revision), policy=max(known.policy, state.policy))
        elif len(self._states) >= MAX_TENANTS:
            self._forget()
        self._states[tenant_id] = state

    def _forget(self) -> None:
        self.generation += 1
        self._states.clear()
