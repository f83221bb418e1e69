"""Whatever order writes, notices, answers and events come in: once everything that was acknowledged has been told, memory holds nothing else.

The server is modelled as it promises to be, and no better. An instance hears of a change some time between its commit and its acknowledgement. A
change may be told to clients as soon as it is committed. An answer is the state of its instance, but never older than was demanded.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from watchword.decision_cache import DecisionCache, Mark
from watchword.decisions import Decision, Outcome, Reason, Subject, SubjectType

SUBJECTS = [Subject(SubjectType.USER, name) for name in "abc"]
KEY = ("folders.read", "", "", None)
ANSWERS = {True: Decision(Outcome.ALLOW, Reason.GRANTED), False: Decision(Outcome.DENY, Reason.NO_ROLE)}
INSTANCES = st.integers(0, 1)


@dataclass
class Asked:
    """A question on its way, and its answer once an instance has given it."""

    subject: Subject
    mark: Mark
    at_least: int
    answer: bool | None = None


@dataclass
class Server:
    """States are numbered; each is who may."""

    states: list[frozenset[Subject]] = field(default_factory=lambda: [frozenset()])
    touched: list[frozenset[Subject]] = field(default_factory=lambda: [frozenset()])
    instances: list[int] = field(default_factory=lambda: [0, 0])
    acknowledged: int = 0


class Coherence(RuleBasedStateMachine):
    """A client that remembers, and two instances."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.cache = DecisionCache(100, clock=lambda: 0.0, wall=lambda: 0.0)
        self.asked: list[Asked] = []
        self.told = 0  # the state that the client has been told up to
        self.has_begun = False

    @rule(subjects=st.sets(st.sampled_from(SUBJECTS), min_size=1))
    def write(self, subjects: set[Subject]) -> None:
        """Commit a change; nobody has heard of it yet. It waits its turn: an unacknowledged one comes first."""
        self.server.states.append(self.server.states[-1] ^ subjects)
        self.server.touched.append(frozenset(subjects))

    @rule(number=INSTANCES)
    def hear(self, number: int) -> None:
        """An instance hears of the next change."""
        self.server.instances[number] = min(self.server.instances[number] + 1, len(self.server.states) - 1)

    @rule()
    def acknowledge(self) -> None:
        """A change is acknowledged once all instances have heard of it."""
        self.server.acknowledged = max(self.server.acknowledged, min(self.server.instances))

    @rule()
    def begin(self) -> None:
        """The stream begins at the last committed state; or begins anew, having lost its place."""
        self.cache.forget_all("")
        self.told = len(self.server.states) - 1
        self.cache.believe(str(self.told))
        self.has_begun = True

    @precondition(lambda self: self.has_begun and self.told < len(self.server.states) - 1)
    @rule(by_name=st.booleans())
    def tell(self, by_name: bool) -> None:
        """The next change arrives at the client."""
        self.told += 1
        if by_name:
            self.cache.forget(self.server.touched[self.told], str(self.told))
        else:
            self.cache.forget_all(str(self.told))

    @rule(subject=st.sampled_from(SUBJECTS))
    def ask(self, subject: Subject) -> None:
        """A question leaves, with the demand of this moment."""
        mark = self.cache.mark()
        self.asked.append(Asked(subject, mark, int(mark.demand or 0)))

    @precondition(lambda self: self.asked)
    @rule(number=INSTANCES, which=st.integers(0, 100))
    def answer(self, number: int, which: int) -> None:
        """An instance answers, at least as fresh as was demanded: it reads what it has not heard of."""
        one = self.asked[which % len(self.asked)]
        state = max(self.server.instances[number], one.at_least)
        if one.answer is None:
            one.answer = one.subject in self.server.states[state]

    @precondition(lambda self: any(one.answer is not None for one in self.asked))
    @rule(which=st.integers(0, 100))
    def arrive(self, which: int) -> None:
        """An answer arrives at the client."""
        ready = [one for one in self.asked if one.answer is not None]
        one = ready[which % len(ready)]
        self.asked.remove(one)
        assert one.answer is not None
        self.cache.keep(one.subject, KEY, ANSWERS[one.answer], asked=one.mark)

    @invariant()
    def what_is_remembered_is_no_older_than_what_was_told(self) -> None:
        """Each memory is the state that was told last, or a later one."""
        later = self.server.states[self.told :] if self.has_begun else []
        for subject in SUBJECTS:
            known = self.cache.find(subject, KEY)
            assert known is None or known.allowed in {subject in state for state in later}


Coherence.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestCoherence = Coherence.TestCase
