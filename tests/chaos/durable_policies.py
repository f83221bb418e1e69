"""Writes of rbac: roles given, taken and changed."""

import secrets
from typing import Any
from uuid import uuid4

from tests.chaos.durable_deeds import Deed
from tests.chaos.durable_stack import Instance, answered
from tests.chaos.durable_town import BINDINGS, PERMISSION, ROLES, user
from tests.conftest import eventually
from watchword.rbac.v1 import rbac_pb2


class Policing(Deed):
    """A policy is changed: every instance's checks say what Postgres says."""

    service = "rbac"

    async def prepare(self) -> None:
        self.subject = str(uuid4())

    @property
    def key(self) -> object:
        return self.subject


class Bind(Policing):
    """A role is given. It may take a moment until all know, but no longer."""

    event, effect = "role_bound", "SELECT count(*) FROM rbac.role_binding WHERE subject_id = $1"

    async def do(self, at: Instance) -> Any:
        request = rbac_pb2.CreateRoleBindingRequest(subject=user(self.subject), role_id=self.town.role, request_id=self.request_id)
        return await self._ask(at, BINDINGS, "CreateRoleBinding", request, self.town.admin)

    async def prepare(self) -> None:
        await super().prepare()
        assert not any(await self.town.permitting(self.subject))

    async def check(self, result: Any) -> list[str]:
        async def all_permit() -> bool:
            return all(await self.town.permitting(self.subject))

        try:
            await eventually(all_permit, within=4)
        except TimeoutError:
            return [f"checks after a role was given: {await self.town.permitting(self.subject)}"]
        return []


class Unbind(Policing):
    """A role is taken: from the answer on nobody permits anything by it."""

    event, effect = "role_unbound", "SELECT 1 - count(*) FROM rbac.role_binding WHERE subject_id = $1"

    async def prepare(self) -> None:
        await super().prepare()
        self.binding = await self.town.binding(self.subject)
        await eventually(self._all_permit)

    async def _all_permit(self) -> bool:
        return all(await self.town.permitting(self.subject))

    async def do(self, at: Instance) -> Any:
        request = rbac_pb2.DeleteRoleBindingRequest(role_binding_id=self.binding, request_id=self.request_id)
        return await self._ask(at, BINDINGS, "DeleteRoleBinding", request, self.town.admin)

    async def check(self, result: Any) -> list[str]:
        permitting = await self.town.permitting(self.subject)
        return [f"checks after a role was taken: {permitting}"] if any(permitting) else []


class Narrow(Unbind):
    """A permission is taken out of a role."""

    event, effect = "role_updated", "SELECT count(*) FROM rbac.role WHERE id = $1 AND version > 1"

    async def prepare(self) -> None:
        self.subject = str(uuid4())
        made = rbac_pb2.CreateRoleRequest(name=f"r{secrets.token_hex(8)}", permissions=[PERMISSION], request_id=str(uuid4()))
        self.role = (await answered(lambda: self.suite.of("rbac")[0].ask(ROLES, "CreateRole", made, self.town.admin))).role.id
        self.binding = await self.town.binding(self.subject, self.role)
        await eventually(self._all_permit)

    @property
    def key(self) -> object:
        return self.role

    async def do(self, at: Instance) -> Any:
        request = rbac_pb2.UpdateRoleRequest(role_id=self.role, request_id=self.request_id)
        request.role.permissions.append("others.read")
        request.update_mask.paths.append("permissions")
        return await self._ask(at, ROLES, "UpdateRole", request, self.town.admin)
