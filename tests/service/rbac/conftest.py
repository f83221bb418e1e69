"""Three instances of rbac on one Postgres, each with its own pool and memory, behind real gRPC. Only token, their peer, is stood in for."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest

from services.chassis.call import Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.coherence import Coherence
from services.chassis.coherent import coherent
from services.chassis.limits import Limits
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.settings import load
from services.chassis.tenancy import TenantId
from services.rbac.checker import Checker
from services.rbac.memory import PART_BYTES, Memory
from services.rbac.revisions import Revisions
from services.rbac.service import MAX_MESSAGE, assemble, engine
from services.rbac.settings import RbacSettings
from services.rbac.store.listing import RbacStore
from services.rbac.watch import Watching
from tests.conftest import SALT, Keys, Stores, environment_of, eventually
from watchword import status
from watchword.errors import TokenInvalid
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, policy_pb2_grpc, rbac_pb2, rbac_pb2_grpc

USER, GROUP, CLIENT = rbac_pb2.SUBJECT_TYPE_USER, rbac_pb2.SUBJECT_TYPE_GROUP, rbac_pb2.SUBJECT_TYPE_CLIENT
ANY = rbac_pb2.SUBJECT_TYPE_ANY
Metadata = tuple[tuple[str, str], ...]


PEER_LASTS = 20  # seconds
_peers: dict[tuple[str, int], Metadata] = {}


def as_identity(keys: Keys) -> Metadata:
    """Return the metadata of identity's calls: a token of a minute, the same for a while."""
    key = keys.public_json, int(time.monotonic() // PEER_LASTS)
    if key not in _peers:
        _peers[key] = keys.metadata("identity", to="rbac")
    return _peers[key]


class MovableClock(Clock):
    """The wall clock, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def seconds(self) -> float:
        return super().seconds() + self.ahead.total_seconds()


class TokenStandIn:
    """Believes bearer tokens of the form `kind|tenant|id|scope scope`."""

    async def authenticate(self, token: str) -> Caller:
        parts = token.split("|")
        if len(parts) != 4:
            raise TokenInvalid
        kind, tenant, who, scopes = parts
        return Caller(CallerKind(kind), who, TenantId(UUID(tenant)), scopes=frozenset(scopes.split("+")) - {""}, token=token)


BACKGROUND = re.compile(r"\b(instance|change)\b")  # coherence's own tables


class CountedConnection:
    """A connection that counts statements, but those of coherence."""

    def __init__(self, connection: Any, statements: list[str]) -> None:
        self._connection = connection
        self._statements = statements

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in ("fetch", "fetchrow", "fetchval", "execute"):
            return found

        def counted(sql: str, *args: object) -> Any:
            if not BACKGROUND.search(sql):
                self._statements.append(sql)
            return found(sql, *args)

        return counted


class WatchedDatabase(Database):
    """A real database that counts its statements, and can be told to hold back what it has read."""

    statements: list[str]
    holding: asyncio.Event | None = None
    held: asyncio.Event | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        if not hasattr(self, "statements"):
            self.statements = []
        async with super().connection() as connection:
            yield CountedConnection(connection, self.statements)

    async def fetch(self, sql: str, *args: object) -> list[Any]:
        rows = await super().fetch(sql, *args)
        if self.holding is not None and "WITH RECURSIVE" in sql:
            release, self.holding = self.holding, None
            assert self.held is not None
            self.held.set()
            await release.wait()
        return rows


@dataclass
class Proxy:
    """A wire to Postgres that a test can cut."""

    url: str
    target: tuple[str, int]
    is_cut: bool = False
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        self.writers |= {writer, far_writer}
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))

    def cut(self) -> None:
        self.is_cut = True
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def mend(self) -> None:
        self.is_cut = False


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """Put a proxy before the Postgres of `url`."""
    head, _, rest = url.rpartition("@")
    host, _, port = rest.partition("/")[0].rpartition(":")
    proxy = Proxy("", (host, int(port)))
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    own = server.sockets[0].getsockname()[1]
    proxy.url = f"{head}@127.0.0.1:{own}/{rest.partition('/')[2]}"
    try:
        yield proxy
    finally:
        proxy.cut()
        server.close()


@dataclass(frozen=True)
class Instance:
    """One instance of rbac: what a caller sees, and what a test looks into."""

    channel: grpc.aio.Channel
    database: WatchedDatabase
    store: RbacStore
    checker: Checker
    revisions: Revisions
    memory: Memory
    coherence: Coherence
    watching: Watching

    @property
    def roles(self) -> Any:
        return rbac_pb2_grpc.RoleServiceStub(self.channel)

    @property
    def bindings(self) -> Any:
        return rbac_pb2_grpc.RoleBindingServiceStub(self.channel)

    @property
    def groups(self) -> Any:
        return rbac_pb2_grpc.GroupServiceStub(self.channel)

    @property
    def resources(self) -> Any:
        return rbac_pb2_grpc.ResourceServiceStub(self.channel)

    @property
    def permissions(self) -> Any:
        return permission_pb2_grpc.PermissionServiceStub(self.channel)

    @property
    def policies(self) -> Any:
        return policy_pb2_grpc.PolicyServiceStub(self.channel)


async def ask(rpc: Any, request: Any, metadata: Metadata) -> Any:
    """Return the answer, or raise what the server raised."""
    try:
        return await rpc(request, metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        raise status.decode(error) from error


def as_user(tenant: str, user: str) -> Metadata:
    """Return what a person's calls carry."""
    return (("authorization", f"Bearer user|{tenant}|{user}|"),)


def as_client(tenant: str, client: str, *scopes: str) -> Metadata:
    """Return what an OAuth client's calls carry."""
    return (("authorization", f"Bearer client|{tenant}|{client}|{'+'.join(scopes)}"),)


def subject(kind: Any, who: str) -> rbac_pb2.Subject:
    return rbac_pb2.Subject(type=kind, id=who)


@dataclass
class Tenant:
    """A tenant with an administrator, and short words for what the tests do in it."""

    id: str
    admin_id: str
    admin: Metadata
    keys: Keys
    instances: Sequence[Instance]

    @property
    def peer(self) -> Metadata:
        """Of identity; the same for a while, as services use theirs: so that rbac knows it, and answers promptly."""
        return as_identity(self.keys)

    def user(self, who: str) -> Metadata:
        return as_user(self.id, who)

    async def role(self, name: str, *permissions: str, parents: Sequence[str] = (), by: Metadata = ()) -> str:
        request = rbac_pb2.CreateRoleRequest(name=name, permissions=permissions, parent_role_ids=parents)
        return str((await ask(self.instances[0].roles.CreateRole, request, by or self.admin)).role.id)

    async def bind(
        self,
        who: str,
        role: str,
        *,
        kind: Any = USER,
        resource: str = "",
        until: datetime | None = None,
        by: Metadata = (),
        at: int = 0,
        denies: bool = False,
        condition: str = "",
        step_up: rbac_pb2.StepUp | None = None,
    ) -> str:
        request = rbac_pb2.CreateRoleBindingRequest(subject=subject(kind, who), resource=resource, condition=condition, step_up=step_up)
        request.effect = rbac_pb2.BINDING_EFFECT_DENY if denies else rbac_pb2.BINDING_EFFECT_UNSPECIFIED
        request.role_id, request.role_name = ("", role) if role.startswith("watchword.") else (role, "")
        if until is not None:
            request.expire_time.FromDatetime(until)
        return str((await ask(self.instances[at].bindings.CreateRoleBinding, request, by or self.admin)).role_binding.id)

    async def unbind(self, binding: str, *, at: int = 0, by: Metadata = ()) -> str:
        request = rbac_pb2.DeleteRoleBindingRequest(role_binding_id=binding)
        return str((await ask(self.instances[at].bindings.DeleteRoleBinding, request, by or self.admin)).consistency_token)

    async def group(self, name: str) -> str:
        return str((await ask(self.instances[0].groups.CreateGroup, rbac_pb2.CreateGroupRequest(name=name), self.admin)).group.id)

    async def join(self, group: str, who: str, *, kind: Any = USER, by: Metadata = ()) -> None:
        request = rbac_pb2.AddGroupMemberRequest(group_id=group, member=subject(kind, who))
        await ask(self.instances[0].groups.AddGroupMember, request, by or self.admin)

    async def leave(self, group: str, who: str, *, kind: Any = USER, at: int = 0) -> None:
        request = rbac_pb2.RemoveGroupMemberRequest(group_id=group, member=subject(kind, who))
        await ask(self.instances[at].groups.RemoveGroupMember, request, self.admin)

    async def place(self, resource: str, parent: str) -> None:
        request = rbac_pb2.SetResourceParentRequest(resource=resource, parent=parent)
        await ask(self.instances[0].resources.SetResourceParent, request, self.admin)

    async def check(
        self, who: str, permission: str, resource: str = "", *, kind: Any = USER, at: int = 0, fresh: str = "", **more: Any
    ) -> permission_pb2.CheckPermissionResponse:
        request = permission_pb2.CheckPermissionRequest(
            subject=subject(kind, who), permission=permission, resource=resource, tenant_id=self.id, **more
        )
        if fresh:
            request.consistency.at_least_as_fresh = fresh
        answer: permission_pb2.CheckPermissionResponse = await ask(self.instances[at].permissions.CheckPermission, request, self.peer)
        return answer

    async def may(self, who: str, permission: str, resource: str = "", *, kind: Any = USER, at: int = 0) -> bool:
        return (await self.check(who, permission, resource, kind=kind, at=at)).decision == permission_pb2.ALLOW


@dataclass
class Rbac:
    """The instances, and what makes tenants on them."""

    instances: Sequence[Instance]
    clock: MovableClock
    keys: Keys
    url: str

    @property
    def peer(self) -> Metadata:
        return as_identity(self.keys)

    async def tenant(self) -> Tenant:
        """Return a new tenant, whose administrator identity has bound."""
        tenant, admin = str(uuid4()), str(uuid4())
        request = rbac_pb2.CreateRoleBindingRequest(subject=subject(USER, admin), role_name="watchword.admin", tenant_id=tenant)
        await ask(self.instances[0].bindings.CreateRoleBinding, request, self.peer)
        return Tenant(tenant, admin, as_user(tenant, admin), self.keys, self.instances)

    async def sql(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Run a statement as superuser."""
        connection = await asyncpg.connect(self.url)
        try:
            return list(await connection.fetch(statement, *args))
        finally:
            await connection.close()


def settings_of(url: str, stores: Stores, keys: Keys, name: str) -> RbacSettings:
    """Return what an instance reads from its environment."""
    environment = {
        **environment_of("rbac", url, stores, keys),
        "INSTANCE_ID": name,
        "RATE_LIMIT_WRITE": "100000/60",
        "RATE_LIMIT_READ": "100000/60",
    }
    return load(RbacSettings, environment)


@asynccontextmanager
async def running(settings: RbacSettings, keys: Keys, clock: Clock) -> AsyncIterator[Instance]:
    """Serve one instance while inside."""
    async with WatchedDatabase.open(settings, "rbac") as database, Redis.open(settings) as redis, AsyncExitStack() as stack:
        assert isinstance(database, WatchedDatabase)
        await database.require_schema()
        memory, limits = Memory(settings.policy_bytes // PART_BYTES), Limits.of(settings, redis)
        revisions = Revisions(memory)
        coherence = await stack.enter_async_context(coherent(settings, database, revisions))
        decides = engine(settings, database, memory, revisions, lease=coherence, clock=clock)
        assembly = assemble(SALT, decides, identity=keys.identity("rbac"), limits=limits, authenticator=TokenStandIn())
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE)])
        server.add_generic_rpc_handlers(tuple(assembly.edge.handler(service, servicer) for service, servicer in assembly.servicers))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await eventually(partial(_is_current, coherence))
            yield Instance(channel, database, decides.store, decides.checker, revisions, memory, coherence, assembly.watching)
        await server.stop(0)


@dataclass
class Turns:
    """Turns of the event loop: how much computing the longest of them took, and all together, in seconds."""

    longest: float = 0.0
    sum: float = 0.0


@asynccontextmanager
async def turns() -> AsyncIterator[Turns]:
    """Watch the loop while inside. What other processes take does not count."""
    told, is_over = Turns(), False

    async def watch() -> None:
        while not is_over:
            began = time.thread_time()
            await asyncio.sleep(0)
            took = time.thread_time() - began
            told.longest, told.sum = max(told.longest, took), told.sum + took

    watching = asyncio.create_task(watch())
    try:
        yield told
    finally:
        is_over = True
        await watching


class Leaseless:
    """A lease that is over."""

    is_current = False


async def _is_current(coherence: Coherence) -> bool:
    return coherence.is_current


@pytest.fixture(scope="session")
async def all_rbac(stores: Stores, service_keys: Keys) -> AsyncIterator[Rbac]:
    """Three instances for all tests of rbac."""
    url, clock = await stores.new_database(), MovableClock()
    async with AsyncExitStack() as stack:
        instances = [
            await stack.enter_async_context(running(settings_of(url, stores, service_keys, f"rbac-{number}"), service_keys, clock))
            for number in (1, 2, 3)
        ]
        yield Rbac(instances, clock, service_keys, url)


@pytest.fixture
async def rbac(all_rbac: Rbac) -> AsyncIterator[Rbac]:
    """The instances, at the right time."""
    yield all_rbac
    all_rbac.clock.ahead = timedelta()


@pytest.fixture
async def tenant(rbac: Rbac) -> Tenant:
    """A tenant of its own for each test."""
    return await rbac.tenant()
