"""The steps from one policy to another: each in words, and as the change that PolicyService takes.

The words say all that the change does: whoever has read them has read the change. `+` is new, `-` is gone, `~` is changed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from watchword.decisions import Subject, SubjectType
from watchword.policy.document import GROUP, Binding, Effect, Group, Role
from watchword.policy.shapes import quoted
from watchword.policy.writing import rfc3339
from watchword.rbac.v1 import policy_pb2, rbac_pb2

Change = policy_pb2.PolicyChange
_EFFECTS = {Effect.ALLOW: rbac_pb2.BINDING_EFFECT_ALLOW, Effect.DENY: rbac_pb2.BINDING_EFFECT_DENY}


@dataclass(slots=True)
class Ids:
    """What the server calls what a file calls by name."""

    roles: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    bindings: dict[Binding, str] = field(default_factory=dict)

    def subject(self, text: str) -> rbac_pb2.Subject:
        """Return a subject for the wire."""
        if text.startswith(GROUP):
            return Subject(SubjectType.GROUP, self.groups[text.removeprefix(GROUP)]).wire
        return Subject.parse(text).wire

    def parents(self, role: Role) -> list[str]:
        """Return the ids of a role's parents."""
        return [self.roles[name] for name in role.parents]


@dataclass(frozen=True, slots=True)
class CreateRole:
    """A new role."""

    role: Role

    def words(self) -> Iterator[str]:
        """Say so."""
        may = f" may {', '.join(self.role.permissions)}" if self.role.permissions else " may nothing by itself"
        yield f"+ role {self.role.name}{may}{_listed('; includes', self.role.parents)}{_described(self.role.description)}"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        role = self.role
        request = rbac_pb2.CreateRoleRequest(
            name=role.name, description=role.description, permissions=role.permissions, parent_role_ids=ids.parents(role)
        )
        return Change(create_role=request)


@dataclass(frozen=True, slots=True)
class UpdateRole:
    """A role that says something else."""

    before: Role
    after: Role

    def words(self) -> Iterator[str]:
        """Say so."""
        old, new = self.before, self.after
        parts = [
            _listed("gains", _new(old.permissions, new.permissions)),
            _listed("loses", _new(new.permissions, old.permissions)),
            _listed("includes", _new(old.parents, new.parents)),
            _listed("no longer includes", _new(new.parents, old.parents)),
            _redescribed(old.description, new.description),
        ]
        yield f"~ role {new.name} {'; '.join(part.strip() for part in parts if part)}"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        new = self.after
        update = rbac_pb2.RoleUpdate(description=new.description, permissions=new.permissions, parent_role_ids=ids.parents(new))
        mask = FieldMask(paths=["description", "permissions", "parent_role_ids"])
        return Change(update_role=rbac_pb2.UpdateRoleRequest(role_id=ids.roles[new.name], role=update, update_mask=mask))


@dataclass(frozen=True, slots=True)
class DeleteRole:
    """A role less, with its bindings."""

    role: Role
    bindings: tuple[Binding, ...]

    def words(self) -> Iterator[str]:
        """Say so, and what goes with it."""
        yield f"- role {self.role.name}"
        yield from (f"  with it: {_bound(binding)}" for binding in sorted(self.bindings, key=lambda one: one.order))

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        return Change(delete_role=rbac_pb2.DeleteRoleRequest(role_id=ids.roles[self.role.name]))


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """A new group, still empty."""

    group: Group

    def words(self) -> Iterator[str]:
        """Say so."""
        yield f"+ group {self.group.name}{_described(self.group.description)}"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        return Change(create_group=rbac_pb2.CreateGroupRequest(name=self.group.name, description=self.group.description))


@dataclass(frozen=True, slots=True)
class UpdateGroup:
    """A group that is described otherwise."""

    before: Group
    after: Group

    def words(self) -> Iterator[str]:
        """Say so."""
        yield f"~ group {self.after.name} {_redescribed(self.before.description, self.after.description)}"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        update = rbac_pb2.GroupUpdate(description=self.after.description)
        mask = FieldMask(paths=["description"])
        return Change(update_group=rbac_pb2.UpdateGroupRequest(group_id=ids.groups[self.after.name], group=update, update_mask=mask))


@dataclass(frozen=True, slots=True)
class DeleteGroup:
    """A group less, with its members, its bindings and its places in other groups."""

    group: Group
    bindings: tuple[Binding, ...]
    places: tuple[str, ...]

    def words(self) -> Iterator[str]:
        """Say so, and what goes with it."""
        yield f"- group {self.group.name}"
        yield from (f"  with it: it leaves group {name}" for name in self.places)
        yield from (f"  with it: {member} leaves" for member in self.group.members or ())
        yield from (f"  with it: {_bound(binding)}" for binding in sorted(self.bindings, key=lambda one: one.order))

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        return Change(delete_group=rbac_pb2.DeleteGroupRequest(group_id=ids.groups[self.group.name]))


