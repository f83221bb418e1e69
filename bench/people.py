"""Accounts of a suite, made as people make them: the first administrator replaces the one-time password, and creates the others."""

from dataclasses import dataclass
from uuid import uuid4

import grpc

from bench.suite import Suite
from services.chassis.tenancy import DEFAULT_TENANT
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc, user_pb2, user_pb2_grpc
from watchword.rbac.v1 import rbac_pb2, rbac_pb2_grpc

PASSWORD = "a good horse may hold on to 7 staples"
ROLES = ("watchword.admin", "watchword.user-manager")
CALL_LIMIT = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Person:
    """An account."""

    id: str
    email: str

    @property
    def login(self) -> bytes:
        """The request that logs in."""
        return authentication_pb2.LoginRequest(login=self.email, password=PASSWORD).SerializeToString()


async def people(suite: Suite, count: int) -> list[Person]:
    """Return that many new accounts."""
    async with grpc.aio.insecure_channel(suite.endpoints.grpc) as channel:
        logins: authentication_pb2_grpc.AuthenticationServiceAsyncStub = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        users: user_pb2_grpc.UserServiceAsyncStub = user_pb2_grpc.UserServiceStub(channel)
        admin = await _administrator(suite, logins)
        metadata = (("authorization", f"Bearer {admin.tokens.access_token}"),)
        made = []
        for _ in range(count):
            request = user_pb2.CreateUserRequest(email=f"{uuid4().hex[:12]}@example.com", password=PASSWORD, email_verified=True)
            user = (await users.CreateUser(request, metadata=metadata, timeout=CALL_LIMIT)).user
            made.append(Person(user.id, user.email))
    return made


async def bind(suite: Suite, user: str) -> None:
    """Give a user a few roles, as identity does."""
    metadata = (("authorization", suite.peer("identity", to="rbac")),)
    subject = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=user)
    async with grpc.aio.insecure_channel(suite.endpoints.grpc) as channel:
        stub: rbac_pb2_grpc.RoleBindingServiceAsyncStub = rbac_pb2_grpc.RoleBindingServiceStub(channel)
        for role in ROLES:
            request = rbac_pb2.CreateRoleBindingRequest(subject=subject, role_name=role, tenant_id=str(DEFAULT_TENANT))
            await stub.CreateRoleBinding(request, metadata=metadata, timeout=CALL_LIMIT)


async def _administrator(suite: Suite, logins: "authentication_pb2_grpc.AuthenticationServiceAsyncStub") -> authentication_pb2.LoginResponse:
    """Log the first administrator in, whose one-time password may have been replaced before."""
    email, replaced = suite.endpoints.admin_email, f"my {suite.admin_password}"
    try:
        return await logins.Login(authentication_pb2.LoginRequest(login=email, password=replaced), timeout=CALL_LIMIT)
    except grpc.aio.AioRpcError:
        request = authentication_pb2.LoginRequest(login=email, password=suite.admin_password, new_password=replaced)
        return await logins.Login(request, timeout=CALL_LIMIT)
