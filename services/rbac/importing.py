"""Imports: roles, groups, members, resources and bindings by the million, a chunk at a time.

A chunk is one change of the policy, judged as a whole by the rules of single changes: nobody hands out what he does not hold, no hierarchy gets a
cycle, the last administrator stays. What is there already stays as it is, so a chunk may be sent again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.postgres import new_id
from services.chassis.validation import MAX_VIOLATIONS
from services.rbac.authority import administered, authority_of, patterns_of, require_covered
from services.rbac.graph import require_additions
from services.rbac.model import RESERVED_PREFIX, Edge, Group, Role, Subject, SubjectType, Written
from services.rbac.patterns import EVERYTHING
from watchword.errors import AlreadyExists, InvalidRequest, Violation

if TYPE_CHECKING:
    from services.rbac.store.changing import TenantChange
    from services.rbac.store.listing import RbacStore

NOBODY = UUID(int=0)
MOST_TOUCHED = 1000  # holders that a chunk names as touched


@dataclass(frozen=True, slots=True)
class ImportedRole:
    """A role to take in; its parents by name."""

    name: str
    description: str
    permissions: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Members:
    """Memberships in columns: of which group, and who: by type and id or, where `inner` has a name, that group."""

    groups: Sequence[str] = ()
    types: Sequence[int] = ()
    ids: Sequence[str] = ()
    inner: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PlainBindings:
    """Bindings in columns: who, by type and id or, where `groups` has a name, that group; which role, where, until when (None for ever)."""

    types: Sequence[int] = ()
    ids: Sequence[str] = ()
    groups: Sequence[str] = ()
    roles: Sequence[str] = ()
    resources: Sequence[str] = ()
    ends: Sequence[datetime | None] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is taken in at once. What stands in it may name what stands before: roles, groups, members, resources, bindings."""

    roles: Sequence[ImportedRole] = ()
    groups: Sequence[tuple[str, str]] = ()  # names and descriptions
    members: Members = field(default_factory=Members)
    places: Sequence[Edge] = ()
    bindings: PlainBindings = field(default_factory=PlainBindings)

    def __len__(self) -> int:
        return len(self.roles) + len(self.groups) + len(self.members.groups) + len(self.places) + len(self.bindings.roles)


@dataclass(frozen=True, slots=True)
class Taken:
    """How many members of a chunk were new, and how many were there already."""

    created: int
    existing: int


