"""Callers proved by asking token: one VerifyToken a call, so that a token revoked a moment ago is refused now."""

from datetime import UTC
from uuid import UUID

from services.chassis.call import Caller, CallerKind
from services.chassis.peers import Peer
from services.chassis.tenancy import TenantId
from watchword.errors import TokenInvalid
from watchword.token.v1 import token_pb2, token_pb2_grpc
from watchword.tokens import MAX_TOKEN_BYTES


class TokenAuthenticator:
    """Asks token who a bearer token speaks for."""

    def __init__(self, stub: "token_pb2_grpc.TokenServiceAsyncStub", peer: Peer) -> None:
        self._stub = stub
        self._peer = peer

    async def authenticate(self, token: str) -> Caller:
        """Return whom `token` speaks for. Raises TokenInvalid, DependencyUnavailable."""
        if len(token) > MAX_TOKEN_BYTES:  # token would say that the question is malformed, which is not what was asked here
            raise TokenInvalid
        answer: token_pb2.VerifyTokenResponse = await self._peer.ask(self._stub.VerifyToken, token_pb2.VerifyTokenRequest(token=token))
        if answer.status != token_pb2.VALID:
            raise TokenInvalid
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
