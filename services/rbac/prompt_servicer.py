"""Checks that need no waiting: while the lease lives and memory knows all that is asked about, a decision is a few lookups.

CheckPermission and BatchCheckPermissions are answered from the encoded request, before anything is made for a call that may have to wait. Of a
question, alone or in a batch, two things are remembered: how it reads, and what was answered in which standing of the tenant. That answer is given
again in the same standing only, which the next change that is heard of ends; and only if it depends on nothing but the policy.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from services.chassis.call import Caller
from services.chassis.consistency import ConsistencyTokens
from services.chassis.tenancy import TenantId
from services.chassis.wire import member
from services.rbac.checker import Checker
from services.rbac.decisions import Decision, Question
from services.rbac.memory import Standing
from services.rbac.messages import wire_decision
from services.rbac.nodes import Revision
from services.rbac.question_messages import Reader, make_room, parsed
from watchword.rbac.v1 import permission_pb2

QUESTION_BYTES = 768  # about, of one that is remembered
REMEMBERED_BYTES = 1024  # a longer question is read each time
ANSWERS = 1024  # encoded answers, all of the same few shapes
MAX_QUESTIONS = 1000
RESPONSES = permission_pb2.BatchCheckPermissionsResponse.RESPONSES_FIELD_NUMBER
QUESTION = b"\x0a"  # the tag of field 1, by which a batch begins each of its questions


class Answer(NamedTuple):
    """An encoded answer, and the same as a member of the list of a batch's answers."""

    alone: bytes
    framed: bytes


NO_ANSWER = Answer(b"", b"")


class Asked:
    """A question as it was read, and the tenant that it states; its last answer, and the standing in which that may be given again."""

    __slots__ = ("answer", "question", "standing", "stated")

    def __init__(self, question: Question, stated: str) -> None:
        self.question = question
        self.stated = stated
        self.answer = NO_ANSWER
        self.standing: Standing | None = None


class PromptChecks:
    """Answers at once, or not at all.

    most  questions remembered
    """

    def __init__(self, checker: Checker, consistency: ConsistencyTokens, *, most: int) -> None:
        self._checker = checker
        self._consistency = consistency
        self._most = most
        self._reader = Reader(most)
        self._questions: dict[bytes, Asked] = {}
        self._tenants: dict[str, TenantId] = {}
        self._answers: dict[tuple[TenantId, Revision, Decision], Answer] = {}

    def check(self, raw: bytes, caller: Caller) -> bytes | None:
        """Answer a CheckPermissionRequest. None if it has to wait, or is refused."""
        asked = self._read(raw)
        if asked is None or not self._answer((asked,), asked.stated, caller):
            return None
        return asked.answer.alone

    def check_batch(self, raw: bytes, caller: Caller) -> bytes | None:
        """Answer a BatchCheckPermissionsRequest. None if it has to wait, or is refused, or a question of it is."""
        parts = questions_of(raw)
        if parts is None:
            return None
        encoded, stated = parts
        asked = [one for one in map(self._read, encoded) if one is not None and one.stated in ("", stated)]
        if len(asked) < len(encoded) or not self._answer(asked, stated, caller):
            return None
        return b"".join([one.answer.framed for one in asked])

    def _answer(self, asked: Sequence[Asked], stated: str, caller: Caller) -> bool:
        """Let each of `asked` have its answer of the state of this instant; return whether memory could tell."""
        tenant_id = self._tenant(stated, caller)
        standing = None if tenant_id is None else self._checker.standing(tenant_id)
        if tenant_id is None or standing is None:
            return False
        unanswered = [one for one in asked if one.standing is not standing]
        if not unanswered:
            self._checker.warm += 1
            return True
        return self._decide(tenant_id, standing, unanswered)

    def _decide(self, tenant_id: TenantId, standing: Standing, asked: Sequence[Asked]) -> bool:
        subjects, resources = {one.question.subject for one in asked}, {one.question.resource for one in asked}
        view = self._checker.recall(tenant_id, tuple(subjects), tuple(resources))
        if view is None:
            return False
        few: dict[int, tuple[Decision, Answer]] = {}  # by identity, which most decisions share: looking at what they say takes longer
        for one in asked:
            decision = view.decide(one.question)
            found = few.get(id(decision))
            if found is None:
                found = few[id(decision)] = decision, self._encoded(tenant_id, view.revision, decision)
            one.answer = found[1]
            one.standing = standing if view.is_lasting(one.question) else None
        return True

    def _read(self, raw: bytes) -> Asked | None:
        """Return a question, new or as it was asked before. None if it asks for a state, or is refused."""
        asked = self._questions.get(raw)
        if asked is not None:
            return asked
        read = self._reader.read(raw)
        if read is None:
            return None
        asked = Asked(read.question, read.stated)
        if len(raw) <= REMEMBERED_BYTES:
            make_room(self._questions, self._most)
            self._questions[raw] = asked
        return asked

    def _tenant(self, stated: str, caller: Caller) -> TenantId | None:
        if not caller.is_peer:
            return caller.tenant_id if not stated or stated == str(caller.tenant_id) else None
        found = self._tenants.get(stated)
        if found is None and stated:
            make_room(self._tenants, ANSWERS)
            found = self._tenants[stated] = TenantId(UUID(stated))
        return found

    def _encoded(self, tenant_id: TenantId, revision: Revision, decision: Decision) -> Answer:
        key = (tenant_id, revision, decision)
        found = self._answers.get(key)
        if found is None:
            alone = wire_decision(decision, self._consistency.write(tenant_id, revision)).SerializeToString()
            make_room(self._answers, ANSWERS)
            found = self._answers[key] = Answer(alone, member(RESPONSES, alone))
        return found


def questions_of(raw: bytes) -> tuple[list[bytes], str] | None:
    """Return the encoded questions of a batch and the tenant it states. None if it says anything else, or not in the usual order."""
    found, at, end = [], 0, len(raw)
    while at < end and raw[at : at + 1] == QUESTION:
        length, at = _varint(raw, at + 1)
        if at + length > end:
            return None
        found.append(raw[at : at + length])
        at += length
    rest = parsed(permission_pb2.BatchCheckPermissionsRequest.FromString, raw[at:])
    if rest is None or rest.requests or rest.HasField("consistency") or not 0 < len(found) <= MAX_QUESTIONS:
        return None
    return found, rest.tenant_id


def _varint(raw: bytes, start: int) -> tuple[int, int]:
    """Return the number that begins at `start`, and where it ends. One that does not end is larger than any length."""
    value = 0
    for at in range(start, min(start + 5, len(raw))):
        value |= (raw[at] & 0x7F) << 7 * (at - start)
        if raw[at] < 0x80:
            return value, at + 1
    return len(raw) + 1, start
