"""What rbac speaks of: subjects, roles, bindings, groups. Terms of NIST RBAC for roles, of Zanzibar for subjects and resources."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Generic, TypeVar
from uuid import UUID

T = TypeVar("T")

MAX_DEPTH = 32  # members of the longest chain of roles, groups or resources
ADMINISTRATOR = "watchword.admin"
RESERVED_PREFIX = "watchword."  # of the names of the suite's own roles


class SubjectType(IntEnum):
    """What a subject is; numbered as in the contract."""

    USER = 1
    GROUP = 2
    CLIENT = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """Somebody who may hold a role."""

    type: SubjectType
    id: UUID


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of permission patterns, sorted, and the roles whose permissions it has too. `version` counts its changes."""

    id: UUID
    name: str
    description: str
    permissions: tuple[str, ...]
    parent_ids: tuple[UUID, ...]
    system: bool
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """What changes with each change of the role."""
        return f"{self.version:x}"


@dataclass(frozen=True, slots=True)
class RoleBinding:
    """A role given to a subject; `resource` is empty for the whole tenant, `expire_time` None for ever."""

    id: UUID
    subject: Subject
    role_id: UUID
    resource: str
    expire_time: datetime | None
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of subjects."""

    id: UUID
    name: str
    description: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Edge:
    """One step of a hierarchy: the names of a role, group or resource, and of one directly above it."""

    child: str
    parent: str


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What a change left behind, and the tenant's revision that includes it."""

    item: T
    revision: int
