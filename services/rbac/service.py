"""How rbac is put together: read from top to bottom, each thing stands on those above it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from google.protobuf.descriptor import ServiceDescriptor

from services.chassis import telemetry
from services.chassis.access import Authenticator, Gate
from services.chassis.callers import TokenAuthenticator
from services.chassis.clock import Clock
from services.chassis.coherent import coherent
from services.chassis.consistency import ConsistencyTokens
from services.chassis.edge import Edge
from services.chassis.limits import Limits
from services.chassis.pages import Pager
from services.chassis.peers import Peer, channel
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.sealing import derive
from services.chassis.server import serve
from services.chassis.service_identity import ServiceIdentity
from services.chassis.settings import ChassisSettings, load
from services.rbac.authority import OwnDecider
from services.rbac.bindings import Bindings
from services.rbac.checker import Checker
from services.rbac.groups import Groups
from services.rbac.resources import Resources
from services.rbac.revisions import Revisions
from services.rbac.roles import Roles
from services.rbac.servicer import GroupServicer, PermissionServicer, ResourceServicer, RoleBindingServicer, RoleServicer
from services.rbac.store import RbacStore
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.token.v1 import token_pb2_grpc

MAX_MESSAGE = 1024 * 1024  # bytes: a batch of 1000 questions of the longest names
TEND_EVERY = 300.0  # seconds between looks for what has expired

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Assembly:
    """What is served: the edge, and a servicer for each service."""

    edge: Edge
    servicers: list[tuple[ServiceDescriptor, object]]


def assemble(
    salt: str, store: RbacStore, checker: Checker, clock: Clock, *, identity: ServiceIdentity, limits: Limits, authenticator: Authenticator
) -> Assembly:
    """Put the domain between the store and the edge."""
    consistency, pager = ConsistencyTokens(derive(salt, "consistency")), Pager(derive(salt, "pages"))
    rbac, permission = rbac_pb2.DESCRIPTOR.services_by_name, permission_pb2.DESCRIPTOR.services_by_name
    servicers: list[tuple[ServiceDescriptor, object]] = [
        (rbac["RoleService"], RoleServicer(Roles(store, clock), consistency, pager)),
        (rbac["RoleBindingService"], RoleBindingServicer(Bindings(store, clock), consistency, pager)),
        (rbac["GroupService"], GroupServicer(Groups(store, clock), consistency, pager)),
        (rbac["ResourceService"], ResourceServicer(Resources(store), consistency)),
        (permission["PermissionService"], PermissionServicer(checker, consistency, pager)),
    ]
    return Assembly(Edge(Gate(identity, authenticator, OwnDecider(checker)), limits, note=store.note), servicers)


async def main() -> None:
    """Run rbac until it is told to stop."""
    settings = load(ChassisSettings)
    telemetry.configure(settings, "rbac")
    identity = ServiceIdentity.load("rbac", settings.SERVICE_KEY.get_secret_value(), settings.SERVICE_PUBLIC_KEYS)
    salt = settings.SECURITY_SALT.get_secret_value()
    async with Database.open(settings, "rbac") as database, Redis.open(settings) as redis, channel(settings) as internal:
        await database.require_schema()
        store = RbacStore(database)
        authenticator = TokenAuthenticator(token_pb2_grpc.TokenServiceStub(internal), Peer("token", identity))
        revisions, clock = Revisions(), Clock()
        async with coherent(settings, database, revisions) as coherence:
            checker = Checker(store, revisions, coherence, clock)
            assembly = assemble(salt, store, checker, clock, identity=identity, limits=Limits.of(settings, redis), authenticator=authenticator)

            async def probe() -> None:
                if not coherence.is_current:
                    await store.ping()

            async with tended(store.sweep):
                await serve(settings, assembly.edge, assembly.servicers, probe=probe, max_message_bytes=MAX_MESSAGE)


@asynccontextmanager
async def tended(sweep: Callable[[], Awaitable[None]], every: float = TEND_EVERY) -> AsyncIterator[None]:
    """Delete what has expired, `every` so many seconds while inside. A sweep that fails is logged, and does not end the sweeping."""

    async def tend() -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await sweep()
            except Exception:
                log.exception("tending_failed")

    task = asyncio.create_task(tend(), name="tend")
    try:
        yield
    finally:
        task.cancel()
