"""What rbac speaks of: subjects, roles, bindings, groups. Terms of NIST RBAC for roles, of Zanzibar for subjects and resources."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from hashlib import sha256
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

T = TypeVar("T")

MAX_DEPTH = 32  # members of the longest chain of roles, groups or resources
ADMINISTRATOR = "watchword.admin"
RESERVED_PREFIX = "watchword."  # of the names of the suite's own roles


class SubjectType(IntEnum):
    """What a subject is; numbered as in the contract."""

    USER = 1
    GROUP = 2
    CLIENT = 3
    ANY = 4


class Effect(IntEnum):
    """What a binding does; numbered as in the contract. One that denies wins."""

    ALLOW = 1
    DENY = 2


class Subject(msgspec.Struct, frozen=True, cache_hash=True):
    """Somebody who may hold a role."""

    type: SubjectType
    id: UUID


ANYBODY = Subject(SubjectType.ANY, UUID(int=0))  # every user and client of a tenant


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
class Terms:
    """On what terms a binding holds.

    expire_time  until when; None for ever
    effect       whether it allows or denies
    condition    a CEL expression; empty holds always
    acr          the weakest login that will do; empty for any
    max_age      how long ago the login may be; None for any time
    """

    expire_time: datetime | None = None
    effect: Effect = Effect.ALLOW
    condition: str = ""
    acr: str = ""
    max_age: timedelta | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it allows whatever the question says of context and login."""
        return self.effect is Effect.ALLOW and not self.condition and not self.acr and self.max_age is None

    def covers(self, other: "Terms") -> bool:
        """Whether a binding on these terms holds at least as often as the same on `other`."""
        lasts = self.expire_time is None or (other.expire_time is not None and self.expire_time >= other.expire_time)
        asks_no_more = self.condition in ("", other.condition) and self.acr in ("", other.acr) and self.max_age in (None, other.max_age)
        return self.effect is other.effect and lasts and asks_no_more


FOR_EVER = Terms()


@dataclass(frozen=True, slots=True)
class RoleBinding:
    """A role given to a subject on terms; `resource` is empty for the whole tenant. `version` counts its changes."""

    id: UUID
    subject: Subject
    role_id: UUID
    resource: str
    terms: Terms
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """What changes with each change of the binding."""
        return f"{self.version:x}"


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of subjects. `version` counts the changes of its name and description."""

    id: UUID
    name: str
    description: str
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """What changes with each change of the name or description."""
        return f"{self.version:x}"


@dataclass(frozen=True, slots=True)
class Edge:
    """One step of a hierarchy: the names of a role, group or resource, and of one directly above it."""

    child: str
    parent: str

    @property
    def etag(self) -> str:
        """What changes whenever the child is put elsewhere; of a resource without a parent, that is empty."""
        return sha256(f"{self.child} {self.parent}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What a change left behind, and the tenant's revision that includes it."""

    item: T
    revision: int
