"""Reads and changes by people and services, through Envoy; what became of each; and what must not have been.

A change that fails is sent again with the same request_id until it is acknowledged. After each revocation and each removal everybody is asked: Envoy,
and every instance past it.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import httpx

from services.chassis.tenancy import DEFAULT_TENANT
from tests.chaos.calls import READS, WRITES, Call, Log
from tests.conftest import eventually
from tests.service.token.inquiry import NEVER, REVOKED, SILENT, VALID, Answer, History, Issued, Name, Revocation, Wrong, now
from tests.suite.conftest import PASSWORD, Person, Suite, sql
from watchword.rbac.v1 import permission_pb2, permission_pb2_grpc, rbac_pb2
from watchword.token.v1 import key_pb2, key_pb2_grpc, token_pb2, token_pb2_grpc

READERS = 4
PAUSE = 0.008  # seconds between two calls of a reader: the load is steady, so that what is slow is slow by itself
DEADLINE = 5.0  # seconds of a call
ASKED_WITHIN = 0.5  # seconds that an instance has for a question past Envoy
PATIENCE = 20.0  # seconds in which a change is sent again
POOL = 40  # of what was taken away last, asked about again and again
AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
SAID = {permission_pb2.ALLOW: VALID, permission_pb2.DENY: REVOKED}
TENANT = str(DEFAULT_TENANT)


class Load:
    """The load.

    is_direct         whether instances are asked past Envoy, too, which keeps one that drains from ending
    makes_only_roles  six at a time, and nothing else is done
    """

    def __init__(self, suite: Suite, person: Person, *, is_direct: bool = True, makes_only_roles: bool = False) -> None:
        self._suite = suite
        self._person = person
        self._kinds = ("role",) if makes_only_roles else (*READS, *WRITES)
        self._done = asyncio.Event()
        self._prefix = f"load-{uuid4().hex[:8]}"
        self._is_direct = is_direct
        self._direct: dict[str, grpc.aio.Channel] = {}
        self.log = Log()
        self.tokens = History()
        self.grants = History()
        self.roles: dict[str, bool] = {}  # name: whether it was acknowledged

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Make the load while inside, and some after what is done inside is over."""
        if self._is_direct:
            self._direct = {one.name: self._suite.channel(one.address) for one in self._suite.now() if one.service in ("token", "rbac")}
        tasks = [asyncio.create_task(caller()) for caller in self._callers()]
        try:
            await self.goes_on()
            yield self
            await self.goes_on()
        finally:
            self._done.set()
            await asyncio.gather(*tasks)

    def _callers(self) -> list[Callable[[], Coroutine[None, None, None]]]:
        if self._kinds == ("role",):
            return [self._create_roles] * 6
        changers = [self._refresh, self._create_roles, self._revoke_tokens, self._remove_bindings]
        return [self._read_over_rest, *[self._read_over_grpc] * READERS, *changers, self._ask_again]

    async def goes_on(self, *, within: float = 40.0) -> None:
        """Return when every kind of call was answered well a few times more."""
        before = self._answered()

        async def more() -> bool:
            after = self._answered()
            return all(after[kind] > before[kind] + 3 for kind in self._kinds)

        await eventually(more, within=within)

    def _answered(self) -> Counter[str]:
        return Counter(call.kind for call in self.log.calls if not call.failure)

    @property
    def reads(self) -> Log:
        """All reads."""
        return self.log.of(*READS)

    @property
    def writes(self) -> Log:
        """All tries of changes."""
        return self.log.of(*WRITES)

    @property
    def wrongs(self) -> list[Wrong]:
        """Answers that must not have been."""
        return [*self.tokens.wrongs(), *self.grants.wrongs()]

    @property
    def taken_away(self) -> int:
        """How many revocations and removals were acknowledged."""
        taken = [*self.tokens.revocations.values(), *self.grants.revocations.values()]
        return sum(one.ended < NEVER for one in itertools.chain.from_iterable(taken))

    @property
    def asked_afterwards(self) -> int:
        """How many answers are about something that was taken away before the question."""
        return sum(_is_after(history, answer) for history in (self.tokens, self.grants) for answer in history.answers if answer.said != SILENT)

    async def lost_or_doubled(self) -> list[str]:
        """Return each role that was acknowledged and is not stored once, that was not and is stored twice, or that nobody asked for."""
        question = (
            "SELECT r.name, (SELECT count(*) FROM suite.audit_event e WHERE e.target_id = r.id::text) AS times FROM rbac.role r WHERE r.name LIKE $1"
        )
        stored = {row["name"]: row["times"] for row in await sql(self._suite, question, f"{self._prefix}%")}
        wrong = [name for name, is_acknowledged in self.roles.items() if stored.get(name, 0) not in ((1,) if is_acknowledged else (0, 1))]
        return [*wrong, *(stored.keys() - self.roles.keys())]

    # How calls are made.

    async def _note(self, kind: str, calling: Awaitable[Any], is_right: Callable[[Any], bool] = lambda _: True) -> Any:
        """Wait for the answer and note how it went; None if there was none."""
        began, failure, answer = now(), "", None
        try:
            answer = await calling
        except grpc.aio.AioRpcError as error:
            failure = f"{error.code().name} {error.details()}"
        except httpx.HTTPError as error:
            failure = f"{type(error).__name__} {error}"
        else:
            if isinstance(answer, httpx.Response) and answer.status_code != 200:
                failure = f"{answer.status_code} {answer.text[:200]}"
            elif not is_right(answer):
                failure = f"wrong: {answer}"
        self.log.calls.append(Call(kind, began, now() - began, failure))
        return None if failure else answer

    async def _insist(self, kind: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """Send the same change again until it is acknowledged; None if nobody has patience any more."""
        until = now() + PATIENCE
        while now() < until:
            answer = await self._note(kind, make())
            if answer is not None:
                return answer
            await asyncio.sleep(0.05)
        return None

    def _by_identity(self, call: Any, request: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: call(request, metadata=self._suite.peer("identity", to="token"), timeout=DEADLINE)

    def _by_person(self, call: Any, request: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: call(request, metadata=self._person.metadata, timeout=DEADLINE)

    # Reads.

    async def _read_over_rest(self) -> None:
        headers = self._person.headers
        async with self._suite.rest as rest:
            while not self._done.is_set():
                await self._note("me", rest.get("/v1/me", headers=headers))
                await self._note("tokens:verify", rest.post("/v1/tokens:verify", json={"token": self._person.token}, headers=headers))
                await asyncio.sleep(PAUSE)

    async def _read_over_grpc(self) -> None:
        channel = self._suite.channel()
        tokens, keys = token_pb2_grpc.TokenServiceStub(channel), key_pb2_grpc.KeyServiceStub(channel)
        permissions: Any = permission_pb2_grpc.PermissionServiceStub(channel)
        token = token_pb2.VerifyTokenRequest(token=self._person.token)
        question = permission_pb2.CheckPermissionRequest(subject=_user(self._person.id), permission="users.read")
        for turn in itertools.count():
            if self._done.is_set():
                return
            verified = tokens.VerifyToken(token, metadata=self._suite.peer("gateway", to="token"), timeout=DEADLINE)
            await self._note("VerifyToken", verified, lambda answer: bool(answer.status == token_pb2.VALID))
            await asyncio.sleep(PAUSE)
            checked = permissions.CheckPermission(question, metadata=self._person.metadata, timeout=DEADLINE)
            await self._note("CheckPermission", checked, lambda answer: bool(answer.decision == permission_pb2.ALLOW))
            await asyncio.sleep(PAUSE)
            if turn % 20 == 0:
                await self._note("GetJwks", keys.GetJwks(key_pb2.GetJwksRequest(), timeout=DEADLINE))

    # Changes.

    async def _refresh(self) -> None:
        async with self._suite.rest as rest:
            asked = {"login": self._person.email, "password": PASSWORD}
            entered = await self._insist("login", partial(rest.post, "/v1/auth/login", json=asked))
            refresh_token = entered.json()["tokens"]["refresh_token"]
            while not self._done.is_set():
                body = {"refresh_token": refresh_token, "request_id": str(uuid4())}
                answer = await self._insist("refresh", partial(rest.post, "/v1/auth/refresh", json=body))
                refresh_token = answer.json()["tokens"]["refresh_token"] if answer else refresh_token
                await asyncio.sleep(PAUSE)

    async def _create_roles(self) -> None:
        async with self._suite.rest as rest:
            while not self._done.is_set():
                name = f"{self._prefix}-{uuid4().hex}"
                body = {"name": name, "permissions": ["things.read"], "request_id": str(uuid4())}
                self.roles[name] = False
                created = await self._insist("role", partial(rest.post, "/v1/roles", json=body, headers=self._person.headers))
                self.roles[name] = created is not None
                await asyncio.sleep(PAUSE)

    async def _revoke_tokens(self) -> None:
        """Issue a token, revoke it, and have everybody asked: after the OK nobody may accept it."""
        stub = token_pb2_grpc.TokenServiceStub(self._suite.channel())
        while not self._done.is_set():
            began = now()
            request = token_pb2.IssueTokenRequest(subject=str(uuid4()), tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_USER, request_id=str(uuid4()))
            issued = await self._insist("issue", self._by_identity(stub.IssueToken, request))
            if issued is not None:
                token = issued.tokens.access_token
                self.tokens.issue(Issued(token, frozenset({Name("token", token)}), began, now()))
                await self._verify_everywhere([token])
                await self._revoke(stub, token)
                await self._verify_everywhere([token])
            await asyncio.sleep(PAUSE)

    async def _revoke(self, stub: Any, token: str) -> None:
        began, request = now(), token_pb2.RevokeTokenRequest(token=token, request_id=str(uuid4()))
        revoked = await self._insist("revoke", self._by_identity(stub.RevokeToken, request))
        self.tokens.revoke(Revocation(Name("token", token), began, NEVER if revoked is None else now()))

    async def _remove_bindings(self) -> None:
        """Bind a role, take it away, and have everybody asked: after the OK nobody may allow what it allowed."""
        stubs = self._suite.grpc
        name = f"{self._prefix}-{uuid4().hex}"
        self.roles[name] = True
        role = rbac_pb2.CreateRoleRequest(name=name, permissions=["fleeting.read"], request_id=str(uuid4()))
        role_id = (await self._insist("role", self._by_person(stubs.roles.CreateRole, role))).role.id
        while not self._done.is_set():
            began, user = now(), str(uuid4())
            request = rbac_pb2.CreateRoleBindingRequest(subject=_user(user), role_id=role_id, request_id=str(uuid4()))
            bound = await self._insist("bind", self._by_person(stubs.bindings.CreateRoleBinding, request))
            if bound is not None:
                binding = bound.role_binding.id
                self.grants.issue(Issued(user, frozenset({Name("binding", binding)}), began, now()))
                await self._check_everywhere([user])
                await self._remove(stubs.bindings, binding)
                await self._check_everywhere([user])
            await asyncio.sleep(PAUSE)

    async def _remove(self, stub: Any, binding: str) -> None:
        began, request = now(), rbac_pb2.DeleteRoleBindingRequest(role_binding_id=binding, request_id=str(uuid4()))
        removed = await self._insist("unbind", self._by_person(stub.DeleteRoleBinding, request))
        self.grants.revoke(Revocation(Name("binding", binding), began, NEVER if removed is None else now()))

    # Questions to everybody.

    async def _ask_again(self) -> None:
        """Ask everybody about what was taken away last, again and again."""
        while not self._done.is_set():
            await self._verify_everywhere(list(self.tokens.issued)[-POOL:])
            await self._check_everywhere(list(self.grants.issued)[-POOL:])
            await asyncio.sleep(0.1)

    async def _verify_everywhere(self, tokens: list[str]) -> None:
        batch = token_pb2.BatchVerifyTokensRequest(requests=[token_pb2.VerifyTokenRequest(token=token) for token in tokens])
        peer = self._suite.peer("gateway", to="token")

        async def ask(channel: grpc.aio.Channel) -> list[str]:
            answer = await token_pb2_grpc.TokenServiceStub(channel).BatchVerifyTokens(batch, metadata=peer, timeout=ASKED_WITHIN)
            return [token_pb2.TokenStatus.Name(one.status) for one in answer.responses]

        if tokens:
            await self._ask_everybody("token", self.tokens, tokens, ask)

    async def _check_everywhere(self, users: list[str]) -> None:
        questions = [permission_pb2.CheckPermissionRequest(subject=_user(user), permission="fleeting.read") for user in users]
        batch, peer = permission_pb2.BatchCheckPermissionsRequest(requests=questions, tenant_id=TENANT), self._suite.peer("identity", to="rbac")

        async def ask(channel: grpc.aio.Channel) -> list[str]:
            stub: Any = permission_pb2_grpc.PermissionServiceStub(channel)
            answer = await stub.BatchCheckPermissions(batch, metadata=peer, timeout=ASKED_WITHIN)
            return [SAID[one.decision] for one in answer.responses]

        if users:
            await self._ask_everybody("rbac", self.grants, users, ask)

    async def _ask_everybody(self, service: str, history: History, about: list[str], ask: Callable[[grpc.aio.Channel], Awaitable[list[str]]]) -> None:
        async def one(by: str, channel: grpc.aio.Channel) -> None:
            began = now()
            try:
                said = await ask(channel)
            except grpc.aio.AioRpcError as error:
                said = [SILENT if error.code() in AGAIN else error.code().name] * len(about)
            ended = now()
            history.answers += [Answer(by, what, began, ended, word) for what, word in zip(about, said, strict=True)]

        direct = [(name, channel) for name, channel in self._direct.items() if name.startswith(service)]
        await asyncio.gather(*(one(by, channel) for by, channel in [("envoy", self._suite.channel()), *direct]))


def _user(who: str) -> rbac_pb2.Subject:
    return rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=who)


def _is_after(history: History, answer: Answer) -> bool:
    names = history.issued[answer.token].names
    return any(one.ended < answer.began for name in names for one in history.revocations.get(name, ()))
