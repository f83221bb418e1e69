"""Applies a plan: in one call if it can be, else in parts of which each is made whole or not at all.

What is new gets its id from the server, and what refers to it by id must wait for that. So new groups and roles that others refer to come first, in a
part of their own: nobody is in them and nobody holds them yet, so that they change nobody's permissions. Every part is applied only upon the state
that the part before left behind, the first only upon the one that the plan was made of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from watchword.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable, WatchwordError
from watchword.policy.document import GROUP, Role
from watchword.policy.planning import Plan
from watchword.policy.steps import AddMember, CreateBinding, CreateGroup, CreateRole, Ids, Step, UpdateRole
from watchword.policy.tenant import PAUSES, Present, Tenant, rest
from watchword.rbac.v1 import policy_pb2

MAX_CHANGES = 1000  # in one call
MAX_BYTES = 512 * 1024  # of one call: rbac takes messages of 1 MiB
DEADLINE = 60.0  # seconds of one call


@dataclass(eq=False)
class Stopped(Exception):
    """A part could not be applied.

    done      of the parts before: they stay
    part      the steps of this one
    rest      of those after: they were not tried
    is_known  whether it is known that this part was not applied
    error     why
    """

    done: tuple[Step, ...]
    part: tuple[Step, ...]
    rest: tuple[Step, ...]
    is_known: bool
    error: WatchwordError

    @property
    def culprit(self) -> Step | None:
        """The step that was refused, if the server says which."""
        place = self.error.violations[0].field if self.error.violations else self.error.text
        number = place.removeprefix("changes[").partition("]")[0]
        return self.part[int(number)] if place.startswith("changes[") and number.isdigit() and int(number) < len(self.part) else None


@dataclass(eq=False)
class _NotSent(Exception):
    """A part was refused, or it is not known what became of it."""

    error: WatchwordError
    is_known: bool


async def apply(tenant: Tenant, plan: Plan, present: Present) -> int:
    """Apply `plan`, which was made of `present`; return in how many parts. Raises Stopped."""
    ids, state = present.ids, present.state
    founding, main = divided(plan.steps)
    waiting, done, count = [founding, main], list[Step](), 0
    while waiting := [steps for steps in waiting if steps]:
        part = _part(waiting[0], ids)  # cut only now that all ids are known that it refers to
        waiting[0] = waiting[0][len(part) :]
        request = policy_pb2.ApplyChangesRequest(changes=[step.change(ids) for step in part], unchanged_since=state, request_id=str(uuid4()))
        try:
            answer = await _send(tenant, request)
        except _NotSent as failure:
            untried = tuple(step for steps in waiting for step in steps)
            raise Stopped(tuple(done), tuple(part), untried, failure.is_known, failure.error) from None
        _learn(ids, part, answer.ids)
        state, count = answer.consistency_token, count + 1
        done += part
    return count


async def _send(tenant: Tenant, request: policy_pb2.ApplyChangesRequest) -> policy_pb2.ApplyChangesResponse:
    """Send a part until it is known what became of it: sent again, the same request_id makes it once. Raises _NotSent."""
    is_known = True
    for pause in (*PAUSES, None):
        try:
            answer: policy_pb2.ApplyChangesResponse = await tenant.call_once(tenant.policies.ApplyChanges, request, deadline=DEADLINE)
        except WatchwordError as error:
            is_known = is_known and not isinstance(error, (Unavailable, DeadlineExceeded, Internal))
            if pause is None or not isinstance(error, (Unavailable, DeadlineExceeded, ResourceExhausted)):
                raise _NotSent(error, is_known) from None
            await rest(pause, error)
        else:
            return answer
    raise AssertionError


def divided(steps: Iterable[Step]) -> tuple[list[Step], list[Step]]:
    """Return what others refer to by an id that it does not have yet, and the rest.

    Of two new roles one of which includes the other, the upper one comes first; if it includes new ones itself, it does so only with the rest.
    """
    steps = list(steps)
    new = {step.role.name for step in steps if isinstance(step, CreateRole)}
    included, named = _included(steps), _named_groups(steps)
    founding, main = list[Step](), list[Step]()
    for step in steps:
        if isinstance(step, CreateGroup) and step.group.name in named:
            founding.append(step)
        elif isinstance(step, CreateRole) and step.role.name in included:
            bare = replace(step.role, parents=tuple(name for name in step.role.parents if name not in new))
            founding.append(CreateRole(bare))
            main += [UpdateRole(bare, step.role)] if bare != step.role else []
        else:
            main.append(step)
    return founding, main


def _included(steps: Iterable[Step]) -> set[str]:
    roles: list[Role] = [step.role for step in steps if isinstance(step, CreateRole)]
    roles += [step.after for step in steps if isinstance(step, UpdateRole)]
    return {name for role in roles for name in role.parents}


def _named_groups(steps: Iterable[Step]) -> set[str]:
    joining = [step for step in steps if isinstance(step, AddMember)]
    subjects = [step.member for step in joining] + [step.binding.subject for step in steps if isinstance(step, CreateBinding)]
    return {step.group for step in joining} | {one.removeprefix(GROUP) for one in subjects if one.startswith(GROUP)}


def _part(steps: Sequence[Step], ids: Ids) -> list[Step]:
    """Return the first of `steps`, as many as one call takes."""
    part, size = list[Step](), 0
    for step in steps:
        size += step.change(ids).ByteSize()
        if part and (len(part) == MAX_CHANGES or size > MAX_BYTES):
            break
        part.append(step)
    return part


def _learn(ids: Ids, part: Iterable[Step], made: Iterable[str]) -> None:
    for step, made_id in zip(part, made, strict=True):
        if isinstance(step, CreateRole):
            ids.roles[step.role.name] = made_id
        elif isinstance(step, CreateGroup):
            ids.groups[step.group.name] = made_id
