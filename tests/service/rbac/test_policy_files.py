"""Policy as code on real instances and a real Postgres: what a file says becomes so, nothing is applied that was not shown, and failures are told."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from tests.conftest import ROOT
from tests.service.rbac.conftest import Metadata, Tenant, ask
from tests.service.watchword.fake import token
from watchword.decisions import Outcome
from watchword.policy.command import AS_WISHED, DIFFERENT, FAILED, NOT_MET, Refused, Terminal, Work
from watchword.policy.document import ALL, SECTIONS, Binding, Effect, Expectation, Group, Owns, Policy, Role
from watchword.policy.planning import plan
from watchword.policy.reading import read
from watchword.policy.strict_yaml import FileInvalid
from watchword.policy.tenant import Tenant as Reader
from watchword.policy.writing import write
from watchword.rbac.v1 import policy_pb2, rbac_pb2

ALICE, BOB, CI = (str(UUID(int=number)) for number in (1, 2, 3))


class Own:
    """The token of whoever runs the tool: one that says tenant and issuer, while calls carry what the instances of the tests believe."""

    is_due = False

    def __init__(self, tenant_id: str, metadata: Metadata) -> None:
        self._token = token(tenant_id=tenant_id)
        self._metadata = metadata

    async def get(self) -> str:
        return self._token

    async def metadata(self) -> Metadata:
        return self._metadata

    def forget(self) -> None:
        """Nothing to forget."""


Call = Callable[[], Awaitable[Any]]


@dataclass
class Weather:
    """What happens to calls of ApplyChanges on their way: each hook once, in order."""

    hooks: list[Callable[[Call], Awaitable[Any]]] = field(default_factory=list)
    sent: list[policy_pb2.ApplyChangesRequest] = field(default_factory=list)


class Channel:
    """A channel to an instance, through the weather."""

    def __init__(self, channel: grpc.aio.Channel, weather: Weather) -> None:
        self._channel = channel
        self._weather = weather

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, method: str, *arguments: Any, **more: Any) -> Any:
        made: Any = self._channel.unary_unary(method, *arguments, **more)
        if not method.endswith("/ApplyChanges"):
            return made

        async def call(request: Any, **options: Any) -> Any:
            self._weather.sent.append(request)
            hook = self._weather.hooks.pop(0) if self._weather.hooks else _fair

            async def go() -> Any:
                return await made(request, **options)

            return await hook(go)

        return call


async def _fair(go: Call) -> Any:
    return await go()


def lost(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """Return what a caller sees of an answer that did not arrive."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


@dataclass
class Tool:
    """The tool in a tenant, and what it said."""

    tenant: Tenant
    path: Path
    by: Metadata = ()
    answers: list[str] | None = None
    said: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    weather: Weather = field(default_factory=Weather)
    ahead: timedelta = timedelta()

    @property
    def line(self) -> Any:
        """The way to an instance."""
        return self

    @property
    def channel(self) -> Any:
        """Of the second instance: writes and reads meet on different ones."""
        return Channel(self.tenant.instances[1].channel, self.weather)

    @property
    def own(self) -> Any:
        """Of the administrator, unless the test says otherwise."""
        return Own(self.tenant.id, self.by or self.tenant.admin)

    @property
    def work(self) -> Work:
        """What runs commands."""
        answers = self.answers
        ask_person = None if answers is None else lambda _: answers.pop(0)
        return Work(self, Terminal(self.said.append, self.remarks.append, ask_person), lambda: datetime.now(UTC) + self.ahead)

    def write(self, policy: Policy | str) -> None:
        """Write the file."""
        self.path.write_text(policy if isinstance(policy, str) else write(policy))

    async def diff(self) -> str:
        """Return the digest of the difference; nothing if there is none."""
        self.said.clear()
        status = await self.work.diff(self.path)
        last = self.said[-1]
        assert (status, last == "no difference") in ((AS_WISHED, True), (DIFFERENT, False))
        return "" if status == AS_WISHED else last.rpartition(" ")[2]

    async def apply(self, policy: Policy | str) -> None:
        """Show what a file changes, and apply just that."""
        self.write(policy)
        if digest := await self.diff():
            shown = [line for line in self.said if line.startswith(("+", "-", "~"))]
            self.said.clear()
            assert await self.work.apply(self.path, digest) == AS_WISHED, self.remarks
            assert [line for line in self.said if line.startswith(("+", "-", "~"))] == shown
        assert await self.diff() == ""

    async def present(self, owns: Owns = ALL) -> Policy:
        """Return the tenant as a file says it."""
        self.said.clear()
        await self.work.export(owns, SECTIONS)
        return read("\n".join(self.said))


