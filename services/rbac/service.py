"""How rbac is put together: read from top to bottom, each thing stands on those above it."""

from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from services.chassis import gauges, telemetry
from services.chassis.access import Authenticator, Gate
from services.chassis.callers import known_callers
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
from services.chassis.settings import load
from services.chassis.skew import compared
from services.chassis.tending import tended
from services.rbac import metrics
from services.rbac.authority import OwnDecider
from services.rbac.authzen_servicer import AuthZenServicer
from services.rbac.binding_servicer import RoleBindingServicer
from services.rbac.bindings import Bindings
from services.rbac.checker import Checker, Lease
from services.rbac.conditions import Conditions
from services.rbac.decisions import Judge
from services.rbac.explain_servicer import ExplainServicer
from services.rbac.explainer import Explainer
from services.rbac.group_servicer import GroupServicer
from services.rbac.groups import Groups
from services.rbac.import_servicer import ImportServicer
from services.rbac.importing import Imports
from services.rbac.levels import Levels
from services.rbac.lookup_servicer import LookupServicer
from services.rbac.lookups import Lookups
from services.rbac.memory import PART_BYTES, Memory
from services.rbac.permission_servicer import PermissionServicer
from services.rbac.policy import Policy
from services.rbac.policy_servicer import PolicyServicer
from services.rbac.prompt_servicer import QUESTION_BYTES, PromptChecks
from services.rbac.resource_servicer import ResourceServicer
from services.rbac.resources import Resources
from services.rbac.revisions import Revisions
from services.rbac.role_servicer import RoleServicer
from services.rbac.roles import Roles
from services.rbac.settings import RbacSettings
from services.rbac.store.finding import FindStore
from services.rbac.store.listing import RbacStore
from services.rbac.store.naming import NameStore
from services.rbac.store.watching import ChangeStore
from services.rbac.watch import Watching
from services.rbac.watch_servicer import WatchServicer
from watchword.rbac.v1 import authzen_pb2, permission_pb2, policy_pb2, rbac_pb2
from watchword.token.v1 import token_pb2_grpc

MAX_MESSAGE = 1024 * 1024  # bytes: a batch of 1000 questions of the longest names
TEND_EVERY = 300.0  # seconds between looks for what has expired


@dataclass(frozen=True, slots=True)
class Assembly:
    """What is served: the edge, and a servicer for each service; and what those share who watch."""

    edge: Edge
    servicers: list[tuple[ServiceDescriptor, object]]
    watching: Watching
    watchers: WatchServicer


@dataclass(frozen=True, slots=True)
class Engine:
    """What decides: the stores, what is remembered of them, and what is heard of changes."""

    database: Database
    store: RbacStore
    revisions: Revisions
    lease: Lease
    checker: Checker
    judge: Judge
    conditions: Conditions
    levels: Levels
    clock: Clock
    questions: int  # remembered at most


def engine(settings: RbacSettings, database: Database, memory: Memory, revisions: Revisions, *, lease: Lease, clock: Clock) -> Engine:
    """Put together what decides."""
    conditions, levels, store = Conditions(), settings.levels, RbacStore(database)
    judge = Judge(conditions, levels)
    checker = Checker(store, memory, revisions, lease, clock=clock, judge=judge)
    return Engine(database, store, revisions, lease, checker, judge, conditions, levels, clock, settings.question_bytes // QUESTION_BYTES)


def assemble(salt: str, decides: Engine, *, identity: ServiceIdentity, limits: Limits, authenticator: Authenticator) -> Assembly:
    """Put the domain between the store and the edge."""
    store, checker, clock = decides.store, decides.checker, decides.clock
    consistency, pager = ConsistencyTokens(derive(salt, "consistency")), Pager(derive(salt, "pages"))
    policy, decider = Policy(store), OwnDecider(checker)
    roles = RoleServicer(Roles(store, clock), policy, consistency, pager)
    bindings = RoleBindingServicer(Bindings(store, clock, decides.conditions, decides.levels), policy, consistency, pager)
    groups = GroupServicer(Groups(store, clock), policy, consistency, pager)
    resources = ResourceServicer(Resources(store), policy, consistency, pager)
    importing = ImportServicer(Imports(store, clock), authenticator, decider, consistency)
    policies = PolicyServicer(policy, decider, consistency, roles=roles, bindings=bindings, groups=groups, resources=resources, importing=importing)
    watching = Watching(ChangeStore(decides.database), decides.revisions, decides.lease)
    watchers = WatchServicer(watching, consistency, authenticator, decider)
    permissions = PermissionServicer(
        checker,
        consistency,
        pager,
        explaining=ExplainServicer(Explainer(store, NameStore(decides.database), decides.judge, clock), consistency),
        lookups=LookupServicer(Lookups(FindStore(decides.database), checker), consistency, pager),
        watching=watchers,
        prompt=PromptChecks(checker, consistency, most=decides.questions),
    )
    rbac, permission, changes, authzen = rbac_pb2.DESCRIPTOR, permission_pb2.DESCRIPTOR, policy_pb2.DESCRIPTOR, authzen_pb2.DESCRIPTOR
    servicers: list[tuple[ServiceDescriptor, object]] = [
        (rbac.services_by_name["RoleService"], roles),
        (rbac.services_by_name["RoleBindingService"], bindings),
        (rbac.services_by_name["GroupService"], groups),
        (rbac.services_by_name["ResourceService"], resources),
        (permission.services_by_name["PermissionService"], permissions),
        (changes.services_by_name["PolicyService"], policies),
        (authzen.services_by_name["AuthZenService"], AuthZenServicer(checker)),
    ]
    return Assembly(Edge(Gate(identity, authenticator, decider), limits, note=store.note), servicers, watching, watchers)


async def main() -> None:
    """Run rbac until it is told to stop."""
    settings = load(RbacSettings)
    telemetry.configure(settings, "rbac")
    identity = ServiceIdentity.load("rbac", settings.SERVICE_KEY.reveal(), settings.SERVICE_PUBLIC_KEYS)
    salt = settings.SECURITY_SALT.reveal()
    async with Database.open(settings, "rbac") as database, Redis.open(settings) as redis, channel(settings) as internal:
        await database.require_schema()
        memory = Memory(settings.policy_bytes // PART_BYTES)
        revisions, stub, clock = Revisions(memory), token_pb2_grpc.TokenServiceStub(internal), Clock()
        async with (
            known_callers(settings, database, stub, Peer("token", identity)) as authenticator,
            coherent(settings, database, revisions) as coherence,
            compared(database, clock) as skew,
        ):
            decides = engine(settings, database, memory, revisions, lease=coherence, clock=clock)
            assembly = assemble(salt, decides, identity=identity, limits=Limits.of(settings, redis), authenticator=authenticator)

            async def probe() -> None:
                skew.require()
                await coherence.require(decides.store.ping)

            store = decides.store
            works = [("requests", database.forget_requests), ("changes", store.forget_changes), ("bindings", store.forget_bindings)]
            async with tended(works, every=TEND_EVERY):
                told = metrics.told(decides.checker, memory, lambda: assembly.watchers.watchers)
                stores = (gauges.database(database), gauges.redis(redis))
                own = (*stores, gauges.clock(skew), gauges.lease(coherence), gauges.callers(authenticator), told)
                await serve(settings, assembly.edge, assembly.servicers, redis=redis, probe=probe, metrics=own, max_message_bytes=MAX_MESSAGE)
