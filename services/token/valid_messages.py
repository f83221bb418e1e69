"""The answer VALID, encoded. Nearly every verification ends in it, and a message object of it would cost as much as reading the token.

What tokens of one kind share (tenant, client, roles, scopes) is encoded once, by protobuf. What is a token's own has a fixed form, and is put beside
it: the fields of a message may stand in any order. A test compares these answers with those of messages.py.
"""

from functools import lru_cache
from uuid import UUID

from services.chassis.wire import member, varint
from services.token.messages import STATUSES, TYPES, answer_of
from services.token.verifier import Verdict
from watchword.token.v1 import token_pb2
from watchword.tokens import Claims, SubjectKind

_ANSWER, _PRINCIPAL = token_pb2.VerifyTokenResponse, token_pb2.Principal
_TOLD_FIRST = _ANSWER(status=STATUSES[Verdict.VALID]).SerializeToString()
_NOT_CACHEABLE = member(_ANSWER.CACHEABLE_FOR_FIELD_NUMBER, b"")
_UUID_BYTES = 36
# What stands before a UUID's text, in each of the fields that hold one.
_TOKEN_ID, _SUBJECT, _SESSION = (
    member(number, bytes(_UUID_BYTES))[:2]
    for number in (_ANSWER.TOKEN_ID_FIELD_NUMBER, _PRINCIPAL.SUBJECT_FIELD_NUMBER, _PRINCIPAL.SESSION_ID_FIELD_NUMBER)
)


def valid_answer(claims: Claims) -> bytes:
    """Return a VerifyTokenResponse that says VALID and whom a token with these claims speaks for."""
    if claims.actors:
        return answer_of(Verdict.VALID, claims).SerializeToString()
    principal = b"".join(
        (
            _shared((claims.tenant_id, claims.client_id, claims.kind), claims.roles, claims.scope, claims.acr),
            _SUBJECT,
            claims.sub.encode("ascii"),
            b"" if claims.sid is None else _SESSION + claims.sid.encode("ascii"),
            _instant(_PRINCIPAL.AUTH_TIME_FIELD_NUMBER, claims.auth_time),
        )
    )
    expiry = _instant(_ANSWER.EXPIRE_TIME_FIELD_NUMBER, claims.exp)
    told = (_TOLD_FIRST, member(_ANSWER.PRINCIPAL_FIELD_NUMBER, principal), expiry, _NOT_CACHEABLE, _TOKEN_ID, claims.jti.encode("ascii"))
    return b"".join(told)


@lru_cache(maxsize=1024)
def _shared(whose: tuple[UUID, UUID | None, SubjectKind], roles: tuple[str, ...], scopes: tuple[str, ...], acr: str) -> bytes:
    """Return what a principal has in common with others: `whose` is its tenant, its client and its kind."""
    tenant_id, client_id, kind = whose
    client = "" if client_id is None else str(client_id)
    return _PRINCIPAL(tenant_id=str(tenant_id), client_id=client, type=TYPES[kind], roles=roles, scopes=scopes, acr=acr).SerializeToString()


@lru_cache(maxsize=4096)  # many tokens are of the same second
def _instant(number: int, seconds: int) -> bytes:
    """Return field `number`, a Timestamp."""
    return member(number, b"\x08" + varint(seconds))
