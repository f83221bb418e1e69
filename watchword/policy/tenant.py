"""A tenant as it is, as far as a file speaks of it.

The state is noted before anything is read. Whoever applies what he concluded says that state: if anything was changed after it, even while this was
reading, nothing is applied. What is only shown is read again until it is certain, or likely, to be one state.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import grpc

from watchword import status
from watchword.errors import NotFound, ResourceExhausted, Unavailable, WatchwordError
from watchword.policy.document import GROUP, Binding, Effect, Group, Owns, Policy, Role
from watchword.policy.steps import Ids
from watchword.questions import Line
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, policy_pb2_grpc, rbac_pb2, rbac_pb2_grpc
from watchword.tokens import Malformed, parse, split

PAGE = 1000
DEADLINE = 20.0  # seconds of one call
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between attempts
AT_ONCE = 8  # calls
READINGS = 4  # of a tenant that is changed meanwhile
_KINDS = {rbac_pb2.SUBJECT_TYPE_USER: "user:", rbac_pb2.SUBJECT_TYPE_CLIENT: "client:"}


class TenantChanged(Exception):
    """Somebody changed the tenant while it was read."""


@dataclass(frozen=True, slots=True)
class Present:
    """What there is.

    roles, groups  those that the file owns; a group's members are None if they were not asked for
    bindings       those that the file owns, and those that would go with a role or group of it
    memberships    of groups: the groups that each is in
    ids            of all roles and groups, and of the bindings read
    state          a consistency token from before the reading
    """

    issuer: str
    tenant_id: str
    state: str
    roles: dict[str, Role] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()
    resources: dict[str, str] = field(default_factory=dict)
    memberships: dict[str, set[str]] = field(default_factory=dict)
    ids: Ids = field(default_factory=Ids)

    def policy(self, owns: Owns, sections: frozenset[str]) -> Policy:
        """Return it as a file would say it."""
        return Policy(
            owns,
            roles=self.roles if "roles" in sections else None,
            groups=self.groups if "groups" in sections else None,
            bindings=tuple(one for one in self.bindings if owns.covers(one.role)) if "bindings" in sections else None,
            resources=self.resources if "resources" in sections else None,
        )


async def rest(pause: float, error: WatchwordError) -> None:
    """Wait before a further attempt: as long as the server asks for, and `pause` seconds at least."""
    await asyncio.sleep(max(pause, error.retry_after.total_seconds() if error.retry_after else 0.0))


class Tenant:
    """The caller's own tenant."""

    def __init__(self, line: Line) -> None:
        self._line = line
        channel = line.channel
        self._permissions: permission_pb2_grpc.PermissionServiceAsyncStub = permission_pb2_grpc.PermissionServiceStub(channel)
        self._roles: rbac_pb2_grpc.RoleServiceAsyncStub = rbac_pb2_grpc.RoleServiceStub(channel)
        self._groups: rbac_pb2_grpc.GroupServiceAsyncStub = rbac_pb2_grpc.GroupServiceStub(channel)
        self._bindings: rbac_pb2_grpc.RoleBindingServiceAsyncStub = rbac_pb2_grpc.RoleBindingServiceStub(channel)
        self._resources: rbac_pb2_grpc.ResourceServiceAsyncStub = rbac_pb2_grpc.ResourceServiceStub(channel)
        self.policies: policy_pb2_grpc.PolicyServiceAsyncStub = policy_pb2_grpc.PolicyServiceStub(channel)
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def call(self, method: Callable[..., Any], request: Any, *, deadline: float = DEADLINE) -> Any:
        """Return the answer to a call that may be repeated. Raises WatchwordError."""
        for pause in PAUSES:
            try:
                return await self.call_once(method, request, deadline=deadline)
            except (Unavailable, ResourceExhausted) as error:
                await rest(pause, error)
        return await self.call_once(method, request, deadline=deadline)

    async def call_once(self, method: Callable[..., Any], request: Any, *, deadline: float = DEADLINE) -> Any:
        """Return the answer to a call. Raises WatchwordError."""
        try:
            async with self._gate:
                return await method(request, metadata=await self._line.own.metadata(), timeout=deadline)
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from None

    async def identity(self) -> tuple[str, str]:
        """Return the issuer and the tenant of the token that this process calls with."""
        try:
            claims = parse(split(await self._line.own.get())[1])
        except Malformed:
            raise Unavailable("the access token does not say its issuer and tenant") from None
        return claims.iss, str(claims.tenant_id)

    async def state(self) -> str:
        """Return a consistency token of the present state."""
        question = permission_pb2.CheckPermissionRequest(subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_ANY), permission="policies.apply")
        return str((await self.call(self._permissions.CheckPermission, question)).consistency_token)

    async def group_ids(self) -> dict[str, str]:
        """Return the ids of all groups by name."""
        return {one.name: one.id async for one in self._list(self._groups.ListGroups, rbac_pb2.ListGroupsRequest(), "groups")}

    async def settled(self, file: Policy, now: datetime, *, deletes: bool = True) -> tuple[Present, bool]:
        """Return as `look` does, and whether it was so at one instant: the state is the same afterwards, or what was read twice is.

        Raises  WatchwordError, TenantChanged
        """
        before: Present | None = None
        for reading in range(READINGS):
            try:
                present = await self.look(file, now, deletes=deletes)
            except TenantChanged:
                if reading == READINGS - 1:
                    raise
                continue
            if present.state == await self.state() or (before is not None and replace(before, state=present.state) == present):
                return present, True
            before = present
        return present, False

    async def look(self, file: Policy, now: datetime, *, deletes: bool = True) -> Present:
        """Return what the tenant holds of what `file` speaks of; and, if applying it `deletes`, of what would go with roles and groups.

        Raises  WatchwordError, TenantChanged
        """
        issuer, tenant_id = await self.identity()
        state = await self.state()
        roles = {one.id: one async for one in self._list(self._roles.ListRoles, rbac_pb2.ListRolesRequest(), "roles")}
        groups = {one.id: one async for one in self._list(self._groups.ListGroups, rbac_pb2.ListGroupsRequest(), "groups")}
        ids = Ids({one.name: one.id for one in roles.values()}, {one.name: one.id for one in groups.values()})
        names = _Names({key: one.name for key, one in roles.items()}, {key: one.name for key, one in groups.items()})
        present = Present(issuer, tenant_id, state, ids=ids)
        try:
            for role in roles.values():
                if file.owns.covers_role(role.name) and not role.system:
                    present.roles[role.name] = names.role(role)
            gone = _Gone.of(file, present, [one.name for one in groups.values()]) if deletes else _Gone()
            await self._look_at_groups(file, present, names, list(groups.values()), everywhere=bool(gone.groups))
            bindings = await self._look_at_bindings(file, present, names, gone, now)
        except (KeyError, NotFound):  # what was listed is gone, or what is referred to was not there yet
            raise TenantChanged from None
        if file.resources is not None:
            found = self._list(self._resources.ListResources, rbac_pb2.ListResourcesRequest(), "resources")
            present.resources.update({one.resource: one.parent async for one in found if file.owns.covers(one.resource)})
        ids.bindings.update(bindings)
        return replace(present, bindings=tuple(bindings))

    async def _look_at_groups(self, file: Policy, present: Present, names: "_Names", groups: list[rbac_pb2.Group], *, everywhere: bool) -> None:
        """Ask who is in the groups of whose members the file speaks; or in all, if it matters in which others a group is."""
        if file.groups is None:
            return
        said = {name for name in present.ids.groups if name not in file.groups or file.groups[name].members is not None}
        asked = [one for one in groups if everywhere or (file.owns.covers(one.name) and one.name in said)]
        members = dict(zip([one.name for one in asked], await _gather(self._members(one.id, names) for one in asked), strict=True))
        present.groups.update({one.name: Group(one.name, one.description, members.get(one.name)) for one in groups if file.owns.covers(one.name)})
        for name, found in members.items():
            for member in found:
                if member.startswith(GROUP):
                    present.memberships.setdefault(member, set()).add(name)

    async def _members(self, group_id: str, names: "_Names") -> tuple[str, ...]:
        found = self._list(self._groups.ListGroupMembers, rbac_pb2.ListGroupMembersRequest(group_id=group_id), "members")
        return tuple(sorted([names.subject(member) async for member in found]))

    async def _look_at_bindings(self, file: Policy, present: Present, names: "_Names", gone: "_Gone", now: datetime) -> dict[Binding, str]:
        """Return the bindings that the file speaks of, and those of roles and groups that would go; none that has ended."""
        ids, spoken = present.ids, file.bindings is not None
        roles = gone.roles | ({name for name in ids.roles if file.owns.covers(name)} if spoken else set())
        if spoken and file.owns.everything:
            requests = [rbac_pb2.ListRoleBindingsRequest()]
        else:
            requests = [rbac_pb2.ListRoleBindingsRequest(role_id=ids.roles[name]) for name in sorted(roles)]
            requests += [rbac_pb2.ListRoleBindingsRequest(subject_id=ids.groups[name]) for name in sorted(gone.groups)]
        pages = await _gather(self._all_bindings(request) for request in requests)
        found = {names.binding(one): one.id for page in pages for one in page}
        return {one: key for one, key in found.items() if _is_current(one, now) and (one.role in roles or gone.holds(one.subject))}

    async def _all_bindings(self, request: rbac_pb2.ListRoleBindingsRequest) -> list[rbac_pb2.RoleBinding]:
        return [one async for one in self._list(self._bindings.ListRoleBindings, request, "role_bindings")]

    async def _list(self, method: Callable[..., Any], request: Any, items: str) -> AsyncIterator[Any]:
        """Yield what all pages hold."""
        request.page_size = PAGE
        while True:
            page = await self.call(method, request)
            for item in getattr(page, items):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


