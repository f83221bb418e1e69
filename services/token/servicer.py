"""The RPCs of token: protobuf in, a call of the domain, protobuf out."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.consistency import ConsistencyTokens
from services.chassis.tenancy import TenantId
from services.token.exchange import Exchange
from services.token.exchange_servicer import exchange
from services.token.joint_signing import JointSigning
from services.token.messages import TYPES, login_of, may_see, optional, principal_of, question_of, redeemer_of, timestamp, tokens_of, verdict_of
from services.token.prompt_servicer import PromptIssuing, PromptVerification
from services.token.revocations import RevokedKind
from services.token.revoker import Revoker, Target
from services.token.sessions import Sessions, digest_of, is_refresh_token, without_session
from services.token.store.sessions import SessionStore
from services.token.verifier import Question, Verdict, Verifier
from services.token.watch_servicer import Watch
from watchword.errors import InvalidRequest
from watchword.token.v1 import token_pb2

_TARGETS = {
    "subject": RevokedKind.SUBJECT,
    "session_id": RevokedKind.SESSION,
    "client_id": RevokedKind.CLIENT,
    "all_of_tenant": RevokedKind.TENANT,
}


class TokenServicer:
    """watchword.token.v1.TokenService."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        signing: JointSigning,
        verifier: Verifier,
        revoker: Revoker,
        store: SessionStore,
        exchange: Exchange,
        watch: Watch,
        consistency: ConsistencyTokens,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._signing = signing
        self._verifier = verifier
        self._revoker = revoker
        self._store = store
        self._exchange = exchange
        self._watch = watch
        prompt = PromptVerification(verifier)
        issuing = PromptIssuing(sessions, signing, clock)
        self.prompts = {"VerifyToken": prompt.verify, "BatchVerifyTokens": prompt.verify_batch, "IssueToken": issuing.issue}
        self._consistency = consistency
        self._clock = clock

    async def IssueToken(self, request: token_pb2.IssueTokenRequest, call: Call) -> token_pb2.IssueTokenResponse:
        now = self._clock.now()
        login = login_of(request, now)
        if request.with_refresh_token:
            return token_pb2.IssueTokenResponse(tokens=tokens_of(await self._sessions.open(call, login)))
        draft = self._sessions.draft(login, now)
        access = draft.signed(self._signing.sign_alone(draft.key, draft.text))
        return token_pb2.IssueTokenResponse(tokens=tokens_of(without_session(access.text, access.expires_in, access.claims.scope)))

    async def RefreshToken(self, request: token_pb2.RefreshTokenRequest, call: Call) -> token_pb2.RefreshTokenResponse:
        redemption = await self._sessions.redeem(
            call,
            request.refresh_token,
            client_id=optional(request.client_id),
            roles=list(request.roles),
            scopes=list(request.scopes),
            revision=request.revision,
        )
        return token_pb2.RefreshTokenResponse(tokens=tokens_of(redemption.tokens), principal=redeemer_of(redemption))

    async def ExchangeToken(self, request: token_pb2.ExchangeTokenRequest, call: Call) -> token_pb2.ExchangeTokenResponse:
        return await exchange(self._exchange, request, call, principal=principal_of)

    async def VerifyToken(self, request: token_pb2.VerifyTokenRequest, call: Call) -> token_pb2.VerifyTokenResponse:
        return verdict_of(await self._verifier.verify(question_of(request)), call.caller)

    async def BatchVerifyTokens(self, request: token_pb2.BatchVerifyTokensRequest, call: Call) -> token_pb2.BatchVerifyTokensResponse:
        answers = await self._verifier.verify_all([question_of(one) for one in request.requests])
        return token_pb2.BatchVerifyTokensResponse(responses=[verdict_of(answer, call.caller) for answer in answers])

    async def IntrospectToken(self, request: token_pb2.IntrospectTokenRequest, call: Call) -> token_pb2.IntrospectTokenResponse:
        if is_refresh_token(request.token):
            return await self._introspect_refresh(request.token, call)
        answer = await self._verifier.verify(Question(request.token))
        if answer.verdict is not Verdict.VALID or answer.claims is None or not may_see(call.caller, answer.claims.tenant_id):
            return token_pb2.IntrospectTokenResponse()
        claims = answer.claims
        return token_pb2.IntrospectTokenResponse(
            active=True,
            principal=principal_of(claims),
            token_use="access_token",  # noqa: S106
            issue_time=timestamp(claims.iat),
            expire_time=timestamp(claims.exp),
            token_id=claims.jti,
            issuer=claims.iss,
            audiences=claims.aud,
        )

    async def _introspect_refresh(self, token: str, call: Call) -> token_pb2.IntrospectTokenResponse:
        found = await self._store.find_session_by_refresh(digest_of(token), self._clock.now())
        if found is None or not may_see(call.caller, found[0].tenant_id):
            return token_pb2.IntrospectTokenResponse()
        session, record = found
        response = token_pb2.IntrospectTokenResponse(active=True, token_use="refresh_token")  # noqa: S106
        response.principal.subject = str(session.subject)
        response.principal.tenant_id = str(session.tenant_id)
        response.principal.client_id = str(session.client_id or "")
        response.principal.session_id = str(session.id)
        response.principal.type = TYPES[session.kind]
        response.principal.scopes.extend(session.scopes)
        response.principal.acr = session.acr
        response.principal.auth_time.FromDatetime(session.auth_time)
        response.issue_time.FromDatetime(record.issue_time)
        response.expire_time.FromDatetime(record.expire_time)
        return response

    async def RevokeToken(self, request: token_pb2.RevokeTokenRequest, call: Call) -> token_pb2.RevokeTokenResponse:
        tenant_id, revision = await self._revoker.revoke_token(call, request.token, client_id=optional(request.client_id))
        return token_pb2.RevokeTokenResponse(consistency_token=self._consistency.write(TenantId(tenant_id), revision))

    async def RevokeTokens(self, request: token_pb2.RevokeTokensRequest, call: Call) -> token_pb2.RevokeTokensResponse:
        tenant_id, revision = await self._revoker.revoke_tokens(call, _target(request, call, self._clock.now()))
        return token_pb2.RevokeTokensResponse(consistency_token=self._consistency.write(TenantId(tenant_id), revision))

    def WatchRevocations(
        self, requests: AsyncIterator[token_pb2.WatchRevocationsRequest], call: Call
    ) -> AsyncIterator[token_pb2.WatchRevocationsResponse]:
        return self._watch.watch(requests, call)


