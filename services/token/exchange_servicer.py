"""ExchangeToken as an RPC: protobuf in, a call of the domain, protobuf out."""

from collections.abc import Callable
from uuid import UUID

from services.chassis.call import Call
from services.token.exchange import Exchange, Order
from watchword.token.v1 import token_pb2
from watchword.tokens import Claims


async def exchange(
    exchanges: Exchange, request: token_pb2.ExchangeTokenRequest, call: Call, *, principal: Callable[[Claims], token_pb2.Principal]
) -> token_pb2.ExchangeTokenResponse:
    """Answer ExchangeToken. `principal` says in protobuf who a token speaks for, as VerifyToken does."""
    order = Order(
        subject_token=request.subject_token,
        client_id=UUID(request.client_id),
        tenant_id=UUID(request.tenant_id),
        client_scopes=tuple(request.client_scopes),
        scopes=tuple(request.scopes),
        audience=request.audience,
        revision=request.revision,
    )
    token = await exchanges.trade(call, order)
    tokens = token_pb2.TokenSet(
        access_token=token.text,
        token_type="Bearer",  # noqa: S106
        expires_in=token.expires_in,
        scope=" ".join(token.claims.scope),
    )
    return token_pb2.ExchangeTokenResponse(tokens=tokens, principal=principal(token.claims))
