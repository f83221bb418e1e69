"""Policy files: read strictly, every error with its line; and plans whose words say all that they do."""

import io
import sys
from contextlib import redirect_stderr
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from watchword.__main__ import main as watchword
from watchword.client import Connection
from watchword.decisions import Outcome
from watchword.policy.__main__ import main, parser
from watchword.policy.applying import divided
from watchword.policy.command import read_file
from watchword.policy.connecting import EnvironmentLacking, connection_of
from watchword.policy.document import ALL, SECTIONS, Binding, Effect, Expectation, Group, Owns, Policy, Role
from watchword.policy.planning import plan
from watchword.policy.reading import read
from watchword.policy.shapes import quoted
from watchword.policy.simulation import flattened
from watchword.policy.steps import AddMember, CreateBinding, CreateGroup, CreateRole, DeleteBinding, Ids, Step, UpdateBinding, UpdateRole
from watchword.policy.strict_yaml import FileInvalid
from watchword.policy.tenant import Present
from watchword.policy.writing import write

ALICE, BOB = (str(UUID(int=number)) for number in (1, 2))
NOW = datetime(2026, 11, 24, tzinfo=UTC)
HEAD = "version: 1\nowns: all\n"


def problems(text: str) -> list[tuple[int, str]]:
    """Return what is wrong with a file."""
    with pytest.raises(FileInvalid) as failure:
        read(text)
    return [(problem.line, problem.text) for problem in failure.value.problems]


# Reading.

WRONG = [
    ("", 0, "empty"),
    ("- a\n", 1, "must be a mapping"),
    ("a: [1\n", 2, "not YAML"),
    ("version: 1\n", 1, "needs the key owns"),
    ("version: 2\nowns: all\n", 1, "version must be one of 1"),
    ("version: 1\nowns: []\n", 0, "owns must say"),
    ("version: 1\nowns: [UPPER]\n", 2, "beginning of names"),
    (HEAD + "rules: {}\n", 3, "no key rules"),
    (HEAD + "roles:\n", 3, "{} for an empty one"),
    (HEAD + "roles: []\n", 3, "must be a mapping"),
    (HEAD + "bindings: {}\n", 3, "must be a list"),
    (HEAD + "roles:\n  a: {}\n  b: {}\n  a: {}\n", 6, "twice, first on line 4"),
    (HEAD + "roles:\n  a:\n    permission: [a.read]\n", 5, "no key permission"),
    (HEAD + "roles:\n  A: {}\n", 4, "lower-case"),
    (HEAD + "roles:\n  a:\n    permissions:\n      - a.read\n      - a.read\n", 7, "twice, first on line 6"),
    (HEAD + "roles:\n  a: {permissions: [read]}\n", 4, "permission pattern"),
    (HEAD + "roles:\n  a: {permissions: [true]}\n", 4, "put it in quotes"),
    (HEAD + "roles:\n  no: {}\n", 4, "put it in quotes"),
    (HEAD + "roles:\n  a: {description: 1.0}\n", 4, "put it in quotes"),
    (HEAD + 'roles:\n  a: {description: "x\\ny"}\n', 4, "control characters"),
    (HEAD + 'roles:\n  a: {description: "\\u202e"}\n', 4, "control characters"),
    (HEAD + f"roles:\n  a: {{description: {'x' * 1001}}}\n", 4, "at most 1000 bytes"),
    (HEAD + "roles:\n  a: {parents: [b]}\n  b: {parents: [a]}\n", 4, "cycle: a → b → a"),
    (HEAD + "roles:\n  watchword.x: {}\n", 4, "the suite's own"),
    ("version: 1\nowns: [watchword.]\nroles:\n  watchword.x: {}\n", 4, "the suite's own"),
    ("version: 1\nowns: [a.]\nroles:\n  b.x: {}\n", 4, "not this file's"),
    ("version: 1\nowns: [a.]\ngroups:\n  b.x: {}\n", 4, "not this file's"),
    ("version: 1\nowns: [a.]\nresources:\n  folder/a: folder/b\n", 4, "not this file's"),
    ("version: 1\nowns: [a.]\nbindings:\n  - {subject: '*', role: b}\n", 4, "not this file's"),
    (HEAD + "bindings:\n  - {subject: '*', role: watchword.admin}\n", 4, "not this file's"),
    (HEAD + "groups:\n  a: {members: [group:b]}\n  b: {members: [group:a]}\n", 4, "cycle"),
    (HEAD + "groups:\n  a: {members: ['*']}\n", 4, "everybody is in no group"),
    (HEAD + "groups:\n  a: {members: [user:bob]}\n", 4, "a UUID"),
    (HEAD + f"groups:\n  a: {{members: ['user:{ALICE.upper()}', 'admin:{ALICE}']}}\n", 4, "must be user:ID"),
    (HEAD + "bindings:\n  - {subject: *, role: a}\n", 4, "must be quoted"),
    (HEAD + "bindings:\n  - {role: a}\n", 4, "needs the key subject"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, effect: Deny}\n", 4, "one of allow, deny"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, effect: deny, step_up: {acr: mfa}}\n", 4, "asks for no login"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, step_up: {}}\n", 4, "must say acr"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, step_up: {max_age: 5m}}\n", 4, "whole number of seconds"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, step_up: {max_age: 0}}\n", 4, "at least 1"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, expire_time: 2027-01-01}\n", 4, "with its offset"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, expire_time: 2027-01-01T00:00:00}\n", 4, "with its offset"),
    (HEAD + "bindings:\n  - {subject: '*', role: a, resource: folder}\n", 4, "a resource"),
    (HEAD + "bindings:\n  - {subject: '*', role: a}\n  - {role: a, subject: '*'}\n", 5, "same binding stands on line 4"),
    (HEAD + "resources: {folder/a: folder/b, folder/b: folder/a}\n", 3, "cycle"),
    (HEAD + "resources: {folder: folder/b}\n", 3, "a resource"),
    (HEAD + "expect:\n  - {subject: '*', permission: a.*, decision: ALLOW}\n", 4, "a permission, such as"),
    (HEAD + "expect:\n  - {subject: '*', permission: a.b, decision: YES}\n", 4, "one of ALLOW, DENY"),
    (HEAD + "expect:\n  - {subject: '*', permission: a.b, decision: DENY, context: {x: yes}}\n", 4, "put yes in quotes"),
    (HEAD + "expect:\n  - {subject: '*', permission: a.b, decision: DENY, context: {x: .inf}}\n", 4, "put .inf in quotes"),
    (HEAD + "expect:\n  - {subject: '*', permission: a.b, decision: DENY, context: {x: 2026-01-01}}\n", 4, "put times in quotes"),
    (HEAD + "expect:\n  - {subject: '*', permission: a.b, decision: DENY, context: {x: !!set {}}}\n", 4, "what JSON can say"),
    (HEAD + "roles: &a {}\ngroups: *a\n", 3, "anchors and aliases"),
    (HEAD + "roles:\n  <<: {}\n", 4, "must be text"),
    (HEAD + "---\n" + HEAD, 3, "one document"),
    ("[" * 40, 1, "nested deeper"),
    ("a: \x07\n", 0, "not allowed"),
]


