"""Three instances of token and their guests, rbac and identity, as processes with wires of their own to Redis and to token."""

import asyncio
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import redis.asyncio as aioredis

from services import embedded
from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import SALT, Keys, Stores, eventually, free_port, instance, process, serving
from tests.service.chassis.fault_proxy import FaultProxy
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.token.v1 import key_pb2_grpc, token_pb2, token_pb2_grpc

TENANT = str(DEFAULT_TENANT)
TOKENS = 3
SERVICES = ("rbac", "rbac", "rbac", "identity")
VERIFY = "/watchword.token.v1.TokenService/VerifyToken"


class Wire(grpc.GenericRpcHandler):
    """Stands where Envoy's internal listener stands: passes calls to one instance, counts them, and holds answers back when told to."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel: Any = channel
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._open = asyncio.Event()
        self.release()

    def hold(self) -> None:
        """Let questions pass, and keep the answers."""
        self._open.clear()

    def release(self) -> None:
        """Let the answers go."""
        self._open.set()

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        method = str(details.method)

        async def forward(raw: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            self.calls[method] += 1
            metadata = tuple((key, value) for key, value in context.invocation_metadata() or () if key in ("authorization", "x-request-id"))
            try:
                answer: bytes = await self._channel.unary_unary(method)(raw, metadata=metadata, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            self.answered[method] += 1
            await self._open.wait()
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)


@asynccontextmanager
async def wired(address: str) -> AsyncIterator[tuple[Wire, str]]:
    """Stand before the instance at `address` while inside; yields the wire and its own address."""
    async with grpc.aio.insecure_channel(address) as channel:
        wire, server = Wire(channel), grpc.aio.server()
        server.add_generic_rpc_handlers((wire,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield wire, f"127.0.0.1:{port}"
        await server.stop(0)


@dataclass
class Guest:
    """One instance of rbac or identity."""

    service: str
    channel: grpc.aio.Channel
    process: "Popen[bytes]"
    wire: Wire
    redis: FaultProxy

    async def accepts(self, token: str) -> bool:
        """Whether a call with `token` is let in. Raises AioRpcError if that cannot be said."""
        metadata = (("authorization", f"Bearer {token}"),)
        try:
            if self.service == "identity":
                own: Any = authentication_pb2_grpc.AuthenticationServiceStub(self.channel)
                await own.GetMe(authentication_pb2.GetMeRequest(), metadata=metadata, timeout=5)
            else:
                permissions: Any = permission_pb2_grpc.PermissionServiceStub(self.channel)
                await permissions.CheckPermission(QUESTION, metadata=metadata, timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:  # let in, and told that a client has no account
                return True
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
        return True


QUESTION = permission_pb2.CheckPermissionRequest(
    subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=str(uuid4())), permission="doc.read", tenant_id=TENANT
)


@dataclass
class Fleet:
    """Everything that runs, and short words for what the tests do with it."""

    tokens: "list[token_pb2_grpc.TokenServiceAsyncStub]"
    keys: "list[key_pb2_grpc.KeyServiceAsyncStub]"
    processes: "list[Popen[bytes]]"
    redis: Sequence[FaultProxy]
    guests: Sequence[Guest]
    store: Any
    url: str
    service_keys: Keys
    _clients: list[str] = field(default_factory=list)

    @property
    def identity(self) -> tuple[tuple[str, str], ...]:
        return self.service_keys.metadata("identity", to="token")

    async def issue(self, *, at: int = 0, **fields: Any) -> token_pb2.TokenSet:
        """Open a client's session."""
        client = str(uuid4())
        defaults = {"subject": client, "client_id": client, "tenant_id": TENANT, "type": token_pb2.PRINCIPAL_TYPE_CLIENT, "with_refresh_token": True}
        request = token_pb2.IssueTokenRequest(**{**defaults, "scopes": ["permissions.check", "account"], "revision": await self.revision(), **fields})
        return (await self.tokens[at].IssueToken(request, metadata=self.identity)).tokens

    async def revoke(self, *, at: int = 0, **target: Any) -> None:
        """Call RevokeTokens until it is acknowledged."""
        request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, request_id=str(uuid4()), **target)
        await self.acknowledged(self.tokens[at].RevokeTokens, request)

    async def acknowledged(self, rpc: Any, request: Any) -> None:
        """Call until it is acknowledged: the same request_id asks again."""
        async with asyncio.timeout(20):
            while True:
                try:
                    await rpc(request, metadata=self.identity, timeout=5)
                    return
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise

    async def accepted(self, token: str) -> list[bool]:
        """Return what each guest says of a token, all asked at once."""
        return list(await asyncio.gather(*(guest.accepts(token) for guest in self.guests)))

    @property
    def asked(self) -> list[int]:
        """How often each guest has asked token who somebody is."""
        return [guest.wire.calls[VERIFY] for guest in self.guests]

    async def warm(self, token: str, *, within: float = 10.0) -> None:
        """Return when every guest knows the bearer of `token` by heart."""

        async def is_known() -> bool:
            before = self.asked
            assert all(await self.accepted(token))
            return self.asked == before

        await eventually(is_known, within=within)

    async def sql(self, statement: str, *args: object) -> Any:
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(statement, *args)
        finally:
            await connection.close()

    async def revision(self) -> int:
        return await self.sql("SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1", DEFAULT_TENANT) or 0

    async def are(self, mode: str) -> bool:
        """Whether every instance says `mode` of itself, guests too."""
        alive = "SELECT count(*) FROM token.instance WHERE mode = $1 AND seen_time > clock_timestamp() - interval '3 seconds'"
        return bool(await self.sql(alive, mode) == TOKENS + len(self.guests))

    async def heal(self) -> None:
        """Mend everything, and wait until all answer from memory."""
        for running in (*self.processes, *(guest.process for guest in self.guests)):
            running.send_signal(signal.SIGCONT)
        for guest in self.guests:
            guest.wire.release()
        for proxy in (*self.redis, *(guest.redis for guest in self.guests)):
            await proxy.restore()
        await eventually(lambda: self.are("leased"), within=15)