@dataclass(frozen=True, slots=True)
class AddMember:
    """Somebody joins a group."""

    group: str
    member: str

    def words(self) -> Iterator[str]:
        """Say so."""
        yield f"+ group {self.group}: {self.member} joins"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        return Change(add_group_member=rbac_pb2.AddGroupMemberRequest(group_id=ids.groups[self.group], member=ids.subject(self.member)))


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """Somebody leaves a group."""

    group: str
    member: str

    def words(self) -> Iterator[str]:
        """Say so."""
        yield f"- group {self.group}: {self.member} leaves"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        return Change(remove_group_member=rbac_pb2.RemoveGroupMemberRequest(group_id=ids.groups[self.group], member=ids.subject(self.member)))


@dataclass(frozen=True, slots=True)
class CreateBinding:
    """A role is given to, or denied, somebody."""

    binding: Binding

    def words(self) -> Iterator[str]:
        """Say so."""
        yield f"+ {_bound(self.binding)}"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        binding = self.binding
        request = rbac_pb2.CreateRoleBindingRequest(
            subject=ids.subject(binding.subject),
            role_name=binding.role,
            resource=binding.resource,
            expire_time=_timestamp(binding.expire_time),
            effect=_EFFECTS[binding.effect],
            condition=binding.condition,
            step_up=_step_up(binding),
        )
        return Change(create_role_binding=request)


@dataclass(frozen=True, slots=True)
class UpdateBinding:
    """A binding holds on other terms."""

    before: Binding
    after: Binding

    def words(self) -> Iterator[str]:
        """Say so."""
        old, new = self.before, self.after
        changes = [f"{_or(before)} becomes {_or(after)}" for before, after in zip(_terms(old), _terms(new), strict=True) if before != after]
        yield f"~ {_bound(replace(new, condition='', acr='', max_age=None, expire_time=None))}: {'; '.join(changes)}"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        new = self.after
        update = rbac_pb2.RoleBindingUpdate(expire_time=_timestamp(new.expire_time), condition=new.condition, step_up=_step_up(new))
        mask = FieldMask(paths=["expire_time", "condition", "step_up"])
        request = rbac_pb2.UpdateRoleBindingRequest(role_binding_id=ids.bindings[self.before], role_binding=update, update_mask=mask)
        return Change(update_role_binding=request)


@dataclass(frozen=True, slots=True)
class DeleteBinding:
    """A role is taken from somebody, or denied no more."""

    binding: Binding

    def words(self) -> Iterator[str]:
        """Say so."""
        yield f"- {_bound(self.binding)}"

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        return Change(delete_role_binding=rbac_pb2.DeleteRoleBindingRequest(role_binding_id=ids.bindings[self.binding]))


@dataclass(frozen=True, slots=True)
class PlaceResource:
    """A resource lies elsewhere. An empty place is that of a root."""

    resource: str
    before: str
    after: str

    def words(self) -> Iterator[str]:
        """Say so."""
        if self.before and self.after:
            yield f"~ resource {self.resource} below {self.before} goes below {self.after}"
        else:
            yield (
                f"+ resource {self.resource} goes below {self.after}"
                if self.after
                else f"- resource {self.resource} below {self.before}: below nothing"
            )

    def change(self, ids: Ids) -> Change:
        """Return the change."""
        return Change(set_resource_parent=rbac_pb2.SetResourceParentRequest(resource=self.resource, parent=self.after))


Step = (
    CreateRole
    | UpdateRole
    | DeleteRole
    | CreateGroup
    | UpdateGroup
    | DeleteGroup
    | AddMember
    | RemoveMember
    | CreateBinding
    | UpdateBinding
    | DeleteBinding
    | PlaceResource
)


def _bound(binding: Binding) -> str:
    who = "everybody" if binding.subject == "*" else binding.subject
    verb = "is denied" if binding.effect is Effect.DENY else "holds"
    where = f"on {binding.resource}" if binding.resource else "in the whole tenant"
    return ", ".join([f"binding: {who} {verb} {binding.role} {where}", *(term for term in _terms(binding) if term)])


def _terms(binding: Binding) -> tuple[str, str, str]:
    """Return until when, on what condition and after what login a binding holds; empty where it is not bounded."""
    login = f" of {quoted(binding.acr)} or stronger" if binding.acr else ""
    age = f"{', ' if login else ' '}at most {binding.max_age} s ago" if binding.max_age is not None else ""
    return (
        f"until {rfc3339(binding.expire_time)}" if binding.expire_time else "",
        f"if {quoted(binding.condition)}" if binding.condition else "",
        f"after a login{login}{age}" if login or age else "",
    )


def _or(term: str) -> str:
    return term or "nothing"


def _new(old: Iterable[str], new: Iterable[str]) -> list[str]:
    return sorted(set(new) - set(old))


def _listed(verb: str, names: Iterable[str]) -> str:
    found = list(names)
    return f"{verb} {', '.join(found)}" if found else ""


def _described(description: str) -> str:
    return f"; {quoted(description)}" if description else ""


def _redescribed(old: str, new: str) -> str:
    return f"is described as {quoted(new)}, no longer as {quoted(old)}" if old != new else ""


def _timestamp(instant: datetime | None) -> Timestamp | None:
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def _step_up(binding: Binding) -> rbac_pb2.StepUp | None:
    if not binding.acr and binding.max_age is None:
        return None
    age = None if binding.max_age is None else Duration(seconds=binding.max_age)
    return rbac_pb2.StepUp(acr=binding.acr, max_age=age)
