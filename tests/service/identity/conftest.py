"""Two instances of identity on one Postgres and one Valkey, with stand-ins for token and rbac: gRPC servers that remember what they hear."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.edge import MAX_DEADLINE
from services.chassis.redis import Redis
from services.chassis.settings import load
from services.chassis.tenancy import DEFAULT_TENANT
from services.identity import hashing
from services.identity.passwords import Passwords
from services.identity.service import Identity, assembled
from services.identity.settings import IdentitySettings
from tests.conftest import SALT, Keys, Stores, free_port
from watchword import status
from watchword.errors import (
    AlreadyExists,
    DepthExceeded,
    InvalidRequest,
    NotFound,
    PageTokenInvalid,
    RefreshTokenReused,
    TokenInvalid,
    WatchwordError,
)
from watchword.identity.v1 import (
    audit_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    oauth_pb2_grpc,
    tenant_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
)
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2, rbac_pb2_grpc
from watchword.token.v1 import session_pb2, session_pb2_grpc, token_pb2, token_pb2_grpc

TENANT = str(DEFAULT_TENANT)
PASSWORD = "a violet kettle sings"
OTHER_PASSWORD = "seven damp otters waltz"
PATIENCE = 5.0  # seconds
REQUEST_ID = "00000000-0000-4000-8000-000000000001"


class MovableClock(Clock):
    """A clock that tests put forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def seconds(self) -> float:
        return super().seconds() + self.ahead.total_seconds()


