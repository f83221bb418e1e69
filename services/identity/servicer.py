"""The RPCs of people, administrators and auditors: protobuf in, a call of the domain, protobuf out."""

import re
from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.identity import messages
from services.identity.audit_chain import Head
from services.identity.audit_log import AuditFilter, AuditLog
from services.identity.audit_seals import AuditSeals
from services.identity.login import LoginRequest, Logins
from services.identity.mail import MailKind
from services.identity.registration import RegisterRequest, Registrations
from services.identity.sessions import Sessions
from services.identity.tenants import Tenants
from services.identity.user_sessions import UserSessions
from services.identity.users import CreateRequest, UpdateRequest, Users
from watchword.errors import InvalidRequest
from watchword.identity.v1 import audit_pb2, authentication_pb2, tenant_pb2, user_pb2


class AuthenticationServicer:
    """watchword.identity.v1.AuthenticationService."""

    def __init__(self, *, logins: Logins, registrations: Registrations, sessions: Sessions, clock: Clock) -> None:
        self._logins = logins
        self._registrations = registrations
        self._sessions = sessions
        self._clock = clock
        self.shedding = {"Login": logins.require_room}

    async def Register(self, request: authentication_pb2.RegisterRequest, call: Call) -> authentication_pb2.RegisterResponse:
        wanted = RegisterRequest(request.tenant, request.email, request.username, request.display_name, request.password)
        await self._registrations.register(wanted, call)
        return authentication_pb2.RegisterResponse()

    async def Login(self, request: authentication_pb2.LoginRequest, call: Call) -> authentication_pb2.LoginResponse:
        session = await self._logins.login(LoginRequest(request.tenant, request.login, request.password, request.new_password), call)
        user = messages.user(session.account, self._clock.now())
        return authentication_pb2.LoginResponse(tokens=messages.session_tokens(session.tokens), user=user)

    async def RefreshSession(self, request: authentication_pb2.RefreshSessionRequest, call: Call) -> authentication_pb2.RefreshSessionResponse:
        tokens = await self._sessions.refresh(request.refresh_token, call)
        return authentication_pb2.RefreshSessionResponse(tokens=messages.session_tokens(tokens))

    async def Logout(self, request: authentication_pb2.LogoutRequest, call: Call) -> authentication_pb2.LogoutResponse:
        return authentication_pb2.LogoutResponse(consistency_token=await self._sessions.log_out(call))

    async def LogoutAll(self, request: authentication_pb2.LogoutAllRequest, call: Call) -> authentication_pb2.LogoutAllResponse:
        return authentication_pb2.LogoutAllResponse(consistency_token=await self._sessions.log_out_all(call))

    async def ChangePassword(self, request: authentication_pb2.ChangePasswordRequest, call: Call) -> authentication_pb2.ChangePasswordResponse:
        token = await self._sessions.change_password(request.current_password, request.new_password, call)
        return authentication_pb2.ChangePasswordResponse(consistency_token=token)

    async def RequestPasswordReset(
        self, request: authentication_pb2.RequestPasswordResetRequest, call: Call
    ) -> authentication_pb2.RequestPasswordResetResponse:
        await self._registrations.request_mail(MailKind.PASSWORD_RESET, tenant=request.tenant, email=request.email, call=call)
        return authentication_pb2.RequestPasswordResetResponse()

    async def ResetPassword(self, request: authentication_pb2.ResetPasswordRequest, call: Call) -> authentication_pb2.ResetPasswordResponse:
        await self._registrations.reset_password(request.code, request.new_password, call)
        return authentication_pb2.ResetPasswordResponse()

    async def RequestEmailVerification(
        self, request: authentication_pb2.RequestEmailVerificationRequest, call: Call
    ) -> authentication_pb2.RequestEmailVerificationResponse:
        await self._registrations.request_mail(MailKind.VERIFICATION, tenant=request.tenant, email=request.email, call=call)
        return authentication_pb2.RequestEmailVerificationResponse()

    async def VerifyEmail(self, request: authentication_pb2.VerifyEmailRequest, call: Call) -> authentication_pb2.VerifyEmailResponse:
        await self._registrations.verify_email(request.code, call)
        return authentication_pb2.VerifyEmailResponse()

    async def GetMe(self, request: authentication_pb2.GetMeRequest, call: Call) -> authentication_pb2.GetMeResponse:
        account = await self._sessions.me(call)
        return authentication_pb2.GetMeResponse(user=messages.user(account, self._clock.now()), roles=call.caller.roles)


