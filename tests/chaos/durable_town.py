"""A suite with people in it, and how to ask its instances."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from services.chassis.tenancy import DEFAULT_TENANT
from services.identity.codes import digest_of
from tests.chaos.durable_stack import Instance, Suite, answered, outcome
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc, user_pb2, user_pb2_grpc
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2, rbac_pb2_grpc
from watchword.token.v1 import token_pb2, token_pb2_grpc

TENANT = str(DEFAULT_TENANT)
PASSWORD, NEW_PASSWORD = "a violet kettle sings", "seven damp otters waltz"
PERMISSION = "things.read"
Metadata = tuple[tuple[str, str], ...]
AUTH, USERS = authentication_pb2_grpc.AuthenticationServiceStub, user_pb2_grpc.UserServiceStub
TOKENS, BINDINGS = token_pb2_grpc.TokenServiceStub, rbac_pb2_grpc.RoleBindingServiceStub
ROLES, PERMISSIONS = rbac_pb2_grpc.RoleServiceStub, permission_pb2_grpc.PermissionServiceStub


@dataclass
class Town:
    """A suite with an administrator, a role, and an account whose password is PASSWORD."""

    suite: Suite
    admin: Metadata = ()
    role: str = ""
    account: str = ""

    @classmethod
    async def found(cls, suite: Suite) -> "Town":
        """Make what all deeds need."""
        town, admin = cls(suite), str(uuid4())
        rbac, identity = suite.of("rbac")[0], suite.of("identity")[0]
        bind = rbac_pb2.CreateRoleBindingRequest(subject=user(admin), role_name="watchword.admin", tenant_id=TENANT)
        await rbac.ask(BINDINGS, "CreateRoleBinding", bind, suite.peer(to="rbac"))
        town.admin = bearer((await town.session(admin)).access_token)
        made = rbac_pb2.CreateRoleRequest(name="reader", permissions=[PERMISSION])
        town.role = (await rbac.ask(ROLES, "CreateRole", made, town.admin)).role.id
        wanted = user_pb2.CreateUserRequest(email="first@example.com", password=PASSWORD, email_verified=True)
        town.account = (await identity.ask(USERS, "CreateUser", wanted, town.admin, timeout=20)).user.id
        return town

    async def stand_alone(self, service: str, environment: Mapping[str, str]) -> Instance:
        """Start the only standing instance of a service, and return it."""
        one = await self.suite.start(service, environment)
        self.suite.standing = [one]
        return one

    async def session(self, subject: str) -> token_pb2.TokenSet:
        """Open a session."""
        revision = await self.suite.ask("SELECT revision FROM suite.tenant_revision WHERE tenant_id = $1", DEFAULT_TENANT)
        request = token_pb2.IssueTokenRequest(
            subject=subject,
            tenant_id=TENANT,
            type=token_pb2.PRINCIPAL_TYPE_USER,
            scopes=["account"],
            acr="pwd",
            with_refresh_token=True,
            revision=revision or 0,
        )
        answer = await answered(lambda: self.suite.of("token")[0].ask(TOKENS, "IssueToken", request, self.suite.peer(to="token")))
        tokens: token_pb2.TokenSet = answer.tokens
        return tokens

    _COPY = """
        INSERT INTO identity.account (id, tenant_id, email, email_key, email_verified, username, display_name, state, password_hash,
                                      password_one_time, revision, create_time, update_time)
        SELECT gen_random_uuid(), tenant_id, $2, $2, $3, '', '', 'active', password_hash, false, 1, now(), now()
        FROM identity.account WHERE id = $1 RETURNING id
    """

    async def person(self, *, verified: bool = True) -> tuple[str, str]:
        """Return id and address of a new account with PASSWORD, made without the cost of a hash."""
        email = f"{secrets.token_hex(8)}@example.com"
        return str(await self.suite.ask(self._COPY, self.account, email, verified)), email

    async def code(self, account: str, email: str, kind: str) -> str:
        """Return a one-time code of an account, as if it had come by mail."""
        code = secrets.token_urlsafe(32)
        put = "INSERT INTO identity.code (digest, account_id, kind, email_key, expire_time) VALUES ($1, $2, $3, $4, now() + interval '1 hour')"
        await self.suite.ask(put, digest_of(code), account, kind, email)
        return code

    async def login(self, email: str, password: str) -> Any:
        """Return what a login gets, or why it is refused."""
        request = authentication_pb2.LoginRequest(login=email, password=password)
        return await outcome(answered(lambda: self.suite.of("identity")[0].ask(AUTH, "Login", request, (), timeout=20)))

    async def believers(self, access_token: str) -> list[str]:
        """Return the standing instances of token that take a token for good."""
        request, found = token_pb2.VerifyTokenRequest(token=access_token), []
        for one in self.suite.of("token"):
            answer = await answered(partial(one.ask, TOKENS, "VerifyToken", request, self.suite.peer(to="token")))
            if answer.status == token_pb2.VALID:
                found.append(one.address)
        return found

    async def permitting(self, subject: str) -> list[bool]:
        """Return whether each standing instance of rbac permits `subject` what is done here."""
        request = permission_pb2.CheckPermissionRequest(subject=user(subject), permission=PERMISSION, tenant_id=TENANT)
        asking = [partial(one.ask, PERMISSIONS, "CheckPermission", request, self.suite.peer(to="rbac")) for one in self.suite.of("rbac")]
        return [(await answered(ask)).decision == permission_pb2.ALLOW for ask in asking]

    async def binding(self, subject: str, role: str = "") -> str:
        """Bind the role to a subject."""
        request = rbac_pb2.CreateRoleBindingRequest(subject=user(subject), role_id=role or self.role, request_id=str(uuid4()))
        answer = await answered(lambda: self.suite.of("rbac")[0].ask(BINDINGS, "CreateRoleBinding", request, self.admin))
        return str(answer.role_binding.id)


async def refresh(at: Instance, suite: Suite, refresh_token: str, request_id: str = "", *, trace: str = "") -> Any:
    """Redeem a refresh token."""
    request = token_pb2.RefreshTokenRequest(refresh_token=refresh_token, request_id=request_id)
    metadata = (*suite.peer(to="token"), *((("x-request-id", trace),) if trace else ()))
    return await at.ask(TOKENS, "RefreshToken", request, metadata)


def user(subject: str) -> rbac_pb2.Subject:
    """Return a person."""
    return rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=subject)


def bearer(token: str) -> Metadata:
    """Return what a token's owner sends along."""
    return (("authorization", f"Bearer {token}"),)