@pytest.fixture
def tool(tenant: Tenant, tmp_path: Path) -> Tool:
    """The tool, run by the tenant's administrator, without a terminal."""
    return Tool(tenant, tmp_path / "policy.yaml")


FULL = f"""
version: 1
owns: all
roles:
  invoices.reader: {{description: "sees \\"them\\"", permissions: [invoices.read]}}
  invoices.clerk: {{permissions: [invoices.create, "invoices.up*date"], parents: [invoices.reader]}}
groups:
  interns: {{members: ["user:{BOB}"]}}
  staff: {{description: all of us, members: [group:interns, "user:{ALICE}", "client:{CI}"]}}
bindings:
  - {{subject: group:staff, role: invoices.reader}}
  - {{subject: "user:{ALICE}", role: invoices.clerk, resource: folder/a, expire_time: 2999-01-01T00:00:00.5+02:00}}
  - {{subject: "user:{ALICE}", role: invoices.clerk, condition: 'context.ip == "10.0.0.1"', step_up: {{acr: mfa, max_age: 300}}}}
  - {{subject: group:interns, role: invoices.reader, resource: folder/b, effect: deny}}
  - {{subject: "*", role: invoices.reader, resource: folder/public}}
resources: {{folder/b: folder/a, folder/a: folder/root}}
""".replace("up*date", "update")


async def test_a_file_becomes_so_and_is_exported_as_it_was_written(tool: Tool, tenant: Tenant) -> None:
    """Every kind of thing, every term of a binding; and decisions are those that the file means."""
    await tool.apply(FULL)

    assert as_set(await tool.present()) == as_set(read(FULL))
    assert await tenant.may(BOB, "invoices.read", "folder/x")
    assert not await tenant.may(BOB, "invoices.read", "folder/b")
    assert await tenant.may(ALICE, "invoices.create", "folder/b")
    assert not await tenant.may(ALICE, "invoices.create")
    assert await tenant.may(str(uuid4()), "invoices.read", "folder/public")


async def test_a_file_that_says_nothing_empties_what_it_owns_and_leaves_the_suites_own_alone(tool: Tool, tenant: Tenant) -> None:
    """`owns: all` ends at watchword.*: the administrator stays one."""
    await tool.apply(FULL)
    await tool.apply("version: 1\nowns: all\nroles: {}\ngroups: {}\nbindings: []\nresources: {}\n")

    assert await tool.present() == Policy(ALL, roles={}, groups={}, bindings=(), resources={})
    assert await tenant.may(tenant.admin_id, "anything.at-all")


async def test_bindings_of_the_suites_own_roles_are_a_files_if_it_says_so(tool: Tool, tenant: Tenant) -> None:
    """And then all of them: the last administrator is protected by the server."""
    text = 'version: 1\nowns: [all, watchword.]\nbindings:\n  - {{subject: "user:{}", role: watchword.admin}}\n'
    tool.write(text.format(ALICE))
    digest = await tool.diff()
    assert any(tenant.admin_id in line for line in tool.said)
    assert await tool.work.apply(tool.path, digest) == AS_WISHED
    assert not await tenant.may(tenant.admin_id, "anything.at-all")

    tool.by = tenant.user(ALICE)
    tool.write("version: 1\nowns: [all, watchword.]\nbindings: []\n")
    assert await tool.work.apply(tool.path, await tool.diff()) == FAILED
    assert "LAST_ADMINISTRATOR" in tool.remarks[0]
    assert await tenant.may(ALICE, "anything.at-all")


# Any file to any other.


