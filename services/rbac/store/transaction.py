"""The transaction of a change of one tenant's policy: its lock, what it touches, and how it is sealed.

Before a statement writes, it notes which nodes it touches (for the memories of all instances) and whose permissions that can change (for those who
watch): before, because what is deleted leads to nobody any more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import Change, Row
from services.chassis.tenancy import TenantId
from services.rbac.holdings import Holdings, in_snapshot
from services.rbac.memory import Touched
from services.rbac.model import Subject, SubjectType
from services.rbac.patterns import Patterns
from services.rbac.revisions import encode
from services.rbac.store.loading import FIND_STATE, load

NAMED_SUBJECTS = 1000  # whose permissions a change touched; more are told as everybody


class PolicyTransaction:
    """What all statements of a change share."""

    def __init__(self, change: Change, tenant_id: TenantId, *, most_affected: int = NAMED_SUBJECTS) -> None:
        self._change = change
        self._connection = change.connection
        self._tenant_id = tenant_id
        self._most_affected = most_affected
        self._is_changed = False
        self._takes_away = False
        self.policy = 0  # the policy's revision before this change
        self.touched = Touched()
        self.affected: set[Subject] = set()  # users, clients, anybody; all of them, or more than `most_affected`
        self.authority: dict[Subject, Patterns] = {}  # what subjects may hand out, and perhaps more since something was given to them

    _LOCK = """
        INSERT INTO policy AS p (tenant_id, revision) VALUES ($1, 0)
        ON CONFLICT (tenant_id) DO UPDATE SET revision = p.revision
        RETURNING revision
    """

    async def lock(self) -> None:
        """Wait for the tenant's other changes of policy. Other contexts' changes are not waited for: the shared counter is bumped late."""
        self.policy = int(await self._connection.fetchval(self._LOCK, self._tenant_id))

    # One statement, because the tenant's changes in all contexts wait for one another from here until the commit.
    _SEAL = """
        WITH bumped AS (SELECT suite.bump_revision($1) AS revision),
        stamped AS (UPDATE policy SET revision = bumped.revision FROM bumped WHERE tenant_id = $1),
        recorded AS (INSERT INTO policy_change (tenant_id, revision, previous, subjects) SELECT $1, revision, $2, $3 FROM bumped)
        SELECT revision FROM bumped
    """

    async def seal(self) -> int:
        """Return the tenant's revision with this change in it: a new one, of which all instances are told, unless nothing was changed."""
        if not self._is_changed:
            if self._takes_away:
                self._change.settle()  # what it should have taken away was gone, perhaps by a change that is still on its way to others
            return int((await self._connection.fetchrow(FIND_STATE, self._tenant_id))["revision"])
        revision: int = await self._connection.fetchval(self._SEAL, self._tenant_id, self.policy, self._affected_texts())
        crashpoint("policy.after_bump")
        self._change.tell(encode(self._tenant_id, revision, self.policy, self.touched), takes_away=self._takes_away)
        return revision

    @property
    def is_everybody_affected(self) -> bool:
        """Whether more subjects are affected than are named."""
        return self.touched.everything or len(self.affected) > self._most_affected

    def _affected_texts(self) -> list[str] | None:
        if self.is_everybody_affected:
            return None
        return sorted(f"{int(subject.type)}/{subject.id}" for subject in self.affected)

    # Roles below those touched, their holders and the holders at places, and down through groups to users, clients and anybody. OFFSET 0 keeps each
    # step a walk along an index: a plan made for any parameters would read whole tables first, of which a few rows are wanted.
    _AFFECTED = """
        WITH RECURSIVE role_below AS (
            SELECT role_id FROM unnest($4::uuid[]) AS role_id
            UNION
            SELECT child.role_id FROM role_below r CROSS JOIN LATERAL (
                SELECT p.role_id FROM role_parent p WHERE p.tenant_id = $1 AND p.parent_id = r.role_id OFFSET 0
            ) child
        ), start AS (
            SELECT type, id FROM unnest($2::smallint[], $3::uuid[]) AS a (type, id)
            UNION ALL
            SELECT bound.type, bound.id FROM role_below r CROSS JOIN LATERAL (
                SELECT b.subject_type AS type, b.subject_id AS id FROM role_binding b WHERE b.tenant_id = $1 AND b.role_id = r.role_id OFFSET 0
            ) bound
            UNION ALL
            SELECT here.type, here.id FROM unnest($5::text[]) AS place CROSS JOIN LATERAL (
                SELECT b.subject_type AS type, b.subject_id AS id FROM role_binding b
                WHERE b.tenant_id = $1 AND b.resource <> '' AND b.resource = place OFFSET 0
            ) here
        ), holder AS (
            SELECT type, id FROM start
            UNION
            SELECT member.type, member.id FROM holder h CROSS JOIN LATERAL (
                SELECT m.member_type AS type, m.member_id AS id FROM group_member m
                WHERE h.type = 2 AND m.tenant_id = $1 AND m.group_id = h.id OFFSET 0
            ) member
        )
        SELECT type, id FROM holder WHERE type <> 2 LIMIT $6
    """

    async def touch(
        self, *, holders: Iterable[Subject] = (), roles: Iterable[UUID] = (), places: Iterable[str] = (), above: Sequence[str] = ()
    ) -> None:
        """Note that nodes are about to change. `above`: the places whose holders that concerns, where it is more than `places`."""
        who, what, where = frozenset(holders), frozenset(roles), frozenset(places)
        old = self.touched
        self.touched = replace(old, holders=old.holders | who, roles=old.roles | what, places=old.places | where)
        self.affected |= {subject for subject in who if subject.type is not SubjectType.GROUP}
        groups, resources = [subject for subject in who if subject.type is SubjectType.GROUP], list(where.union(above))
        if self.is_everybody_affected or not (groups or what or resources):
            return
        arguments = [subject.type for subject in groups], [subject.id for subject in groups], list(what), resources, self._most_affected + 1
        rows = await self._connection.fetch(self._AFFECTED, self._tenant_id, *arguments)
        self.affected.update(Subject(SubjectType(row["type"]), row["id"]) for row in rows)

    def touch_everything(self) -> None:
        """Note that more changes than can be named."""
        self.touched = replace(self.touched, everything=True)

    def audit(self, event: AuditEvent) -> None:
        """Add an audit row of this tenant."""
        self._change.audit(replace(event, tenant_id=self._tenant_id))

    async def _write(self, sql: str, *args: object, only_gives: bool = False) -> int:
        """Run a writing statement for the tenant; return how many rows it touched. `only_gives`: no answer can turn from yes to no by it."""
        touched = int((await self._connection.execute(sql, self._tenant_id, *args)).rpartition(" ")[2])
        self._note(touched, only_gives=only_gives)
        return touched

    def _note(self, touched: int, *, only_gives: bool) -> None:
        self._is_changed = self._is_changed or touched > 0
        if not only_gives:
            self.take_away()
            if touched:
                self.authority.clear()

    def take_away(self) -> None:
        """Note that an answer may turn from yes to no by what was asked for, also if that was so already.

        An OK then means that it is so everywhere: a notice that follows one which is not heard of yet lets the tenant's whole memory die.
        """
        self._takes_away = True

    async def _rows(self, sql: str, *args: object) -> list[Row]:
        return list(await self._connection.fetch(sql, self._tenant_id, *args))

    async def _row(self, sql: str, *args: object) -> Row | None:
        row: Row | None = await self._connection.fetchrow(sql, self._tenant_id, *args)
        return row

    async def holdings_of(self, *subjects: Subject) -> dict[Subject, Holdings]:
        """Return what subjects hold, inside this change."""
        return in_snapshot(await load(self._connection.fetch, self._tenant_id, subjects, []), subjects)
