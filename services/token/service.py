"""How token is put together: read from top to bottom, each thing stands on those above it."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from google.protobuf.descriptor import ServiceDescriptor

from services.chassis import gauges, telemetry
from services.chassis.access import Gate
from services.chassis.call import Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.coherent import coherent
from services.chassis.consistency import ConsistencyTokens
from services.chassis.edge import Edge
from services.chassis.limits import Limits
from services.chassis.pages import Pager
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.sealing import derive
from services.chassis.server import serve
from services.chassis.service_identity import ServiceIdentity
from services.chassis.settings import load
from services.chassis.skew import Skew, compared
from services.chassis.tenancy import TenantId
from services.chassis.tending import tended
from services.token import metrics
from services.token.exchange import Exchange
from services.token.feed import Feed
from services.token.issuer import Issuer
from services.token.joint_signing import JointSigning
from services.token.key_environment import key_pair_of, policy_of, vault_of
from services.token.key_servicer import KeyServicer
from services.token.keys import KeyRing
from services.token.replica import TokenReplica
from services.token.revocations import Revocations
from services.token.revoked import SHARDS, Revoked
from services.token.revoker import Revoker
from services.token.rotation import Rotation
from services.token.servicer import TokenServicer
from services.token.session_servicer import SessionServicer
from services.token.sessions import Sessions
from services.token.settings import TokenSettings
from services.token.store.keys import KeyStore
from services.token.store.revocations import RevocationStore
from services.token.store.sessions import SessionStore
from services.token.verifier import Answer, Question, Verdict, Verifier
from services.token.watch_servicer import Watch
from watchword.errors import TokenInvalid
from watchword.token.v1 import key_pb2, session_pb2, token_pb2
from watchword.tokens import Claims, SubjectKind

MAX_MESSAGE = 1024 * 1024  # bytes: a batch of 100 tokens of 8 KiB
TEND_EVERY = 5.0  # seconds between looks for what has expired
REMEMBERED = 10_000  # callers
SWEEPS = 16  # tendings in which all of memory is swept once


class OwnAuthenticator:
    """Token verifies its callers by itself, each time; what it makes of the same valid claims is remembered."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._callers: dict[str, tuple[Claims, Caller]] = {}

    async def authenticate(self, token: str) -> Caller:
        """Return whom `token` speaks for. Raises TokenInvalid."""
        return self._caller(await self._verifier.verify(Question(token)), token)

    def recall(self, token: str) -> Caller | None:
        """Return whom `token` speaks for, without waiting; None if that cannot be told so. Raises TokenInvalid."""
        answer = self._verifier.recall(Question(token))
        return None if answer is None else self._caller(answer, token)

    def _caller(self, answer: Answer, token: str) -> Caller:
        claims = answer.claims
        if answer.verdict is not Verdict.VALID or claims is None:
            raise TokenInvalid
        known = self._callers.get(token)
        if known is not None and known[0] is claims:
            return known[1]
        if len(self._callers) >= REMEMBERED:
            self._callers.clear()
        caller = _caller_of(claims, token)
        self._callers[token] = (claims, caller)
        return caller


def _caller_of(claims: Claims, token: str) -> Caller:
    return Caller(
        kind=CallerKind.CLIENT if claims.kind is SubjectKind.CLIENT else CallerKind.USER,
        id=claims.sub,
        tenant_id=TenantId(claims.tenant_id),
        scopes=frozenset(claims.scope),
        roles=claims.roles,
        session_id=None if claims.sid is None else UUID(claims.sid),
        token_id=claims.jti,
        token=token,
        is_acted_for=bool(claims.actors),
    )