def arbitrary(chance: random.Random) -> Policy:
    """Return a policy of few names, so that much of it meets what was there before."""
    roles, groups, places = [f"r{n}" for n in range(6)], [f"g{n}" for n in range(5)], [f"folder/{n}" for n in range(6)]

    def some(names: list[str], most: int) -> tuple[str, ...]:
        return tuple(sorted(chance.sample(names, chance.randint(0, min(most, len(names))))))

    order = {kind: chance.sample(names, len(names)) for kind, names in (("role", roles), ("group", groups), ("place", places))}
    has_roles = [name for name in order["role"] if chance.random() < 0.7]
    has_groups = [name for name in order["group"] if chance.random() < 0.7]
    patterns = ["a.read", "a.*", "b.read", "*.write"]
    subjects = [f"user:{ALICE}", f"user:{BOB}", f"client:{CI}", "*", *(f"group:{name}" for name in has_groups)]
    bindings = {
        Binding(
            chance.choice(subjects),
            chance.choice(has_roles),
            chance.choice(["", *places]),
            effect,
            chance.choice(["", "context.a == 1", "context.b"]),
            chance.choice(["", "mfa"]) if effect is Effect.ALLOW else "",
            chance.choice([None, 60, 300]) if effect is Effect.ALLOW else None,
            chance.choice([None, datetime(2990, 1, 1, tzinfo=UTC), datetime(2991, 1, 1, 0, 0, 0, 5, tzinfo=UTC)]),
        )
        for _ in range(chance.randint(0, 12) if has_roles else 0)
        for effect in [chance.choice([Effect.ALLOW, Effect.ALLOW, Effect.DENY])]
    }
    return Policy(
        ALL,
        roles={
            name: Role(name, chance.choice(["", "x", 'y"z\\']), some(patterns, 3), some(has_roles[:index], 3)) for index, name in enumerate(has_roles)
        },
        groups={
            name: Group(
                name,
                chance.choice(["", "x"]),
                tuple(sorted({*some([f"user:{ALICE}", f"user:{BOB}", f"client:{CI}"], 3), *(f"group:{one}" for one in some(has_groups[:index], 3))})),
            )
            for index, name in enumerate(has_groups)
        },
        bindings=tuple(sorted(bindings, key=lambda one: one.order)),
        resources={name: chance.choice(order["place"][:index]) for index, name in enumerate(order["place"]) if index and chance.random() < 0.6},
    )


def as_set(policy: Policy) -> tuple[Any, ...]:
    """Return what matters of a policy: the order of bindings does not."""
    return policy.roles, policy.groups, set(policy.bindings or ()), policy.resources


@pytest.mark.parametrize("seed", range(3))
async def test_any_file_becomes_any_other(tool: Tool, seed: int) -> None:
    """Hierarchies turned upside down, names that come back, terms that change places: no step on the way is refused."""
    chance = random.Random(seed)
    for _ in range(8):
        policy = arbitrary(chance)
        assert as_set(read(write(policy))) == as_set(policy)
        await tool.apply(policy)
        assert as_set(await tool.present()) == as_set(policy)


# What a file does not own.


async def test_a_prefix_is_all_that_a_file_touches(tool: Tool, tenant: Tenant) -> None:
    """Two teams, each with its file, on one tenant; one refers to what is the other's."""
    await tool.apply(FULL)
    before = await tool.present()
    text = """
version: 1
owns: [payments., archive/]
roles:
  payments.payer: {permissions: [payments.make], parents: [invoices.reader]}
groups:
  payments.staff: {members: [group:interns]}
bindings:
  - {subject: group:interns, role: payments.payer, resource: folder/a}
resources: {archive/1: folder/a}
"""
    await tool.apply(text)
    assert await tool.present(Owns(False, ("archive/", "payments."))) == read(text)
    assert await tenant.may(BOB, "payments.make", "archive/1")

    await tool.apply("version: 1\nowns: [payments., archive/]\nroles: {}\ngroups: {}\nbindings: []\nresources: {}\n")
    assert await tool.present() == before


