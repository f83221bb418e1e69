"""rbac as it runs: `python -m services.rbac`, from migration to SIGTERM."""

import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.migrate import migrate
from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import Keys, Stores, environment_of, instance, serving
from tests.service.rbac.conftest import USER, ask, subject
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2, rbac_pb2_grpc


async def test_migrating_again_changes_nothing_and_the_default_tenant_has_its_roles(stores: Stores) -> None:
    url = await stores.new_database()

    assert await migrate(url) == []

    connection = await asyncpg.connect(url)
    roles = await connection.fetch("SELECT name FROM rbac.role WHERE tenant_id = $1 AND system", DEFAULT_TENANT)
    await connection.execute("SET ROLE watchword_token")
    try:
        await connection.execute("SELECT 1 FROM rbac.role")
        refused = False
    except asyncpg.InsufficientPrivilegeError:
        refused = True
    await connection.close()
    assert len(roles) == 5
    assert refused


async def test_an_instance_serves_and_ends_cleanly(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    environment = environment_of("rbac", await stores.new_database(), stores, service_keys)
    log, user, peer = tmp_path / "rbac.log", str(uuid4()), service_keys.metadata("identity", to="rbac")
    with instance("services.rbac", environment=environment, log=log) as (address, running):
        await serving(address, running, log)
        async with grpc.aio.insecure_channel(address) as channel:
            bind = rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, user), role_name="watchword.admin", tenant_id=str(DEFAULT_TENANT))
            await ask(rbac_pb2_grpc.RoleBindingServiceStub(channel).CreateRoleBinding, bind, peer)
            check = permission_pb2.CheckPermissionRequest(subject=subject(USER, user), permission="tenants.create", tenant_id=str(DEFAULT_TENANT))
            answer = await ask(permission_pb2_grpc.PermissionServiceStub(channel).CheckPermission, check, peer)
            probe: Any = health_pb2_grpc.HealthStub
            health = await probe(channel).Check(health_pb2.HealthCheckRequest(service="watchword.rbac.v1.PermissionService"))
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0

    assert answer.decision == permission_pb2.ALLOW
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_instance_without_its_schema_says_what_to_do(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    url = await stores.new_database()
    connection = await asyncpg.connect(url)
    await connection.execute("DELETE FROM rbac.schema_migration")
    await connection.close()
    environment = environment_of("rbac", url, stores, service_keys)

    with instance("services.rbac", environment=environment, log=tmp_path / "rbac.log") as (_, running):
        assert running.wait(10) == 1

    assert "services.chassis.migrate" in (tmp_path / "rbac.log").read_text()
