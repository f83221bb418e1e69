"""Protobuf messages of tokens, from the domain and to it."""

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.call import Caller
from services.token.sessions import Login, Redemption, Tokens
from services.token.verifier import Answer, Question, Verdict
from watchword.token.v1 import token_pb2
from watchword.tokens import Claims, SubjectKind

KINDS = {token_pb2.PRINCIPAL_TYPE_USER: SubjectKind.USER, token_pb2.PRINCIPAL_TYPE_CLIENT: SubjectKind.CLIENT}
TYPES = {kind: number for number, kind in KINDS.items()}
STATUSES = {verdict: token_pb2.TokenStatus.Value(verdict.value) for verdict in Verdict}


def question_of(request: token_pb2.VerifyTokenRequest) -> Question:
    """Return what is asked."""
    return Question(request.token, request.audience, tuple(request.required_scopes))


def verdict_of(answer: Answer, caller: Caller) -> token_pb2.VerifyTokenResponse:
    """Return an answer as `caller` may see it. A token of another tenant is as unknown to a caller as one signed by somebody else."""
    if answer.tenant_id is not None and not may_see(caller, answer.tenant_id):
        return token_pb2.VerifyTokenResponse(status=token_pb2.UNKNOWN_KEY)
    if answer.claims is None:
        return token_pb2.VerifyTokenResponse(status=STATUSES[answer.verdict])
    return answer_of(answer.verdict, answer.claims)


def answer_of(verdict: Verdict, claims: Claims) -> token_pb2.VerifyTokenResponse:
    """Return an answer about a token whose claims may be believed."""
    response = token_pb2.VerifyTokenResponse(status=STATUSES[verdict], token_id=claims.jti)
    _tell(response.principal, claims)
    response.expire_time.seconds = claims.exp
    response.cacheable_for.SetInParent()  # never
    return response


def may_see(caller: Caller, tenant_id: UUID | None) -> bool:
    """Whether `caller` may know what becomes of a tenant's tokens."""
    return caller.tenant_id is tenant_id or caller.is_peer or caller.tenant_id == tenant_id


def principal_of(claims: Claims) -> token_pb2.Principal:
    """Return who a token speaks for."""
    principal = token_pb2.Principal()
    _tell(principal, claims)
    return principal


def _tell(principal: token_pb2.Principal, claims: Claims) -> None:
    """Fill in place: a message made by itself is copied into the one that holds it."""
    principal.subject = claims.sub
    principal.tenant_id = str(claims.tenant_id)
    if claims.client_id:
        principal.client_id = str(claims.client_id)
    if claims.sid:
        principal.session_id = claims.sid
    principal.type = TYPES[claims.kind]
    principal.roles.extend(claims.roles)
    principal.scopes.extend(claims.scope)
    principal.acr = claims.acr
    principal.auth_time.seconds = claims.auth_time
    holder: token_pb2.Principal | token_pb2.Actor = principal
    for actor in claims.actors:
        holder = holder.actor
        holder.subject = str(actor)


def redeemer_of(redemption: Redemption) -> token_pb2.Principal:
    """Return who redeemed tokens speak for."""
    return token_pb2.Principal(
        subject=str(redemption.subject),
        tenant_id=str(redemption.tenant_id),
        client_id=str(redemption.client_id or ""),
        session_id=str(redemption.tokens.session_id),
        type=TYPES[SubjectKind.CLIENT if redemption.is_client else SubjectKind.USER],
        roles=redemption.roles,
        scopes=redemption.tokens.scopes,
        acr=redemption.acr,
        auth_time=timestamp(int(redemption.auth_time.timestamp())),
    )


def login_of(request: token_pb2.IssueTokenRequest, now: datetime) -> Login:
    """Return what tokens are asked for."""
    return Login(
        subject=UUID(request.subject),
        tenant_id=UUID(request.tenant_id),
        kind=KINDS[request.type],
        client_id=optional(request.client_id),
        scopes=tuple(request.scopes),
        roles=tuple(request.roles),
        audience=request.audience,
        acr=request.acr,
        auth_time=request.auth_time.ToDatetime(UTC) if request.HasField("auth_time") else now,
        revision=request.revision,
        address=request.address,
        user_agent=request.user_agent,
    )


def tokens_of(tokens: Tokens) -> token_pb2.TokenSet:
    """Return tokens in the words of RFC 6749."""
    return token_pb2.TokenSet(
        access_token=tokens.access_token,
        token_type="Bearer",  # noqa: S106
        expires_in=tokens.expires_in,
        refresh_token=tokens.refresh_token,
        scope=" ".join(tokens.scopes),
        session_id=str(tokens.session_id or ""),
    )


def optional(text: str) -> UUID | None:
    """Return an id, or None if none was given."""
    return UUID(text) if text else None


def timestamp(seconds: int) -> Timestamp:
    """Return an instant given in seconds since 1970."""
    return Timestamp(seconds=seconds)
