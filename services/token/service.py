"""How token is put together: read from top to bottom, each thing stands on those above it."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from services.chassis import telemetry
from services.chassis.access import Gate
from services.chassis.call import Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.consistency import ConsistencyTokens
from services.chassis.edge import Edge
from services.chassis.limits import Limits
from services.chassis.postgres import Database
from services.chassis.redis import Redis
from services.chassis.sealing import Sealer, derive
from services.chassis.server import serve
from services.chassis.service_identity import ServiceIdentity
from services.chassis.settings import SettingsError, load
from services.chassis.tenancy import TenantId
from services.token import keys as keys_module
from services.token.claims import SubjectKind
from services.token.issuer import Issuer
from services.token.keys import KeyPair, KeyRing
from services.token.revocations import Revocations
from services.token.revoker import Revoker
from services.token.servicer import KeyServicer, TokenServicer
from services.token.sessions import Sessions
from services.token.settings import TokenSettings
from services.token.store import TokenStore
from services.token.verifier import Question, Verdict, Verifier
from watchword.errors import TokenInvalid, WatchwordError
from watchword.token.v1 import key_pb2, token_pb2

MAX_MESSAGE = 1024 * 1024  # bytes: a batch of 100 tokens of 8 KiB
TEND_EVERY = 5.0  # seconds between looks at the ring and for what has expired

log = structlog.get_logger()


class OwnAuthenticator:
    """Token verifies its callers by itself."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    async def authenticate(self, token: str) -> Caller:
        """Return whom `token` speaks for. Raises TokenInvalid."""
        answer = await self._verifier.verify(Question(token))
        if answer.verdict is not Verdict.VALID or answer.claims is None:
            raise TokenInvalid
        claims = answer.claims
        return Caller(
            kind=CallerKind.CLIENT if claims.kind is SubjectKind.CLIENT else CallerKind.USER,
            id=str(claims.sub),
            tenant_id=TenantId(claims.tenant_id),
            scopes=frozenset(claims.scope),
            roles=claims.roles,
            session_id=claims.sid,
            token_id=str(claims.jti),
            token=token,
        )


async def main() -> None:
    """Run token until it is told to stop."""
    settings = load(TokenSettings)
    telemetry.configure(settings, "token")
    identity = ServiceIdentity.load("token", settings.SERVICE_KEY.get_secret_value(), settings.SERVICE_PUBLIC_KEYS)
    salt, clock = settings.SECURITY_SALT.get_secret_value(), Clock()
    async with Database.open(settings, "token") as database, Redis.open(settings) as redis:
        await database.require_schema()
        store = TokenStore(database)
        ring = KeyRing(store, Sealer(_key_encryption_key(settings)), clock)
        await ring.ensure(_environment_key(settings), settings.JWT_ALGORITHM)
        issuer = Issuer(ring, issuer=settings.issuer, audience=settings.TOKEN_AUDIENCE, ttl=timedelta(seconds=settings.ACCESS_TOKEN_TTL))
        verifier = Verifier(ring, Revocations(store), clock, issuer=settings.issuer, audience=settings.TOKEN_AUDIENCE)
        sessions = Sessions(
            store,
            issuer,
            clock,
            ttl=timedelta(seconds=settings.REFRESH_TOKEN_TTL),
            idle_ttl=timedelta(seconds=settings.REFRESH_TOKEN_IDLE_TTL),
        )
        servicer = TokenServicer(
            sessions=sessions,
            verifier=verifier,
            revoker=Revoker(store, verifier, clock),
            store=store,
            consistency=ConsistencyTokens(derive(salt, "consistency")),
            clock=clock,
        )
        edge = Edge(Gate(identity, OwnAuthenticator(verifier), None), Limits.of(settings, redis), note=database.note)
        services = [
            (token_pb2.DESCRIPTOR.services_by_name["TokenService"], servicer),
            (key_pb2.DESCRIPTOR.services_by_name["KeyService"], KeyServicer(ring)),
        ]
        async with _tended(store, ring, clock):
            await serve(settings, edge, services, probe=store.ping, max_message_bytes=MAX_MESSAGE)


@asynccontextmanager
async def _tended(store: TokenStore, ring: KeyRing, clock: Clock) -> AsyncIterator[None]:
    """Keep the ring true to the store, and delete what has expired, while inside."""

    async def tend() -> None:
        while True:
            await asyncio.sleep(TEND_EVERY)
            try:
                await ring.load()
                await store.sweep(clock.now())
            except WatchwordError as error:
                log.warning("tending_failed", reason=error.reason)
            except Exception:  # a defect must not end the tending: a retired key would go on verifying
                log.exception("tending_failed")

    task = asyncio.create_task(tend(), name="tend")
    try:
        yield
    finally:
        task.cancel()


def _environment_key(settings: TokenSettings) -> KeyPair | None:
    private = settings.JWT_PRIVATE_KEY.get_secret_value()
    if not private:
        return None
    return keys_module.read(private, settings.JWT_PUBLIC_KEY, algorithm=settings.JWT_ALGORITHM, kid=settings.JWT_KEY_ID)


def _key_encryption_key(settings: TokenSettings) -> bytes:
    """KEY_ENCRYPTION_KEY is 32 bytes in base64; without it, one is derived from SECURITY_SALT."""
    given = settings.KEY_ENCRYPTION_KEY.get_secret_value()
    if not given:
        return derive(settings.SECURITY_SALT.get_secret_value(), "signing-keys")
    try:
        key = base64.b64decode(given, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32 or len(set(key)) < 10:
        raise SettingsError(["KEY_ENCRYPTION_KEY must be 32 random bytes in base64, such as from: openssl rand -base64 32"])
    return key
