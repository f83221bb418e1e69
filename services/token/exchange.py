"""Exchange: an access token is traded for a narrower one, with which an OAuth client acts for the token's subject.

The new token is the old one with less: no more scopes, no wider audience, no longer life, no roles. Whatever revokes the old one revokes the new one
too, for it keeps subject, session, revision and time of issue, and names what it was made from. And whatever revokes the client does, for it names
who acts. Source: RFC 8693, whose delegation this is; docs/decisions/0010-exchange-narrows.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.tenancy import TenantId
from services.token.issuer import AccessToken, Issuer
from services.token.sessions import asked_for
from services.token.verifier import Question, Verdict, Verifier
from watchword.errors import DepthExceeded, InvalidRequest, TokenInvalid
from watchword.tokens import MAX_EXCHANGES, Claims

if TYPE_CHECKING:
    from services.token.store.sessions import SessionStore


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks for, and what identity knows of the client.

    scopes    empty for all that the client and the subject token have in common
    audience  empty for the subject token's
    revision  the tenant's, at which the client was found good
    """

    subject_token: str
    client_id: UUID
    tenant_id: UUID
    client_scopes: tuple[str, ...]
    scopes: tuple[str, ...]
    audience: str
    revision: int


class Exchange:
    """Trades access tokens for narrower ones."""

    def __init__(self, store: "SessionStore", verifier: Verifier, issuer: Issuer, clock: Clock) -> None:
        self._store = store
        self._verifier = verifier
        self._issuer = issuer
        self._clock = clock

    async def trade(self, call: Call, order: Order) -> AccessToken:
        """Return a narrower token. The same request_id returns the same one, as long as that is good.

        Raises  TokenInvalid for a subject token that the client may not use, InvalidRequest for scopes or an audience that it does not hold,
                DepthExceeded for a token that was exchanged too often
        """
        call = asked_for(call, order.subject_token, str(order.client_id), " ".join(order.scopes), order.audience)
        subject = await self._subject(order)
        fresh = self._issuer.reissue(_narrowed(subject, order), self._clock.now())
        # A client that was revoked since the subject was last found good may not act upon that finding. What is refused is not handed out.
        await self._verified(fresh.text, fresh.claims.aud[0])
        token = await self._store.note_exchange(call, _event(order, subject, fresh), result=fresh, kind=AccessToken)
        if token is not fresh:
            await self._verified(token.text, token.claims.aud[0])
        return token

    async def _subject(self, order: Order) -> Claims:
        """A token that is meant for the suite, or for this client; one that is meant for somebody else was not given to this client to use."""
        claims = await self._verifier.read(order.subject_token)
        own = str(order.client_id)
        subject = await self._verified(order.subject_token, own if claims is not None and claims.aud == (own,) else "")
        if subject.tenant_id != order.tenant_id or subject.exp <= self._clock.now().timestamp():
            raise TokenInvalid
        return subject

    async def _verified(self, token: str, audience: str) -> Claims:
        answer = await self._verifier.verify(Question(token, audience))
        if answer.verdict is not Verdict.VALID or answer.claims is None:
            raise TokenInvalid
        return answer.claims


def _narrowed(subject: Claims, order: Order) -> Claims:
    """Everything that is not named here stays as it was: among it session, time of proof, and time of issue, by which tokens are revoked too."""
    actors = (order.client_id, *_chain(subject))
    if len(actors) > MAX_EXCHANGES or len(subject.parents) == MAX_EXCHANGES:
        raise DepthExceeded("the token was exchanged too often")
    return subject._replace(
        aud=(_audience(subject, order),),
        scope=_scopes(subject, order),
        roles=(),
        client_id=order.client_id,
        rev=min(subject.rev, order.revision),
        actors=actors,
        parents=(UUID(subject.jti), *subject.parents),
    )


def _chain(subject: Claims) -> tuple[UUID, ...]:
    """Return who has the subject's authority already. A client that obtained the first token has it too, though nobody wrote `act` into that one."""
    if subject.actors or subject.client_id is None or str(subject.client_id) == subject.sub:
        return subject.actors
    return (subject.client_id,)


def _audience(subject: Claims, order: Order) -> str:
    """Return the audience: the subject token's, or for this client alone. Every other would be one that the subject token may not reach."""
    held = subject.aud[0]
    if order.audience not in ("", held, str(order.client_id)):
        raise InvalidRequest.of("audience", "must be the subject token's or the client's own id")
    return order.audience or held


def _scopes(subject: Claims, order: Order) -> tuple[str, ...]:
    common = [scope for scope in subject.scope if scope in order.client_scopes]
    if not set(order.scopes) <= set(common):
        raise InvalidRequest.of("scopes", "must be among those of the subject token and of the client")
    granted = _once(order.scopes or common)
    if not granted:
        raise InvalidRequest.of("scopes", "the subject token and the client have none in common")
    return granted


def _once(scopes: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(scopes))


def _event(order: Order, subject: Claims, token: AccessToken) -> AuditEvent:
    """Name both tokens by their ids, so that the trail of a token can be followed back to the login."""
    facts = {
        "subject": subject.sub,
        "subject_token": subject.jti,
        "scopes": " ".join(token.claims.scope),
        "audience": token.claims.aud[0],
        "actors": " ".join(str(actor) for actor in token.claims.actors),
    }
    return AuditEvent(
        "token_exchanged",
        "token",
        token.claims.jti,
        tenant_id=TenantId(order.tenant_id),
        actor_type="client",
        actor_id=str(order.client_id),
        details=facts,
    )
