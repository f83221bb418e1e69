"""T02: a token of one kind is worth nothing where another kind belongs."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import pytest

from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager, PageRequest
from services.chassis.sealing import derive
from services.chassis.tenancy import DEFAULT_TENANT
from tests import forgery
from tests.conftest import SALT
from tests.forgery import Original, claims_of
from tests.service.token.conftest import KID, TokenInstances
from watchword import status
from watchword.token.v1 import token_pb2

Answer = Callable[[TokenInstances, str], Awaitable[str]]


def kinds_of(token: TokenInstances, tokens: token_pb2.TokenSet) -> Mapping[str, str]:
    """Return a token of every kind, those that can be all about one session."""
    original = Original.of(token.private_key, KID, claims_of(tokens.access_token))
    pages = Pager(derive(SALT, "pages")).page(["a", "b"], PageRequest(None, 1), key=lambda row: (row,), tenant_id=DEFAULT_TENANT, query=("List",))
    return {
        "access": tokens.access_token,
        "refresh": tokens.refresh_token,
        "service-for-token": token.keys.identity("identity").token_for("token"),
        "service-for-rbac": token.keys.identity("identity").token_for("rbac"),
        "page": pages.next_token,
        "consistency": ConsistencyTokens(derive(SALT, "consistency")).write(DEFAULT_TENANT, 1),
        "id": forgery.id_token(original),
        "logout": forgery.logout_token(original),
        "dpop": forgery.dpop_proof(original),
        "refresh-jwt": original.with_head(typ="rt+jwt"),
        "service-signed-by-us": original.with_head(typ="svc+jwt"),
        "service-signed-by-us-for-identity": original.with_head(typ="svc+jwt", kid="identity"),
        "digest-of-refresh": forgery.b64(tokens.refresh_token.encode()),
    }


KINDS = (
    "access",
    "refresh",
    "service-for-token",
    "service-for-rbac",
    "page",
    "consistency",
    "id",
    "logout",
    "dpop",
    "refresh-jwt",
    "service-signed-by-us",
    "service-signed-by-us-for-identity",
    "digest-of-refresh",
)


async def _reason(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return status.decode(failure.value).reason


async def verify(token: TokenInstances, text: str) -> str:
    return await token.status(text)


async def batch(token: TokenInstances, text: str) -> str:
    request = token_pb2.BatchVerifyTokensRequest(requests=[token_pb2.VerifyTokenRequest(token=text)])
    (answer,) = (await token.stubs[0].BatchVerifyTokens(request, metadata=token.identity)).responses
    return token_pb2.TokenStatus.Name(answer.status)


async def introspect(token: TokenInstances, text: str) -> str:
    answer = await token.stubs[0].IntrospectToken(token_pb2.IntrospectTokenRequest(token=text), metadata=token.identity)
    return repr(answer.SerializeToString())


async def refresh(token: TokenInstances, text: str) -> str:
    return await _reason(token.stubs[0].RefreshToken(token_pb2.RefreshTokenRequest(refresh_token=text), metadata=token.identity))


async def revoke(token: TokenInstances, text: str) -> str:
    """Revoking tells nobody anything: what matters is that nothing came of it, which the test asks afterwards."""
    await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=text), metadata=token.identity)
    return "OK"


async def bearer(token: TokenInstances, text: str) -> str:
    metadata = (("authorization", f"Bearer {text}"),)
    return await _reason(token.stubs[0].VerifyToken(token_pb2.VerifyTokenRequest(token="x"), metadata=metadata))


NOT_ACTIVE = repr(b"")
# Where a token may be presented: what belongs there, and how everything else is refused.
PLACES: dict[str, tuple[Answer, set[str], set[str]]] = {
    "VerifyToken": (verify, {"access"}, {"MALFORMED", "UNKNOWN_KEY"}),
    "BatchVerifyTokens": (batch, {"access"}, {"MALFORMED", "UNKNOWN_KEY"}),
    "IntrospectToken": (introspect, {"access", "refresh"}, {NOT_ACTIVE}),
    "RefreshToken": (refresh, {"refresh"}, {"TOKEN_INVALID", "INVALID_REQUEST"}),  # a long one is no refresh token
    "RevokeToken": (revoke, {"access", "refresh"}, {"OK"}),
    "bearer": (bearer, {"access", "service-for-token"}, {"TOKEN_INVALID"}),
}
WRONG = [(place, kind) for place, (_, right, _) in PLACES.items() for kind in KINDS if kind not in right]


@pytest.mark.parametrize(("place", "kind"), [pytest.param(place, kind, id=f"T02-{kind}-at-{place}") for place, kind in WRONG])
async def test_a_token_of_another_kind_is_refused(token: TokenInstances, place: str, kind: str) -> None:
    """And whatever was tried with it, the session that it speaks of is as it was."""
    tokens = await token.issue()
    answer, _, refusals = PLACES[place]

    assert await answer(token, kinds_of(token, tokens)[kind]) in refusals

    assert await token.status(tokens.access_token, at=1) == "VALID"
    again = token_pb2.RefreshTokenRequest(refresh_token=tokens.refresh_token, revision=await token.revision())
    assert (await token.stubs[1].RefreshToken(again, metadata=token.identity)).tokens.refresh_token


async def test_each_kind_is_good_where_it_belongs(token: TokenInstances) -> None:
    """The control: a place that refuses everything would pass all of the above."""
    tokens = await token.issue()
    kinds = kinds_of(token, tokens)
    assert set(kinds) == set(KINDS)

    assert await token.status(kinds["access"]) == "VALID"
    assert {await introspect(token, kinds[kind]) for kind in ("access", "refresh")}.isdisjoint({NOT_ACTIVE})
    for kind in ("access", "service-for-token"):
        metadata = (("authorization", f"Bearer {kinds[kind]}"),)
        await token.stubs[0].VerifyToken(token_pb2.VerifyTokenRequest(token="x"), metadata=metadata)
    await revoke(token, kinds["refresh"])
    assert await token.status(tokens.access_token) == "REVOKED"