@asynccontextmanager
async def fleet_of(stores: Stores, keys: Keys, home: Path) -> AsyncIterator[Fleet]:
    """Run all of it while inside."""
    password, port = secrets.token_hex(8), free_port()
    (home / "redis").mkdir()
    url = await stores.new_database()
    async with AsyncExitStack() as stack:
        stack.enter_context(process(embedded.valkey_command(home / "redis", port, password), log=home / "valkey.log"))

        async def start(service: str, number: int, **more: str) -> tuple[str, "Popen[bytes]", FaultProxy]:
            proxy = await stack.enter_async_context(FaultProxy.before("127.0.0.1", port))
            environment = {
                "DATABASE_URL": url,
                "REDIS_URL": f"redis://:{password}@127.0.0.1:{proxy.port}/0",
                "SECURITY_SALT": SALT,
                "SERVICE_KEY": keys.private[service],
                "SERVICE_PUBLIC_KEYS": keys.public_json,
                "TOKEN_ISSUER": "https://auth.test",
                "DATABASE_POOL_SIZE": "4",
                "DATABASE_MAX_OVERFLOW": "2",
                "AUTH_RATE_LIMIT_ENABLED": "false",
                "DRAIN_TIMEOUT": "0",
                **more,
            }
            log = home / f"{service}-{number}.log"
            address, running = stack.enter_context(instance(f"services.{service}", environment=environment, log=log))
            await serving(address, running, log)
            return address, running, proxy

        tokens = [await start("token", number) for number in range(TOKENS)]
        guests = []
        for number, service in enumerate(SERVICES):
            wire, own = await stack.enter_async_context(wired(tokens[number % TOKENS][0]))
            more = {"MAIL_DIR": str(home)} if service == "identity" else {}
            address, running, proxy = await start(service, number, INTERNAL_GRPC_ADDRESS=own, **more)
            guests.append(Guest(service, await stack.enter_async_context(grpc.aio.insecure_channel(address)), running, wire, proxy))
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address)) for address, _, _ in tokens]
        store = aioredis.from_url(f"redis://:{password}@127.0.0.1:{port}/0")
        yield Fleet(
            tokens=[token_pb2_grpc.TokenServiceStub(channel) for channel in channels],
            keys=[key_pb2_grpc.KeyServiceStub(channel) for channel in channels],
            processes=[running for _, running, _ in tokens],
            redis=[proxy for _, _, proxy in tokens],
            guests=guests,
            store=store,
            url=url,
            service_keys=keys,
        )
        await store.aclose()