class UserServicer:
    """watchword.identity.v1.UserService."""

    def __init__(self, users: Users, sessions: UserSessions, clock: Clock) -> None:
        self._users = users
        self._sessions = sessions
        self._clock = clock

    async def CreateUser(self, request: user_pb2.CreateUserRequest, call: Call) -> user_pb2.CreateUserResponse:
        wanted = CreateRequest(request.email, request.username, request.display_name, request.email_verified, request.password)
        return user_pb2.CreateUserResponse(user=messages.user(await self._users.create(wanted, call), self._clock.now()))

    async def GetUser(self, request: user_pb2.GetUserRequest, call: Call) -> user_pb2.GetUserResponse:
        account = await self._users.get(UUID(request.user_id), call)
        return user_pb2.GetUserResponse(user=messages.user(account, self._clock.now()))

    async def ListUsers(self, request: user_pb2.ListUsersRequest, call: Call) -> user_pb2.ListUsersResponse:
        page = await self._users.list(
            call, login=request.login, state=messages.STATES.get(request.state), page_size=request.page_size, page_token=request.page_token
        )
        now = self._clock.now()
        return user_pb2.ListUsersResponse(users=[messages.user(account, now) for account in page.items], next_page_token=page.next_token)

    async def UpdateUser(self, request: user_pb2.UpdateUserRequest, call: Call) -> user_pb2.UpdateUserResponse:
        wanted = UpdateRequest(
            account_id=UUID(request.user_id),
            email=request.user.email,
            username=request.user.username,
            display_name=request.user.display_name,
            mask=tuple(request.update_mask.paths) if request.HasField("update_mask") else None,
            etag=request.etag,
        )
        return user_pb2.UpdateUserResponse(user=messages.user(await self._users.update(wanted, call), self._clock.now()))

    async def DisableUser(self, request: user_pb2.DisableUserRequest, call: Call) -> user_pb2.DisableUserResponse:
        account, token = await self._users.disable(UUID(request.user_id), call)
        return user_pb2.DisableUserResponse(user=messages.user(account, self._clock.now()), consistency_token=token)

    async def EnableUser(self, request: user_pb2.EnableUserRequest, call: Call) -> user_pb2.EnableUserResponse:
        account = await self._users.enable(UUID(request.user_id), call)
        return user_pb2.EnableUserResponse(user=messages.user(account, self._clock.now()))

    async def UnlockUser(self, request: user_pb2.UnlockUserRequest, call: Call) -> user_pb2.UnlockUserResponse:
        account = await self._users.unlock(UUID(request.user_id), call)
        return user_pb2.UnlockUserResponse(user=messages.user(account, self._clock.now()))

    async def DeleteUser(self, request: user_pb2.DeleteUserRequest, call: Call) -> user_pb2.DeleteUserResponse:
        return user_pb2.DeleteUserResponse(consistency_token=await self._users.delete(UUID(request.user_id), request.etag, call))

    async def RevokeUserTokens(self, request: user_pb2.RevokeUserTokensRequest, call: Call) -> user_pb2.RevokeUserTokensResponse:
        return user_pb2.RevokeUserTokensResponse(consistency_token=await self._users.revoke_tokens(UUID(request.user_id), call))

    async def ListUserSessions(self, request: user_pb2.ListUserSessionsRequest, call: Call) -> user_pb2.ListUserSessionsResponse:
        page = await self._sessions.list(UUID(request.user_id), call, page_size=request.page_size, page_token=request.page_token)
        sessions = [messages.user_session(session, call.caller.session_id) for session in page.items]
        return user_pb2.ListUserSessionsResponse(sessions=sessions, next_page_token=page.next_token)

    async def RevokeUserSession(self, request: user_pb2.RevokeUserSessionRequest, call: Call) -> user_pb2.RevokeUserSessionResponse:
        token = await self._sessions.revoke(UUID(request.user_id), UUID(request.session_id), call)
        return user_pb2.RevokeUserSessionResponse(consistency_token=token)


class AuditServicer:
    """watchword.identity.v1.AuditService."""

    def __init__(self, log: AuditLog, seals: AuditSeals) -> None:
        self._log = log
        self._seals = seals

    async def ListAuditEvents(self, request: audit_pb2.ListAuditEventsRequest, call: Call) -> audit_pb2.ListAuditEventsResponse:
        wanted = AuditFilter(
            type=request.type,
            actor_id=request.actor_id,
            target_id=request.target_id,
            outcome=request.outcome,
            start_time=_instant(request.start_time) if request.HasField("start_time") else None,
            end_time=_instant(request.end_time) if request.HasField("end_time") else None,
        )
        page = await self._log.list(call, wanted, page_size=request.page_size, page_token=request.page_token)
        return audit_pb2.ListAuditEventsResponse(events=[messages.audit_event(record) for record in page.items], next_page_token=page.next_token)

    async def VerifyAuditLog(self, request: audit_pb2.VerifyAuditLogRequest, call: Call) -> audit_pb2.VerifyAuditLogResponse:
        expected = Head(request.expected_head.sequence, _hash(request.expected_head.hash)) if request.HasField("expected_head") else None
        found = await self._seals.verify(call.caller.tenant_id, start=request.start_sequence, expected=expected)
        return messages.verification(found)


class TenantServicer:
    """watchword.identity.v1.TenantService."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def CreateTenant(self, request: tenant_pb2.CreateTenantRequest, call: Call) -> tenant_pb2.CreateTenantResponse:
        founded = await self._tenants.create(request.name, request.display_name, request.admin_email, call)
        return tenant_pb2.CreateTenantResponse(
            tenant=messages.tenant(founded.tenant), admin_user_id=str(founded.admin_id), admin_password=founded.admin_password
        )

    async def ListTenants(self, request: tenant_pb2.ListTenantsRequest, call: Call) -> tenant_pb2.ListTenantsResponse:
        page = await self._tenants.list(call, page_size=request.page_size, page_token=request.page_token)
        return tenant_pb2.ListTenantsResponse(tenants=[messages.tenant(found) for found in page.items], next_page_token=page.next_token)


def _hash(text: str) -> bytes:
    if not re.fullmatch(r"([0-9a-f]{64})?", text):
        raise InvalidRequest.of("expected_head.hash", "must be 64 hexadecimal digits")
    return bytes.fromhex(text)


def _instant(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)
