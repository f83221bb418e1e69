"""What is revoked in one tenant, in memory, for as long as it can concern a token.

Each revocation has a name, a number made of its key and kind. A token's names are computed once, so that asking costs one set operation. Revocations
only ever add up: the same one may come twice, and older states of one after newer ones. Some 150 bytes each.
"""

from collections.abc import Sequence
from functools import lru_cache

from watchword.rules import LEEWAY, OUTRIGHT, VALID, Revocation, RevokedKind, Verdict, id_of_key, number_of
from watchword.tokens import Claims, SubjectKind

MARGIN = 60  # seconds that a revocation is kept beyond its time: clocks differ
SPAN = 16  # seconds: what expires together is forgotten together
_NUMBERS = {kind: number for number, kind in enumerate(RevokedKind, 1)}
_TOKEN, _SESSION, _SUBJECT, _CLIENT, _TENANT = (_NUMBERS[kind] for kind in list(RevokedKind)[:5])
_IS_CLIENT = SubjectKind.CLIENT


def names(claims: Claims, kid: str) -> tuple[int, ...]:
    """Return everything that a token can be revoked as, the tenant apart: rules.names_of, written out, for every new token needs it."""
    subject = number_of(claims.sub)
    found = [number_of(claims.jti) << 3 | _TOKEN, subject << 3 | _SUBJECT, claims.tenant_id.int << 3 | _TENANT, _name_of_key(kid)]
    if claims.sid is not None:
        found.append(number_of(claims.sid) << 3 | _SESSION)
    if claims.client_id is not None:
        found.append(claims.client_id.int << 3 | _CLIENT)
    if claims.kind is _IS_CLIENT:
        found.append(subject << 3 | _CLIENT)
    if claims.parents:
        found.extend(parent.int << 3 | _TOKEN for parent in claims.parents)
    for actor in claims.actors:
        found += (actor.int << 3 | _SUBJECT, actor.int << 3 | _CLIENT)
    return tuple(found)


@lru_cache(maxsize=256)
def _name_of_key(kid: str) -> int:
    return id_of_key(kid).int << 3 | _NUMBERS[RevokedKind.KEY]


class Revoked:
    """The revocations held.

    `horizon`, in seconds since 1970: whatever expired before it has been forgotten, so tokens that expired before it are refused even when the clock
    has been set back since.
    """

    def __init__(self) -> None:
        self._held: dict[int, int | Revocation] = {}
        self._due: dict[int, list[int]] = {}
        self._last_sweep = float("-inf")
        self.horizon = float("-inf")

    def __len__(self) -> int:
        """How many are held."""
        return len(self._held)

    def add(self, revocation: Revocation) -> None:
        """Hold a revocation until it expires, together with what is held under its name."""
        name = revocation.key.int << 3 | _NUMBERS[revocation.kind]
        known = self._held.get(name)
        expiry = int(revocation.expire_time.timestamp()) + 1
        if revocation.kind in OUTRIGHT:
            self._held[name] = expiry = max(expiry, known) if isinstance(known, int) else expiry
        else:
            self._held[name] = merged = _merge(known, revocation) if isinstance(known, Revocation) else revocation
            expiry = int(merged.expire_time.timestamp()) + 1
        if known is None or _expiry(known) != expiry:
            self._due.setdefault(expiry // SPAN, []).append(name)

    def verdict(self, token_names: Sequence[int], claims: Claims) -> Verdict:
        """Return VALID, REVOKED or SUBJECT_DISABLED."""
        if self._held.keys().isdisjoint(token_names):
            return VALID
        verdict = VALID
        for name in token_names:
            held = self._held.get(name)
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
        for span in [span for span in self._due if span < over]:
            self._forget(self._due.pop(span), over * SPAN)
            self.horizon = max(self.horizon, float(over * SPAN))
        return True

    def _forget(self, due: list[int], before: int) -> None:
        """A revocation that came again with a later expiry is due again, later."""
        for name in due:
            held = self._held.get(name)
            if held is not None and _expiry(held) < before:
                del self._held[name]


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
