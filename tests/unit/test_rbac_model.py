"""Numbers that the domain shares with the contract, which it may not import."""

from services.rbac.decisions import Outcome, Reason
from services.rbac.model import Effect, SubjectType
from watchword.rbac.v1 import permission_pb2, rbac_pb2


def test_words_are_numbered_as_in_the_contract() -> None:
    for prefix, ours, contract in (
        ("SUBJECT_TYPE_", SubjectType, rbac_pb2.SubjectType),
        ("BINDING_EFFECT_", Effect, rbac_pb2.BindingEffect),
        ("", Reason, permission_pb2.DecisionReason),
        ("", Outcome, permission_pb2.Decision),
    ):
        assert {f"{prefix}{one.name}": one.value for one in ours} == {name: number for name, number in contract.items() if number != 0}