@dataclass(frozen=True, slots=True)
class _Gone:
    """The names of roles and groups that a file owns and does not have."""

    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    @classmethod
    def of(cls, file: Policy, present: Present, groups: Iterable[str]) -> "_Gone":
        """Compare."""
        return cls(
            frozenset() if file.roles is None else frozenset(present.roles) - frozenset(file.roles),
            frozenset() if file.groups is None else frozenset(filter(file.owns.covers, groups)) - frozenset(file.groups),
        )

    def holds(self, subject: str) -> bool:
        """Whether a subject is one of these groups."""
        return subject.startswith(GROUP) and subject.removeprefix(GROUP) in self.groups


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of roles and groups by id."""

    roles: dict[str, str]
    groups: dict[str, str]

    def role(self, wire: rbac_pb2.Role) -> Role:
        parents = sorted(self.roles[name] for name in wire.parent_role_ids)
        return Role(wire.name, wire.description, tuple(sorted(wire.permissions)), tuple(parents))

    def subject(self, wire: rbac_pb2.Subject) -> str:
        if wire.type == rbac_pb2.SUBJECT_TYPE_ANY:
            return "*"
        return GROUP + self.groups[wire.id] if wire.type == rbac_pb2.SUBJECT_TYPE_GROUP else _KINDS[wire.type] + wire.id

    def binding(self, wire: rbac_pb2.RoleBinding) -> Binding:
        return Binding(
            subject=self.subject(wire.subject),
            role=self.roles[wire.role_id],
            resource=wire.resource,
            effect=Effect.DENY if wire.effect == rbac_pb2.BINDING_EFFECT_DENY else Effect.ALLOW,
            condition=wire.condition,
            acr=wire.step_up.acr,
            max_age=wire.step_up.max_age.seconds if wire.step_up.HasField("max_age") else None,
            expire_time=wire.expire_time.ToDatetime(UTC) if wire.HasField("expire_time") else None,
        )


def _is_current(binding: Binding, now: datetime) -> bool:
    return binding.expire_time is None or binding.expire_time > now


async def _gather(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return the results in order. Raises the first failure, which ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
