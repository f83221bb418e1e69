"""Whether checks come to the decisions that a file expects. The server is asked: a second engine here would have a second opinion."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from watchword.client import Client
from watchword.decisions import Decision, Subject, SubjectType
from watchword.policy.document import GROUP, Expectation
from watchword.policy.shapes import quoted
from watchword.policy.strict_yaml import FileInvalid, Problem

DEADLINE = 20.0  # seconds


@dataclass(frozen=True, slots=True)
class Finding:
    """What was expected, and what is."""

    expectation: Expectation
    decision: Decision

    @property
    def is_met(self) -> bool:
        """Whether they are the same."""
        return self.expectation.decision == self.decision.outcome

    @property
    def words(self) -> str:
        """The same in words."""
        one = self.expectation
        where = f"on {one.resource}" if one.resource else "in the whole tenant"
        login = f", acr {quoted(one.acr)}" if one.acr else ""
        asked = f"{one.subject}: {one.permission} {where}{login}"
        if self.is_met:
            return f"met      line {one.line}: {asked}: {one.decision}"
        return f"NOT MET  line {one.line}: {asked}: expected {one.decision}, is {self.decision.outcome} ({self.decision.reason})"


def require_groups(expectations: Sequence[Expectation], groups: Mapping[str, str]) -> None:
    """Return if all groups that are expected something of exist. Raises FileInvalid."""
    named = [(one.subject.removeprefix(GROUP), one.line) for one in expectations if one.subject.startswith(GROUP)]
    problems = [Problem(line, f"there is no group {name} in the tenant") for name, line in named if name not in groups]
    if problems:
        raise FileInvalid(problems)


async def find(client: Client, expectations: Sequence[Expectation], groups: Mapping[str, str], now: datetime) -> list[Finding]:
    """Return what is, for each expectation. Raises WatchwordError."""
    decisions = await asyncio.gather(*(_check(client, one, groups, now) for one in expectations))
    return [Finding(one, decision) for one, decision in zip(expectations, decisions, strict=True)]


async def _check(client: Client, one: Expectation, groups: Mapping[str, str], now: datetime) -> Decision:
    is_group = one.subject.startswith(GROUP)
    subject = Subject(SubjectType.GROUP, groups[one.subject.removeprefix(GROUP)]) if is_group else Subject.parse(one.subject)
    return await client.check(
        subject,
        one.permission,
        one.resource,
        context=one.context,
        acr=one.acr,
        auth_time=None if one.login_age is None else now - timedelta(seconds=one.login_age),
        timeout=DEADLINE,
    )
