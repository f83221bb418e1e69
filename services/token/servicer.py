"""The RPCs of token: protobuf in, a call of the domain, protobuf out."""

from datetime import UTC
from uuid import UUID

from google.api import httpbody_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.consistency import ConsistencyTokens
from services.chassis.tenancy import TenantId
from services.token.claims import Claims, SubjectKind
from services.token.keys import KeyRing
from services.token.revocations import RevokedKind
from services.token.revoker import Revoker, Target
from services.token.sessions import Login, Redemption, Sessions, Tokens, digest_of, is_refresh_token
from services.token.store import TokenStore
from services.token.verifier import Answer, Question, Verdict, Verifier
from watchword.errors import InvalidRequest
from watchword.token.v1 import key_pb2, token_pb2

JWKS_MAX_AGE = 300  # seconds that others may keep the key set

_KINDS = {token_pb2.PRINCIPAL_TYPE_USER: SubjectKind.USER, token_pb2.PRINCIPAL_TYPE_CLIENT: SubjectKind.CLIENT}
_TYPES = {kind: number for number, kind in _KINDS.items()}
_TARGETS = {"subject": RevokedKind.SUBJECT, "session_id": RevokedKind.SESSION, "client_id": RevokedKind.CLIENT}


class TokenServicer:
    """watchword.token.v1.TokenService."""

    def __init__(
        self, *, sessions: Sessions, verifier: Verifier, revoker: Revoker, store: TokenStore, consistency: ConsistencyTokens, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._verifier = verifier
        self._revoker = revoker
        self._store = store
        self._consistency = consistency
        self._clock = clock

    async def IssueToken(self, request: token_pb2.IssueTokenRequest, call: Call) -> token_pb2.IssueTokenResponse:
        login = Login(
            subject=UUID(request.subject),
            tenant_id=UUID(request.tenant_id),
            kind=_KINDS[request.type],
            client_id=_optional(request.client_id),
            scopes=tuple(request.scopes),
            roles=tuple(request.roles),
            audience=request.audience,
            acr=request.acr,
            auth_time=request.auth_time.ToDatetime(UTC) if request.HasField("auth_time") else self._clock.now(),
            revision=request.revision,
            address=request.address,
            user_agent=request.user_agent,
        )
        tokens = await (self._sessions.open(call, login) if request.with_refresh_token else self._sessions.issue_alone(login))
        return token_pb2.IssueTokenResponse(tokens=_tokens(tokens))

    async def RefreshToken(self, request: token_pb2.RefreshTokenRequest, call: Call) -> token_pb2.RefreshTokenResponse:
        redemption = await self._sessions.redeem(
            call,
            request.refresh_token,
            client_id=_optional(request.client_id),
            roles=list(request.roles),
            scopes=list(request.scopes),
            revision=request.revision,
        )
        return token_pb2.RefreshTokenResponse(tokens=_tokens(redemption.tokens), principal=_redeemer(redemption))

    async def VerifyToken(self, request: token_pb2.VerifyTokenRequest, call: Call) -> token_pb2.VerifyTokenResponse:
        return _verdict(await self._verifier.verify(_question(request)), call)

    async def BatchVerifyTokens(self, request: token_pb2.BatchVerifyTokensRequest, call: Call) -> token_pb2.BatchVerifyTokensResponse:
        answers = await self._verifier.verify_all([_question(one) for one in request.requests])
        return token_pb2.BatchVerifyTokensResponse(responses=[_verdict(answer, call) for answer in answers])

    async def IntrospectToken(self, request: token_pb2.IntrospectTokenRequest, call: Call) -> token_pb2.IntrospectTokenResponse:
        if is_refresh_token(request.token):
            return await self._introspect_refresh(request.token, call)
        answer = await self._verifier.verify(Question(request.token))
        if answer.verdict is not Verdict.VALID or answer.claims is None or not _may_see(call, answer.claims.tenant_id):
            return token_pb2.IntrospectTokenResponse()
        claims = answer.claims
        return token_pb2.IntrospectTokenResponse(
            active=True,
            principal=_principal(claims),
            token_use="access_token",  # noqa: S106
            issue_time=_timestamp(claims.iat),
            expire_time=_timestamp(claims.exp),
            token_id=str(claims.jti),
            issuer=claims.iss,
            audiences=claims.aud,
        )

    async def _introspect_refresh(self, token: str, call: Call) -> token_pb2.IntrospectTokenResponse:
        found = await self._store.find_session_by_refresh(digest_of(token), self._clock.now())
        if found is None or not _may_see(call, found[0].tenant_id):
            return token_pb2.IntrospectTokenResponse()
        session, record = found
        response = token_pb2.IntrospectTokenResponse(active=True, token_use="refresh_token")  # noqa: S106
        response.principal.subject = str(session.subject)
        response.principal.tenant_id = str(session.tenant_id)
        response.principal.client_id = str(session.client_id or "")
        response.principal.session_id = str(session.id)
        response.principal.type = _TYPES[session.kind]
        response.principal.scopes.extend(session.scopes)
        response.principal.acr = session.acr
        response.principal.auth_time.FromDatetime(session.auth_time)
        response.issue_time.FromDatetime(record.issue_time)
        response.expire_time.FromDatetime(record.expire_time)
        return response

    async def RevokeToken(self, request: token_pb2.RevokeTokenRequest, call: Call) -> token_pb2.RevokeTokenResponse:
        tenant_id, revision = await self._revoker.revoke_token(call, request.token, client_id=_optional(request.client_id))
        return token_pb2.RevokeTokenResponse(consistency_token=self._consistency.write(TenantId(tenant_id), revision))

    async def RevokeTokens(self, request: token_pb2.RevokeTokensRequest, call: Call) -> token_pb2.RevokeTokensResponse:
        tenant_id, revision = await self._revoker.revoke_tokens(call, _target(request, call))
        return token_pb2.RevokeTokensResponse(consistency_token=self._consistency.write(TenantId(tenant_id), revision))


class KeyServicer:
    """watchword.token.v1.KeyService."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def GetJwks(self, _request: key_pb2.GetJwksRequest, call: Call) -> httpbody_pb2.HttpBody:
        call.response_headers += [("cache-control", f"public, max-age={JWKS_MAX_AGE}"), ("etag", self._keys.etag)]
        if self._keys.etag in (tag.strip() for tag in call.headers.get("if-none-match", "").split(",")):
            call.response_headers.append(("x-http-status", "304"))
            return httpbody_pb2.HttpBody(content_type="application/jwk-set+json")
        return httpbody_pb2.HttpBody(content_type="application/jwk-set+json", data=self._keys.jwks)


def _question(request: token_pb2.VerifyTokenRequest) -> Question:
    return Question(request.token, request.audience, tuple(request.required_scopes))


def _verdict(answer: Answer, call: Call) -> token_pb2.VerifyTokenResponse:
    """A token of another tenant is as unknown to a caller as one signed by somebody else."""
    if answer.tenant_id is not None and not _may_see(call, answer.tenant_id):
        return token_pb2.VerifyTokenResponse(status=token_pb2.UNKNOWN_KEY)
    response = token_pb2.VerifyTokenResponse(status=token_pb2.TokenStatus.Value(answer.verdict.value))
    if answer.claims is not None:
        response.principal.CopyFrom(_principal(answer.claims))
        response.expire_time.CopyFrom(_timestamp(answer.claims.exp))
        response.cacheable_for.CopyFrom(Duration())
        response.token_id = str(answer.claims.jti)
    return response


def _may_see(call: Call, tenant_id: UUID) -> bool:
    return call.caller.is_peer or call.caller.tenant_id == tenant_id


def _principal(claims: Claims) -> token_pb2.Principal:
    return token_pb2.Principal(
        subject=str(claims.sub),
        tenant_id=str(claims.tenant_id),
        client_id=str(claims.client_id or ""),
        session_id=str(claims.sid or ""),
        type=_TYPES[claims.kind],
        roles=claims.roles,
        scopes=claims.scope,
        acr=claims.acr,
        auth_time=_timestamp(claims.auth_time),
    )


def _redeemer(redemption: Redemption) -> token_pb2.Principal:
    return token_pb2.Principal(
        subject=str(redemption.subject),
        tenant_id=str(redemption.tenant_id),
        client_id=str(redemption.client_id or ""),
        session_id=str(redemption.tokens.session_id),
        type=_TYPES[SubjectKind.CLIENT if redemption.is_client else SubjectKind.USER],
        roles=redemption.roles,
        scopes=redemption.tokens.scopes,
        acr=redemption.acr,
        auth_time=_timestamp(int(redemption.auth_time.timestamp())),
    )


def _tokens(tokens: Tokens) -> token_pb2.TokenSet:
    return token_pb2.TokenSet(
        access_token=tokens.access_token,
        token_type="Bearer",  # noqa: S106
        expires_in=tokens.expires_in,
        refresh_token=tokens.refresh_token,
        scope=" ".join(tokens.scopes),
        session_id=str(tokens.session_id or ""),
    )


def _target(request: token_pb2.RevokeTokensRequest, call: Call) -> Target:
    named = request.WhichOneof("target")
    if named is None or not getattr(request, named):
        raise InvalidRequest.of("target", "one of subject, session_id and client_id is required")
    if request.except_session_id and named != "subject":
        raise InvalidRequest.of("except_session_id", "goes with subject only")
    return Target(
        tenant_id=_tenant(request.tenant_id, call),
        kind=_TARGETS[named],
        key=UUID(getattr(request, named)),
        spared_session_id=_optional(request.except_session_id),
        is_disabled=request.subject_disabled and named == "subject",
        cause=request.cause,
    )


def _tenant(given: str, call: Call) -> UUID:
    if call.caller.is_peer:
        if not given:
            raise InvalidRequest.of("tenant_id", "is required from services")
        return UUID(given)
    if given and UUID(given) != call.caller.tenant_id:
        raise InvalidRequest.of("tenant_id", "must be the caller's own, or empty")
    return call.caller.tenant_id


def _optional(text: str) -> UUID | None:
    return UUID(text) if text else None


def _timestamp(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)
