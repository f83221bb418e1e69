"""How long the caller of DeleteRoleBinding waits for its OK: from then on every instance refuses. Asked on three instances, beside a transaction."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import asyncpg
import grpc

from bench.deciding import MEMORY, client_of, deciders
from bench.figures import Bench, Figure, at, at_most, percentiles
from bench.policies import READER, READS, user_id
from bench.seeding import administrator, seeded
from bench.slices import Spread
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2, rbac_pb2_grpc

INSTANCES = 3
MODEST = 20_000  # bindings
EVERY = 0.04  # seconds between changes: a modest rate
DELETE_BINDING = "DELETE FROM rbac.role_binding WHERE tenant_id = $1 AND id = $2"
OTHERS = "SELECT tenant_id, id FROM rbac.role_binding WHERE tenant_id <> $1 LIMIT $2"

Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Record:
    """What happened; times in milliseconds."""

    created: list[float] = field(default_factory=list)
    deleted: list[float] = field(default_factory=list)
    asked: int = 0
    stale: int = 0  # answers to questions that were put after an OK, from before it


async def visible(bench: Bench) -> list[Figure]:
    """Give and take a role again and again, and ask all instances at once after each OK."""
    count, database, record = bench.extent.revocations, await seeded(bench, MODEST), Record()
    transaction = await _transactions(database, count)
    async with AsyncExitStack() as running:
        instances = await running.enter_async_context(deciders(bench.stack, database, *[MEMORY] * INSTANCES))
        channels = [await running.enter_async_context(grpc.aio.insecure_channel(instance.address)) for instance in instances]
        rounds = Rounds(channels, administrator(bench.stack), (("authorization", client_of(bench.stack)()),), record)
        next_at = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at = max(next_at, time.monotonic() - EVERY) + EVERY
            await rounds.run(number)
    bench.say(f"DeleteRoleBinding p50 {at(record.deleted, 0.5):.1f} ms, {record.stale} stale of {record.asked:,}")
    stale = f"Answers from before among {record.asked:,} CheckPermission calls that began on all {INSTANCES} instances after a change's OK"
    return [
        *percentiles("floor.change", "One DELETE of a binding and its commit in Postgres, alone", transaction),
        *percentiles("visible.given", f"CreateRoleBinding, {INSTANCES} instances, until its OK: all allow", record.created, transaction),
        *percentiles("visible.taken", f"DeleteRoleBinding, {INSTANCES} instances, until its OK: all deny", record.deleted, transaction),
        Figure("visible.stale", stale, "calls", Spread.of([record.stale]), None, at_most(0)),
    ]


class Rounds:
    """One binding after another, on these instances."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], administrator: Metadata, client: Metadata, record: Record) -> None:
        self._bindings: list[rbac_pb2_grpc.RoleBindingServiceAsyncStub] = [rbac_pb2_grpc.RoleBindingServiceStub(channel) for channel in channels]
        self._checks: list[permission_pb2_grpc.PermissionServiceAsyncStub] = [
            permission_pb2_grpc.PermissionServiceStub(channel) for channel in channels
        ]
        self._administrator = administrator
        self._client = client
        self._record = record

    async def run(self, number: int) -> None:
        """Give a user a role somewhere at one instance, and take it from him again."""
        stub, subject = self._bindings[number % len(self._bindings)], rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=user_id(number))
        resource, began = f"visible/{number}", time.monotonic_ns()
        create = rbac_pb2.CreateRoleBindingRequest(subject=subject, role_name=READER, resource=resource)
        made = await stub.CreateRoleBinding(create, metadata=self._administrator, timeout=10)
        self._record.created.append((time.monotonic_ns() - began) / 1e6)
        question = permission_pb2.CheckPermissionRequest(subject=subject, permission=READS, resource=resource)
        await self._ask_all(question, permission_pb2.ALLOW)
        began = time.monotonic_ns()
        delete = rbac_pb2.DeleteRoleBindingRequest(role_binding_id=made.role_binding.id)
        await stub.DeleteRoleBinding(delete, metadata=self._administrator, timeout=10)
        self._record.deleted.append((time.monotonic_ns() - began) / 1e6)
        await self._ask_all(question, permission_pb2.DENY)

    async def _ask_all(self, question: permission_pb2.CheckPermissionRequest, expected: permission_pb2.Decision.ValueType) -> None:
        answers = await asyncio.gather(*(stub.CheckPermission(question, metadata=self._client, timeout=10) for stub in self._checks))
        self._record.asked += len(answers)
        self._record.stale += sum(answer.decision != expected for answer in answers)


async def _transactions(database: str, count: int) -> list[float]:
    """Delete that many bindings, one after another, of tenants that nobody asks about."""
    connection, took = await asyncpg.connect(database), list[float]()
    try:
        for row in await connection.fetch(OTHERS, DEFAULT_TENANT, count):
            began = time.monotonic_ns()
            await connection.execute(DELETE_BINDING, row["tenant_id"], row["id"])
            took.append((time.monotonic_ns() - began) / 1e6)
    finally:
        await connection.close()
    return took
