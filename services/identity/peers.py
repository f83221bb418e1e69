"""What identity asks of token and rbac, in identity's own words."""

from datetime import UTC
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.call import Call, Caller, CallerKind
from services.chassis.pages import Page
from services.chassis.peers import Peer
from services.chassis.tenancy import TenantId
from services.identity.accounts import ClientCredential
from services.identity.grants import Exchange, Grant, Introspection, OpenSession, Tokens
from services.identity.tasks import Task, TaskKind
from watchword.errors import AlreadyExists, NotFound, PermissionDenied, TokenInvalid
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2, rbac_pb2_grpc
from watchword.token.v1 import session_pb2, session_pb2_grpc, token_pb2, token_pb2_grpc

MAX_ROLES = 100  # that IssueToken takes


class TokenPeer:
    """The token context."""

    def __init__(self, stub: "token_pb2_grpc.TokenServiceAsyncStub", peer: Peer) -> None:
        self._stub = stub
        self._peer = peer

    async def issue(self, grant: Grant, call: Call) -> Tokens:
        """Open a session for a person, or return a lone access token for a client."""
        is_person = grant.client_id is None
        auth_time = Timestamp()
        auth_time.FromDatetime(grant.auth_time)
        request = token_pb2.IssueTokenRequest(
            subject=str(grant.subject),
            tenant_id=str(grant.tenant_id),
            type=token_pb2.PRINCIPAL_TYPE_USER if is_person else token_pb2.PRINCIPAL_TYPE_CLIENT,
            client_id=_text(grant.client_id),
            roles=grant.roles[:MAX_ROLES],
            scopes=grant.scopes,
            acr=grant.acr,
            with_refresh_token=is_person,
            auth_time=auth_time,
            address=call.address,
            user_agent=call.user_agent,
            revision=grant.revision,
        )
        answer: token_pb2.IssueTokenResponse = await self._peer.ask(self._stub.IssueToken, request, call)
        return _tokens(answer.tokens)

    async def introspect(self, token: str, call: Call) -> Introspection | None:
        """Return what an access or refresh token is, None if it is not active."""
        answer: token_pb2.IntrospectTokenResponse = await self._peer.ask(
            self._stub.IntrospectToken, token_pb2.IntrospectTokenRequest(token=token), call
        )
        if not answer.active:
            return None
        principal = answer.principal
        return Introspection(
            subject=UUID(principal.subject),
            tenant_id=TenantId(UUID(principal.tenant_id)),
            client_id=UUID(principal.client_id) if principal.client_id else None,
            is_client=principal.type == token_pb2.PRINCIPAL_TYPE_CLIENT,
            token_use=answer.token_use,
            scopes=tuple(principal.scopes),
            issue_time=answer.issue_time.seconds,
            expire_time=answer.expire_time.seconds,
            token_id=answer.token_id,
            issuer=answer.issuer,
            audiences=tuple(answer.audiences),
            actors=_actors(principal),
        )

    async def refresh(
        self,
        token: str,
        *,
        client_id: UUID | None,
        roles: tuple[str, ...],
        scopes: tuple[str, ...] = (),
        revision: int,
        request_id: UUID | None = None,
        call: Call,
    ) -> Tokens:
        """Trade a refresh token for its successor; the same request_id gets the same one.

        Raises  TokenInvalid, RefreshTokenReused, IdempotencyConflict, InvalidRequest for scopes it never had
        """
        request = token_pb2.RefreshTokenRequest(
            refresh_token=token, client_id=_text(client_id), roles=roles[:MAX_ROLES], scopes=scopes, revision=revision, request_id=_text(request_id)
        )
        answer: token_pb2.RefreshTokenResponse = await self._peer.ask(self._stub.RefreshToken, request, call, answers=(TokenInvalid,))
        return _tokens(answer.tokens)

    async def exchange(self, exchange: Exchange, credential: ClientCredential, call: Call) -> Tokens:
        """Trade a token for one that the client may act with. Raises TokenInvalid, DepthExceeded, InvalidRequest for scopes or audience."""
        client = credential.client
        request = token_pb2.ExchangeTokenRequest(
            subject_token=exchange.subject_token,
            client_id=str(client.id),
            tenant_id=str(client.tenant_id),
            client_scopes=client.scopes,
            scopes=exchange.scopes,
            audience=exchange.audience,
            revision=credential.tenant_revision,
        )
        answer: token_pb2.ExchangeTokenResponse = await self._peer.ask(self._stub.ExchangeToken, request, call, answers=(TokenInvalid,))
        return _tokens(answer.tokens)

    async def revoke_token(self, token: str, hint: str, client_id: UUID, call: Call) -> None:
        """Revoke a token if it is the client's."""
        request = token_pb2.RevokeTokenRequest(token=token, token_type_hint=hint, client_id=str(client_id))
        await self._peer.ask(self._stub.RevokeToken, request, call)

    async def revoke(self, task: Task, call: Call | None) -> str:
        """Do a task of revoking; return the consistency token."""
        request = token_pb2.RevokeTokensRequest(
            tenant_id=str(task.tenant_id),
            except_session_id=_text(task.spared_session_id),
            cause=task.note,
            request_id=str(task.id),
            subject_disabled=task.is_disabled,
        )
        if task.kind is TaskKind.REVOKE_SUBJECT:
            request.subject = str(task.target_id)
        elif task.kind is TaskKind.REVOKE_SESSION:
            request.session_id = str(task.target_id)
        else:
            request.client_id = str(task.target_id)
        answer: token_pb2.RevokeTokensResponse = await self._peer.ask(self._stub.RevokeTokens, request, call)
        return answer.consistency_token


