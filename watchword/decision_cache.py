"""Decisions that were answered before, until something happens to whom they are about.

Kept is what nothing but a change or its own end can alter: ALLOW and DENY of users and clients, not judged by a condition. A DENY that a binding
demands is not kept, since nobody says when that binding ends. A change names the subjects that it touched, and theirs is forgotten.

An answer that was on its way while a change was told may be from before it, and is dropped. So may be an answer asked for after the change was told,
by an instance that has not heard of it yet, as long as the change is not acknowledged. So what is to be kept is asked for at least as fresh as the
last state that was told (`demand`), and while that is not known nothing is kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from watchword.decisions import Decision, Outcome, Reason, Subject, SubjectType

# Permission, resource, acr, auth_time. A plain ALLOW or DENY depends on no context.
Key: TypeAlias = tuple[str, str, str, datetime | int | None]

_STEADY = {(Outcome.ALLOW, Reason.GRANTED), (Outcome.DENY, Reason.NO_ROLE), (Outcome.DENY, Reason.NO_PERMISSION)}
_TOLD_OF = (SubjectType.USER, SubjectType.CLIENT)  # changes name no groups


@dataclass(frozen=True, slots=True)
class _Kept:
    """A decision, and until when it is good by either clock: neither may be set back to prolong it."""

    decision: Decision
    until: float
    until_wall: float


@dataclass(frozen=True, slots=True)
class Mark:
    """What was told when a question was asked: how often something was, and the state that it must be answered from at least."""

    generation: int
    demand: str


class DecisionCache:
    """At most `size` decisions, of about 1 KB each; those used longest ago go first. For any number of threads.

    clock  measures lengths of time; wall tells the time of day. Both in seconds
    """

    def __init__(self, size: int, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._size = size
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Subject, Key], _Kept] = OrderedDict()
        self._keys: dict[Subject, set[Key]] = {}
        self._told: dict[Subject, int] = {}  # when each was last told of, as a generation
        self._forgot = 0  # the generation in which everything was forgotten last
        self._mark = Mark(0, "")

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def mark(self) -> Mark:
        """Return what to note before a question is asked, with its demand."""
        return self._mark

    def find(self, subject: Subject, key: Key) -> Decision | None:
        """Return what is kept, if its time is not over."""
        with self._lock:
            kept = self._kept.get((subject, key))
            if kept is None:
                return None
            if self._clock() >= kept.until or self._wall() >= kept.until_wall:
                self._drop(subject, key)
                return None
            self._kept.move_to_end((subject, key))
            return kept.decision

    def keep(self, subject: Subject, key: Key, decision: Decision, *, asked: Mark) -> None:
        """Keep an answer to a question that was asked with the demand of `asked`, if it may be kept."""
        if not asked.demand or subject.type not in _TOLD_OF or decision.depends_on_context or (decision.outcome, decision.reason) not in _STEADY:
            return
        life = _life(decision.expire_time, self._wall())
        with self._lock:
            if asked.generation < max(self._forgot, self._told.get(subject, 0)):
                return
            self._kept[subject, key] = _Kept(decision, self._clock() + life, self._wall() + life)
            self._kept.move_to_end((subject, key))
            self._keys.setdefault(subject, set()).add(key)
            while len(self._kept) > self._size:
                self._drop(*next(iter(self._kept)))

    def forget(self, subjects: Iterable[Subject], demand: str) -> None:
        """A change touched `subjects`; `demand` is the state that includes it."""
        with self._lock:
            self._mark = mark = Mark(self._mark.generation + 1, demand)
            for subject in subjects:
                self._told[subject] = mark.generation
                for key in self._keys.pop(subject, ()):
                    del self._kept[subject, key]
            if len(self._told) > self._size:  # bounded: what is on its way now is not kept then
                self._told.clear()
                self._forgot = mark.generation

    def forget_all(self, demand: str) -> None:
        """Anything may have changed; `demand` is the state that includes it, empty if it is not known."""
        with self._lock:
            self._mark = Mark(self._mark.generation + 1, demand)
            self._forgot = self._mark.generation
            self._kept.clear()
            self._keys.clear()
            self._told.clear()

    def believe(self, demand: str) -> None:
        """Nothing changed; `demand` is the state that everything told so far leads to, empty if that is not said."""
        with self._lock:
            self._mark = Mark(self._mark.generation, demand)

    def _drop(self, subject: Subject, key: Key) -> None:
        del self._kept[subject, key]
        keys = self._keys[subject]
        keys.discard(key)
        if not keys:
            del self._keys[subject]


def _life(end: datetime | None, wall: float) -> float:
    """Return for how many seconds more a decision is good."""
    return float("inf") if end is None else end.timestamp() - wall
