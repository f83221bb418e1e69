"""One real call to one instance, past Envoy: what health alone does not show, such as keys that the other services do not know.

Each call goes as far as calls of that service go: token and rbac verify the caller and look into their memory or Postgres, identity has token verify
a token, the gateway asks every service through Envoy.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import grpc

from services.chassis.service_identity import ServiceIdentity
from services.chassis.tenancy import DEFAULT_TENANT
from services.up.home import Home
from watchword.gateway.v1 import health_pb2, health_pb2_grpc
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.token.v1 import token_pb2, token_pb2_grpc

LIMIT_SECONDS = 2.0
NO_TOKEN = "no.to.ken"  # noqa: S105
CALLER = "gateway"  # it may verify tokens and check permissions, and change nothing

Metadata = tuple[tuple[str, str], ...]


class Trial:
    """Real calls in the name of one service of the stack."""

    def __init__(self, home: Home) -> None:
        public_keys = (home.secrets / "service-public-keys.json").read_text(encoding="utf-8")
        self._identity = ServiceIdentity.load(CALLER, home.key(CALLER).read_text(encoding="utf-8"), public_keys)

    async def fault(self, service: str, address: str) -> str:
        """Call the instance of `service` at `address`; return what is wrong with its answer, or nothing."""
        metadata = (("authorization", f"Bearer {self._identity.token_for(service)}"),) if service in ("token", "rbac") else ()
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                return await CALLS[service](channel, metadata)
            except grpc.aio.AioRpcError as error:
                return f"answers {error.code().name}: {error.details()}"


async def _token(channel: grpc.aio.Channel, metadata: Metadata) -> str:
    stub: Any = token_pb2_grpc.TokenServiceStub(channel)
    answer = await stub.VerifyToken(token_pb2.VerifyTokenRequest(token=NO_TOKEN), metadata=metadata, timeout=LIMIT_SECONDS)
    return "" if answer.status == token_pb2.MALFORMED else f"says {token_pb2.TokenStatus.Name(answer.status)} of what is no token"


async def _rbac(channel: grpc.aio.Channel, metadata: Metadata) -> str:
    stub: Any = permission_pb2_grpc.PermissionServiceStub(channel)
    stranger = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=str(uuid4()))
    question = permission_pb2.CheckPermissionRequest(subject=stranger, permission="users.read", tenant_id=str(DEFAULT_TENANT))
    answer = await stub.CheckPermission(question, metadata=metadata, timeout=LIMIT_SECONDS)
    return "" if answer.decision == permission_pb2.DENY else f"says {permission_pb2.Decision.Name(answer.decision)} of a stranger"


async def _identity(channel: grpc.aio.Channel, _metadata: Metadata) -> str:
    stub: Any = authentication_pb2_grpc.AuthenticationServiceStub(channel)
    try:
        await stub.GetMe(authentication_pb2.GetMeRequest(), metadata=(("authorization", f"Bearer {NO_TOKEN}"),), timeout=LIMIT_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return ""
    return "believes what is no token"


async def _gateway(channel: grpc.aio.Channel, _metadata: Metadata) -> str:
    stub: Any = health_pb2_grpc.HealthServiceStub(channel)
    answer = await stub.GetReadiness(health_pb2.GetReadinessRequest(), timeout=LIMIT_SECONDS)
    return "" if answer.status == "ready" else f"finds the suite {answer.status}"


CALLS: dict[str, Callable[[grpc.aio.Channel, Metadata], Awaitable[str]]] = {
    "token": _token,
    "rbac": _rbac,
    "identity": _identity,
    "gateway": _gateway,
}
