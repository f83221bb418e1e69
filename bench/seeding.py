"""Databases with a policy in them, each made once a run; and the figure of how fast ImportPolicy takes one in."""

import json
import time

import asyncpg
import grpc

from bench.figures import Bench, Figure
from bench.policies import SMALL_BINDINGS, SMALL_USERS, Shape, user_id
from bench.slices import Spread, service_authorization
from bench.stack import Instance, Stack
from bench.workers import BenchError
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.rbac.v1 import policy_pb2, rbac_pb2, rbac_pb2_grpc

IMPORT = "/watchword.rbac.v1.PolicyService/ImportPolicy"
IMPORT_LIMIT = 600.0  # seconds
TOLD_EVERY = 20  # chunks
ADMINISTRATOR = user_id(-1)

# The small tenants, of whom nobody asks: they are there so that indexes have them. A role each.
INSERT_SMALL_ROLES = """
    INSERT INTO rbac.role (tenant_id, id, name, description, permissions, system, version, create_time, update_time)
    SELECT md5('tenant/' || t)::uuid, md5('role/' || t)::uuid, 'reader', '', ARRAY['doc.read'], false, 1, now(), now()
    FROM generate_series(1, $1::int) AS t
"""
INSERT_SMALL_BINDINGS = """
    INSERT INTO rbac.role_binding (tenant_id, id, subject_type, subject_id, role_id, resource, create_time, update_time)
    SELECT md5('tenant/' || t)::uuid, gen_random_uuid(), 1, md5('small/' || t || '/' || b % $2::int)::uuid, md5('role/' || t)::uuid,
           'doc/' || b, now(), now()
    FROM generate_series(1, $1::int) AS t, generate_series(1, $3::int) AS b
"""


async def seeded(bench: Bench, bindings: int) -> str:
    """Return the URL of a database with so many bindings. Raises BenchError if the import made another number of them."""
    kept = bench.stack.home / f"policy.{bindings}"
    if not kept.exists():
        kept.write_text(json.dumps(await _seed(bench, Shape(bindings))), encoding="ascii")
    database: str = json.loads(kept.read_text(encoding="ascii"))["database"]
    return database


async def imports(bench: Bench) -> list[Figure]:
    """Import the largest policy that the other groups ask about."""
    shape = Shape(bench.extent.policies[-1])
    await seeded(bench, shape.bindings)
    done = json.loads((bench.stack.home / f"policy.{shape.bindings}").read_text(encoding="ascii"))
    title = f"ImportPolicy: one stream takes in the large tenant of a policy of {shape.words}"
    notes = (
        f"{done['bindings']:,} bindings among {done['members']:,} members in {done['seconds']:.0f} s",
        "each chunk of 10,000 is one change on disk",
    )
    return [Figure("import.rate", title, "members/s", Spread.of([done["members"] / done["seconds"]]), None, None, notes)]


async def _seed(bench: Bench, shape: Shape) -> dict[str, str | float]:
    stack, database = bench.stack, await bench.stack.new_database()
    async with stack.token(database, redis=8) as token, stack.rbac(database, token, redis=8) as rbac:
        await administer(stack, rbac)
        members, seconds = await _import(bench, rbac, shape)
    made = await _finish(database, shape)
    if made != shape.bindings:
        raise BenchError(f"{made:,} bindings are there, not {shape.bindings:,}")
    bench.say(f"{shape.words}: {members:,} members imported in {seconds:.0f} s")
    return {"database": database, "members": members, "bindings": shape.large, "seconds": seconds}


async def administer(stack: Stack, rbac: Instance) -> None:
    """Make ADMINISTRATOR one, as identity does."""
    metadata = (("authorization", service_authorization(stack.keys, "identity", "rbac")()),)
    subject = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=ADMINISTRATOR)
    request = rbac_pb2.CreateRoleBindingRequest(subject=subject, role_name="watchword.admin", tenant_id=str(DEFAULT_TENANT))
    async with grpc.aio.insecure_channel(rbac.address) as channel:
        stub: rbac_pb2_grpc.RoleBindingServiceAsyncStub = rbac_pb2_grpc.RoleBindingServiceStub(channel)
        await stub.CreateRoleBinding(request, metadata=metadata, timeout=10)


def administrator(stack: Stack) -> tuple[tuple[str, str], ...]:
    """Return the metadata of ADMINISTRATOR's calls."""
    return (("authorization", f"Bearer {stack.signer.user_token(ADMINISTRATOR)}"),)


async def _import(bench: Bench, rbac: Instance, shape: Shape) -> tuple[int, float]:
    """Send the large tenant; return how many members were taken in, and in how many seconds. Encoding them is not part of it."""
    chunks = [chunk.SerializeToString() for chunk in shape.chunks()]
    taken, number, began = 0, 0, time.monotonic()
    async with grpc.aio.insecure_channel(rbac.address) as channel:
        rpc = channel.stream_stream(IMPORT, request_serializer=bytes, response_deserializer=policy_pb2.ImportPolicyResponse.FromString)
        async for answer in rpc(iter(chunks), metadata=administrator(bench.stack), timeout=IMPORT_LIMIT):
            taken, number = taken + answer.created_count, number + 1
            if number % TOLD_EVERY == 0:
                bench.say(f"import: {number} of {len(chunks)} chunks, {taken / (time.monotonic() - began):,.0f} members/s")
    return taken, time.monotonic() - began


async def _finish(database: str, shape: Shape) -> int:
    """Add the small tenants; return how many bindings there are of others than the administrator."""
    connection, small = await asyncpg.connect(database), shape.tenants - 1
    try:
        await connection.execute(INSERT_SMALL_ROLES, small, timeout=60)
        await connection.execute(INSERT_SMALL_BINDINGS, small, SMALL_USERS, SMALL_BINDINGS, timeout=60)
        await connection.execute("VACUUM ANALYZE", timeout=60)
        count: int = await connection.fetchval("SELECT count(*) - 1 FROM rbac.role_binding")
        return count
    finally:
        await connection.close()
