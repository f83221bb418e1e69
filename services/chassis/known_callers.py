"""Callers that token has proved to this instance before: remembered until they expire, or until a notice could concern them.

This instance follows token's log as a guest (guest.py), so whoever revokes something waits until it is forgotten here. Nothing is loaded: memory
begins empty, and fills with token's answers. That is why forgetting is not enough. An instance of token that lags may answer from before a notice
that was applied here already, and nobody would tell us again. So an answer is kept only if it can lack no notice that concerns it: none that not all
of token's instances had applied when token was asked, and none since. Decision: docs/decisions/0013.
"""

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import Protocol
from uuid import UUID

import msgspec

from services.chassis.call import Caller
from services.chassis.clock import Clock
from watchword.rules import EVERYWHERE, RevokedKind

NOTICES = 4096  # that are remembered, to judge answers by
NAMED = 100  # ids that are remembered of a notice; one that names more concerns everybody who is being asked about
ROOM = 2048  # bytes of tokens for each caller that memory is for; larger tokens leave room for fewer callers

AT_ONCE = 1000  # callers that are forgotten one by one, which takes some milliseconds; a notice that concerns more forgets everybody

Name = int  # an id's: quicker to look up than a UUID
Names = frozenset[Name]


class Lease(Protocol):
    """What a guest knows of the log."""

    @property
    def is_current(self) -> bool:
        """Whether every acknowledged change was applied here."""

    @property
    def unsettled(self) -> int | None:
        """How many of the last changes applied here some other instance may not have applied yet; None while that cannot be said."""


class RevocationNotice(msgspec.Struct, frozen=True, tag_field="type", tag="revocation"):
    """What token tells of a revocation, as far as it matters here."""

    tenant_id: UUID
    kind: RevokedKind
    key: UUID


class SessionsNotice(msgspec.Struct, frozen=True, tag_field="type", tag="sessions"):
    """What token tells of many sessions: their ids, end to end."""

    ids: bytes


_decoder = msgspec.json.Decoder(RevocationNotice | SessionsNotice)


@dataclass(frozen=True, slots=True)
class Asked:
    """When token was asked: after which load of memory, and after how many notices that all of token's instances had applied."""

    load: int
    settled: int


@dataclass(frozen=True, slots=True)
class Known:
    """A caller, every id under which it could be revoked, and when its token ends, in seconds since 1970."""

    caller: Caller
    names: Names
    ends: float


class KnownCallers:
    """A replica of what token says: of the callers asked about here, and of no others.

    most  callers remembered at most; who was not seen for longest is forgotten first
    """

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._lease: Lease | None = None
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._bytes = 0
        self._index = Index()
        self._heard: deque[tuple[Name, ...] | None] = deque(maxlen=NOTICES)
        self._count = 0
        self._loads = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def is_current(self) -> bool:
        """Whether those who are remembered are believed now."""
        return self._lease is not None and self._lease.is_current

    def trust(self, lease: Lease) -> None:
        """Go by what `lease` says of memory from now on."""
        self._lease = lease

    async def load(self) -> None:
        """Begin anew. What token is being asked meanwhile is not kept."""
        self._forget_all()
        self._heard.clear()
        self._count = 0
        self._loads += 1

    def apply(self, change: str) -> None:
        """Forget everybody whom a notice could concern: everybody, for one that is not understood."""
        names = _names_in(change)
        self._count += 1
        self._heard.append(names if names is not None and len(names) <= NAMED else None)
        tokens = None if names is None else [token for name in names for token in self._index.find(name)]
        if tokens is None or len(tokens) > AT_ONCE:
            self._forget_all()
            return
        for token in tokens:
            self._forget(token)

    def recall(self, token: str) -> Caller | None:
        """Return whom `token` speaks for, without waiting; None if that cannot be told so."""
        known = self._known.get(token)
        if known is None or not self.is_current:
            return None
        if known.ends <= self._clock.seconds():
            self._forget(token)
            return None
        self._known.move_to_end(token)
        return known.caller

    def ask(self) -> Asked | None:
        """Note that token is asked from now on; None while its answers cannot be kept."""
        if self._lease is None or (unsettled := self._lease.unsettled) is None:
            return None
        return Asked(self._loads, self._count - unsettled)

    def keep(self, asked: Asked | None, caller: Caller, *, client_id: UUID | None) -> None:
        """Remember whom token proved when it was `asked`, if that is certainly still so.

        Tokens that were exchanged fall with those they were made from, whose ids are not told: they are not kept.
        client_id  of the client that the token was issued to
        """
        if asked is None or caller.is_acted_for or caller.expire_time is None:
            return
        ids = (UUID(caller.token_id), caller.uuid, caller.tenant_id, caller.session_id, client_id)
        names = frozenset(one.int for one in ids if one is not None)
        if self._may_lack(asked, names):
            return
        self._forget(caller.token)
        self._known[caller.token] = Known(caller, names, caller.expire_time.timestamp())
        self._bytes += len(caller.token)
        for name in names:
            self._index.add(name, caller.token)
        while len(self._known) > self._most or self._bytes > self._most * ROOM:
            self._forget(next(iter(self._known)))

    def _may_lack(self, asked: Asked, names: Names) -> bool:
        """Whether an answer may be from before a notice that concerns it."""
        heard = self._count - asked.settled
        if asked.load != self._loads or heard > len(self._heard):
            return True
        return any(notice is None or not names.isdisjoint(notice) for notice in islice(reversed(self._heard), heard))

    def _forget(self, token: str) -> None:
        known = self._known.pop(token, None)
        if known is not None:
            self._bytes -= len(token)
            for name in known.names:
                self._index.remove(name, token)

    def _forget_all(self) -> None:
        self._known.clear()
        self._index = Index()
        self._bytes = 0


class Index:
    """Tokens by the ids that could revoke them. Most ids are of one token, which then needs no set of its own: that halves what a caller weighs."""

    def __init__(self) -> None:
        self._tokens: dict[Name, str | set[str]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, name: Name) -> Collection[str]:
        """Return the tokens of an id."""
        found = self._tokens.get(name, ())
        return (found,) if isinstance(found, str) else found

    def add(self, name: Name, token: str) -> None:
        """Note that a token has an id."""
        held = self._tokens.setdefault(name, token)
        if isinstance(held, set):
            held.add(token)
        elif held != token:
            self._tokens[name] = {held, token}

    def remove(self, name: Name, token: str) -> None:
        """Note that a token is gone."""
        held = self._tokens.get(name)
        if isinstance(held, set):
            held.discard(token)
        if not held or held == token:
            self._tokens.pop(name, None)


def _names_in(change: str) -> tuple[Name, ...] | None:
    """Return the ids that a notice revokes; None for everything."""
    try:
        notice = _decoder.decode(change)
    except ValueError:
        return None
    if isinstance(notice, SessionsNotice):
        return tuple(int.from_bytes(notice.ids[at : at + 16]) for at in range(0, len(notice.ids), 16)) if len(notice.ids) % 16 == 0 else None
    return None if notice.kind is RevokedKind.KEY or notice.tenant_id == EVERYWHERE else (notice.key.int,)