async def test_what_a_file_does_not_speak_of_is_left_alone(tool: Tool) -> None:
    """A missing section, and the members of a group that do not stand there."""
    await tool.apply(FULL)
    before = await tool.present()
    await tool.apply("version: 1\nowns: all\ngroups: {interns: {}, staff: {description: others}}\n")
    after = await tool.present()
    assert (after.roles, after.bindings, after.resources) == (before.roles, before.bindings, before.resources)
    assert after.groups is not None
    assert before.groups is not None
    assert {name: group.members for name, group in after.groups.items()} == {name: group.members for name, group in before.groups.items()}


async def test_what_goes_with_a_role_or_group_is_shown(tool: Tool, tenant: Tenant) -> None:
    """Even where the file does not speak of bindings or members: the server takes them along."""
    await tool.apply(FULL)
    tool.write("version: 1\nowns: all\nroles: {invoices.reader: {permissions: [invoices.read]}}\ngroups: {staff: {}}\n")
    assert await tool.diff()
    shown = "\n".join(tool.said)
    assert "- role invoices.clerk\n  with it: binding: user:" in shown
    assert f"- group interns\n  with it: it leaves group staff\n  with it: user:{BOB} leaves\n  with it: binding: group:interns is denied" in shown
    assert "until 2998-12-31T22:00:00.500000Z" in shown


async def test_names_that_are_not_there_are_told_with_their_lines(tool: Tool) -> None:
    """Before anything is shown or applied."""
    tool.write(
        """version: 1
owns: all
roles:
  a: {parents: [missing]}
groups:
  g: {members: [group:nobody]}
bindings:
  - {subject: group:nobody, role: missing}
"""
    )
    with pytest.raises(FileInvalid) as failure:
        await tool.diff()
    assert [problem.line for problem in failure.value.problems] == [4, 6, 8, 8]

    await tool.apply("version: 1\nowns: all\nroles: {missing: {}}\n")
    tool.write("version: 1\nowns: all\nroles: {}\nbindings: [{subject: '*', role: missing}]\n")
    with pytest.raises(FileInvalid):  # it is there, but would go
        await tool.diff()


async def test_bindings_that_have_ended_count_on_neither_side(tool: Tool) -> None:
    """The server sweeps them; a file may still have them, and is told."""
    end = datetime.now(UTC) + timedelta(hours=1)
    text = f"version: 1\nowns: all\nroles: {{a: {{}}}}\nbindings:\n  - {{subject: '*', role: a, expire_time: {end.isoformat()}}}\n"
    await tool.apply(text)
    tool.ahead = timedelta(hours=2)
    assert await tool.diff() == ""
    assert tool.remarks[-1].startswith("line 5: this binding ended at ")
    tool.write("version: 1\nowns: all\nroles: {a: {}}\nbindings: []\n")
    assert await tool.diff() == ""


# Nothing is applied that was not shown.


async def test_without_a_plan_or_a_terminal_nothing_is_applied(tool: Tool) -> None:
    """In CI nobody can be asked."""
    tool.write(FULL)
    with pytest.raises(Refused):
        await tool.work.apply(tool.path, "")
    assert tool.weather.sent == []


@pytest.mark.parametrize("answer", ["", "y", "no", "YES"])
async def test_at_a_terminal_only_yes_means_yes(tool: Tool, answer: str) -> None:
    tool.write(FULL)
    tool.answers = [answer]
    with pytest.raises(Refused):
        await tool.work.apply(tool.path, "")
    assert tool.weather.sent == []
    tool.answers = ["yes"]
    assert await tool.work.apply(tool.path, "") == AS_WISHED
    assert await tool.diff() == ""


async def test_the_plan_of_another_file_tenant_or_state_is_refused(tool: Tool, tenant: Tenant, rbac: Any, tmp_path: Path) -> None:
    """A digest names what was shown and for whom."""
    tool.write(FULL)
    digest = await tool.diff()
    other = Tool(await rbac.tenant(), tool.path)
    with pytest.raises(Refused):
        await other.work.apply(other.path, digest)

    tool.write(FULL.replace("sees", "saw"))
    with pytest.raises(Refused):
        await tool.work.apply(tool.path, digest)

    tool.write(FULL)
    await tenant.group("interns")
    with pytest.raises(Refused):
        await tool.work.apply(tool.path, digest)
    assert tool.weather.sent == other.weather.sent == []


