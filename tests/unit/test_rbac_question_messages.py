"""Questions that are made of known parts are read as if nothing was known."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.rbac.question_messages import Read, Reader
from watchword.common.v1 import consistency_pb2
from watchword.rbac.v1 import permission_pb2, rbac_pb2

IDS = [str(UUID(int=number)) for number in range(3)]
words = st.sampled_from(
    ["", "doc.read", "doc.write", "doc.*", "Doc.read", "doc", "doc/1", "doc/2", "doc/", "/1", "doc/1/2", "\0", "é", "x" * 300, *IDS]
)
subjects = st.one_of(st.none(), st.builds(rbac_pb2.Subject, type=st.integers(0, 5), id=st.sampled_from(["", "x", *IDS, IDS[1].replace("0", "A")])))
extras = {
    "acr": st.sampled_from(["", "", "pwd", "x" * 65]),
    "auth_time": st.sampled_from([None, None, Timestamp(seconds=1), Timestamp(seconds=2**60)]),
    "context": st.sampled_from([None, None, Struct(fields={"ip": Value(string_value="::1")})]),
    "consistency": st.sampled_from([None, None, consistency_pb2.Consistency()]),
}
good = st.builds(
    permission_pb2.CheckPermissionRequest,
    subject=st.builds(rbac_pb2.Subject, type=st.integers(1, 3), id=st.sampled_from(IDS)),
    permission=st.sampled_from(["doc.read", "doc.write"]),
    resource=st.sampled_from(["", "doc/1", "doc/2"]),
    tenant_id=st.sampled_from(["", *IDS]),
    **extras,
)
requests = st.builds(permission_pb2.CheckPermissionRequest, subject=subjects, permission=words, resource=words, tenant_id=words, **extras)
KNOWING = Reader(100)


@given(st.one_of(good, requests))
def test_a_reader_that_knows_parts_reads_as_one_that_knows_nothing(request: permission_pb2.CheckPermissionRequest) -> None:
    raw = request.SerializeToString()

    assert KNOWING.read(raw) == Reader(100).read(raw)


def test_a_question_of_known_parts_that_says_more_is_read_as_a_whole() -> None:
    reader, known = Reader(100), permission_pb2.CheckPermissionRequest()
    known.subject.CopyFrom(rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=IDS[1]))
    known.permission = "doc.read"

    def read(**more: Any) -> Read | None:
        request = permission_pb2.CheckPermissionRequest(**more)
        request.MergeFrom(known)
        return reader.read(request.SerializeToString())

    assert read() is not None
    assert [one and one.question.context for one in (read(context=Struct(fields={"ip": Value(string_value="::1")})),)] == [{"ip": "::1"}]
    assert [one and one.question.login.acr for one in (read(acr="pwd"), read())] == ["pwd", ""]
    assert [one and one.question.login.time for one in (read(auth_time=Timestamp(seconds=1)), read())] == [datetime.fromtimestamp(1, UTC), None]
    assert read(consistency=consistency_pb2.Consistency()) is None


def test_what_is_refused_is_not_known_the_second_time() -> None:
    reader, good = (
        Reader(100),
        permission_pb2.CheckPermissionRequest(subject=rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=IDS[1]), permission="doc.read"),
    )
    assert reader.read(good.SerializeToString()) is not None

    for part, bad in (("permission", "doc.*"), ("resource", "doc"), ("tenant_id", "x")):
        request = permission_pb2.CheckPermissionRequest()
        request.CopyFrom(good)
        setattr(request, part, bad)
        assert [reader.read(request.SerializeToString()) for _ in range(2)] == [None, None]


def test_what_is_no_message_is_not_read() -> None:
    assert Reader(100).read(b"\x0a\xff") is None


def test_so_many_parts_are_known_and_no_more() -> None:
    reader = Reader(8)
    for number in range(100):
        subject = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=str(UUID(int=number)))
        request = permission_pb2.CheckPermissionRequest(
            subject=subject, permission=f"doc.verb-{number}", resource=f"doc/{number}", tenant_id=str(UUID(int=number))
        )
        assert reader.read(request.SerializeToString()) is not None

    assert all(len(known) <= 8 for known in (reader._subjects, reader._permissions, reader._resources, reader._tenants))
    assert reader.read(permission_pb2.CheckPermissionRequest(subject=subject, permission="doc.read").SerializeToString()) is not None
