"""One instance of token, asked past Envoy."""

from uuid import uuid4

from tests.chaos.load import DEADLINE, TENANT
from tests.chaos.world import World
from watchword.token.v1 import token_pb2, token_pb2_grpc


class Teller:
    """Issues, verifies and revokes at one instance."""

    def __init__(self, stack: World, name: str) -> None:
        self.name = name
        self._stack = stack
        address = next(one.address for one in stack.now() if one.name == name)
        self._stub = token_pb2_grpc.TokenServiceStub(stack.channel(address))

    @property
    def _identity(self) -> tuple[tuple[str, str], ...]:
        return self._stack.peer("identity", to="token")

    async def issue(self) -> str:
        """Return a new token."""
        request = token_pb2.IssueTokenRequest(subject=str(uuid4()), tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_USER)
        return (await self._stub.IssueToken(request, metadata=self._identity, timeout=DEADLINE)).tokens.access_token

    async def says(self, token: str) -> str:
        """Return what it says of a token."""
        request = token_pb2.VerifyTokenRequest(token=token)
        answer = await self._stub.VerifyToken(request, metadata=self._identity, timeout=DEADLINE)
        return token_pb2.TokenStatus.Name(answer.status)

    async def revoke(self, token: str) -> None:
        """Return once it has answered OK."""
        request = token_pb2.RevokeTokenRequest(token=token, request_id=str(uuid4()))
        await self._stub.RevokeToken(request, metadata=self._identity, timeout=DEADLINE)
