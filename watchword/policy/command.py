"""The commands `watchword policy export | diff | apply | test`.

Exit status: 0 as wished; 1 an error, and nothing was done but what is told; 2 `diff` found a difference; 3 an expectation of `test` is not met.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from watchword.client import Client
from watchword.policy.applying import Stopped, apply
from watchword.policy.document import GROUP, SECTIONS, Owns, Policy
from watchword.policy.expecting import find
from watchword.policy.planning import Plan, plan
from watchword.policy.reading import read
from watchword.policy.simulation import in_words, simulate
from watchword.policy.steps import Step
from watchword.policy.strict_yaml import FileInvalid, Problem
from watchword.policy.tenant import Present, Tenant
from watchword.policy.writing import write
from watchword.questions import Line

AS_WISHED, FAILED, DIFFERENT, NOT_MET = 0, 1, 2, 3


class Refused(Exception):
    """What was asked for is not done; the text says why."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """Whom the tool speaks with: `say` on standard output, `remark` beside it; `ask` is None if nobody can be asked."""

    say: Callable[[str], None]
    remark: Callable[[str], None]
    ask: Callable[[str], str] | None

    @classmethod
    def standard(cls) -> "Terminal":
        """That of this process. Somebody can be asked if he sees what is said, and what he types is his own."""

        def remark(text: str) -> None:
            print(text, file=sys.stderr)

        return cls(print, remark, input if sys.stdin.isatty() and sys.stdout.isatty() else None)


@dataclass(frozen=True, slots=True)
class Work:
    """What all commands work with."""

    line: Line
    terminal: Terminal
    now: Callable[[], datetime]

    async def export(self, owns: Owns, sections: Sequence[str]) -> int:
        """Print the tenant as a file."""
        empty = Policy(owns, **{name: () if name == "bindings" else {} for name in SECTIONS if name in sections})  # type: ignore[arg-type]
        present = await self._look(empty, self.now(), deletes=False)
        self.terminal.say(write(present.policy(owns, frozenset(sections))).rstrip("\n"))
        return AS_WISHED

    async def diff(self, path: Path) -> int:
        """Print what applying a file would change."""
        planned, _ = await self._compare(read_file(path))
        return DIFFERENT if planned.steps else AS_WISHED

    async def apply(self, path: Path, digest: str) -> int:
        """Apply a file: the plan of `digest`, or one that somebody at the terminal agrees to."""
        planned, present = await self._compare(read_file(path))
        if not planned.steps:
            return AS_WISHED
        self._require_consent(planned, digest)
        try:
            parts = await apply(Tenant(self.line), planned, present)
        except Stopped as stop:
            self._tell(stop)
            return FAILED
        self.terminal.say(f"applied{'' if parts == 1 else f', in {parts} parts'}")
        return AS_WISHED

    async def test(self, path: Path, *, simulates: bool) -> int:
        """Check what a file expects of the tenant as it is; first, if wished, tell what applying the file would do to whom."""
        file = read_file(path)
        if not file.expectations and not simulates:
            raise Refused("the file expects nothing: it has no section expect")
        if simulates:
            planned, present = await self._compare(file)
            for line in in_words(await simulate(Tenant(self.line), planned, present)):
                self.terminal.say(line)
        return await self._meet(file)

    async def _meet(self, file: Policy) -> int:
        needs_groups = any(one.subject.startswith(GROUP) for one in file.expectations)
        groups = await Tenant(self.line).group_ids() if needs_groups else {}
        findings = await find(Client(self.line), file.expectations, groups, self.now())
        for finding in findings:
            self.terminal.say(finding.words)
        unmet = sum(not finding.is_met for finding in findings)
        if findings:
            self.terminal.say(f"{len(findings) - unmet} of {len(findings)} expectations are met")
        return NOT_MET if unmet else AS_WISHED

    async def _compare(self, file: Policy) -> tuple[Plan, Present]:
        """Return the plan, which is also told."""
        now = self.now()
        present = await self._look(file, now)
        planned = plan(file, present, now)
        for remark in planned.remarks:
            self.terminal.remark(f"line {remark.line}: {remark.text}")
        self.terminal.say(f"tenant {planned.tenant_id} of {planned.issuer}")
        for line in planned.lines:
            self.terminal.say(line)
        count = len(planned.steps)
        self.terminal.say(f"{count} change{'s' if count > 1 else ''}; plan {planned.digest}" if count else "no difference")
        return planned, present

    async def _look(self, file: Policy, now: datetime, *, deletes: bool = True) -> Present:
        present, is_settled = await Tenant(self.line).settled(file, now, deletes=deletes)
        if not is_settled:
            self.terminal.remark("the tenant is being changed: what was read may be of several states, and `apply` will refuse it")
        return present

    def _require_consent(self, planned: Plan, digest: str) -> None:
        """Return if this very plan was shown to somebody who wants it. Raises Refused."""
        if digest:
            if digest != planned.digest:
                raise Refused(
                    "this is not the plan of that digest: the file, the tenant, or which tenant it is has changed since. Nothing was applied"
                )
            return
        if self.terminal.ask is None:
            raise Refused("nothing was applied: say which plan was seen by --plan DIGEST, as diff prints it, or run this at a terminal")
        if self.terminal.ask("Apply this? Type yes: ").strip() != "yes":
            raise Refused("nothing was applied")

    def _tell(self, stop: Stopped) -> None:
        """Tell exactly what was done and what was not."""
        remark, error = self.terminal.remark, stop.error
        details = "".join(f"; {violation.field} {violation.description}" for violation in error.violations)
        remark(f"{error.reason}: {error.text}{details}")
        if stop.culprit is not None:
            remark("What was refused:")
            _list(remark, [stop.culprit])
        unknown = "" if stop.is_known else "It is not known whether these were applied; they were all or none:"
        for words, steps in (("These were applied, and stay:", stop.done), (unknown, () if stop.is_known else stop.part)):
            if steps:
                remark(words)
                _list(remark, steps)
        left = (*stop.part, *stop.rest) if stop.is_known else stop.rest
        remark(f"Not applied: {len(left)} of {len(stop.done) + len(stop.part) + len(stop.rest)} steps. Run diff again before the next attempt.")


def _list(remark: Callable[[str], None], steps: Sequence[Step]) -> None:
    for step in steps:
        for line in step.words():
            remark(f"  {line}")


def read_file(path: Path) -> Policy:
    """Return what a file says. Raises FileInvalid."""
    try:
        return read(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise FileInvalid([Problem(0, f"it cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise FileInvalid([Problem(0, "it is not UTF-8")]) from None
