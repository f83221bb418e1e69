"""Each change lets exactly that die in the memories of all instances which it made untrue: never less."""

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.chassis.tenancy import TenantId
from services.rbac.holdings import compile_holdings, of_snapshot, places_of
from services.rbac.model import Subject, SubjectType
from tests.conftest import eventually
from tests.service.rbac.conftest import ANY, GROUP, USER, Instance, Rbac, Tenant, ask, subject
from watchword.errors import AlreadyExists, Cycle, NotFound, PreconditionFailed
from watchword.rbac.v1 import rbac_pb2

PLACES = ["doc/1", "doc/2", "doc/3"]
STEPS = 120


class Walk:
    """A tenant that is changed at random, and asked about after each change."""

    def __init__(self, tenant: Tenant, chance: random.Random) -> None:
        self.tenant = tenant
        self.chance = chance
        self.users = [str(uuid4()) for _ in range(3)]
        self.roles: list[str] = []
        self.groups: list[str] = []
        self.bindings: list[str] = []
        self.memberships: list[dict[str, Any]] = []
        self.count = 0

    async def begin(self) -> None:
        for _ in range(3):
            await self.make_role()
            await self.make_group()

    @property
    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        changes = [self.bind, self.bind, self.unbind, self.rebind, self.join, self.join, self.leave, self.place, self.place, self.update_role]
        return [*changes, self.update_role, self.make_role, self.drop_role, self.make_group, self.drop_group, self.drop_subject]

    async def step(self) -> str:
        """Make a random change; return its name."""
        step = self.chance.choice(self.steps)
        try:
            await step()
        except (AlreadyExists, Cycle, PreconditionFailed, NotFound):
            return f"{step.__name__}, refused"
        return step.__name__

    def _holder(self) -> rbac_pb2.Subject:
        users = [subject(USER, one) for one in self.users]
        return self.chance.choice([*users, *(subject(GROUP, one) for one in self.groups), subject(ANY, "")])

    async def bind(self) -> None:
        request = rbac_pb2.CreateRoleBindingRequest(subject=self._holder(), role_id=self.chance.choice(self.roles))
        request.resource = self.chance.choice(["", *PLACES])
        request.effect = self.chance.choice([rbac_pb2.BINDING_EFFECT_ALLOW, rbac_pb2.BINDING_EFFECT_ALLOW, rbac_pb2.BINDING_EFFECT_DENY])
        made = await ask(self.tenant.instances[0].bindings.CreateRoleBinding, request, self.tenant.admin)
        self.bindings.append(made.role_binding.id)

    async def unbind(self) -> None:
        if self.bindings:
            await self.tenant.unbind(self.chance.choice(self.bindings))

    async def rebind(self) -> None:
        if self.bindings:
            update = rbac_pb2.RoleBindingUpdate(condition=self.chance.choice(["context.a", "1 == 1"]))
            request = rbac_pb2.UpdateRoleBindingRequest(role_binding_id=self.chance.choice(self.bindings), role_binding=update)
            await ask(self.tenant.instances[0].bindings.UpdateRoleBinding, request, self.tenant.admin)

    async def join(self) -> None:
        member = self.chance.choice([*(subject(USER, one) for one in self.users), *(subject(GROUP, one) for one in self.groups)])
        membership: dict[str, Any] = {"group_id": self.chance.choice(self.groups), "member": member}
        await ask(self.tenant.instances[0].groups.AddGroupMember, rbac_pb2.AddGroupMemberRequest(**membership), self.tenant.admin)
        self.memberships.append(membership)

    async def leave(self) -> None:
        if self.memberships:
            membership = self.memberships.pop(self.chance.randrange(len(self.memberships)))
            await ask(self.tenant.instances[0].groups.RemoveGroupMember, rbac_pb2.RemoveGroupMemberRequest(**membership), self.tenant.admin)

    async def place(self) -> None:
        await self.tenant.place(self.chance.choice(PLACES), self.chance.choice(["", *PLACES]))

    async def update_role(self) -> None:
        update = rbac_pb2.RoleUpdate(permissions=[self.chance.choice(["doc.read", "doc.write", "doc.*"])])
        update.parent_role_ids.extend(self.chance.sample(self.roles, min(1, len(self.roles))))
        request = rbac_pb2.UpdateRoleRequest(role_id=self.chance.choice(self.roles), role=update)
        request.update_mask.paths.extend(["permissions", "parent_role_ids"])
        await ask(self.tenant.instances[0].roles.UpdateRole, request, self.tenant.admin)

    async def make_role(self) -> None:
        self.count += 1
        parents = self.chance.sample(self.roles, min(len(self.roles), self.chance.randint(0, 1)))
        self.roles.append(await self.tenant.role(f"role-{self.count}", self.chance.choice(["doc.read", "doc.write"]), parents=parents))

    async def drop_role(self) -> None:
        if len(self.roles) > 2:
            role = self.chance.choice(self.roles)
            await ask(self.tenant.instances[0].roles.DeleteRole, rbac_pb2.DeleteRoleRequest(role_id=role), self.tenant.admin)
            self.roles.remove(role)

    async def make_group(self) -> None:
        self.count += 1
        self.groups.append(await self.tenant.group(f"group-{self.count}"))

    async def drop_group(self) -> None:
        if len(self.groups) > 2:
            group = self.chance.choice(self.groups)
            await ask(self.tenant.instances[0].groups.DeleteGroup, rbac_pb2.DeleteGroupRequest(group_id=group), self.tenant.admin)
            self.groups.remove(group)

    async def drop_subject(self) -> None:
        request = rbac_pb2.DeleteSubjectRequest(subject=subject(USER, self.chance.choice(self.users)), tenant_id=self.tenant.id)
        await ask(self.tenant.instances[0].bindings.DeleteSubject, request, self.tenant.peer)

    async def answers(self, instance: Instance) -> dict[tuple[str, str], Any]:
        """Return what an instance believes that each user holds at each place: by memory, where it has something."""
        tenant_id, who = TenantId(UUID(self.tenant.id)), [Subject(SubjectType.USER, UUID(user)) for user in self.users]
        view = await instance.checker.view(tenant_id, who, PLACES)
        return {(str(one.id), place): held(view.held(one, place)) for one in who for place in PLACES}

    async def truth(self) -> dict[tuple[str, str], Any]:
        """Return the same from Postgres."""
        instance, who = self.tenant.instances[0], [Subject(SubjectType.USER, UUID(user)) for user in self.users]
        snapshot = await instance.store.load(TenantId(UUID(self.tenant.id)), who, PLACES)
        found = {}
        for one in who:
            holdings = compile_holdings(of_snapshot(snapshot), one)
            for place in PLACES:
                above = places_of(snapshot.places.__getitem__, place)
                found[str(one.id), place] = held(holdings.at(above, datetime.now(UTC)))
        return found


