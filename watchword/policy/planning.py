"""What must be changed for a tenant to be as a file says, and in which order.

The order keeps hierarchies whole at every step: parents before children, memberships and places given up before others are taken. What denies comes
before what allows, and what takes away comes last.
"""

import graphlib
import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from watchword.policy.document import GROUP, Binding, Effect, Policy, Role
from watchword.policy.steps import (
    AddMember,
    CreateBinding,
    CreateGroup,
    CreateRole,
    DeleteBinding,
    DeleteGroup,
    DeleteRole,
    PlaceResource,
    RemoveMember,
    Step,
    UpdateBinding,
    UpdateGroup,
    UpdateRole,
)
from watchword.policy.strict_yaml import FileInvalid, Problem
from watchword.policy.tenant import Present
from watchword.policy.writing import rfc3339


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps, in order, and what is worth a remark. Of one tenant of one deployment."""

    issuer: str
    tenant_id: str
    steps: tuple[Step, ...]
    remarks: tuple[Problem, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The plan in words."""
        return [line for step in self.steps for line in step.words()]

    @property
    def digest(self) -> str:
        """What names this plan, and no other: of the words that were shown, and for whom."""
        said = json.dumps([self.issuer, self.tenant_id, self.lines])
        return hashlib.sha256(said.encode()).hexdigest()


def plan(file: Policy, present: Present, now: datetime) -> Plan:
    """Return the way from `present` to `file`. Raises FileInvalid if the file names what is not there."""
    _require_names(file, present)
    wanted, remarks = _lasting(file.bindings or (), now)
    bindings = _Bindings.of(wanted, present, file) if file.bindings is not None else _Bindings()
    gone_roles, gone_groups = _gone_roles(file, present), _gone_groups(file, present)
    steps = [
        *_roles(file, present),
        *_groups(file, present),
        *(CreateBinding(binding) for binding in bindings.new if binding.effect is Effect.DENY),
        *_leaving(file, present),
        *(CreateBinding(binding) for binding in bindings.new if binding.effect is Effect.ALLOW),
        *(UpdateBinding(before, after) for before, after in bindings.changed),
        *_joining(file, present),
        *_places(file, present),
        *(DeleteBinding(binding) for binding in _taken(bindings.gone, gone_roles, gone_groups)),
        *_role_ends(gone_roles, present),
        *_group_ends(gone_groups, gone_roles, present),
    ]
    return Plan(present.issuer, present.tenant_id, tuple(steps), remarks)


# Names.


def _require_names(file: Policy, present: Present) -> None:
    roles = (set(present.ids.roles) - _gone_roles(file, present)) | set(file.roles or ())
    groups = (set(present.ids.groups) - _gone_groups(file, present)) | set(file.groups or ())
    problems = [
        *(problem for role in (file.roles or {}).values() for problem in _missing("role", role.parents, roles, role.line)),
        *(problem for group in (file.groups or {}).values() for problem in _missing("group", _groups_in(group.members or ()), groups, group.line)),
        *(problem for one in file.bindings or () for problem in _missing("role", [one.role], roles, one.line)),
        *(problem for one in file.bindings or () for problem in _missing("group", _groups_in([one.subject]), groups, one.line)),
    ]
    if problems:
        raise FileInvalid(problems)


def _missing(what: str, names: Iterable[str], known: set[str], line: int) -> Iterator[Problem]:
    for name in names:
        if name not in known:
            yield Problem(line, f"there is no {what} {name}, neither here nor to stay in the tenant")


def _groups_in(subjects: Iterable[str]) -> list[str]:
    return [subject.removeprefix(GROUP) for subject in subjects if subject.startswith(GROUP)]


def _gone_roles(file: Policy, present: Present) -> set[str]:
    return set() if file.roles is None else set(present.roles) - set(file.roles)


def _gone_groups(file: Policy, present: Present) -> set[str]:
    return set() if file.groups is None else set(present.groups) - set(file.groups)


# Roles and groups.


def _roles(file: Policy, present: Present) -> Iterator[CreateRole | UpdateRole]:
    for role in _top_down(file.roles or {}):
        old = present.roles.get(role.name)
        if old is None:
            yield CreateRole(role)
        elif old != role:
            yield UpdateRole(old, role)


def _top_down(roles: Mapping[str, Role]) -> Iterator[Role]:
    above = {role.name: [name for name in role.parents if name in roles] for role in _by_name(roles)}
    return (roles[name] for name in graphlib.TopologicalSorter(above).static_order())