def _target(request: token_pb2.RevokeTokensRequest, call: Call, now: datetime) -> Target:
    named = request.WhichOneof("target")
    if named is None or not getattr(request, named):
        raise InvalidRequest.of("target", "one of subject, session_id, client_id and all_of_tenant is required")
    if request.except_session_id and named != "subject":
        raise InvalidRequest.of("except_session_id", "goes with subject only")
    tenant_id = _tenant(request.tenant_id, call)
    return Target(
        tenant_id=tenant_id,
        kind=_TARGETS[named],
        key=tenant_id if named == "all_of_tenant" else UUID(getattr(request, named)),
        spared_session_id=optional(request.except_session_id),
        is_disabled=request.subject_disabled and named == "subject",
        issued_before=_issued_before(request, named, now),
        cause=request.cause,
    )


def _issued_before(request: token_pb2.RevokeTokensRequest, named: str, now: datetime) -> datetime | None:
    if not request.HasField("issued_before"):
        return None
    if named == "session_id" or request.except_session_id:
        raise InvalidRequest.of("issued_before", "goes with subject, client_id and all_of_tenant, and spares no session")
    issued_before = request.issued_before.ToDatetime(UTC)
    if issued_before > now:
        raise InvalidRequest.of("issued_before", "must not lie in the future")
    return issued_before


def _tenant(given: str, call: Call) -> UUID:
    if call.caller.is_peer:
        if not given:
            raise InvalidRequest.of("tenant_id", "is required from services")
        return UUID(given)
    if given and UUID(given) != call.caller.tenant_id:
        raise InvalidRequest.of("tenant_id", "must be the caller's own, or empty")
    return call.caller.tenant_id
