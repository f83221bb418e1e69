"""Questions as they come, encoded, and as they are put to memory.

Most questions are made of what was asked about before: the same subjects, permissions and resources, put together anew. What has kept the rules of
the contract once is known by its text and not looked at again, which is most of what reading a question costs.
"""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from services.chassis.validation import Validator
from services.rbac.decisions import NO_CONTEXT, Question
from services.rbac.messages import question
from services.rbac.model import Subject
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import permission_pb2

M = TypeVar("M", bound=Message)
K = TypeVar("K")
V = TypeVar("V")


class Read(NamedTuple):
    """A question, and the tenant that it states."""

    question: Question
    stated: str


class Reader:
    """Reads questions.

    most  subjects known at most, and as many permissions, resources and tenants
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._validator = Validator()
        self._subjects: dict[tuple[int, str], Subject] = {}
        self._permissions: dict[str, str] = {}
        self._resources: dict[str, str] = {"": ""}
        self._tenants: dict[str, str] = {"": ""}

    def read(self, raw: bytes) -> Read | None:
        """Return what a CheckPermissionRequest asks. None if it asks for a state, or has to be refused."""
        request = parsed(permission_pb2.CheckPermissionRequest.FromString, raw)
        if request is None or request.HasField("consistency"):
            return None
        return self._known(request) or self._checked(request)

    def _known(self, request: permission_pb2.CheckPermissionRequest) -> Read | None:
        """Return a question all of whose parts are known."""
        if request.acr or request.HasField("context") or request.HasField("auth_time"):
            return None
        who = request.subject
        subject, permission = self._subjects.get((who.type, who.id)), self._permissions.get(request.permission)
        resource, stated = self._resources.get(request.resource), self._tenants.get(request.tenant_id)
        if subject is None or permission is None or resource is None or stated is None:
            return None
        return Read(Question(subject, permission, resource, NO_CONTEXT), stated)

    def _checked(self, request: permission_pb2.CheckPermissionRequest) -> Read | None:
        """Return a question that keeps the rules, and know its parts from now on."""
        try:
            self._validator.check(request)
            asked = question(request)
        except InvalidRequest:
            return None  # said properly on the way that waits
        self._keep(self._subjects, (request.subject.type, request.subject.id), asked.subject)
        self._keep(self._permissions, asked.permission, asked.permission)
        self._keep(self._resources, asked.resource, asked.resource)
        self._keep(self._tenants, request.tenant_id, request.tenant_id)
        return Read(asked, request.tenant_id)

    def _keep(self, known: dict[K, V], key: K, part: V) -> None:
        if key not in known:
            make_room(known, self._most)
            known[key] = part


def parsed(parse: Callable[[bytes], M], raw: bytes) -> M | None:
    """Return a message, or None for what is none."""
    try:
        return parse(raw)
    except (DecodeError, RecursionError):
        return None


def make_room(entries: dict[K, V], limit: int) -> None:
    """Forget the oldest eighth of `entries` if there are `limit` of them."""
    if len(entries) >= limit:
        for oldest in list(islice(entries, max(1, limit // 8))):
            del entries[oldest]