def held(holdings: Any) -> Any:
    return sorted((str(one.binding_id), one.role.name, one.role.patterns.texts, one.resource, repr(one.terms)) for one in holdings)


@pytest.mark.parametrize("seed", range(4))
async def test_after_any_change_every_memory_says_what_postgres_says(rbac: Rbac, tenant: Tenant, seed: int) -> None:
    """At once, on three instances whose memories are warm. Far most of what they say they have not read anew."""
    walk = Walk(tenant, random.Random(seed))
    await walk.begin()
    checkers, done = [instance.checker for instance in rbac.instances], []
    before = sum(checker.warm for checker in checkers)

    for _ in range(STEPS):
        done.append(await walk.step())
        truth = await walk.truth()
        for number, instance in enumerate(rbac.instances):
            assert await walk.answers(instance) == truth, (number, done)

    assert sum(checker.warm for checker in checkers) - before > STEPS
    assert len({name for name in done if "refused" not in name}) > 10


async def outdated(rbac: Rbac, tenant: Tenant, user: str) -> None:
    """Have the tenant's auditors hold a permission that the suite does not give them, and all instances remember it of one of them."""
    await rbac.sql("UPDATE rbac.role SET permissions = permissions || '{doc.read}' WHERE tenant_id = $1 AND name = 'watchword.auditor'", tenant.id)
    await tenant.bind(user, "watchword.auditor")
    for _ in range(2):
        assert [await tenant.may(user, "doc.read", at=at) for at in range(3)] == [True] * 3


async def test_a_migration_that_rewrites_the_suites_roles_is_heard_of(rbac: Rbac, tenant: Tenant) -> None:
    """Instances of the release before run on while it is made: they must not believe for minutes what it took away."""
    user = str(uuid4())
    await outdated(rbac, tenant, user)
    other = await rbac.tenant()
    before = await rbac.sql("SELECT revision FROM rbac.policy WHERE tenant_id = $1", other.id)
    await rbac.sql("SELECT rbac.rewrite_system_roles()")

    async def is_denied() -> bool:
        return not any([await tenant.may(user, "doc.read", at=at) for at in range(3)])

    await eventually(is_denied)
    assert await tenant.may(user, "audit-events.read", at=1)
    assert await rbac.sql("SELECT revision FROM rbac.policy WHERE tenant_id = $1", other.id) == before


async def test_roles_of_the_suite_that_are_rewritten_by_the_way_are_told_too(rbac: Rbac, tenant: Tenant) -> None:
    """Identity binds one that the tenant has not: all are brought to what this release says."""
    user = str(uuid4())
    await outdated(rbac, tenant, user)
    await rbac.sql("DELETE FROM rbac.role WHERE tenant_id = $1 AND name = 'watchword.service'", tenant.id)
    somebody = subject(USER, str(uuid4()))
    request = rbac_pb2.CreateRoleBindingRequest(subject=somebody, role_name="watchword.service", tenant_id=tenant.id)
    await ask(rbac.instances[0].bindings.CreateRoleBinding, request, tenant.peer)

    assert [await tenant.may(user, "doc.read", at=at) for at in range(3)] == [False] * 3