def _by_name(roles: Mapping[str, Role]) -> list[Role]:
    return [roles[name] for name in sorted(roles)]


def _role_ends(gone: set[str], present: Present) -> Iterator[DeleteRole]:
    roles = {name: present.roles[name] for name in gone}
    for role in reversed(list(_top_down(roles))):
        yield DeleteRole(role, tuple(binding for binding in present.bindings if binding.role == role.name))


def _groups(file: Policy, present: Present) -> Iterator[CreateGroup | UpdateGroup]:
    for name, group in sorted((file.groups or {}).items()):
        old = present.groups.get(name)
        if old is None:
            yield CreateGroup(group)
        elif old.description != group.description:
            yield UpdateGroup(old, group)


def _group_ends(gone: set[str], gone_roles: set[str], present: Present) -> Iterator[DeleteGroup]:
    for name in sorted(gone):
        lost = [binding for binding in present.bindings if binding.subject == GROUP + name and binding.role not in gone_roles]
        yield DeleteGroup(present.groups[name], tuple(lost), tuple(sorted(present.memberships.get(GROUP + name, ()))))


def _leaving(file: Policy, present: Present) -> Iterator[RemoveMember]:
    for name, members, wanted in _memberships(file, present):
        yield from (RemoveMember(name, member) for member in _besides(members, wanted))


def _joining(file: Policy, present: Present) -> Iterator[AddMember]:
    for name, members, wanted in _memberships(file, present):
        yield from (AddMember(name, member) for member in _besides(wanted, members))


def _besides(members: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return those of `members` that are not among `others`, in their order."""
    known = set(others)
    return [member for member in members if member not in known]


def _memberships(file: Policy, present: Present) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield each group whose members the file speaks of, with those that it has and those that it shall have."""
    for name, group in sorted((file.groups or {}).items()):
        if group.members is not None:
            old = present.groups.get(name)
            yield name, (old.members or ()) if old else (), group.members


# Bindings.


@dataclass(frozen=True, slots=True)
class _Bindings:
    """New, changed and gone ones."""

    new: tuple[Binding, ...] = ()
    changed: tuple[tuple[Binding, Binding], ...] = ()
    gone: tuple[Binding, ...] = ()

    @classmethod
    def of(cls, wanted: Iterable[Binding], present: Present, file: Policy) -> "_Bindings":
        """Compare. Where who, what, where and effect are the same, one that goes becomes one that comes."""
        held = {binding for binding in present.bindings if file.owns.covers(binding.role)}
        coming = sorted(set(wanted) - held, key=lambda one: one.order)
        going = sorted(held - set(wanted), key=lambda one: one.order)
        at_place = defaultdict[object, deque[Binding]](deque)
        for old in going:
            at_place[old.place].append(old)
        changed = [(at_place[new.place].popleft(), new) for new in coming if at_place[new.place]]
        before, after = {old for old, _ in changed}, {new for _, new in changed}
        return cls(tuple(one for one in coming if one not in after), tuple(changed), tuple(one for one in going if one not in before))


def _lasting(bindings: Iterable[Binding], now: datetime) -> tuple[list[Binding], tuple[Problem, ...]]:
    """Return the bindings that have not ended, and a remark on each that has."""
    ended = [one for one in bindings if one.expire_time is not None and one.expire_time <= now]
    remarks = (Problem(one.line, f"this binding ended at {rfc3339(one.expire_time)}") for one in ended if one.expire_time)
    return [one for one in bindings if one.expire_time is None or one.expire_time > now], tuple(remarks)


def _taken(gone: Iterable[Binding], gone_roles: set[str], gone_groups: set[str]) -> Iterator[Binding]:
    """Yield the bindings that do not go with their role or group; those that deny last."""
    for binding in sorted(gone, key=lambda one: (one.effect is Effect.DENY, one.order)):
        if binding.role not in gone_roles and binding.subject.removeprefix(GROUP) not in (gone_groups if binding.subject.startswith(GROUP) else ()):
            yield binding


# Resources.


def _places(file: Policy, present: Present) -> Iterator[PlaceResource]:
    if file.resources is None:
        return
    for name in sorted(set(present.resources) - set(file.resources)):
        yield PlaceResource(name, present.resources[name], "")
    above = {name: [file.resources[name]] for name in sorted(file.resources)}
    for name in graphlib.TopologicalSorter(above).static_order():
        before, after = present.resources.get(name, ""), file.resources.get(name, "")
        if after and before != after:
            yield PlaceResource(name, before, after)