async def test_a_change_by_somebody_else_after_the_reading_stops_everything(tool: Tool, tenant: Tenant) -> None:
    """Between what was shown and what is applied nothing may come, whatever it is."""
    tool.write(FULL)

    async def meanwhile(go: Call) -> Any:
        await tenant.role("unrelated", "x.read")
        return await go()

    tool.weather.hooks = [meanwhile]
    assert await tool.work.apply(tool.path, await tool.diff()) == FAILED
    assert "changed since" in tool.remarks[0]
    present = await tool.present()
    assert present.roles is not None
    assert set(present.roles) == {"unrelated"}
    assert present.groups == {}


async def test_a_change_between_two_parts_stops_the_second_and_the_first_is_told(tool: Tool, tenant: Tenant) -> None:
    """New groups that others refer to come first: they stay, nobody is in them, and it is said so."""
    tool.write(FULL)

    async def meanwhile(go: Call) -> Any:
        await tenant.role("unrelated", "x.read")
        return await go()

    tool.weather.hooks = [_fair, meanwhile]
    assert await tool.work.apply(tool.path, await tool.diff()) == FAILED
    told = "\n".join(tool.remarks)
    assert "These were applied, and stay:\n" in told
    assert "+ group interns" in told
    assert "Not applied: 12 of 15 steps." in told
    present = await tool.present()
    assert present.groups == {name: Group(name, "all of us" if name == "staff" else "", ()) for name in ("interns", "staff")}
    assert present.bindings == ()

    tool.remarks.clear()
    await tool.apply(FULL)


async def test_an_answer_that_is_lost_is_asked_for_again(tool: Tool) -> None:
    """The same request_id: applied once, and known to be."""

    async def loses(go: Call) -> Any:
        await go()
        raise lost(grpc.StatusCode.UNAVAILABLE)

    async def late(go: Call) -> Any:
        await go()
        raise lost(grpc.StatusCode.DEADLINE_EXCEEDED)

    tool.write(FULL)
    tool.weather.hooks = [loses, _fair, late]
    assert await tool.work.apply(tool.path, await tool.diff()) == AS_WISHED
    assert [request.request_id for request in tool.weather.sent].count(tool.weather.sent[0].request_id) == 2
    assert await tool.diff() == ""


async def test_what_became_of_a_part_is_not_claimed_to_be_known(tool: Tool) -> None:
    """A refusal after an answer that was lost says nothing of what the lost one said."""

    async def loses(go: Call) -> Any:
        await go()
        raise lost(grpc.StatusCode.UNAVAILABLE)

    async def refuses(go: Call) -> Any:
        raise lost(grpc.StatusCode.PERMISSION_DENIED)

    tool.write("version: 1\nowns: all\nroles: {a: {}}\n")
    tool.weather.hooks = [loses, refuses]
    assert await tool.work.apply(tool.path, await tool.diff()) == FAILED
    told = "\n".join(tool.remarks)
    assert "It is not known whether these were applied; they were all or none:\n  + role a" in told
    assert "Not applied: 0 of 1 steps." in told


async def test_a_refused_step_is_named(tool: Tool) -> None:
    """By the words that were shown, not by a number."""
    tool.write(
        """version: 1
owns: all
roles: {a: {permissions: [a.read]}, b: {}}
bindings:
  - {subject: '*', role: a, resource: folder/1}
  - {subject: '*', role: a, condition: 'context.'}
"""
    )
    assert await tool.work.apply(tool.path, await tool.diff()) == FAILED
    told = "\n".join(tool.remarks)
    assert 'What was refused:\n  + binding: everybody holds a in the whole tenant, if "context."' in told
    assert "Not applied: 4 of 4 steps." in told
    assert (await tool.present()).roles == {}


async def test_nobody_applies_what_he_may_not(tool: Tool, tenant: Tenant) -> None:
    """The tool has no power of its own."""
    await tenant.bind(ALICE, "watchword.auditor")
    await tenant.bind(ALICE, "watchword.service")
    tool.by = tenant.user(ALICE)
    tool.write("version: 1\nowns: all\nroles: {a: {}}\n")
    assert await tool.work.apply(tool.path, await tool.diff()) == FAILED
    assert "PERMISSION_DENIED" in tool.remarks[0]


