"""What a plan would do to whom, by SimulateChange, which changes nothing.

A simulation is one list of changes, and what is new has no id in it to be referred to by. So a new group is stood for by its members, and a new role
that others include by what it says: the impact is the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from watchword.decisions import Subject, SubjectType
from watchword.policy.document import GROUP, Binding, Role
from watchword.policy.planning import Plan
from watchword.policy.steps import AddMember, CreateBinding, CreateGroup, CreateRole, Step, UpdateRole
from watchword.policy.tenant import Present, Tenant
from watchword.rbac.v1 import policy_pb2, rbac_pb2

MAX_CHANGES = 1000  # in one call


class TooLarge(Exception):
    """The plan is longer than what is simulated at once."""


async def simulate(tenant: Tenant, plan: Plan, present: Present) -> rbac_pb2.Impact:
    """Return what `plan` would do. Raises WatchwordError, TooLarge."""
    steps = list(flattened(plan.steps, present))
    if len(steps) > MAX_CHANGES:
        raise TooLarge(f"this is {len(steps)} changes, and at most {MAX_CHANGES} are simulated at once")
    if not steps:
        return rbac_pb2.Impact()
    request = policy_pb2.SimulateChangeRequest(changes=[step.change(present.ids) for step in steps])
    answer: policy_pb2.SimulateChangeResponse = await tenant.call(tenant.policies.SimulateChange, request, deadline=60.0)
    return answer.impact


def flattened(steps: Iterable[Step], present: Present) -> Iterator[Step]:
    """Yield steps of the same impact that refer to nothing new by its id."""
    steps = list(steps)
    roles = {step.role.name: step.role for step in steps if isinstance(step, CreateRole)}
    members: dict[str, list[str]] = {GROUP + step.group.name: [] for step in steps if isinstance(step, CreateGroup)}
    for step in steps:
        if isinstance(step, AddMember) and GROUP + step.group in members:
            members[GROUP + step.group].append(step.member)
    bound = set(present.bindings)
    for step in steps:
        yield from _flat(step, roles, members, bound)


def _flat(step: Step, roles: Mapping[str, Role], members: Mapping[str, list[str]], bound: set[Binding]) -> Iterator[Step]:
    if isinstance(step, CreateRole):
        yield CreateRole(_with_parents(step.role, roles))
    elif isinstance(step, UpdateRole):
        yield UpdateRole(step.before, _with_parents(step.after, roles))
    elif isinstance(step, CreateBinding):
        for subject in _those_in(step.binding.subject, members):
            binding = replace(step.binding, subject=subject)
            if binding not in bound:  # what a member holds already is no second binding
                bound.add(binding)
                yield CreateBinding(binding)
    elif isinstance(step, AddMember):
        if GROUP + step.group not in members:
            yield from (AddMember(step.group, member) for member in _those_in(step.member, members))
    elif not isinstance(step, CreateGroup):
        yield step


def _those_in(subject: str, members: Mapping[str, list[str]]) -> list[str]:
    """Return a subject; or, of a new group, those that are in it, through whatever new groups."""
    found, to_see, seen = list[str](), [subject], set[str]()
    while to_see:
        one = to_see.pop()
        if one in seen:
            continue
        seen.add(one)
        if one in members:
            to_see += members[one]
        else:
            found.append(one)
    return sorted(found)


def _with_parents(role: Role, new: Mapping[str, Role]) -> Role:
    """Return a role that says itself what the new roles say that it includes."""
    permissions, parents = set(role.permissions), set[str]()
    to_see, seen = list(role.parents), set[str]()
    while to_see:
        name = to_see.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in new:
            permissions.update(new[name].permissions)
            to_see += new[name].parents
        else:
            parents.add(name)
    return replace(role, permissions=tuple(sorted(permissions)), parents=tuple(sorted(parents)))


def in_words(impact: rbac_pb2.Impact) -> Iterator[str]:
    """Say who gains and loses what."""
    least = "at least " if impact.truncated else ""
    yield f"{least}{impact.subject_count} users and clients are touched: {least}{impact.gaining_count} gain, {least}{impact.losing_count} lose"
    yield from (f"+ {_one(gain)}" for gain in impact.gains)
    yield from (f"- {_one(loss)}" for loss in impact.losses)


def _one(impact: rbac_pb2.SubjectImpact) -> str:
    subject = Subject(SubjectType(impact.subject.type), impact.subject.id)
    who = "everybody" if subject.type is SubjectType.ANYBODY else str(subject)
    return f"{who}: {', '.join(impact.permissions)} {f'on {impact.resource}' if impact.resource else 'in the whole tenant'}"
