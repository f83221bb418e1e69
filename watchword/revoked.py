"""What is revoked in one tenant, in memory, for as long as it can concern a token.

Revocations only ever add up: the same one may come twice, and older states of one after newer ones. They are held by the text of what they name, as
tokens and principals spell it: to ask about a token that was never seen makes nothing new. Some 180 bytes each, and 500 where a revision counts.
"""

from collections.abc import Iterator
from functools import lru_cache

from watchword.principal import Principal
from watchword.rules import LEEWAY, OUTRIGHT, VALID, Revocation, RevokedKind, Verdict, id_of_key
from watchword.tokens import Claims, SubjectKind

MARGIN = 60  # seconds that a revocation is kept beyond its time: clocks differ
SPAN = 16  # seconds: what expires together is forgotten together


def names(claims: Claims, principal: Principal, kid: str) -> Iterator[tuple[RevokedKind, str]]:
    """Yield everything that a token can be revoked as: rules.names_of, as text."""
    yield RevokedKind.TOKEN, principal.token_id
    yield RevokedKind.SUBJECT, principal.subject
    yield RevokedKind.TENANT, principal.tenant_id
    yield RevokedKind.KEY, _name_of_key(kid)
    if principal.session_id:
        yield RevokedKind.SESSION, principal.session_id
    if principal.client_id:
        yield RevokedKind.CLIENT, principal.client_id
    if principal.kind is SubjectKind.CLIENT:
        yield RevokedKind.CLIENT, principal.subject
    for parent in claims.parents:
        yield RevokedKind.TOKEN, str(parent)
    for actor in principal.actors:
        yield RevokedKind.SUBJECT, actor
        yield RevokedKind.CLIENT, actor


@lru_cache(maxsize=256)
def _name_of_key(kid: str) -> str:
    return str(id_of_key(kid))


class Revoked:
    """The revocations held.

    `horizon`, in seconds since 1970: whatever expired before it has been forgotten, so tokens that expired before it are refused even when the clock
    has been set back since.
    """

    def __init__(self) -> None:
        self._held: dict[RevokedKind, dict[str, int | Revocation]] = {kind: {} for kind in RevokedKind}
        self._tokens, self._sessions, self._subjects, self._clients, self._tenants, self._keys = (self._held[kind] for kind in RevokedKind)
        self._due: dict[tuple[int, RevokedKind], list[str]] = {}
        self._last_sweep = float("-inf")
        self.horizon = float("-inf")

    def __len__(self) -> int:
        """How many are held."""
        return sum(map(len, self._held.values()))

    def add(self, revocation: Revocation) -> None:
        """Hold a revocation until it expires, together with what is held under its name."""
        name = str(revocation.key)
        held = self._held[revocation.kind]
        known = held.get(name)
        expiry = int(revocation.expire_time.timestamp()) + 1
        if revocation.kind in OUTRIGHT:
            held[name] = expiry = max(expiry, known) if isinstance(known, int) else expiry
        else:
            held[name] = merged = _merge(known, revocation) if isinstance(known, Revocation) else revocation
            expiry = int(merged.expire_time.timestamp()) + 1
        if known is None or _expiry(known) != expiry:
            self._due.setdefault((expiry // SPAN, revocation.kind), []).append(name)

    def verdict(self, claims: Claims, principal: Principal, kid: str) -> Verdict:
        """Return VALID, REVOKED or SUBJECT_DISABLED, for a token with these claims, which speaks for `principal`, and which the key `kid` signed."""
        if not (
            principal.token_id in self._tokens
            or principal.subject in self._subjects
            or principal.session_id in self._sessions
            or principal.client_id in self._clients
            or principal.subject in self._clients
            or principal.tenant_id in self._tenants
            or _name_of_key(kid) in self._keys
            or principal.actors
            or claims.parents
        ):
            return VALID  # nothing that could be meant is held: nearly all tokens
        verdict = VALID
        for kind, name in names(claims, principal, kid):
            held = self._held[kind].get(name)
            if held is None or (isinstance(held, Revocation) and not held.refuses(claims)):
                continue
            if isinstance(held, Revocation) and held.is_disabled and claims.kind is SubjectKind.USER:
                return Verdict.SUBJECT_DISABLED
            verdict = Verdict.REVOKED
        return verdict

    def sweep(self, now: float) -> bool:
        """Forget what has expired by `now`, in seconds since 1970. False if the clock went back since: then something may be forgotten too early."""
        if now < self._last_sweep - LEEWAY:
            return False
        self._last_sweep = max(now, self._last_sweep)
        over = int(now - MARGIN) // SPAN
        for span, kind in [key for key in self._due if key[0] < over]:
            self._forget(self._due.pop((span, kind)), self._held[kind], over * SPAN)
            self.horizon = max(self.horizon, float(over * SPAN))
        return True

    def _forget(self, due: list[str], held: dict[str, int | Revocation], before: int) -> None:
        """A revocation that came again with a later expiry is due again, later."""
        for name in due:
            known = held.get(name)
            if known is not None and _expiry(known) < before:
                del held[name]


def _expiry(held: int | Revocation) -> int:
    return held if isinstance(held, int) else int(held.expire_time.timestamp()) + 1


def _merge(one: Revocation, other: Revocation) -> Revocation:
    """Return what refuses whatever one of two states of a revocation refuses; in any order the same."""
    later = max(one, other, key=lambda state: (state.revision, state.is_disabled))
    sparing = max(one, other, key=lambda state: (state.spared_revision, str(state.spared_session_id or "")))
    return Revocation(
        tenant_id=later.tenant_id,
        kind=later.kind,
        key=later.key,
        revision=later.revision,
        expire_time=max(one.expire_time, other.expire_time),
        spared_revision=sparing.spared_revision,
        spared_session_id=sparing.spared_session_id,
        is_disabled=later.is_disabled,
        issued_before=max((state.issued_before for state in (one, other) if state.issued_before is not None), default=None),
    )
