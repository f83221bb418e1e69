"""What a policy is made of, as far as decisions need it: holders with their bindings and groups, roles with their parents, resources with theirs.

Facts are plain values, read from one state. `Snapshot` is all that one statement saw.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType
from uuid import UUID

from services.rbac.model import Subject, Terms

Revision = NewType("Revision", int)


@dataclass(frozen=True, slots=True)
class Bound:
    """A role bound to a holder; `resource` is empty for the whole tenant."""

    id: UUID
    role_id: UUID
    resource: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class Holder:
    """What a subject was given directly, and the groups that it is a direct member of."""

    bindings: tuple[Bound, ...] = ()
    groups: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """A role's own patterns, and its parents."""

    id: UUID
    name: str
    patterns: frozenset[str]
    parents: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class State:
    """Where a tenant stands.

    revision  the tenant's, of which consistency tokens speak
    policy    the revision at which the tenant's policy last changed; what was read stays true while this stays the same
    """

    revision: Revision
    policy: Revision


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state, as far as it was asked for.

    holders  the subjects asked for, every group above them, and anybody
    roles    every role that is bound to one of them, and every role above those
    places   every resource asked for and every one above it, each with its direct parent; empty for a root
    """

    state: State
    holders: Mapping[Subject, Holder]
    roles: Mapping[UUID, RoleFacts]
    places: Mapping[str, str]