@dataclass
class TokenStandIn(token_pb2_grpc.TokenServiceServicer):
    """Issues tokens that mean nothing elsewhere; remembers what was asked."""

    is_down: bool = False
    refuses_revocations: bool = False
    principals: dict[str, token_pb2.Principal] = field(default_factory=dict)
    used: dict[str, token_pb2.Principal] = field(default_factory=dict)
    issued: list[token_pb2.IssueTokenRequest] = field(default_factory=list)
    revocations: list[token_pb2.RevokeTokensRequest] = field(default_factory=list)
    revoked: list[token_pb2.RevokeTokenRequest] = field(default_factory=list)
    refreshed: list[token_pb2.RefreshTokenRequest] = field(default_factory=list)
    exchanged: list[token_pb2.ExchangeTokenRequest] = field(default_factory=list)

    async def IssueToken(self, request: token_pb2.IssueTokenRequest, context: Any) -> token_pb2.IssueTokenResponse:
        await self._answerable(context)
        self.issued.append(request)
        session_id = str(uuid4()) if request.with_refresh_token else ""
        principal = token_pb2.Principal(
            subject=request.subject,
            tenant_id=request.tenant_id,
            client_id=request.client_id,
            session_id=session_id,
            type=request.type,
            roles=request.roles,
            scopes=request.scopes,
        )
        return token_pb2.IssueTokenResponse(tokens=self._tokens(principal))

    async def RefreshToken(self, request: token_pb2.RefreshTokenRequest, context: Any) -> token_pb2.RefreshTokenResponse:
        await self._answerable(context)
        self.refreshed.append(request)
        if request.refresh_token in self.used:
            await _abort(context, RefreshTokenReused())
        principal = self.principals.pop(request.refresh_token, None)
        if principal is None or principal.client_id != request.client_id:
            await _abort(context, TokenInvalid())
            raise AssertionError
        self.used[request.refresh_token] = principal
        return token_pb2.RefreshTokenResponse(tokens=self._tokens(principal), principal=principal)

    async def ExchangeToken(self, request: token_pb2.ExchangeTokenRequest, context: Any) -> token_pb2.ExchangeTokenResponse:
        """Refuse what token would refuse, by the name of the field; make a token of what is left."""
        await self._answerable(context)
        self.exchanged.append(request)
        subject = self.principals.get(request.subject_token)
        if subject is None or subject.tenant_id != request.tenant_id:
            await _abort(context, TokenInvalid())
            raise AssertionError
        common = [scope for scope in subject.scopes if scope in request.client_scopes]
        if not common or not set(request.scopes) <= set(common):
            await _abort(context, InvalidRequest.of("scopes", "must be in common"))
        if request.audience not in ("", "watchword", request.client_id):
            await _abort(context, InvalidRequest.of("audience", "must be its own"))
        if subject.actor.HasField("actor"):
            await _abort(context, DepthExceeded())
        principal = token_pb2.Principal(subject=subject.subject, tenant_id=subject.tenant_id, type=subject.type, client_id=request.client_id)
        principal.scopes.extend(request.scopes or common)
        principal.actor.subject = request.client_id
        if subject.HasField("actor"):
            principal.actor.actor.CopyFrom(subject.actor)
        return token_pb2.ExchangeTokenResponse(tokens=self._tokens(principal), principal=principal)

    async def VerifyToken(self, request: token_pb2.VerifyTokenRequest, context: Any) -> token_pb2.VerifyTokenResponse:
        await self._answerable(context)
        principal = self.principals.get(request.token)
        if principal is None:
            return token_pb2.VerifyTokenResponse(status=token_pb2.REVOKED)
        return token_pb2.VerifyTokenResponse(status=token_pb2.VALID, principal=principal, token_id=str(uuid4()))

    async def IntrospectToken(self, request: token_pb2.IntrospectTokenRequest, context: Any) -> token_pb2.IntrospectTokenResponse:
        await self._answerable(context)
        principal = self.principals.get(request.token)
        if principal is None:
            return token_pb2.IntrospectTokenResponse()
        use = "refresh_token" if request.token.startswith("refresh") else "access_token"
        answer = token_pb2.IntrospectTokenResponse(
            active=True, principal=principal, token_use=use, issuer="https://auth.test", audiences=["watchword"]
        )
        answer.issue_time.seconds, answer.expire_time.seconds = 1_700_000_000, 1_700_000_300
        answer.token_id = "jti" if use == "access_token" else ""
        return answer

    async def RevokeToken(self, request: token_pb2.RevokeTokenRequest, context: Any) -> token_pb2.RevokeTokenResponse:
        await self._answerable(context)
        self.revoked.append(request)
        return token_pb2.RevokeTokenResponse(consistency_token="consistent")

    async def RevokeTokens(self, request: token_pb2.RevokeTokensRequest, context: Any) -> token_pb2.RevokeTokensResponse:
        await self._answerable(context)
        if self.refuses_revocations:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.revocations.append(request)
        target = request.WhichOneof("target") or ""
        ended = [token for token, principal in self.principals.items() if getattr(principal, target) == getattr(request, target)]
        for token in ended:
            if not request.except_session_id or self.principals[token].session_id != request.except_session_id:
                del self.principals[token]
        return token_pb2.RevokeTokensResponse(consistency_token=f"revoked-{request.request_id}")

    def grant(self, subject: str, *, tenant_id: str = TENANT, **fields: Any) -> str:
        """Return an access token for `subject`."""
        defaults = {"type": token_pb2.PRINCIPAL_TYPE_USER, "scopes": ["account", "tokens.verify"], "session_id": str(uuid4())}
        return self._tokens(token_pb2.Principal(subject=subject, tenant_id=tenant_id, **{**defaults, **fields})).access_token

    def revocations_of(self, subject: str) -> list[token_pb2.RevokeTokensRequest]:
        """Return the revocations of a subject that were done, by request_id once each."""
        return list({each.request_id: each for each in self.revocations if subject in (each.subject, each.client_id, each.session_id)}.values())

    def _tokens(self, principal: token_pb2.Principal) -> token_pb2.TokenSet:
        access, refresh = f"access-{secrets.token_hex(8)}", f"refresh-{secrets.token_hex(8)}" if principal.session_id else ""
        self.principals[access] = principal
        if refresh:
            self.principals[refresh] = principal
        return token_pb2.TokenSet(
            access_token=access,
            token_type="Bearer",
            expires_in=300,
            refresh_token=refresh,
            scope=" ".join(principal.scopes),
            session_id=principal.session_id,
        )

    async def _answerable(self, context: Any) -> None:
        if not dict(context.invocation_metadata()).get("authorization", "").startswith("Bearer ey"):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "identity must prove itself")
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")


