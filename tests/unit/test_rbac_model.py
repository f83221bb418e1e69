"""Numbers that the domain shares with the contract, which it may not import."""

from services.rbac.checker import Reason
from services.rbac.model import SubjectType
from watchword.rbac.v1 import permission_pb2, rbac_pb2


def test_subjects_and_reasons_are_numbered_as_in_the_contract() -> None:
    contract = {**dict(rbac_pb2.SubjectType.items()), **dict(permission_pb2.DecisionReason.items())}

    assert {f"SUBJECT_TYPE_{kind.name}": kind.value for kind in SubjectType} | {reason.name: reason.value for reason in Reason} == {
        name: number for name, number in contract.items() if number != 0
    }
