"""Callers proved by token: from memory if token said so before and cannot have changed its mind, else by asking it, one VerifyToken a call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from uuid import UUID

from services.chassis.call import Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.guest import guest_of
from services.chassis.known_callers import KnownCallers
from services.chassis.peers import Peer
from services.chassis.postgres import Database
from services.chassis.settings import ChassisSettings
from services.chassis.tenancy import TenantId
from watchword.errors import TokenInvalid
from watchword.token.v1 import token_pb2, token_pb2_grpc
from watchword.tokens import MAX_TOKEN_BYTES


class TokenAuthenticator:
    """Says who a bearer token speaks for. A token that was revoked a moment ago is refused now, remembered or not.

    known  whom it remembers; None if it asks each time
    asked  how often token was asked
    """

    def __init__(self, stub: "token_pb2_grpc.TokenServiceAsyncStub", peer: Peer, known: KnownCallers | None = None) -> None:
        self._stub = stub
        self._peer = peer
        self.known = known
        self.asked = 0

    def recall(self, token: str) -> Caller | None:
        """Return whom `token` speaks for, without waiting; None if that cannot be told so."""
        return None if self.known is None else self.known.recall(token)

    async def authenticate(self, token: str) -> Caller:
        """Return whom `token` speaks for. Raises TokenInvalid, DependencyUnavailable."""
        return self.recall(token) or await self._ask(token)

    async def _ask(self, token: str) -> Caller:
        if len(token) > MAX_TOKEN_BYTES:  # token would say that the question is malformed, which is not what was asked here
            raise TokenInvalid
        self.asked += 1
        asked = None if self.known is None else self.known.ask()
        answer: token_pb2.VerifyTokenResponse = await self._peer.ask(self._stub.VerifyToken, token_pb2.VerifyTokenRequest(token=token))
        if answer.status != token_pb2.VALID:
            raise TokenInvalid
        caller = _caller(token, answer)
        if self.known is not None:
            client_id = answer.principal.client_id
            self.known.keep(asked, caller, client_id=UUID(client_id) if client_id else None)
        return caller


def _caller(token: str, answer: token_pb2.VerifyTokenResponse) -> Caller:
    principal = answer.principal
    return Caller(
        kind=CallerKind.CLIENT if principal.type == token_pb2.PRINCIPAL_TYPE_CLIENT else CallerKind.USER,
        id=principal.subject,
        tenant_id=TenantId(UUID(principal.tenant_id)),
        scopes=frozenset(principal.scopes),
        roles=tuple(principal.roles),
        session_id=UUID(principal.session_id) if principal.session_id else None,
        token_id=answer.token_id,
        token=token,
        expire_time=answer.expire_time.ToDatetime(UTC) if answer.HasField("expire_time") else None,
        is_acted_for=principal.HasField("actor"),
    )


@asynccontextmanager
async def known_callers(
    settings: ChassisSettings, database: Database, stub: "token_pb2_grpc.TokenServiceAsyncStub", peer: Peer, *, clock: Clock | None = None
) -> AsyncIterator[TokenAuthenticator]:
    """Prove callers while inside, and be a guest of token's so that those who were proved once need not be asked about again."""
    if settings.CALLER_MEMORY == 0:
        yield TokenAuthenticator(stub, peer)
        return
    known = KnownCallers(settings.CALLER_MEMORY, clock or Clock())
    async with guest_of("token", settings, database, known) as guest:
        known.trust(guest)
        yield TokenAuthenticator(stub, peer, known)
