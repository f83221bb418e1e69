"""Checks that need no waiting: while the lease lives and memory knows all that is asked about, a decision is a few lookups.

CheckPermission and BatchCheckPermissions are answered from the encoded request, before anything is made for a call that may have to wait. What is
remembered of a request, or of one question of a batch, is how it reads; what the answer is, is found out anew each time.
"""

from collections.abc import Callable
from itertools import islice
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import DecodeError, Message

from services.chassis.call import Caller
from services.chassis.consistency import ConsistencyTokens
from services.chassis.tenancy import TenantId
from services.chassis.validation import Validator
from services.rbac.checker import Checker
from services.rbac.decisions import Decision, Question
from services.rbac.messages import question, wire_decision
from services.rbac.nodes import Revision
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import permission_pb2

M = TypeVar("M", bound=Message)
K = TypeVar("K")
V = TypeVar("V")
REMEMBERED = 65_536  # questions, of about 700 bytes each
REMEMBERED_BYTES = 1024  # a longer question is read each time
ANSWERS = 1024  # encoded answers, all of the same few shapes
MAX_QUESTIONS = 1000
QUESTION = b"\x0a"  # the tag of field 1, by which a batch begins each of its questions


class PromptChecks:
    """Answers at once, or not at all."""

    def __init__(self, checker: Checker, consistency: ConsistencyTokens) -> None:
        self._checker = checker
        self._consistency = consistency
        self._validator = Validator()
        self._questions: dict[bytes, tuple[Question, str]] = {}
        self._tenants: dict[str, TenantId] = {}
        self._answers: dict[tuple[TenantId, Revision, Decision], bytes] = {}

    def check(self, raw: bytes, caller: Caller) -> bytes | None:
        """Answer a CheckPermissionRequest. None if it has to wait, or is refused."""
        read = self._read(raw)
        if read is None:
            return None
        asked, stated = read
        tenant_id = self._tenant(stated, caller)
        view = None if tenant_id is None else self._checker.recall(tenant_id, (asked.subject,), (asked.resource,))
        if view is None or tenant_id is None:
            return None
        return self._encoded(tenant_id, view.revision, view.decide(asked))

    def check_batch(self, raw: bytes, caller: Caller) -> bytes | None:
        """Answer a BatchCheckPermissionsRequest. None if it has to wait, or is refused, or a question of it is."""
        parts = questions_of(raw)
        if parts is None:
            return None
        encoded, stated = parts
        tenant_id = self._tenant(stated, caller)
        asked = [] if tenant_id is None else [self._read(one) for one in encoded]
        if tenant_id is None or not asked or any(one is None or one[1] not in ("", stated) for one in asked):
            return None
        questions = [one[0] for one in asked if one is not None]
        subjects, resources = {one.subject for one in questions}, {one.resource for one in questions}
        view = self._checker.recall(tenant_id, tuple(subjects), tuple(resources))
        if view is None:
            return None
        decisions = [view.decide(one) for one in questions]
        few = {id(decision): decision for decision in decisions}
        answers = {key: _framed(self._encoded(tenant_id, view.revision, decision)) for key, decision in few.items()}
        return b"".join([answers[id(decision)] for decision in decisions])

    def _read(self, raw: bytes) -> tuple[Question, str] | None:
        """Return what a question asks, and the tenant it states. None if it asks for a state, or is refused."""
        found = self._questions.get(raw)
        if found is not None:
            return found
        request = parsed(permission_pb2.CheckPermissionRequest.FromString, raw)
        if request is None or request.HasField("consistency"):
            return None
        try:
            self._validator.check(request)
            found = question(request), request.tenant_id
        except InvalidRequest:
            return None  # said properly on the way that waits
        if len(raw) <= REMEMBERED_BYTES:
            _make_room(self._questions, REMEMBERED)
            self._questions[raw] = found
        return found

    def _tenant(self, stated: str, caller: Caller) -> TenantId | None:
        if not caller.is_peer:
            return caller.tenant_id if stated in ("", str(caller.tenant_id)) else None
        found = self._tenants.get(stated)
        if found is None and stated:
            _make_room(self._tenants, ANSWERS)
            found = self._tenants[stated] = TenantId(UUID(stated))
        return found

    def _encoded(self, tenant_id: TenantId, revision: Revision, decision: Decision) -> bytes:
        key = (tenant_id, revision, decision)
        found = self._answers.get(key)
        if found is None:
            found = wire_decision(decision, self._consistency.write(tenant_id, revision)).SerializeToString()
            _make_room(self._answers, ANSWERS)
            self._answers[key] = found
        return found


def parsed(parse: Callable[[bytes], M], raw: bytes) -> M | None:
    """Return a message, or None for what is none."""
    try:
        return parse(raw)
    except (DecodeError, RecursionError):
        return None


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


def _framed(encoded: bytes) -> bytes:
    """Return an answer as a member of the list of answers."""
    length = len(encoded)
    if length < 0x80:
        return QUESTION + bytes((length,)) + encoded
    return QUESTION + bytes((length & 0x7F | 0x80, length >> 7)) + encoded  # answers are shorter than 16 KiB


def _make_room(entries: dict[K, V], limit: int) -> None:
    if len(entries) >= limit:
        for oldest in list(islice(entries, limit // 8)):
            del entries[oldest]
