"""Questions that are asked again and again, as gRPC and as REST carry them."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.floor import question
from bench.load import write_requests
from watchword.rbac.v1 import permission_pb2, rbac_pb2

PERMISSION = "users.read"


@dataclass(frozen=True, slots=True)
class Requests:
    """Files of requests: bytes of protobuf, and of JSON."""

    wire: Path
    body: Path


def check_requests(home: Path, user: str) -> Requests:
    """Write down the question whether `user` may."""
    wire, body = home / "check.wire", home / "check.json"
    subject = rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=user)
    write_requests(wire, [permission_pb2.CheckPermissionRequest(subject=subject, permission=PERMISSION).SerializeToString()])
    write_requests(body, [json.dumps({"subject": {"type": "SUBJECT_TYPE_USER", "id": user}, "permission": PERMISSION}).encode()])
    return Requests(wire, body)


def verify_requests(home: Path, token: str) -> Requests:
    """Write down the question about `token`."""
    wire, body = home / "verify.wire", home / "verify.json"
    write_requests(wire, [question(token).SerializeToString()])
    write_requests(body, [json.dumps({"token": token}).encode()])
    return Requests(wire, body)
