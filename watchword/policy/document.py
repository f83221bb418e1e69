"""What a policy file says, as plain values. Roles and groups go by name; users and clients by id, as `user:ID` and `client:ID`.

A section that is None is not spoken of: whatever the tenant holds of it is left alone. The same is true of a group's members.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from watchword.decisions import Outcome

ANYBODY = "*"
GROUP = "group:"
RESERVED = "watchword."  # begins the names of the suite's own roles
SECTIONS = ("roles", "groups", "bindings", "resources")


@dataclass(frozen=True, slots=True)
class Owns:
    """Which names a file speaks for: all, those that begin with a prefix, or both. The suite's own only by a prefix that says so."""

    everything: bool
    prefixes: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Whether a role (for its bindings), group or resource of that name is the file's."""
        if name.startswith(RESERVED):
            return any(name.startswith(prefix) for prefix in self.prefixes if prefix.startswith(RESERVED))
        return self.everything or any(name.startswith(prefix) for prefix in self.prefixes)

    def covers_role(self, name: str) -> bool:
        """Whether the role itself is the file's. The suite's own never are."""
        return not name.startswith(RESERVED) and self.covers(name)

    @property
    def words(self) -> str:
        """As the file has it."""
        return ", ".join((*(("all",) if self.everything else ()), *self.prefixes))


ALL = Owns(True)


class Effect(StrEnum):
    """What a binding does. One that denies wins."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of permission patterns, and the roles whose permissions it has too. Both sorted."""

    name: str
    description: str = ""
    permissions: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of subjects, sorted; None leaves alone who is in it."""

    name: str
    description: str = ""
    members: tuple[str, ...] | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """A role given to, or denied, a subject. `resource` is empty for the whole tenant; `max_age` of the login is in seconds."""

    subject: str
    role: str
    resource: str = ""
    effect: Effect = Effect.ALLOW
    condition: str = ""
    acr: str = ""
    max_age: int | None = None
    expire_time: datetime | None = None
    line: int = field(default=0, compare=False)

    @property
    def place(self) -> tuple[str, str, str, Effect]:
        """What of a binding never changes: who, what, where, and whether it allows."""
        return self.subject, self.role, self.resource, self.effect

    @property
    def order(self) -> tuple[str, ...]:
        """What bindings are sorted by."""
        end = "" if self.expire_time is None else self.expire_time.isoformat()
        return self.role, self.subject, self.resource, self.effect, self.condition, self.acr, f"{self.max_age or 0:020}", end


@dataclass(frozen=True, slots=True)
class Expectation:
    """A decision that a check is to come to. `login_age` is how many seconds ago the subject logged in; None: nobody knows."""

    subject: str
    permission: str
    decision: Outcome
    resource: str = ""
    context: Mapping[str, Any] | None = None
    acr: str = ""
    login_age: int | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Policy:
    """A file's content, or the part of a tenant that a file speaks for. Resources: each one's parent, and the line that says so."""

    owns: Owns
    roles: Mapping[str, Role] | None = None
    groups: Mapping[str, Group] | None = None
    bindings: tuple[Binding, ...] | None = None
    resources: Mapping[str, str] | None = None
    expectations: tuple[Expectation, ...] = ()
    resource_lines: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def sections(self) -> frozenset[str]:
        """Which sections are spoken of."""
        return frozenset(name for name in SECTIONS if getattr(self, name) is not None)
