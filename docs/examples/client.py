"""A small gRPC client: verify a token, check a permission, revoke, and see it bite.

    python docs/examples/client.py 127.0.0.1:9090 admin@example.com 'the password'

Needs the `watchword` package of this checkout, and a running `scripts/up`.
"""

import sys

import grpc

from watchword import status
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.token.v1 import token_pb2, token_pb2_grpc

DEADLINE = 5.0  # seconds


def main(address: str, login: str, password: str) -> int:
    """Walk through the promise; return 0 if it holds."""
    with grpc.insecure_channel(address) as channel:
        authentication = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        tokens = token_pb2_grpc.TokenServiceStub(channel)
        permissions = permission_pb2_grpc.PermissionServiceStub(channel)
        try:
            request = authentication_pb2.LoginRequest(login=login, password=password)
            caller = authentication.Login(request, timeout=DEADLINE)
            doomed = authentication.Login(request, timeout=DEADLINE)
            metadata = (("authorization", f"Bearer {caller.tokens.access_token}"),)

            question = token_pb2.VerifyTokenRequest(token=doomed.tokens.access_token)
            answer = tokens.VerifyToken(question, metadata=metadata, timeout=DEADLINE)
            print("the token is", token_pb2.TokenStatus.Name(answer.status))

            check = permission_pb2.CheckPermissionRequest(
                subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=answer.principal.subject), permission="users.read"
            )
            decision = permissions.CheckPermission(check, metadata=metadata, timeout=DEADLINE)
            print("users.read:", permission_pb2.Decision.Name(decision.decision))

            revocation = token_pb2.RevokeTokenRequest(token=doomed.tokens.access_token)
            tokens.RevokeToken(revocation, metadata=metadata, timeout=DEADLINE)
            answer = tokens.VerifyToken(question, metadata=metadata, timeout=DEADLINE)
            print("revoked; the token is", token_pb2.TokenStatus.Name(answer.status))
        except grpc.RpcError as error:
            failure = status.decode(error)
            print(f"{failure.reason}: {failure}", *(f"{v.field} {v.description}" for v in failure.violations), sep="\n  ", file=sys.stderr)
            return 1
    return 0 if answer.status == token_pb2.REVOKED else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