async def test_many_changes_go_in_parts_each_upon_the_one_before(tool: Tool) -> None:
    """At most 1000 in a call; and the state of each is that which the one before left."""
    roles = "\n".join(f"  r{number}: {{permissions: [a.read]{', parents: [r0]' if number else ''}}}" for number in range(1500))
    tool.write(f"version: 1\nowns: all\nroles:\n{roles}\n")
    assert await tool.work.apply(tool.path, await tool.diff()) == AS_WISHED
    assert tool.said[-1] == "applied, in 3 parts"
    assert [len(request.changes) for request in tool.weather.sent] == [1, 1000, 499]
    assert len({request.unchanged_since for request in tool.weather.sent}) == 3
    assert await tool.diff() == ""


# Tests and simulations.


def expecting(*expectations: Expectation) -> Policy:
    """Return a file that only expects."""
    return Policy(ALL, expectations=expectations)


async def test_expectations_are_met_or_told(tool: Tool) -> None:
    """Asked of the server, with context and login."""
    await tool.apply(FULL)
    login: dict[str, Any] = {"context": {"ip": "10.0.0.1"}, "acr": "mfa", "login_age": 10}
    met = [
        Expectation(f"user:{BOB}", "invoices.read", Outcome.ALLOW),
        Expectation(f"user:{BOB}", "invoices.read", Outcome.DENY, "folder/b"),
        Expectation(f"user:{ALICE}", "invoices.create", Outcome.CONDITIONAL),
        Expectation(f"user:{ALICE}", "invoices.create", Outcome.ALLOW, **login),
        Expectation(f"user:{ALICE}", "invoices.create", Outcome.STEP_UP_REQUIRED, **{**login, "login_age": 600}),
        Expectation("group:staff", "invoices.read", Outcome.ALLOW),
        Expectation("*", "invoices.read", Outcome.ALLOW, "folder/public"),
    ]
    tool.write(expecting(*met))
    assert await tool.work.test(tool.path, simulates=False) == AS_WISHED, tool.said
    assert tool.said[-1] == "7 of 7 expectations are met"

    tool.write(expecting(*met[:2], Expectation("group:interns", "invoices.read", Outcome.ALLOW, "folder/b")))
    assert await tool.work.test(tool.path, simulates=False) == NOT_MET
    unmet = [line for line in tool.said if line.startswith("NOT MET")]
    assert len(unmet) == 1
    assert unmet[0].endswith("group:interns: invoices.read on folder/b: expected ALLOW, is DENY (DENIED)")


async def test_the_example_is_what_it_says(tool: Tool) -> None:
    """It can be applied, and what it expects is so."""
    text = (ROOT / "docs" / "examples" / "policy.yaml").read_text(encoding="utf-8")
    await tool.apply(text)
    tool.write(text)
    assert await tool.work.test(tool.path, simulates=False) == AS_WISHED, tool.said


async def test_a_test_that_cannot_fail_is_an_error(tool: Tool) -> None:
    """No expectations. And what is expected of a group that is not there is not met."""
    tool.write("version: 1\nowns: all\n")
    with pytest.raises(Refused):
        await tool.work.test(tool.path, simulates=False)
    tool.write(expecting(Expectation("group:nobody", "a.read", Outcome.DENY)))
    assert await tool.work.test(tool.path, simulates=False) == NOT_MET
    assert tool.said[0].endswith("expected DENY, but there is no such group")