@pytest.mark.parametrize(("text", "line", "words"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_told_with_its_line(text: str, line: int, words: str) -> None:
    found = problems(text)
    assert any(at == line and words in said for at, said in found), found


def test_all_that_is_wrong_is_told_at_once() -> None:
    """In the order of the file: nobody likes to mend one error a run."""
    found = problems("version: 3\nowns: all\nroles:\n  B: {}\n  b: {permissions: [x], foo: 1}\n")
    assert [line for line, _ in found] == [1, 4, 5, 5]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Not there, and not text."""
    path = tmp_path / "policy.yaml"
    with pytest.raises(FileInvalid, match="cannot be read"):
        read_file(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FileInvalid, match="not UTF-8"):
        read_file(path)


def test_what_is_not_spoken_of_differs_from_what_is_empty() -> None:
    """The first is left alone, the second is emptied."""
    assert read(HEAD).sections == frozenset()
    assert read(HEAD + "roles: {}\ngroups: {}\nbindings: []\nresources: {}\n").sections == frozenset(SECTIONS)
    assert read(HEAD + "groups: {a: {}, b: {members: []}}\n").groups == {"a": Group("a"), "b": Group("b", members=())}


def test_owning_everything_ends_at_the_suites_own() -> None:
    assert ALL.covers("a")
    assert not ALL.covers("watchword.admin")
    both = Owns(True, ("watchword.admin",))
    assert both.covers("watchword.admin")
    assert not both.covers("watchword.auditor")
    assert not both.covers_role("watchword.admin")
    assert not Owns(False, ("w",)).covers("watchword.admin")


# Any policy.

names = st.sampled_from(["a", "b.c", "d-e", "f_g"])
words = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(' "\\:#*&!{}[]'), max_size=20).filter(str.isprintable)
subjects = st.sampled_from(["*", f"user:{ALICE}", f"client:{BOB}", "group:a", "group:b.c"])
places = st.sampled_from(["", "folder/a", "folder/b~@:+=-"])
ends = st.none() | st.integers(0, 10**9).map(lambda number: NOW + timedelta(microseconds=1 + number * 1_000_003))


@st.composite
def bindings(draw: st.DrawFn) -> Binding:
    """Return a binding."""
    allows = draw(st.booleans())
    return Binding(
        draw(subjects),
        draw(names),
        draw(places),
        Effect.ALLOW if allows else Effect.DENY,
        draw(words),
        draw(words) if allows else "",
        draw(st.none() | st.integers(1, 10**8)) if allows else None,
        draw(ends),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Return a policy, whose hierarchies go from earlier names to later ones."""
    order = ["a", "b.c", "d-e", "f_g"]

    def below(index: int) -> st.SearchStrategy[tuple[str, ...]]:
        return st.sets(st.sampled_from(order[:index]), max_size=2).map(lambda found: tuple(sorted(found))) if index else st.just(())

    patterns = st.sets(st.sampled_from(["a.read", "a.*", "*.*"]), max_size=2).map(lambda found: tuple(sorted(found)))
    people = st.sets(st.sampled_from([f"user:{ALICE}", f"client:{BOB}"])).map(tuple)
    roles = {name: Role(name, draw(words), draw(patterns), draw(below(index))) for index, name in enumerate(order)}
    groups = {}
    for index, name in enumerate(order):
        members = tuple(sorted({*draw(people), *(f"group:{one}" for one in draw(below(index)))}))
        groups[name] = Group(name, draw(words), members)
    bound = tuple(draw(st.lists(bindings(), max_size=4, unique=True)))
    return Policy(ALL, roles=roles, groups=groups, bindings=bound, resources=draw(st.sampled_from([{}, {"folder/a": "folder/b"}])))


def present_of(policy: Policy) -> Present:
    """Return a tenant that is as a policy says."""
    assert policy.roles is not None
    assert policy.groups is not None
    assert policy.bindings is not None
    ids = Ids({name: f"role-{name}" for name in policy.roles}, {name: f"group-{name}" for name in policy.groups})
    ids.bindings.update({one: f"binding-{number}" for number, one in enumerate(policy.bindings)})
    return Present("issuer", "tenant", "state", dict(policy.roles), dict(policy.groups), policy.bindings, dict(policy.resources or {}), {}, ids)


@given(policies())
@settings(max_examples=150, deadline=None)
def test_what_is_written_reads_back(policy: Policy) -> None:
    """Whatever signs its texts are made of."""
    again = read(write(policy))
    assert (again.roles, again.groups, again.resources) == (policy.roles, policy.groups, policy.resources)
    assert set(again.bindings or ()) == set(policy.bindings or ())


@given(policies(), policies(), policies())
@settings(max_examples=150, deadline=None)
def test_no_two_plans_say_the_same(before: Policy, one: Policy, other: Policy) -> None:
    """Whoever has read the words has read the change: so the digest of the words will do."""
    present = present_of(before)
    first, second = plan(one, present, NOW), plan(other, present, NOW)
    assert (first.lines == second.lines) == (first.digest == second.digest)
    if first.lines == second.lines:
        assert (one.roles, one.groups, one.resources) == (other.roles, other.groups, other.resources)
        assert set(one.bindings or ()) == set(other.bindings or ())
    assert plan(before, present, NOW).steps == ()
    assert all(line.isprintable() and line.startswith(("+ ", "- ", "~ ", "  with it: ")) for line in first.lines)


def test_of_the_bindings_at_one_place_the_first_becomes_the_first_that_comes() -> None:
    """Each is changed once; what is left over goes, or comes."""
    here = [Binding(f"user:{ALICE}", "a", condition=f"context.{sign}") for sign in "abcd"]
    there = Binding(f"user:{BOB}", "a")
    bare = Policy(ALL, roles={"a": Role("a")}, groups={}, bindings=())
    a, b, c, d = here

    fewer = plan(replace(bare, bindings=(c,)), present_of(replace(bare, bindings=(b, there, a))), NOW)
    more = plan(replace(bare, bindings=(d, there, c, b)), present_of(replace(bare, bindings=(a,))), NOW)

    assert fewer.steps == (UpdateBinding(a, c), DeleteBinding(b), DeleteBinding(there))
    assert more.steps == (CreateBinding(c), CreateBinding(d), CreateBinding(there), UpdateBinding(a, b))


def test_a_plan_of_many_members_and_bindings_is_made_at_once() -> None:
    """To look for each of them among all takes longer than a test may."""
    people = [f"user:{UUID(int=number)}" for number in range(60_000)]
    crowd = {"a": Group("a", members=tuple(people))}

    def bound(who: list[str], end: datetime | None = None) -> tuple[Binding, ...]:
        return tuple(Binding(one, "a", expire_time=end) for one in who)

    before = Policy(ALL, roles={"a": Role("a")}, groups=crowd, bindings=bound(people[:15_000]))
    after = replace(before, bindings=bound(people[15_000:30_000]) + bound(people[30_000:], NOW))
    made = plan(after, present_of(before), NOW)

    assert (len(made.steps), len(made.remarks)) == (30_000, 30_000)


def test_a_digest_is_of_one_tenant_of_one_deployment() -> None:
    """What was seen of one says nothing of another, though it were the same in words."""
    file, present = read(HEAD + "roles: {a: {}}\n"), Present("issuer", "tenant", "state")
    digests = {plan(file, one, NOW).digest for one in (present, replace(present, issuer="other"), replace(present, tenant_id="other"))}
    assert len(digests) == 3
    assert plan(file, replace(present, state="later"), NOW).digest in digests


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b", "\u202e", "\u2028", "\x00", '"', "\\"])
def test_no_sign_misleads_who_reads(sign: str) -> None:
    """A description could move the cursor, turn the line around or add one."""
    shown = quoted(f"a{sign}b")
    assert shown.isprintable()
    assert len({quoted(text) for text in (f"a{sign}b", "ab", f"a\\{sign}b", "a\\nb", "a\\\\b")}) == 5 - (sign == "\\")


# What refers to what is new.


def test_what_others_refer_to_by_id_comes_first_and_gives_nothing_to_anybody() -> None:
    """Groups are empty, roles are not bound; what includes new roles does so only once they are there."""
    top, middle, leaf = Role("top", permissions=("a.read",)), Role("middle", parents=("top",)), Role("leaf", parents=("middle", "old"))
    alone, group = CreateGroup(Group("alone")), CreateGroup(Group("g"))
    binding = CreateBinding(Binding("group:g", "leaf"))
    founding, main = divided([CreateRole(top), CreateRole(middle), CreateRole(leaf), alone, group, binding])
    assert founding == [CreateRole(top), CreateRole(replace(middle, parents=())), group]
    assert main == [UpdateRole(replace(middle, parents=()), middle), CreateRole(leaf), alone, binding]


def test_a_simulation_has_the_members_of_a_new_group_in_its_place() -> None:
    """And what a new role says in that of the role: of the same impact, without an id that there is not yet."""
    present = Present("", "", "", bindings=(Binding(f"user:{ALICE}", "old"),))
    steps: list[Step] = [
        CreateRole(Role("top", permissions=("a.read",), parents=("old",))),
        CreateRole(Role("leaf", permissions=("b.read",), parents=("top",))),
        UpdateRole(Role("x"), Role("x", parents=("leaf",))),
        CreateGroup(Group("inner")),
        CreateGroup(Group("outer")),
        AddMember("inner", f"user:{ALICE}"),
        AddMember("outer", "group:inner"),
        AddMember("outer", "group:there"),
        AddMember("there", "group:inner"),
        CreateBinding(Binding("group:outer", "leaf")),
        CreateBinding(Binding("group:outer", "old")),
    ]
    assert list(flattened(steps, present)) == [
        CreateRole(Role("top", permissions=("a.read",), parents=("old",))),
        CreateRole(Role("leaf", permissions=("a.read", "b.read"), parents=("old",))),
        UpdateRole(Role("x"), Role("x", permissions=("a.read", "b.read"), parents=("old",))),
        AddMember("there", f"user:{ALICE}"),
        CreateBinding(Binding("group:there", "leaf")),
        CreateBinding(Binding(f"user:{ALICE}", "leaf")),
        CreateBinding(Binding("group:there", "old")),
    ]


# The command line.


@pytest.mark.parametrize(
    "arguments",
    [[], ["frobnicate"], ["diff"], ["apply", "x", "--plan"], ["export", "--owns", "UPPER"], ["export", "--sections", "rules"], ["diff", "x", "y"]],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_read_is_an_error_and_no_difference(arguments: list[str]) -> None:
    """2 says that there is a difference: no script may take a typing error for that."""
    with redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert "usage: watchword policy" in told.getvalue()


def test_no_option_takes_a_secret() -> None:
    """Every process of a machine can read the command lines of the others."""
    shown = parser().format_help()
    assert "CLIENT_SECRET" in shown
    for arguments in (["diff", "x", "--client-secret", "y"], ["diff", "x", "--token", "y"]):
        with redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
            parser().parse_args(arguments)


def test_the_command_of_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`watchword policy ...`; without PyYAML it says what to install."""
    assert watchword([]) == 1
    assert watchword(["frobnicate"]) == 1
    assert watchword(["--help"]) == 0
    with pytest.raises(SystemExit) as end:
        watchword(["policy", "--help"])
    assert end.value.code == 0
    capsys.readouterr()

    monkeypatch.delitem(sys.modules, "watchword.policy.__main__")
    monkeypatch.setitem(sys.modules, "watchword.policy.reading", None)
    monkeypatch.delitem(sys.modules, "watchword.policy.command")
    assert watchword(["policy", "diff", "x"]) == 1
    assert "watchword[policy]" in capsys.readouterr().err


def is_encrypted(connection: Connection) -> bool:
    return connection._tls is not None


def test_credentials_come_from_the_environment(tmp_path: Path) -> None:
    """A client's or a token, themselves or in files; in plain text only to this host, unless somebody wants it so."""
    secret = tmp_path / "secret"
    secret.write_text("s\n")
    given = {"WATCHWORD_TARGET": "127.0.0.1:9090", "CLIENT_ID": "c", "CLIENT_SECRET_FILE": str(secret)}
    assert connection_of(given)._credentials.client_secret == "s"  # type: ignore[union-attr]
    assert not is_encrypted(connection_of(given))
    assert not is_encrypted(connection_of({**given, "WATCHWORD_TARGET": "[::1]:9090"}))
    assert not is_encrypted(connection_of({**given, "WATCHWORD_TARGET": "localhost:9090"}))
    assert is_encrypted(connection_of({**given, "WATCHWORD_TARGET": "auth.example:9090"}))
    assert is_encrypted(connection_of({**given, "WATCHWORD_TARGET": "127.0.0.1.example:9090"}))
    assert not is_encrypted(connection_of({**given, "WATCHWORD_TARGET": "mesh:9090", "WATCHWORD_TLS": "off"}))
    assert is_encrypted(connection_of({**given, "WATCHWORD_TLS": "on"}))
    assert is_encrypted(connection_of({**given, "WATCHWORD_CA": str(secret)}))
    assert callable(connection_of({"WATCHWORD_TARGET": "a:1", "WATCHWORD_ACCESS_TOKEN": "t"})._credentials)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHWORD_TARGET": "a:1"},
        {"WATCHWORD_TARGET": "a:1", "CLIENT_ID": "c"},
        {"WATCHWORD_TARGET": "a:1", "CLIENT_ID": "c", "CLIENT_SECRET_FILE": "/nowhere"},
        {"WATCHWORD_TARGET": "a:1", "WATCHWORD_ACCESS_TOKEN": "t", "WATCHWORD_TLS": "perhaps"},
        {"WATCHWORD_TARGET": "a:1", "WATCHWORD_ACCESS_TOKEN": "t", "WATCHWORD_CA": "/nowhere"},
    ],
    ids=range(6),
)
def test_what_the_environment_lacks_is_told(environment: dict[str, str]) -> None:
    with pytest.raises(EnvironmentLacking):
        connection_of(environment)


def test_the_page_shows_files_that_can_be_read() -> None:
    """With an id where the page has the beginning of one."""
    page = (ROOT / "docs" / "policy-as-code.md").read_text(encoding="utf-8")
    files = [part for part in page.split("```") if part.startswith("yaml\nversion: 1\n")]
    assert len(files) == 1
    policy = read(files[0].removeprefix("yaml\n").replace("0198f2c4-...", ALICE))
    assert policy.sections == frozenset(SECTIONS)
    assert len(policy.expectations) == 1


def test_expectations_are_written_and_read() -> None:
    """With everything that a question can have."""
    one = Expectation("group:a", "a.read", Outcome.STEP_UP_REQUIRED, "folder/a", {"n": 1, "t": "1", "l": [None, True, {}]}, "mfa", 0)
    assert read(write(Policy(ALL, expectations=(one,)))).expectations == (one,)
