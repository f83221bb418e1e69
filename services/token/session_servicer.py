"""The RPCs of sessions: protobuf in, a call of the domain, protobuf out."""

from uuid import UUID

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager
from services.chassis.tenancy import TenantId
from services.token.revocations import RevokedKind
from services.token.revoker import Revoker, Target
from services.token.sessions import Session, Sessions
from watchword.errors import InvalidRequest
from watchword.token.v1 import session_pb2

MAX_PAGE = 200


class SessionServicer:
    """watchword.token.v1.SessionService."""

    def __init__(self, *, sessions: Sessions, revoker: Revoker, pager: Pager, consistency: ConsistencyTokens) -> None:
        self._sessions = sessions
        self._revoker = revoker
        self._pager = pager
        self._consistency = consistency

    async def ListSessions(self, request: session_pb2.ListSessionsRequest, call: Call) -> session_pb2.ListSessionsResponse:
        tenant_id, subject = _tenant(request.tenant_id, call), _subject(request.subject, call)
        query = ("sessions", str(subject))
        page = self._pager.read(page_size=min(request.page_size, MAX_PAGE), page_token=request.page_token, tenant_id=tenant_id, query=query)
        sessions = await self._sessions.list_page(tenant_id, subject, page)
        listed = self._pager.page(sessions, page, key=lambda session: (str(session.id),), tenant_id=tenant_id, query=query)
        return session_pb2.ListSessionsResponse(sessions=[_message(session, call) for session in listed.items], next_page_token=listed.next_token)

    async def GetSession(self, request: session_pb2.GetSessionRequest, call: Call) -> session_pb2.GetSessionResponse:
        session = await self._sessions.get(UUID(request.tenant_id), UUID(request.session_id), subject=UUID(request.subject))
        return session_pb2.GetSessionResponse(session=_message(session, call))

    async def RevokeSession(self, request: session_pb2.RevokeSessionRequest, call: Call) -> session_pb2.RevokeSessionResponse:
        tenant_id = _tenant(request.tenant_id, call)
        subject = None if call.caller.is_peer else call.caller.uuid
        session = await self._sessions.get(tenant_id, UUID(request.session_id), subject=subject)
        # One that is over already is revoked again: the call may be the repeat of one that was not confirmed everywhere.
        target = Target(tenant_id=tenant_id, kind=RevokedKind.SESSION, key=session.id, cause="session_revoked")
        _, revision = await self._revoker.revoke_tokens(call, target)
        return session_pb2.RevokeSessionResponse(consistency_token=self._consistency.write(TenantId(tenant_id), revision))


def _tenant(given: str, call: Call) -> UUID:
    if call.caller.is_peer:
        return UUID(_said(given, "tenant_id"))
    return _own(given, call.caller.tenant_id, "tenant_id")


def _subject(given: str, call: Call) -> UUID:
    if call.caller.is_peer:
        return UUID(_said(given, "subject"))
    return _own(given, call.caller.uuid, "subject")


def _said(given: str, field: str) -> str:
    if not given:
        raise InvalidRequest.of(field, "is required from services")
    return given


def _own(given: str, own: UUID, field: str) -> UUID:
    if given and UUID(given) != own:
        raise InvalidRequest.of(field, "must be the caller's own, or empty")
    return own


def _message(session: Session, call: Call) -> session_pb2.Session:
    message = session_pb2.Session(
        session_id=str(session.id),
        subject=str(session.subject),
        client_id=str(session.client_id or ""),
        scopes=session.scopes,
        acr=session.acr,
        address=session.address,
        user_agent=session.user_agent,
        current=session.id == call.caller.session_id,
    )
    message.create_time.FromDatetime(session.create_time)
    message.last_used_time.FromDatetime(session.last_used_time)
    message.expire_time.FromDatetime(session.expire_time)
    return message
