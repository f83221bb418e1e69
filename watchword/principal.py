"""Whom a token speaks for."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from watchword.token.v1 import token_pb2
from watchword.tokens import Claims, SubjectKind


class Principal(NamedTuple):
    """Whom a token speaks for, as its claims say. Ids are UUIDs as text.

    client_id   the OAuth client that obtained the token; empty for a session of the suite's own login
    session_id  empty for client_credentials
    roles       the roles at the time of issue, for display: CheckPermission decides
    acr         the authentication context class
    auth_time   when the subject proved itself, in seconds since 1970
    actors      who acts for the subject, the present one first; empty if nobody does
    """

    subject: str
    tenant_id: str
    kind: SubjectKind
    client_id: str
    session_id: str
    scopes: frozenset[str]
    roles: tuple[str, ...]
    acr: str
    auth_time: int
    actors: tuple[str, ...]
    token_id: str
    expire_time: int  # seconds since 1970

    @property
    def expires_at(self) -> datetime:
        """When the token expires by itself."""
        return datetime.fromtimestamp(self.expire_time, UTC)


def principal_of(claims: Claims) -> Principal:
    """Return whom verified claims speak for."""
    _, subject, _, exp, _, jti, tenant_id, kind, _, client_id, sid, scope, roles, auth_time, acr, actors, _ = claims
    return tuple.__new__(  # as Principal(...) does, without a call of Python in between
        Principal,
        (
            subject,
            _text(tenant_id.int),
            kind,
            str(client_id) if client_id else "",
            sid or "",
            _often_set(scope),
            roles,
            acr,
            auth_time,
            tuple(map(str, actors)) if actors else (),
            jti,
            exp,
        ),
    )


@lru_cache(maxsize=1024)
def _often_set(scopes: tuple[str, ...]) -> frozenset[str]:
    return frozenset(scopes)


@lru_cache(maxsize=256)
def _text(number: int) -> str:
    """Return the text of a UUID by its number: to look an object of it up would take longer."""
    return str(UUID(int=number))


def principal_from(answer: token_pb2.VerifyTokenResponse) -> Principal:
    """Return whom VerifyToken says that a valid token speaks for."""
    told = answer.principal
    return Principal(
        subject=told.subject,
        tenant_id=told.tenant_id,
        kind=SubjectKind.CLIENT if told.type == token_pb2.PRINCIPAL_TYPE_CLIENT else SubjectKind.USER,
        client_id=told.client_id,
        session_id=told.session_id,
        scopes=frozenset(told.scopes),
        roles=tuple(told.roles),
        acr=told.acr,
        auth_time=told.auth_time.seconds,
        actors=tuple(_actors(told)),
        token_id=answer.token_id,
        expire_time=answer.expire_time.seconds,
    )


def _actors(told: token_pb2.Principal) -> Iterator[str]:
    holder: token_pb2.Principal | token_pb2.Actor = told
    while holder.HasField("actor"):
        holder = holder.actor
        yield holder.subject
