"""Whether checks come to the decisions that a file expects. The server is asked: a second engine here would have a second opinion."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from watchword.client import Client
from watchword.decisions import Decision, Subject, SubjectType
from watchword.policy.document import GROUP, Expectation
from watchword.policy.shapes import quoted

DEADLINE = 20.0  # seconds


@dataclass(frozen=True, slots=True)
class Finding:
    """What was expected, and what is; None of a group that is not there."""

    expectation: Expectation
    decision: Decision | None

    @property
    def is_met(self) -> bool:
        """Whether they are the same."""
        return self.decision is not None and self.expectation.decision == self.decision.outcome

    @property
    def words(self) -> str:
        """The same in words."""
        one = self.expectation
        where = f"on {one.resource}" if one.resource else "in the whole tenant"
        login = f", acr {quoted(one.acr)}" if one.acr else ""
        asked = f"{one.subject}: {one.permission} {where}{login}"
        if self.is_met:
            return f"met      line {one.line}: {asked}: {one.decision}"
        found = f"is {self.decision.outcome} ({self.decision.reason})" if self.decision is not None else "but there is no such group"
        return f"NOT MET  line {one.line}: {asked}: expected {one.decision}, {found}"


async def find(client: Client, expectations: Sequence[Expectation], groups: Mapping[str, str], now: datetime) -> list[Finding]:
    """Return what is, for each expectation. Raises WatchwordError."""
    decisions = await asyncio.gather(*(_check(client, one, groups, now) for one in expectations))
    return [Finding(one, decision) for one, decision in zip(expectations, decisions, strict=True)]


async def _check(client: Client, one: Expectation, groups: Mapping[str, str], now: datetime) -> Decision | None:
    if not one.subject.startswith(GROUP):
        subject = Subject.parse(one.subject)
    elif (group := groups.get(one.subject.removeprefix(GROUP))) is not None:
        subject = Subject(SubjectType.GROUP, group)
    else:
        return None
    return await client.check(
        subject,
        one.permission,
        one.resource,
        context=one.context,
        acr=one.acr,
        auth_time=None if one.login_age is None else now - timedelta(seconds=one.login_age),
        timeout=DEADLINE,
    )