class Imports:
    """Takes chunks in."""

    def __init__(self, store: "RbacStore", clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def take_in(self, call: Call, chunk: Chunk) -> Written[Taken]:
        """Make a chunk, whole or not at all. Return when it is committed and every instance knows.

        Raises  InvalidRequest and AlreadyExists that name the member, Cycle, DepthExceeded, LastAdministrator, PermissionDenied, FanoutPending
        """
        now = self._clock.now()

        async def effect(change: "TenantChange") -> Taken:
            created = await _Taking(change, call, now).take(chunk)
            taken = Taken(created, len(chunk) - created)
            if created:
                facts = {"created": str(taken.created), "existing": str(taken.existing)}
                change.audit(AuditEvent("policy_imported", "policy", str(call.caller.tenant_id), details=facts))
            return taken

        return await self._store.change(call, call.caller.tenant_id, Written[Taken], effect)


class _Taking:
    """One chunk inside its change."""

    def __init__(self, change: "TenantChange", call: Call, now: datetime) -> None:
        self._change = change
        self._call = call
        self._now = now
        self._handed_out: set[str] = set()

    async def take(self, chunk: Chunk) -> int:
        """Write all that is new; return how much it was. What is handed out is judged by what the caller held before."""
        authority = await authority_of(self._change, self._call.caller, self._now)
        self._is_bounded = bool(authority.lacking([EVERYTHING]))
        created = await self._take_roles(chunk.roles) + await self._take_groups(chunk.groups)
        created += await self._take_members(chunk.members)
        created += await self._take_places(chunk.places)
        created += await self._take_bindings(chunk.bindings)
        require_covered(authority, self._handed_out)
        return created

    async def _take_roles(self, roles: Sequence[ImportedRole]) -> int:
        if not roles:
            return 0
        known = await self._change.roles_named({name for role in roles for name in (role.name, *role.parents)})
        made: list[Role] = []
        for number, asked in enumerate(roles):
            _refuse(_unknown(f"roles[{number}].parents", asked.parents, known, "there is no role of this name here, or before it"))
            role = self._read(asked, known)
            if asked.name not in known:
                _refuse_reserved(asked.name, number)
                known[asked.name] = role
                made.append(role)
            elif _says(known[asked.name]) != _says(role):
                raise AlreadyExists(f"roles[{number}].name: a role of this name exists, and says something else")
        await self._require_lineage(made, known)
        await self._change.insert_roles(made)
        return len(made)

    def _read(self, asked: ImportedRole, known: "dict[str, Role]") -> Role:
        permissions, parents = tuple(sorted(set(asked.permissions))), tuple(sorted({known[name].id for name in asked.parents}))
        return Role(
            new_id(), asked.name, asked.description, permissions, parents, system=False, version=1, create_time=self._now, update_time=self._now
        )

    async def _require_lineage(self, made: Sequence[Role], known: "dict[str, Role]") -> None:
        new, names = {role.id for role in made}, {role.id: name for name, role in known.items()}
        old = list({parent for role in made for parent in role.parent_ids} - new)
        added = [Edge(role.name, names[parent]) for role in made for parent in role.parent_ids]
        require_additions(added, await self._change.role_lineage(old, NOBODY), {})
        if self._is_bounded:
            self._handed_out.update(pattern for role in made for pattern in role.permissions)
            self._handed_out.update(await self._change.patterns_of_roles(old))

    async def _take_groups(self, groups: Sequence[tuple[str, str]]) -> int:
        made = [Group(new_id(), name, description, version=1, create_time=self._now, update_time=self._now) for name, description in groups]
        return await self._change.insert_groups(made, self._now) if made else 0

    async def _take_members(self, members: Members) -> int:
        if not members.groups:
            return 0
        known = await self._change.group_ids({*members.groups, *filter(None, members.inner)})
        words = "there is no group of this name"
        _refuse(chain(_absent("members", "group", members.groups, known, words), _absent("members", "member_group", members.inner, known, words)))
        await self._require_nesting(members, known)
        await self._require_joining({known[name] for name in members.groups})
        who = _subjects(members.types, members.ids, members.inner, known)
        await self._touch(who)
        async with administered(self._change, self._now):  # a group may be denied what administrators need
            return await self._change.insert_members([known[name] for name in members.groups], who)

    async def _require_nesting(self, members: Members, known: "dict[str, UUID]") -> None:
        added = {Edge(inner, group) for inner, group in zip(members.inner, members.groups, strict=True) if inner}
        if added:
            above = await self._change.groups_above({known[edge.parent] for edge in added})
            require_additions(added, above, await self._change.group_heights({known[edge.child] for edge in added}))

    async def _require_joining(self, group_ids: set[UUID]) -> None:
        """Count what groups hold among what is handed out to those who join them."""
        if self._is_bounded:
            groups = [Subject(SubjectType.GROUP, group_id) for group_id in group_ids]
            held = await self._change.holdings_of(*groups)
            self._handed_out.update(*(patterns_of(held[group].anywhere(self._now)) for group in groups))

    async def _take_places(self, places: Sequence[Edge]) -> int:
        if not places:
            return 0
        known = await self._change.parents_of({edge.child for edge in places})
        added: dict[str, Edge] = {}
        for number, edge in enumerate(places):
            if known.setdefault(edge.child, edge.parent) != edge.parent:
                raise AlreadyExists(f"resources[{number}].parent: the resource lies below another one")
            added[edge.child] = edge
        above = await self._change.edges_above({edge.parent for edge in added.values()})
        require_additions(added.values(), above, await self._change.place_heights(added))
        await self._touch_places(list(added.values()))
        return await self._change.insert_places(list(added.values()))

    async def _take_bindings(self, bindings: PlainBindings) -> int:
        if not bindings.roles:
            return 0
        known = await self._change.role_ids(set(bindings.roles))
        groups = await self._change.group_ids(set(filter(None, bindings.groups)))
        _refuse(_absent("bindings", "role", bindings.roles, known, "there is no role of this name"))
        _refuse(_absent("bindings", "subject_group", bindings.groups, groups, "there is no group of this name"))
        _refuse(_past(bindings.ends, self._now))
        if self._is_bounded:
            self._handed_out.update(await self._change.patterns_of_roles(list(known.values())))
        who = _subjects(bindings.types, bindings.ids, bindings.groups, groups)
        await self._touch(who)
        roles = [known[name] for name in bindings.roles]
        return await self._change.insert_plain_bindings(who, roles, bindings.resources, bindings.ends, now=self._now)

    async def _touch(self, who: tuple[Sequence[int], Sequence[UUID | str]]) -> None:
        holders = set(zip(*who, strict=True))
        if len(holders) > MOST_TOUCHED:
            self._change.touch_everything()
        else:
            await self._change.touch(holders=[Subject(SubjectType(kind), UUID(str(one))) for kind, one in holders])

    async def _touch_places(self, edges: Sequence[Edge]) -> None:
        if len(edges) > MOST_TOUCHED:
            self._change.touch_everything()
        else:
            above = await self._change.edges_above({edge.parent for edge in edges})
            await self._change.touch(places=[edge.child for edge in edges], above=[edge.parent for edge in (*edges, *above)])


def _says(role: Role) -> tuple[object, ...]:
    return role.permissions, role.parent_ids


def _refuse_reserved(name: str, number: int) -> None:
    if name.startswith(RESERVED_PREFIX):
        raise InvalidRequest.of(f"roles[{number}].name", f"must not begin with {RESERVED_PREFIX}, which is for the suite's own roles")


def _refuse(violations: Iterator[Violation]) -> None:
    """Return if there are none. Raises InvalidRequest with the first of them."""
    found = list(islice(violations, MAX_VIOLATIONS))
    if found:
        raise InvalidRequest(violations=found)


def _unknown(place: str, names: Iterable[str], known: "dict[str, Role]", words: str) -> Iterator[Violation]:
    return (Violation(place, words) for name in names if name not in known)


def _absent(kind: str, field: str, names: Sequence[str], known: "dict[str, UUID]", words: str) -> Iterator[Violation]:
    """Yield which of a column of names, where they are given, nobody has."""
    return (Violation(f"{kind}[{number}].{field}", words) for number, name in enumerate(names) if name and name not in known)


def _past(ends: Sequence[datetime | None], now: datetime) -> Iterator[Violation]:
    words = "must lie in the future"
    return (Violation(f"bindings[{number}].expire_time_seconds", words) for number, end in enumerate(ends) if end is not None and end <= now)


def _subjects(
    types: Sequence[int], ids: Sequence[str], groups: Sequence[str], known: "dict[str, UUID]"
) -> tuple[Sequence[int], Sequence[UUID | str]]:
    """Return who is meant, in columns of types and ids."""
    if not any(groups):
        return types, ids
    kinds = [int(SubjectType.GROUP) if group else kind for kind, group in zip(types, groups, strict=True)]
    return kinds, [known[group] if group else one for one, group in zip(ids, groups, strict=True)]
