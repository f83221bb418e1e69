"""A client that remembers, on real instances: whatever was changed and acknowledged, what it remembers is what the server says."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.conftest import eventually
from tests.service.rbac.conftest import ANY, CLIENT, GROUP, USER, Tenant, ask
from tests.service.rbac.test_policy_files import ALICE, BOB, CI, Own
from watchword import Client, Decision, Subject
from watchword.decisions import SubjectType, decision_from
from watchword.errors import AlreadyExists, PreconditionFailed
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.staleness import now

PLACES = [f"folder/{number}" for number in range(4)]
SUBJECTS = [Subject(SubjectType.USER, ALICE), Subject(SubjectType.USER, BOB), Subject(SubjectType.CLIENT, CI)]
QUESTIONS = [(subject, permission, place) for subject in SUBJECTS for permission in ("a.read", "b.write") for place in ("", *PLACES)]


class Line:
    """The way of a client to one instance."""

    def __init__(self, tenant: Tenant, number: int) -> None:
        self.channel = tenant.instances[number].channel
        self.own: Any = Own(tenant.id, tenant.admin)


async def truth(tenant: Tenant, subject: Subject, permission: str, resource: str) -> Decision:
    """Return what the third instance says."""
    request = permission_pb2.CheckPermissionRequest(subject=subject.wire, permission=permission, resource=resource)
    return decision_from(await ask(tenant.instances[2].permissions.CheckPermission, request, tenant.admin))


class Changing:
    """Makes one small change after the other, of everything that a decision can depend on."""

    def __init__(self, tenant: Tenant, chance: random.Random) -> None:
        self._tenant = tenant
        self._chance = chance
        self._bindings: list[str] = []
        self._members: list[tuple[str, str, Any]] = []

    async def begin(self) -> None:
        """Make what is changed later."""
        self._roles = [await self._tenant.role(f"r{number}", "a.read") for number in range(3)]
        self._groups = [await self._tenant.group(f"g{number}") for number in range(3)]

    async def step(self) -> None:
        """Make one change. One that cannot be, such as a cycle, is none."""
        steps = [self._bind, self._bind, self._unbind, self._join, self._leave, self._say, self._place]
        with suppress(PreconditionFailed, AlreadyExists):
            await self._chance.choice(steps)()

    async def _bind(self) -> None:
        chance, kinds = self._chance, [(USER, ALICE), (USER, BOB), (CLIENT, CI), *((GROUP, group) for group in self._groups)]
        kind, who = (ANY, "") if chance.random() < 0.05 else chance.choice(kinds)
        denies, resource = chance.random() < 0.2, chance.choice(["", *PLACES])
        self._bindings.append(await self._tenant.bind(who, chance.choice(self._roles), kind=kind, resource=resource, denies=denies))

    async def _unbind(self) -> None:
        if self._bindings:
            await self._tenant.unbind(self._bindings.pop(self._chance.randrange(len(self._bindings))))

    async def _join(self) -> None:
        chance, group = self._chance, self._chance.choice(self._groups)
        who, kind = chance.choice([(ALICE, USER), (BOB, USER), (CI, CLIENT), *((one, GROUP) for one in self._groups if one != group)])
        await self._tenant.join(group, who, kind=kind)
        self._members.append((group, who, kind))

    async def _leave(self) -> None:
        if self._members:
            group, who, kind = self._members.pop(self._chance.randrange(len(self._members)))
            await self._tenant.leave(group, who, kind=kind)

    async def _say(self) -> None:
        chance, role = self._chance, self._chance.choice(self._roles)
        permissions = chance.sample(["a.read", "b.*", "*.read"], chance.randint(0, 2))
        parents = chance.sample([one for one in self._roles if one != role], chance.randint(0, 1))
        update = rbac_pb2.RoleUpdate(permissions=permissions, parent_role_ids=parents)
        request = rbac_pb2.UpdateRoleRequest(role_id=role, role=update, update_mask=FieldMask(paths=["permissions", "parent_role_ids"]))
        await ask(self._tenant.instances[1].roles.UpdateRole, request, self._tenant.admin)

    async def _place(self) -> None:
        resource, parent = self._chance.sample(PLACES, 2)
        await self._tenant.place(resource, self._chance.choice([parent, ""]))


@pytest.mark.parametrize("seed", range(2))
async def test_what_is_remembered_is_what_the_server_says(tenant: Tenant, seed: int) -> None:
    """After each of many changes: groups in groups, roles in roles, resources that move, denials, anybody."""
    changing, hits, misses = Changing(tenant, random.Random(seed)), 0, 0
    await changing.begin()
    async with Client(Line(tenant, 0), cache_size=1000) as client:
        assert client._changes is not None
        changes = client._changes
        for _ in range(20):
            await changing.step()
            acknowledged = now()

            async def is_told(acknowledged: float = acknowledged) -> bool:
                return changes.through >= acknowledged

            await eventually(is_told)
            said = await asyncio.gather(*(truth(tenant, *question) for question in QUESTIONS))
            known = [client.recall(*question) for question in QUESTIONS]
            asked = await asyncio.gather(*(client.check(*question) for question in QUESTIONS))
            for one, remembered, again in zip(said, known, asked, strict=True):
                assert remembered is None or remembered.outcome is one.outcome
                assert again.outcome is one.outcome
            hits += sum(remembered is not None for remembered in known)
            misses += sum(remembered is None for remembered in known)
    assert hits > 50
    assert misses > 50
