"""How identity is put together: read from top to bottom, each thing stands on those above it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from services.chassis import gauges, telemetry
from services.chassis.access import Gate, rules_of
from services.chassis.callers import TokenAuthenticator, known_callers
from services.chassis.clock import Clock
from services.chassis.edge import Edge
from services.chassis.limits import Limits
from services.chassis.pages import Pager
from services.chassis.peers import Peer, channel
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.sealing import Sealer, derive
from services.chassis.server import serve
from services.chassis.service_identity import ServiceIdentity
from services.chassis.settings import load
from services.chassis.skew import compared
from services.identity import metrics
from services.identity.attempts import Attempts
from services.identity.audit_log import AuditLog
from services.identity.audit_seals import SEAL_EVERY, AuditSeals
from services.identity.clients import Clients
from services.identity.hashing import HashPool
from services.identity.login import Logins
from services.identity.mail import Carrier, MailFiles, MailRoom, MailServer
from services.identity.oauth import OAuth
from services.identity.oauth_servicer import OAuthClientServicer, OAuthServicer
from services.identity.passwords import Passwords, Strength
from services.identity.peers import RbacPeer, SessionPeer, TokenPeer
from services.identity.proof import Prover
from services.identity.registration import Registrations
from services.identity.relay import LOOK_EVERY, Work, relayed
from services.identity.servicer import AuditServicer, AuthenticationServicer, TenantServicer, UserServicer
from services.identity.sessions import Sessions
from services.identity.settings import IdentitySettings
from services.identity.store.accounts import AccountStore
from services.identity.store.attempts import AttemptStore
from services.identity.store.audit import AuditStore
from services.identity.store.audit_seals import AuditSealStore
from services.identity.store.clients import ClientStore
from services.identity.store.outbox import MailStore, TaskStore
from services.identity.store.tenants import TenantStore
from services.identity.tasks import Tasks
from services.identity.tenants import Tenants
from services.identity.user_sessions import UserSessions
from services.identity.users import Users
from watchword.identity.v1 import audit_pb2, authentication_pb2, oauth_pb2, tenant_pb2, user_pb2
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, policy_pb2, rbac_pb2, rbac_pb2_grpc
from watchword.token.v1 import key_pb2, session_pb2, session_pb2_grpc, token_pb2, token_pb2_grpc

SWEEP_EVERY = 300.0  # seconds between looks for what has expired
OF_PEOPLE = frozenset({"account"})  # scopes that no client can have


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity, put together."""

    edge: Edge
    servicers: Sequence[tuple[ServiceDescriptor, object]]
    database: Database
    accounts: AccountStore
    task_store: TaskStore
    tenants: Tenants
    tasks: Tasks
    mail_room: MailRoom
    pool: HashPool
    clock: Clock
    redis: Redis
    passwords: Passwords
    clients: Clients
    attempts_store: AttemptStore
    prover: Prover
    audit_seals: AuditSeals
    authenticator: TokenAuthenticator

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Send mail, do tasks, seal the audit log and delete what has expired while inside."""
        works: list[tuple[str, float, Work]] = [
            ("mail", LOOK_EVERY, self.mail_room.send_due),
            ("tasks", LOOK_EVERY, self.tasks.do_due),
            ("audit", SEAL_EVERY, self.audit_seals.seal_due),
            ("requests", SWEEP_EVERY, self.database.forget_requests),
            ("done_tasks", SWEEP_EVERY, self.task_store.sweep),
            ("codes", SWEEP_EVERY, self.accounts.sweep_codes),
        ]
        async with relayed(works):
            yield


async def main() -> None:
    """Run identity until it is told to stop."""
    settings = load(IdentitySettings)
    telemetry.configure(settings, "identity")
    async with assembled(settings) as identity:
        await identity.database.require_schema()
        async with identity.at_work(), compared(identity.database, identity.clock) as skew:

            async def probe() -> None:
                skew.require()
                await identity.database.ping()

            told = metrics.told(identity.edge.meters, identity.pool)
            stores = (gauges.database(identity.database), gauges.redis(identity.redis))
            own = (*stores, gauges.clock(skew), gauges.callers(identity.authenticator), told)
            await serve(settings, identity.edge, identity.servicers, redis=identity.redis, probe=probe, metrics=own)


@asynccontextmanager
async def assembled(settings: IdentitySettings, *, clock: Clock | None = None) -> AsyncIterator[Identity]:
    """Put identity together for as long as the caller is inside."""
    clock = clock or Clock()
    salt = settings.SECURITY_SALT.reveal()
    own = ServiceIdentity.load("identity", settings.SERVICE_KEY.reveal(), settings.SERVICE_PUBLIC_KEYS)
    async with (
        Database.open(settings, "identity") as database,
        Redis.open(settings) as redis,
        channel(settings) as wire,
        HashPool.open(workers=settings.HASH_WORKERS) as pool,
        known_callers(settings, database, token_pb2_grpc.TokenServiceStub(wire), Peer("token", own), clock=clock) as authenticator,
    ):
        accounts, tenant_store, clients_store = AccountStore(database), TenantStore(database), ClientStore(database)
        mail, task_store = MailStore(database, Sealer(derive(salt, "mail"))), TaskStore(database)
        attempts_store = AttemptStore(redis)
        attempts = Attempts(attempts_store, derive(salt, "attempts"), count_addresses=settings.AUTH_RATE_LIMIT_ENABLED)
        pager = Pager(derive(salt, "pages"))

        token_stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(wire)
        session_stub: session_pb2_grpc.SessionServiceAsyncStub = session_pb2_grpc.SessionServiceStub(wire)
        permission_stub: permission_pb2_grpc.PermissionServiceAsyncStub = permission_pb2_grpc.PermissionServiceStub(wire)
        binding_stub: rbac_pb2_grpc.RoleBindingServiceAsyncStub = rbac_pb2_grpc.RoleBindingServiceStub(wire)
        token = TokenPeer(token_stub, Peer("token", own))
        rbac = RbacPeer(permission_stub, binding_stub, Peer("rbac", own))
        tasks = Tasks(task_store, revoke=token.revoke, bind=rbac.bind)

        # It hashes its dummy: so the pool knows from the beginning how long a hash takes here.
        kept_so = partial(Passwords, derive(salt, "pepper"), scheme=settings.PASSWORD_HASH, cost=settings.BCRYPT_COST)
        passwords = await pool.run(kept_so, remaining=60)
        prover = Prover(
            database=database,
            accounts=accounts,
            attempts=attempts,
            passwords=passwords,
            strength=Strength(settings.PASSWORD_MIN_LENGTH),
            pool=pool,
            clock=clock,
        )
        mail_room = MailRoom(
            database=database,
            orders=mail,
            accounts=accounts,
            attempts=attempts,
            carrier=_carrier(settings),
            clock=clock,
            sender=settings.SMTP_FROM,
            base_url=settings.PUBLIC_BASE_URL,
            service_name=settings.APP_NAME,
        )
        logins = Logins(
            database=database,
            accounts=accounts,
            tenants=tenant_store,
            prover=prover,
            token=token,
            rbac=rbac,
            clock=clock,
            require_verified_email=settings.REQUIRE_EMAIL_VERIFICATION,
        )
        registrations = Registrations(
            database=database,
            accounts=accounts,
            tenants=tenant_store,
            mail=mail,
            task_store=task_store,
            tasks=tasks,
            attempts=attempts,
            prover=prover,
            clock=clock,
        )
        sessions = Sessions(
            database=database, accounts=accounts, task_store=task_store, tasks=tasks, prover=prover, token=token, rbac=rbac, clock=clock
        )
        users = Users(
            database=database,
            accounts=accounts,
            mail=mail,
            task_store=task_store,
            tasks=tasks,
            attempts=attempts,
            prover=prover,
            rbac=rbac,
            pager=pager,
            clock=clock,
        )
        user_sessions = UserSessions(
            database=database, users=users, task_store=task_store, tasks=tasks, sessions=SessionPeer(session_stub, Peer("token", own))
        )
        clients = Clients(
            database=database,
            store=clients_store,
            task_store=task_store,
            tasks=tasks,
            attempts=attempts,
            rbac=rbac,
            pager=pager,
            clock=clock,
            key=derive(salt, "client-secrets"),
            known_scopes=client_scopes(),
        )
        oauth = OAuth(database=database, clients=clients, accounts=accounts, token=token, rbac=rbac, clock=clock)
        tenants = Tenants(
            database=database,
            store=tenant_store,
            accounts=accounts,
            task_store=task_store,
            tasks=tasks,
            prover=prover,
            rbac=rbac,
            pager=pager,
            clock=clock,
        )
        audit_seals = AuditSeals(AuditSealStore(database), derive(salt, "audit"), clock)
        servicers = [
            (
                _service(authentication_pb2, "AuthenticationService"),
                AuthenticationServicer(logins=logins, registrations=registrations, sessions=sessions, clock=clock),
            ),
            (_service(user_pb2, "UserService"), UserServicer(users, user_sessions, clock)),
            (_service(oauth_pb2, "OAuthClientService"), OAuthClientServicer(clients)),
            (_service(oauth_pb2, "OAuthService"), OAuthServicer(oauth)),
            (_service(audit_pb2, "AuditService"), AuditServicer(AuditLog(AuditStore(database), pager), audit_seals)),
            (_service(tenant_pb2, "TenantService"), TenantServicer(tenants)),
        ]
        edge = Edge(Gate(own, authenticator, rbac), Limits.of(settings, redis), note=database.note)
        yield Identity(
            edge,
            servicers,
            database,
            accounts,
            task_store,
            tenants,
            tasks,
            mail_room,
            pool,
            clock,
            redis,
            passwords,
            clients,
            attempts_store,
            prover,
            audit_seals,
            authenticator,
        )


def client_scopes() -> frozenset[str]:
    """Return every scope that a client can have: the scopes and permissions that the suite's RPCs ask for."""
    files = (audit_pb2, key_pb2, oauth_pb2, permission_pb2, policy_pb2, rbac_pb2, session_pb2, tenant_pb2, token_pb2, user_pb2)
    rules = [rule for file in files for service in file.DESCRIPTOR.services_by_name.values() for rule in rules_of(service).values()]
    return frozenset(name for rule in rules for name in (rule.scope, rule.permission) if name) - OF_PEOPLE


def _service(file: object, name: str) -> ServiceDescriptor:
    found: ServiceDescriptor = file.DESCRIPTOR.services_by_name[name]  # type: ignore[attr-defined]  # every generated module has one
    return found


def _carrier(settings: IdentitySettings) -> Carrier:
    if not settings.SMTP_HOST:
        return MailFiles(Path(settings.MAIL_DIR))
    return MailServer(
        settings.SMTP_HOST,
        settings.SMTP_PORT,
        settings.SMTP_TLS,
        settings.SMTP_USERNAME or None,
        settings.SMTP_PASSWORD.reveal() or None,
    )