class SessionPeer:
    """The sessions that the token context keeps."""

    def __init__(self, stub: "session_pb2_grpc.SessionServiceAsyncStub", peer: Peer) -> None:
        self._stub = stub
        self._peer = peer

    async def list(self, tenant_id: TenantId, subject: UUID, call: Call, *, page_size: int, page_token: str) -> Page[OpenSession]:
        """Return a page of a subject's live sessions, latest first. Raises InvalidRequest, PageTokenInvalid."""
        request = session_pb2.ListSessionsRequest(tenant_id=str(tenant_id), subject=str(subject), page_size=page_size, page_token=page_token)
        answer: session_pb2.ListSessionsResponse = await self._peer.ask(self._stub.ListSessions, request, call)
        return Page([_session(session) for session in answer.sessions], answer.next_page_token)

    async def exists(self, tenant_id: TenantId, subject: UUID, session_id: UUID, call: Call) -> bool:
        """Return whether a session is this subject's, be it over or not."""
        request = session_pb2.GetSessionRequest(tenant_id=str(tenant_id), subject=str(subject), session_id=str(session_id))
        try:
            await self._peer.ask(self._stub.GetSession, request, call)
        except NotFound:
            return False
        return True


class RbacPeer:
    """The rbac context. It also decides the `permission` rules of identity's own RPCs."""

    def __init__(
        self, permissions: "permission_pb2_grpc.PermissionServiceAsyncStub", bindings: "rbac_pb2_grpc.RoleBindingServiceAsyncStub", peer: Peer
    ) -> None:
        self._permissions = permissions
        self._bindings = bindings
        self._peer = peer

    async def role_names(self, tenant_id: TenantId, subject: UUID, call: Call, *, is_client: bool = False) -> tuple[str, ...]:
        """Return the names of the roles that a subject holds tenant-wide."""
        kind = CallerKind.CLIENT if is_client else CallerKind.USER
        request = permission_pb2.ListSubjectPermissionsRequest(subject=_subject(kind, str(subject)), tenant_id=str(tenant_id), page_size=1)
        answer: permission_pb2.ListSubjectPermissionsResponse = await self._peer.ask(self._permissions.ListSubjectPermissions, request, call)
        return tuple(answer.role_names)

    async def allows(self, caller: Caller, permission: str) -> bool:
        """Return whether `caller` holds a permission tenant-wide, now."""
        request = permission_pb2.CheckPermissionRequest(
            subject=_subject(caller.kind, caller.id), permission=permission, tenant_id=str(caller.tenant_id)
        )
        answer: permission_pb2.CheckPermissionResponse = await self._peer.ask(self._permissions.CheckPermission, request)
        return answer.decision == permission_pb2.ALLOW

    async def require_authority(self, call: Call, *, target: UUID | None = None, is_client: bool = False, permissions: tuple[str, ...] = ()) -> None:
        """Return if the caller may act upon `target`: holds, tenant-wide, all that it holds, and `permissions`. Raises PermissionDenied.

        Otherwise who may change accounts could take over one that may do more: change its address, reset its password, log in.
        """
        if target is not None and call.caller.id == str(target) and not permissions:
            return
        request = permission_pb2.CheckAuthorityRequest(
            actor=_subject(call.caller.kind, call.caller.id), permissions=permissions, tenant_id=str(call.caller.tenant_id)
        )
        if target is not None:
            request.target.CopyFrom(_subject(CallerKind.CLIENT if is_client else CallerKind.USER, str(target)))
        answer: permission_pb2.CheckAuthorityResponse = await self._peer.ask(self._permissions.CheckAuthority, request, call)
        if answer.decision != permission_pb2.ALLOW:
            lacking = ", ".join(answer.missing_permissions)
            raise PermissionDenied(f"this would hand out or reach more than the caller holds: {lacking}")

    async def delete_subject(self, call: Call, subject: UUID, *, is_client: bool = False) -> None:
        """Take all roles and memberships from who is about to be deleted; doing it twice is no error. Raises LastAdministrator."""
        kind = CallerKind.CLIENT if is_client else CallerKind.USER
        request = rbac_pb2.DeleteSubjectRequest(subject=_subject(kind, str(subject)), tenant_id=str(call.caller.tenant_id))
        await self._peer.ask(self._bindings.DeleteSubject, request, call)

    async def bind(self, task: Task, call: Call | None) -> str:
        """Do a task of binding a role; one that is bound already is done."""
        request = rbac_pb2.CreateRoleBindingRequest(
            subject=_subject(CallerKind.USER, str(task.target_id)),
            role_name=task.note,
            tenant_id=str(task.tenant_id),
            request_id=str(task.id),
        )
        try:
            answer: rbac_pb2.CreateRoleBindingResponse = await self._peer.ask(self._bindings.CreateRoleBinding, request, call)
        except AlreadyExists:
            return ""
        return answer.consistency_token