async def main() -> None:
    """Run token until it is told to stop."""
    settings = load(TokenSettings)
    telemetry.configure(settings, "token")
    identity = ServiceIdentity.load("token", settings.SERVICE_KEY.reveal(), settings.SERVICE_PUBLIC_KEYS)
    salt, clock = settings.SECURITY_SALT.reveal(), Clock()
    async with Database.open(settings, "token") as database, Redis.open(settings) as redis, AsyncExitStack() as stack:
        await database.require_schema()
        skew = await stack.enter_async_context(compared(database, clock))
        vault, keys, revocations, sessions = vault_of(settings), KeyStore(database), RevocationStore(database), SessionStore(database)
        ring, memory = KeyRing(keys, vault), Revoked()
        rotation, feed = Rotation(keys, ring, vault, policy_of(settings)), Feed(memory)
        replica = TokenReplica(revocations, memory, ring)
        async with coherent(settings, database, replica, holds=lambda: ring.holds(feed.reports)) as coherence:
            feed.follow(coherence)
            ring.trust(coherence)
            await rotation.begin(key_pair_of(settings))
            verifier = Verifier(ring, Revocations(revocations, memory, coherence), clock, issuer=settings.issuer, audience=settings.TOKEN_AUDIENCE)
            authenticator = OwnAuthenticator(verifier)
            edge = Edge(Gate(identity, authenticator, None), Limits.of(settings, redis), note=database.note)
            stores, watch = Stores(revocations, sessions), Watch(feed, ring, authenticator)
            signing = JointSigning.begin(is_wanted=settings.SIGN_TOGETHER)
            servicers = assemble(
                settings, salt, clock, skew, stores=stores, verifier=verifier, ring=ring, rotation=rotation, signing=signing, watch=watch
            )

            async def probe() -> None:
                """Raise while this instance could not say whether a token is revoked, or expired."""
                skew.require()
                await coherence.require(database.ping)

            async def forget() -> None:
                """Forget in memory what has expired, by the earlier of two clocks, for one that was fast may be set back."""
                memory.sweep(await skew.measure(), SHARDS // SWEEPS)

            works = [("memory", forget), ("revocations", revocations.sweep), ("sessions", sessions.sweep), ("requests", database.forget_requests)]
            async with rotation.running(), tended(works, every=TEND_EVERY):
                own = (
                    gauges.database(database),
                    gauges.redis(redis),
                    gauges.clock(skew),
                    gauges.lease(coherence),
                    metrics.told(edge.meters, memory, feed, ring, signing),
                )
                await serve(settings, edge, servicers, redis=redis, probe=probe, metrics=own, max_message_bytes=MAX_MESSAGE)


@dataclass(frozen=True, slots=True)
class Stores:
    """Where revocations and sessions are kept."""

    revocations: RevocationStore
    sessions: SessionStore


def assemble(
    settings: TokenSettings,
    salt: str,
    clock: Clock,
    skew: Skew,
    *,
    stores: Stores,
    verifier: Verifier,
    ring: KeyRing,
    rotation: Rotation,
    signing: JointSigning,
    watch: Watch,
) -> list[tuple[ServiceDescriptor, object]]:
    """Put the domain between the stores and the edge."""
    issuer = Issuer(ring, skew, issuer=settings.issuer, audience=settings.TOKEN_AUDIENCE, ttl=timedelta(seconds=settings.ACCESS_TOKEN_TTL))
    idle_ttl = timedelta(seconds=settings.REFRESH_TOKEN_IDLE_TTL)
    sessions = Sessions(stores.sessions, issuer, clock, ttl=timedelta(seconds=settings.REFRESH_TOKEN_TTL), idle_ttl=idle_ttl)
    revoker = Revoker(stores.revocations, stores.sessions, verifier, clock)
    consistency = ConsistencyTokens(derive(salt, "consistency"))
    tokens = TokenServicer(
        sessions=sessions,
        signing=signing,
        verifier=verifier,
        revoker=revoker,
        store=stores.sessions,
        exchange=Exchange(stores.sessions, verifier, issuer, clock),
        watch=watch,
        consistency=consistency,
        clock=clock,
    )
    return [
        (token_pb2.DESCRIPTOR.services_by_name["TokenService"], tokens),
        (
            session_pb2.DESCRIPTOR.services_by_name["SessionService"],
            SessionServicer(sessions=sessions, revoker=revoker, pager=Pager(derive(salt, "pages")), consistency=consistency),
        ),
        (key_pb2.DESCRIPTOR.services_by_name["KeyService"], KeyServicer(ring, rotation, max_age=settings.JWKS_MAX_AGE)),
    ]