@dataclass
class SessionStandIn(session_pb2_grpc.SessionServiceServicer):
    """Lists what `token` has issued; a page holds two sessions."""

    token: TokenStandIn
    ended: list[session_pb2.Session] = field(default_factory=list)

    async def ListSessions(self, request: session_pb2.ListSessionsRequest, context: Any) -> session_pb2.ListSessionsResponse:
        await self.token._answerable(context)
        if request.page_token and not request.page_token.isdigit():
            await _abort(context, PageTokenInvalid())
        begin = int(request.page_token or 0)
        found = [each for each in self._live() if (each[0].tenant_id, each[1].subject) == (request.tenant_id, request.subject)]
        more = str(begin + 2) if len(found) > begin + 2 else ""
        return session_pb2.ListSessionsResponse(sessions=[each[1] for each in found[begin : begin + 2]], next_page_token=more)

    async def GetSession(self, request: session_pb2.GetSessionRequest, context: Any) -> session_pb2.GetSessionResponse:
        await self.token._answerable(context)
        asked = (request.tenant_id, request.subject, request.session_id)
        for principal, session in self._live():
            if (principal.tenant_id, principal.subject, principal.session_id) == asked:
                return session_pb2.GetSessionResponse(session=session)
        for session in self.ended:
            if (session.subject, session.session_id) == asked[1:]:
                return session_pb2.GetSessionResponse(session=session)
        await _abort(context, NotFound())
        raise AssertionError

    def _live(self) -> list[tuple[token_pb2.Principal, session_pb2.Session]]:
        """Return sessions with the principal that each is of, latest first."""
        access = [principal for token, principal in self.token.principals.items() if token.startswith("access") and principal.session_id]
        return [
            (principal, session_pb2.Session(session_id=principal.session_id, subject=principal.subject, acr="pwd", scopes=principal.scopes))
            for principal in reversed(access)
        ]


@dataclass
class PermissionStandIn(permission_pb2_grpc.PermissionServiceServicer):
    """Allows everything to administrators, and to others what `powers` says."""

    is_down: bool = False
    administrators: set[str] = field(default_factory=set)
    powers: dict[str, set[str]] = field(default_factory=dict)
    roles: dict[str, list[str]] = field(default_factory=dict)

    async def CheckPermission(self, request: permission_pb2.CheckPermissionRequest, context: Any) -> permission_pb2.CheckPermissionResponse:
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        allowed = request.subject.id in self.administrators or request.permission in self.powers.get(request.subject.id, set())
        return permission_pb2.CheckPermissionResponse(decision=permission_pb2.ALLOW if allowed else permission_pb2.DENY)

    async def CheckAuthority(self, request: permission_pb2.CheckAuthorityRequest, context: Any) -> permission_pb2.CheckAuthorityResponse:
        """Administrators may act upon everybody; others upon those who hold no more than they do."""
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if request.actor.id in self.administrators:
            return permission_pb2.CheckAuthorityResponse(decision=permission_pb2.ALLOW)
        needed = set(request.permissions) | ({"*.*"} if request.target.id in self.administrators else self.powers.get(request.target.id, set()))
        missing = sorted(needed - self.powers.get(request.actor.id, set()))
        decision = permission_pb2.DENY if missing else permission_pb2.ALLOW
        return permission_pb2.CheckAuthorityResponse(decision=decision, missing_permissions=missing[:5])

    async def ListSubjectPermissions(
        self, request: permission_pb2.ListSubjectPermissionsRequest, context: Any
    ) -> permission_pb2.ListSubjectPermissionsResponse:
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        return permission_pb2.ListSubjectPermissionsResponse(role_names=self.roles.get(request.subject.id, ["reader"]))


