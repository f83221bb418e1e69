"""What was issued, revoked, asked and answered, with the times; and which answers must not have been.

In the style of SpiceDB's new-enemy test: whoever asks notes the time before, whoever revokes notes the time after; so an acceptance that began after
an OK is wrong whatever happened in between. Times are of one monotonic clock, the one of the process that asks.
"""

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

import grpc

from tests.service.token.fleet import AGAIN, PATIENCE, TENANT, Fleet, Member
from watchword.token.v1 import token_pb2

POOL = 40  # tokens that are asked about at any one time
VALID, REVOKED, SILENT = "VALID", "REVOKED", "SILENT"  # SILENT: no answer, or UNAVAILABLE; a status of VerifyToken otherwise
NEVER = float("inf")
YOUNG = 1.1  # seconds: what is younger may have been issued in the second that a revocation by time begins with
HASTE = 0.1  # seconds after which some ask again, while the first call's change is still on its way
INTROSPECTED = 5  # of so many single questions, one is put to IntrospectToken

now = time.monotonic


class Name(NamedTuple):
    """What a revocation names: one token, or all tokens of a session, a subject, a client or a tenant."""

    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A token, and when its issue was asked for and answered."""

    token: str = field(repr=False)
    names: frozenset[Name]
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revocation: when it was first tried, and when it was acknowledged, NEVER if it was not."""

    name: Name
    began: float
    ended: float = NEVER


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody said of a token. `may_lag`: seconds that he allows himself, which is nothing for an instance of the suite."""

    by: str
    token: str = field(repr=False)
    began: float
    ended: float
    said: str
    may_lag: float = 0.0


@dataclass(frozen=True, slots=True)
class Wrong:
    """An answer that must not have been, and by how many seconds."""

    answer: Answer
    why: str
    by: float = 0.0


@dataclass(slots=True)
class History:
    """Everything that happened."""

    issued: dict[str, Issued] = field(default_factory=dict)
    revocations: dict[Name, list[Revocation]] = field(default_factory=lambda: defaultdict(list))
    answers: list[Answer] = field(default_factory=list)

    def issue(self, issued: Issued) -> None:
        """Note a token."""
        self.issued[issued.token] = issued

    def revoke(self, revocation: Revocation) -> None:
        """Note a revocation, or a try of one."""
        self.revocations[revocation.name].append(revocation)

    def wrongs(self) -> list[Wrong]:
        """Return every answer that must not have been."""
        return list(self._judge(self.answers))

    def _judge(self, answers: Iterable[Answer]) -> Iterator[Wrong]:
        due, earliest = {}, {}
        for token, issued in self.issued.items():
            due[token], earliest[token] = self._limits(issued)
        for answer in answers:
            late = answer.began - answer.may_lag - due[answer.token]
            if answer.said == VALID and late > 0:
                yield Wrong(answer, "accepted after the revocation was acknowledged", late)
            elif answer.said == REVOKED and answer.ended < earliest[answer.token]:
                yield Wrong(answer, "refused though nobody had revoked it")
            elif answer.said not in (VALID, REVOKED, SILENT):
                yield Wrong(answer, "refused for a reason that it does not have")

    def _limits(self, issued: Issued) -> tuple[float, float]:
        """Return when a token had to be refused, and when it might have been.

        Who issues while somebody revokes may come before or after: such a token may be refused, and need not be. A revocation that was never
        acknowledged may still have happened.
        """
        found = [one for name in issued.names for one in self.revocations.get(name, ())]
        due = (one.ended for one in found if issued.ended < one.began)
        possible = (one.began for one in found if issued.began < one.ended)
        return min(due, default=NEVER), min(possible, default=NEVER)


def client_of(subject: str) -> str:
    """Return the client through which a subject has all its sessions."""
    return str(uuid5(NAMESPACE_OID, str(UUID(subject))))


@dataclass(eq=False)
class Inquiry:
    """Issues, revokes and asks, and notes it all. `until` is when it ends, `pool` what is asked about at the moment."""

    fleet: Fleet
    until: float
    history: History = field(default_factory=History)
    pool: list[str] = field(default_factory=list)
    acknowledged: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return now() < self.until

    async def issue(self, dice: random.Random, subject: str, tenant: str = TENANT) -> token_pb2.TokenSet | None:
        """Open a session anywhere; None if that instance cannot."""
        began = now()
        try:
            client = client_of(subject)
            tokens = await self.fleet.issue(dice.randrange(len(self.fleet.members)), subject=subject, client_id=client, tenant_id=tenant)
        except grpc.aio.AioRpcError:
            return None
        names = {Name("token", tokens.access_token), Name("session", tokens.session_id)}
        names |= {Name("subject", subject), Name("client", client), Name("tenant", tenant)}
        self.history.issue(Issued(tokens.access_token, frozenset(names), began, now()))
        self.pool = [*self.pool[1 - POOL :], tokens.access_token]
        return tokens

    async def revoke(self, dice: random.Random, name: Name, request: Any, *, tries: int) -> None:
        """Send the same request until it is acknowledged or nobody has patience any more, each time to anybody."""
        is_by_time = isinstance(request, token_pb2.RevokeTokensRequest) and request.HasField("issued_before")
        began, ended = now() - is_by_time * YOUNG, NEVER
        for _ in range(tries):
            if (ended := await self._try(dice, request)) < NEVER:
                self.acknowledged += 1
                break
        self.history.revoke(Revocation(name, began, ended))

    async def _try(self, dice: random.Random, request: Any) -> float:
        stub = dice.choice(self.fleet.members).stub
        call: Any = stub.RevokeToken if isinstance(request, token_pb2.RevokeTokenRequest) else stub.RevokeTokens
        try:
            await call(request, metadata=self.fleet.identity, timeout=dice.choice((HASTE, PATIENCE, PATIENCE)))
        except grpc.aio.AioRpcError as error:
            if error.code() not in AGAIN:
                raise
            return NEVER
        return now()

    async def ask(self, member: Member, tokens: list[str]) -> None:
        """Ask an instance about some tokens in one call."""
        requests = [token_pb2.VerifyTokenRequest(token=token) for token in tokens]
        began = now()
        try:
            if len(requests) == 1 and len(self.history.answers) % INTROSPECTED == 0:
                question = token_pb2.IntrospectTokenRequest(token=tokens[0])
                is_active = (await member.stub.IntrospectToken(question, metadata=self.fleet.identity, timeout=PATIENCE)).active
                self.history.answers.append(Answer(member.name, tokens[0], began, now(), VALID if is_active else REVOKED))
                return
            if len(requests) == 1:
                answers: list[Any] = [await member.stub.VerifyToken(requests[0], metadata=self.fleet.identity, timeout=PATIENCE)]
            else:
                batch = token_pb2.BatchVerifyTokensRequest(requests=requests)
                answers = list((await member.stub.BatchVerifyTokens(batch, metadata=self.fleet.identity, timeout=PATIENCE)).responses)
            said = [token_pb2.TokenStatus.Name(answer.status) for answer in answers]
        except grpc.aio.AioRpcError as error:
            said = [SILENT if error.code() in AGAIN else error.code().name] * len(tokens)
        ended = now()
        self.history.answers += [Answer(member.name, token, began, ended, one) for token, one in zip(tokens, said, strict=True)]
