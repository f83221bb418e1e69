"""What changes of policies touched, in order: for those who watch."""

from dataclasses import dataclass
from uuid import UUID

from services.chassis.postgres import Database, Row
from services.chassis.tenancy import TenantId
from services.rbac.model import Subject, SubjectType

BATCH = 200  # changes read at once

# One statement, so one snapshot: where the policy is, and the changes on the way there.
_LIST = """
    WITH state AS (SELECT coalesce((SELECT revision FROM policy WHERE tenant_id = $1), 0) AS policy)
    SELECT s.policy, c.revision, c.previous, c.subjects
    FROM state s LEFT JOIN LATERAL (
        SELECT revision, previous, subjects FROM policy_change
        WHERE tenant_id = $1 AND revision > $2 AND revision <= s.policy ORDER BY revision LIMIT $3
    ) c ON true
    ORDER BY c.revision
"""


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """One change: the revisions of the policy with it and before it, and whose permissions it touched; None for more than can be named."""

    revision: int
    previous: int
    subjects: tuple[Subject, ...] | None


@dataclass(frozen=True, slots=True)
class Changes:
    """The policy's revision, and changes on the way to it, oldest first, at most BATCH."""

    policy: int
    changes: tuple[PolicyChanged, ...]


class ChangeStore:
    """Reads what changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_since(self, tenant_id: TenantId, revision: int) -> Changes:
        """Return what changed since `revision`. Raises DependencyUnavailable."""
        rows = await self._database.fetch(_LIST, tenant_id, revision, BATCH)
        return Changes(rows[0]["policy"], tuple(_changed(row) for row in rows if row["revision"] is not None))


def _changed(row: Row) -> PolicyChanged:
    subjects = None if row["subjects"] is None else tuple(map(_subject, row["subjects"]))
    return PolicyChanged(row["revision"], row["previous"], subjects)


def _subject(text: str) -> Subject:
    kind, _, name = text.partition("/")
    return Subject(SubjectType(int(kind)), UUID(name))