async def test_a_simulation_tells_who_gains_and_loses_and_changes_nothing(tool: Tool, tenant: Tenant) -> None:
    """Also through groups and roles that are not there yet: as much as will be so once the file is applied."""
    tool.write(FULL)
    assert await tool.work.test(tool.path, simulates=True) == AS_WISHED
    assert {line for line in tool.said if line.startswith(("+ user", "+ client", "+ everybody"))} == {
        f"+ user:{ALICE}: invoices.create, invoices.read, invoices.update in the whole tenant",
        f"+ user:{BOB}: invoices.read in the whole tenant",
        f"+ client:{CI}: invoices.read in the whole tenant",
        "+ everybody: invoices.read on folder/public",
    }
    assert "4 users and clients are touched: 4 gain, 0 lose" in tool.said
    assert tool.weather.sent == []
    assert (await tool.present()).roles == {}

    await tool.apply(FULL)
    tool.write(FULL.replace("{subject: group:staff, role: invoices.reader}", "{subject: group:interns, role: invoices.reader}"))
    assert await tool.work.test(tool.path, simulates=True) == AS_WISHED
    assert {line for line in tool.said if line.startswith("- user") or line.startswith("- client")} >= {
        f"- client:{CI}: invoices.read in the whole tenant",
        f"- user:{ALICE}: invoices.read in the whole tenant",
    }


async def test_a_simulated_plan_is_that_of_the_same_file(tool: Tool) -> None:
    """So that a pull request shows both, and the digest is the one to apply."""
    tool.write(FULL)
    digest = await tool.diff()
    tool.said.clear()
    await tool.work.test(tool.path, simulates=True)
    assert any(line.endswith(digest) for line in tool.said)


async def test_the_reading_asks_only_for_what_is_spoken_of(tool: Tool, tenant: Tenant) -> None:
    """A tenant with many resources and bindings is no burden to a file about roles."""
    await tool.apply(FULL)
    asked: list[str] = []
    reader = Reader(tool)
    real = reader.call_once

    async def counted(method: Any, request: Any, **more: Any) -> Any:
        asked.append(type(request).__name__)
        return await real(method, request, **more)

    reader.call_once = counted  # type: ignore[method-assign]
    file = read("version: 1\nowns: all\nroles: {invoices.reader: {}, invoices.clerk: {}}\n")
    present = await reader.look(file, datetime.now(UTC))
    assert plan(file, present, datetime.now(UTC)).steps
    assert asked == ["CheckPermissionRequest", "ListRolesRequest", "ListGroupsRequest"]


async def test_a_tenant_that_is_changed_while_it_is_read_is_not_shown_as_it_never_was(tool: Tool, tenant: Tenant) -> None:
    """The state is from before the reading: what comes in between stops the apply."""
    tool.write(FULL)
    digest = await tool.diff()
    reader = Reader(tool)
    real = reader.call_once
    changed = asyncio.Event()

    async def late(method: Any, request: Any, **more: Any) -> Any:
        if isinstance(request, rbac_pb2.ListRolesRequest) and not changed.is_set():
            changed.set()
            await tenant.place("folder/z", "folder/y")
        return await real(method, request, **more)

    reader.call_once = late  # type: ignore[method-assign]
    present = await reader.look(read(tool.path.read_text()), datetime.now(UTC))
    planned = plan(read(tool.path.read_text()), present, datetime.now(UTC))
    assert planned.digest != digest  # folder/z would go
    changes = [step.change(present.ids) for step in planned.steps[:1]]
    request = policy_pb2.ApplyChangesRequest(changes=changes, unchanged_since=present.state)
    with pytest.raises(Exception, match="changed since"):
        await ask(tenant.instances[0].policies.ApplyChanges, request, tenant.admin)


@pytest.mark.parametrize(("changes", "is_settled"), [(0, True), (1, True), (99, False)])
async def test_what_is_shown_was_so_at_one_instant_or_it_is_said(tool: Tool, tenant: Tenant, changes: int, is_settled: bool) -> None:
    """A group that leaves one place and enters another while pages are read would else be shown in both, or in none."""
    await tool.apply(FULL)
    reader = Reader(tool)
    real, left = reader.call_once, changes

    async def late(method: Any, request: Any, **more: Any) -> Any:
        nonlocal left
        answer = await real(method, request, **more)
        if isinstance(request, rbac_pb2.ListResourcesRequest) and left > 0:
            left -= 1
            await tenant.place("folder/z", f"folder/{left}")
        return answer

    reader.call_once = late  # type: ignore[method-assign]
    present, settled = await reader.settled(read(tool.path.read_text()), datetime.now(UTC))

    assert settled is is_settled
    assert present.resources.get("folder/z") == {0: None, 1: "folder/0", 99: present.resources.get("folder/z")}[changes]
