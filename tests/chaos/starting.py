"""What an instance says while it starts, past Envoy: of what stands, and of what was taken away."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import grpc

from tests.chaos.load import DEADLINE, TENANT
from tests.chaos.pulse import says_serving
from tests.chaos.teller import Teller
from tests.chaos.world import World
from tests.service.token.inquiry import now
from tests.suite.conftest import Person, login
from watchword.identity.v1 import authentication_pb2, authentication_pb2_grpc
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2

UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
SOON = 20.0  # seconds


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right answer: a word, or the name of a gRPC code."""

    ask: Callable[[], Awaitable[str]]
    right: str

    async def wrong(self, *, must_be_answered: bool) -> list[str]:
        """Ask; return what was said, unless it is right. No answer is none, unless there must be one."""
        try:
            said = await self.ask()
        except grpc.aio.AioRpcError as error:
            said = error.code().name
            if error.code() in UNANSWERED and not must_be_answered:
                return []
        return [] if said == self.right else [f"{said} for {self.right}"]


async def about_tokens(stack: World) -> list[Question]:
    """A good token, a revoked one, and whether one can be had."""
    one, other = (Teller(stack, name) for name in stack.pair("token"))
    good, bad = await other.issue(), await other.issue()
    await other.revoke(bad)

    async def issue() -> str:
        return "issued" if await one.issue() else "nothing"

    return [Question(partial(one.says, good), "VALID"), Question(partial(one.says, bad), "REVOKED"), Question(issue, "issued")]


async def about_permissions(stack: World, person: Person) -> list[Question]:
    """A role that is held, and one that was taken away."""
    name, users = f"start-{uuid4().hex}", [rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=str(uuid4())) for _ in range(2)]
    role = rbac_pb2.CreateRoleRequest(name=name, permissions=["starting.read"], request_id=str(uuid4()))
    role_id = (await stack.grpc.roles.CreateRole(role, metadata=person.metadata, timeout=DEADLINE)).role.id
    bindings = [rbac_pb2.CreateRoleBindingRequest(subject=user, role_id=role_id, request_id=str(uuid4())) for user in users]
    made = [await stack.grpc.bindings.CreateRoleBinding(request, metadata=person.metadata, timeout=DEADLINE) for request in bindings]
    removal = rbac_pb2.DeleteRoleBindingRequest(role_binding_id=made[1].role_binding.id, request_id=str(uuid4()))
    await stack.grpc.bindings.DeleteRoleBinding(removal, metadata=person.metadata, timeout=DEADLINE)

    stub = permission_pb2_grpc.PermissionServiceStub(first(stack, "rbac"))

    async def check(user: rbac_pb2.Subject) -> str:
        question = permission_pb2.CheckPermissionRequest(subject=user, permission="starting.read", tenant_id=TENANT)
        answer = await stub.CheckPermission(question, metadata=stack.peer("identity", to="rbac"), timeout=DEADLINE)
        return permission_pb2.Decision.Name(answer.decision)

    return [Question(partial(check, users[0]), "ALLOW"), Question(partial(check, users[1]), "DENY")]


async def about_callers(stack: World, person: Person) -> list[Question]:
    """Somebody who is logged in, and a session that was logged out."""
    gone = await login(stack, person.email)
    async with stack.rest as rest:
        assert (await rest.post("/v1/auth/logout", json={}, headers=gone.headers)).status_code == 200

    stub = authentication_pb2_grpc.AuthenticationServiceStub(first(stack, "identity"))

    async def me(who: Person) -> str:
        answer = await stub.GetMe(authentication_pb2.GetMeRequest(), metadata=who.metadata, timeout=DEADLINE)
        return "let in" if answer.user.id == who.id else "somebody else"

    return [Question(partial(me, person), "let in"), Question(partial(me, gone), "UNAUTHENTICATED")]


def first(stack: World, service: str) -> grpc.aio.Channel:
    """Return a channel to a service's first instance, which keeps its address when it is started again."""
    name = stack.pair(service)[0]
    return stack.channel(next(one.address for one in stack.now() if one.name == name))


async def start(stack: World, service: str, questions: Sequence[Question]) -> tuple[float, list[str]]:
    """Start an instance; return how long it took to serve, and what it said wrongly before, and after it said that it serves."""

    async def wrong(*, must_be_answered: bool) -> list[str]:
        return [word for question in questions for word in await question.wrong(must_be_answered=must_be_answered)]

    name, channel = stack.pair(service)[0], first(stack, service)
    await stack.end(name)
    found, began = list[str](), now()
    starting = asyncio.create_task(stack.begin(name))
    while not await says_serving(channel):
        found += await wrong(must_be_answered=False)
        assert now() < began + SOON
    took = now() - began
    found += await wrong(must_be_answered=True)
    await starting
    return took, found


async def starts(stack: World, service: str, questions: Sequence[Question], count: int) -> tuple[list[float], list[str]]:
    """Start an instance so many times; return how long each took, the shortest first, and what was said wrongly."""
    done = [await start(stack, service, questions) for _ in range(count)]
    await stack.whole()
    return sorted(took for took, _ in done), [word for _, words in done for word in words]