@dataclass
class BindingStandIn(rbac_pb2_grpc.RoleBindingServiceServicer):
    """Remembers bindings."""

    is_down: bool = False
    bound: dict[str, rbac_pb2.CreateRoleBindingRequest] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[object]] | None = None  # happens once while a subject is deleted

    async def DeleteSubject(self, request: rbac_pb2.DeleteSubjectRequest, context: Any) -> rbac_pb2.DeleteSubjectResponse:
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.deleted.append(request.subject.id)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return rbac_pb2.DeleteSubjectResponse(consistency_token="deleted")

    async def CreateRoleBinding(self, request: rbac_pb2.CreateRoleBindingRequest, context: Any) -> rbac_pb2.CreateRoleBindingResponse:
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if request.subject.id in self.bound and self.bound[request.subject.id].request_id != request.request_id:
            await _abort(context, AlreadyExists())
        self.bound[request.subject.id] = request
        return rbac_pb2.CreateRoleBindingResponse(consistency_token="bound")


async def _abort(context: Any, failure: WatchwordError) -> None:
    await context.abort(status.grpc_code(failure), failure.text, ((status.DETAILS_KEY, status.encode(failure).SerializeToString()),))


@dataclass
class Peers:
    """The stand-ins, and where they listen."""

    token: TokenStandIn
    sessions: SessionStandIn
    permissions: PermissionStandIn
    bindings: BindingStandIn
    address: str