def _subject(kind: CallerKind, subject_id: str) -> rbac_pb2.Subject:
    return rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_CLIENT if kind is CallerKind.CLIENT else rbac_pb2.SUBJECT_TYPE_USER, id=subject_id)


def _tokens(tokens: token_pb2.TokenSet) -> Tokens:
    return Tokens(tokens.access_token, tokens.token_type, tokens.expires_in, tokens.refresh_token, tokens.scope, tokens.session_id)


def _session(session: session_pb2.Session) -> OpenSession:
    return OpenSession(
        id=UUID(session.session_id),
        subject=UUID(session.subject),
        client_id=UUID(session.client_id) if session.client_id else None,
        scopes=tuple(session.scopes),
        acr=session.acr,
        address=session.address,
        user_agent=session.user_agent,
        create_time=session.create_time.ToDatetime(UTC),
        last_used_time=session.last_used_time.ToDatetime(UTC),
        expire_time=session.expire_time.ToDatetime(UTC),
    )


def _actors(principal: token_pb2.Principal) -> tuple[UUID, ...]:
    actors: list[UUID] = []
    holder: token_pb2.Principal | token_pb2.Actor = principal
    while holder.HasField("actor"):
        holder = holder.actor
        actors.append(UUID(holder.subject))
    return tuple(actors)


def _text(identifier: UUID | None) -> str:
    return str(identifier) if identifier else ""