@pytest.fixture(scope="session")
async def peers() -> AsyncIterator[Peers]:
    """Stand-ins for token and rbac on one address, as behind Envoy's internal listener."""
    token = TokenStandIn()  # type: ignore[abstract]  # they stand in for what is used
    sessions = SessionStandIn(token)  # type: ignore[abstract]
    found = Peers(token, sessions, PermissionStandIn(), BindingStandIn(), f"127.0.0.1:{free_port()}")  # type: ignore[abstract]
    server = grpc.aio.server()
    token_pb2_grpc.add_TokenServiceServicer_to_server(found.token, server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(found.sessions, server)
    permission_pb2_grpc.add_PermissionServiceServicer_to_server(found.permissions, server)
    rbac_pb2_grpc.add_RoleBindingServiceServicer_to_server(found.bindings, server)
    server.add_insecure_port(found.address)
    await server.start()
    yield found
    await server.stop(None)


@pytest.fixture(scope="session")
async def settings(stores: Stores, service_keys: Keys, peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> IdentitySettings:
    """Settings of the instances."""
    return load(
        IdentitySettings,
        {
            "DATABASE_URL": await stores.new_database(),
            "DATABASE_POOL_SIZE": "5",
            "DATABASE_MAX_OVERFLOW": "0",
            "REDIS_URL": stores.redis,
            "SECURITY_SALT": SALT,
            "SERVICE_KEY": service_keys.private["identity"],
            "SERVICE_PUBLIC_KEYS": service_keys.public_json,
            "INTERNAL_GRPC_ADDRESS": peers.address,
            "BCRYPT_COST": "10",
            "MAIL_DIR": str(tmp_path_factory.mktemp("mail")),
            "PUBLIC_BASE_URL": "https://auth.test",
            **{f"RATE_LIMIT_{kind}": "100000/60" for kind in ("READ", "WRITE", "CREDENTIAL", "CHECK")},
        },
    )


@pytest.fixture(scope="session")
def clock() -> MovableClock:
    """The instances' clock."""
    return MovableClock()


@dataclass
class Served:
    """An instance: put together, and reachable."""

    identity: Identity
    channel: grpc.aio.Channel


@asynccontextmanager
async def serving_identity(settings: IdentitySettings, clock: Clock) -> AsyncIterator[Served]:
    """Serve identity in this process while inside, without its background work: tests do that by hand.

    Its hashes step back for nobody, and it waits for Redis as long as it takes: tests of deadlines and of exact counts are about identity, and not
    about what else the machine does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "AT_FIRST", dict.fromkeys((False, True), "normal"))
        patch.setattr(Redis, "open", partial(Redis.open, timeout=PATIENCE))
        async with _serving(settings, clock) as served:
            patch.undo()  # who is served later by other tests is served as always
            yield served


@asynccontextmanager
async def _serving(settings: IdentitySettings, clock: Clock) -> AsyncIterator[Served]:
    async with assembled(settings, clock=clock) as identity:
        await identity.database.require_schema()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(identity.edge.handler(*each) for each in identity.servicers))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(identity, channel)
        await server.stop(None)


@dataclass
class Stack:
    """What tests speak with."""

    instances: list[Served]
    peers: Peers
    settings: IdentitySettings
    clock: MovableClock
    _numbers: Any = field(default_factory=lambda: count(1))

    def client(self, *, at: int = 0, token: str = "", address: str = "") -> "Client":
        """Return a client of an instance, by default from an address that nobody else has."""
        number = next(self._numbers)
        return Client(self.instances[at].channel, address or f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", token)

    @property
    def identity(self) -> Identity:
        """The first instance from within."""
        return self.instances[0].identity

    def email(self, name: str = "ada") -> str:
        """Return an address that nobody has."""
        return f"{name}-{secrets.token_hex(6)}@example.com"

    async def account(self, *, email: str = "", **fields: Any) -> Any:
        """Make an account with PASSWORD."""
        request = user_pb2.CreateUserRequest(**{"email": email or self.email(), "password": PASSWORD, "email_verified": True, **fields})
        return await self.admin().ask(user_pb2_grpc.UserServiceStub, "CreateUser", request)

    def admin(self, *, at: int = 0, tenant_id: str = TENANT, subject: str = "") -> "Client":
        """Return a client who may do everything in a tenant."""
        subject = subject or str(uuid4())
        self.peers.permissions.administrators.add(subject)
        return self.client(at=at, token=self.peers.token.grant(subject, tenant_id=tenant_id))

    async def login(self, login: str, password: str = PASSWORD, *, client: "Client | None" = None, **fields: Any) -> Any:
        """Log in."""
        return await (client or self.client()).auth("Login", authentication_pb2.LoginRequest(login=login, password=password, **fields))

    async def session(self, login: str, password: str = PASSWORD) -> "Client":
        """Return a client with a session of its own."""
        return self.client(token=(await self.login(login, password)).tokens.access_token)

    async def sql(self, statement: str, *args: Any) -> list[asyncpg.Record]:
        """Run a statement as superuser."""
        connection = await asyncpg.connect(self.settings.DATABASE_URL.reveal())
        try:
            await connection.execute("SET search_path = identity, suite")
            return await connection.fetch(statement, *args)
        finally:
            await connection.close()

    @asynccontextmanager
    async def locked_account(self, account_id: str) -> AsyncIterator[None]:
        """Keep an account locked while inside, as whoever changes it does."""
        connection = await asyncpg.connect(self.settings.DATABASE_URL.reveal())
        try:
            async with connection.transaction():
                await connection.execute("SELECT 1 FROM identity.account WHERE id = $1 FOR UPDATE", UUID(account_id))
                yield
        finally:
            await connection.close()

    async def failures(self, target: str) -> list[str]:
        """Return why logins to an account failed, oldest first."""
        rows = await self.sql(
            "SELECT details->>'why' AS why FROM suite.audit_event WHERE type = 'login_failed' AND target_id = $1 ORDER BY id", target
        )
        return [row["why"] for row in rows]

    def place(self) -> str:
        """Return an address that nobody has called from."""
        return self.client().address

    async def forget_counters(self) -> None:
        """Lose what Redis knows."""
        redis = self.identity.redis
        for key in await redis.call("KEYS", "identity:attempts:*"):
            await redis.call("DEL", key)

    async def end_pauses(self) -> None:
        """Let every pause be over, with all that was counted kept."""
        redis = self.identity.redis
        for key in await redis.call("KEYS", "identity:attempts:*"):
            if await redis.call("TYPE", key) == "hash":
                await redis.call("HDEL", key, "until")

    def call(self, address: str) -> Call:
        """Return a call as handlers see it."""
        return Call("test", address=address, deadline=time.monotonic() + 20)

    def again(self, client: "Client", at: int) -> "Client":
        """Return the same caller at another instance."""
        return Client(self.instances[at].channel, client.address, client.token)

    @contextmanager
    def revocation_refused(self) -> Iterator[None]:
        """Let token verify but not revoke while inside."""
        self.peers.token.refuses_revocations = True
        yield
        self.peers.token.refuses_revocations = False

    @asynccontextmanager
    async def cheaper(self, passwords: Passwords) -> AsyncIterator[None]:
        """Let both instances hash with `passwords` while inside, where a test needs many hashes and is not about them."""
        provers = [each.identity.prover for each in self.instances]
        kept = [prover._passwords for prover in provers]
        for prover in provers:
            prover._passwords = passwords
        yield
        for prover, old in zip(provers, kept, strict=True):
            prover._passwords = old

    async def mails(self, recipient: str) -> list[str]:
        """Send what is due; return the texts of all mails to an address, oldest first."""
        while await self.identity.mail_room.send_due():
            pass
        return [text for path in self.mail_files() if f"To: {recipient}" in (text := path.read_text())]

    def mail_files(self) -> list[Path]:
        """Return what lies in the mail folder, oldest first."""
        return sorted(Path(self.settings.MAIL_DIR).iterdir(), key=lambda path: path.name)

    async def code(self, recipient: str) -> str:
        """Return the code of the newest mail to an address."""
        return next(line for line in (await self.mails(recipient))[-1].splitlines() if line.startswith("Code: ")).removeprefix("Code: ")


@dataclass
class Client:
    """Somebody who calls identity."""

    channel: grpc.aio.Channel
    address: str
    token: str = ""

    async def ask(self, stub: Callable[..., Any], method: str, request: Any, *, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        """Return the answer, or raise the failure as its class."""
        try:
            return await getattr(stub(self.channel), method)(request, metadata=(*self._metadata(), *metadata), timeout=MAX_DEADLINE)
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from error

    async def auth(self, method: str, request: Any) -> Any:
        return await self.ask(authentication_pb2_grpc.AuthenticationServiceStub, method, request)

    async def users(self, method: str, request: Any) -> Any:
        return await self.ask(user_pb2_grpc.UserServiceStub, method, request)

    async def clients(self, method: str, request: Any) -> Any:
        return await self.ask(oauth_pb2_grpc.OAuthClientServiceStub, method, request)

    async def audit(self, request: Any) -> Any:
        return await self.ask(audit_pb2_grpc.AuditServiceStub, "ListAuditEvents", request)

    async def tenants(self, method: str, request: Any) -> Any:
        return await self.ask(tenant_pb2_grpc.TenantServiceStub, method, request)

    async def reply(self, method: str, request: Any) -> tuple[Any, ...]:
        """Return all of a failing answer that a caller can see, with a request id that is always the same."""
        stub: Any = authentication_pb2_grpc.AuthenticationServiceStub(self.channel)
        try:
            await getattr(stub, method)(request, metadata=(*self._metadata(), ("x-request-id", REQUEST_ID)), timeout=20)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details(), sorted(error.trailing_metadata() or ()), sorted(error.initial_metadata() or ())
        raise AssertionError("it should have failed")

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-forwarded-for", self.address), *((("authorization", f"Bearer {self.token}"),) if self.token else ()))


@pytest.fixture(scope="session")
async def stack(settings: IdentitySettings, peers: Peers, clock: MovableClock) -> AsyncIterator[Stack]:
    """Two instances."""
    async with AsyncExitStack() as open_:
        instances = [await open_.enter_async_context(serving_identity(settings, clock)) for _ in range(2)]
        yield Stack(instances, peers, settings, clock)


@pytest.fixture(autouse=True)
async def _healthy(peers: Peers, clock: MovableClock) -> AsyncIterator[None]:
    """Every test begins with peers that answer and a clock that is right."""
    yield
    peers.token.is_down = peers.permissions.is_down = peers.bindings.is_down = False
    clock.ahead = timedelta()


async def gather(*awaitables: Any) -> list[Any]:
    """Return the answers or failures of calls that run at once."""
    return await asyncio.gather(*awaitables, return_exceptions=True)
