"""The rules of the house (ARCHITECTURE.md): whoever breaks one is told the file, the line and what to do.

Each rule is a function from a file to the breaches in it, so that a rule can itself be shown a file that breaks it.
"""

import ast
import re
import subprocess
import sys
import sysconfig
import token as standard_token
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath

import pytest
from google.protobuf.descriptor import MethodDescriptor

from services.chassis.access import LimitClass, Rule, rule_of
from watchword.options.v1 import field_pb2

ROOT = Path(__file__).resolve().parents[2]
CONTEXTS = ("identity", "token", "rbac", "gateway")
OUTER_MODULES = re.compile(r"\w*servicer|\w*messages|service|store\w*|peers\w*|bootstrap|__main__|settings")
DRIVERS = re.compile(
    r"(grpc|grpc_health|grpc_reflection|google\.protobuf|google\.rpc|asyncpg|redis|watchword\..*_pb2(_grpc)?|watchword\.status"
    r"|services\.\w+\.(\w*messages|\w*servicer))(\.|$)"
)
STATEMENT = re.compile(r"\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+[\w.]+\s+(AS\s+\w+\s+|\w+\s+)?SET\s|DELETE\s+FROM\s|TRUNCATE\s|WITH\s+\w+\s+AS\s)")
# Where SQL may stand: a context's store, the chassis's door to Postgres, migrations, and what looks after a whole server.
SQL_PLACES = re.compile(
    r"services/(identity|token|rbac)/store(/\w+|\w*)\.py|services/chassis/(postgres|migrate|outbox)\.py|services/(embedded|up/\w+|preflight/stores)\.py|(tests|bench)/.*"
)


def joined(*pieces: str) -> str:
    """Return a word that must not stand in this file, which keeps its own rules."""
    return "".join(pieces)


UNFINISHED = joined("TO", "DO")
HOSTS = [joined(*pair) for pair in (("py", "pi.org"), ("python", "hosted.org"), ("npm", "js."), ("crates", ".io"), ("proxy.golang", ".org"))]
MACHINE = joined("/wo", "rk/main")
FORBIDDEN = {
    "an unfinished end": rf"\b{UNFINISHED}\b|\b{joined('FIX', 'ME')}\b|{joined('NotImplemented', 'Error')}",
    "a test that does not run": r"\bpytest\.(mark\.)?(skip|xfail)|\bunittest\.skip",
    "the name of a registry's host": "|".join(re.escape(host) for host in HOSTS),
    "a path of one machine": r"(?<![\w.$}>])/(work|tmp/w|root|home/\w+)/",
}
# A command of people may wait; everything else waits for something, and says for what.
WAITING = r"\btime\.sleep\b"
MAY_WAIT = {"services/up/down.py"}
GENERATED = re.compile(r".*_pb2(_grpc)?\.pyi?$")

File = tuple[str, str]  # a path below the root, and its text


@cache
def tracked() -> tuple[File, ...]:
    """Return every tracked text file."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = (ROOT / name for name in names if name and not name.endswith((".pb", ".png")))
    return tuple((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths if path.is_file())


def python() -> list[File]:
    return [(path, text) for path, text in tracked() if path.endswith(".py") and not GENERATED.match(path)]


def context_of(path: str) -> str:
    """Return the context that a file of the server half belongs to, or nothing."""
    parts = PurePosixPath(path).parts
    name = parts[1] if parts[0] == "services" and len(parts) > 2 else parts[0]
    return name if name in CONTEXTS else ""


def imports(file: File) -> Iterator[tuple[int, str]]:
    """Yield line and name of each imported module; `from a import b` counts as both a and a.b, for b may be a module."""
    for node in ast.walk(ast.parse(file[1])):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def domain_imports(file: File) -> Iterator[str]:
    """Rule 3: a domain module imports no transport and no driver."""
    path = PurePosixPath(file[0])
    if context_of(file[0]) in ("", "gateway") or len(path.parts) != 3 or OUTER_MODULES.fullmatch(path.stem):
        return
    for line in sorted({line for line, name in imports(file) if DRIVERS.match(name)}):
        yield f"{path}:{line}: a domain module imports neither grpc, protobuf, asyncpg nor redis; leave that to servicer, store and peers"


def foreign_contexts(file: File) -> Iterator[str]:
    """Rule 2: no context imports another; the public package imports no server, and the chassis no domain but their settings."""
    own, path = context_of(file[0]), file[0]
    for line, name in imports(file):
        top = name.split(".")
        other = top[1] if top[0] == "services" and len(top) > 1 else top[0]
        if own and other in CONTEXTS and other != own:
            yield f"{path}:{line}: {own} imports {other}; contexts meet only through the contract"
        if path.startswith("watchword/") and top[0] in ("services", "gateway", "tests"):
            yield f"{path}:{line}: the public package imports nothing of the server"
        if path.startswith("services/chassis/") and other in CONTEXTS and "settings" not in top:
            yield f"{path}:{line}: the chassis knows no context"


def stray_sql(file: File) -> Iterator[str]:
    """Rule 4: all SQL of a context is in its store."""
    if SQL_PLACES.fullmatch(file[0]):
        return
    for node in ast.walk(ast.parse(file[1])):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATEMENT.match(node.value):
            yield f"{file[0]}:{node.lineno}: SQL belongs into the context's store"


def forbidden_words(file: File) -> Iterator[str]:
    """What must not be in any file that we publish."""
    for number, line in enumerate(file[1].splitlines(), 1):
        for words, pattern in FORBIDDEN.items():
            if re.search(pattern, line):
                yield f"{file[0]}:{number}: {words}"
        if file[0].endswith(".py") and file[0] not in MAY_WAIT and re.search(WAITING, line):
            yield f"{file[0]}:{number}: a wait for time to pass; wait for the thing itself, or move the clock"


def packages_among_tests(file: File) -> Iterator[str]:
    """A package `tests/unit/token` would hide the standard library's `token`."""
    if file[0].startswith("tests/") and PurePosixPath(file[0]).name == "__init__.py":
        yield f"{file[0]}:1: no __init__.py under tests"


RULES: dict[str, Callable[[File], Iterator[str]]] = {
    rule.__name__: rule for rule in (domain_imports, foreign_contexts, stray_sql, forbidden_words, packages_among_tests)
}


@pytest.mark.parametrize("name", RULES)
def test_every_file_keeps_the_rule(name: str) -> None:
    files = [file for file in tracked() if not GENERATED.match(file[0])] if name in ("forbidden_words", "packages_among_tests") else python()
    assert len(files) > 50

    breaches = [breach for file in files for breach in RULES[name](file)]

    assert breaches == []


BREACHES = [
    ("domain_imports", "services/token/verifier.py", "import grpc"),
    ("domain_imports", "services/rbac/checker.py", "from google.protobuf import message"),
    ("domain_imports", "services/rbac/checker.py", "from watchword.rbac.v1 import rbac_pb2"),
    ("domain_imports", "services/identity/login.py", "def f():\n    import asyncpg.exceptions"),
    ("domain_imports", "services/identity/login.py", "from redis.asyncio import Redis"),
    ("domain_imports", "services/identity/login.py", "from services.identity import messages"),
    ("foreign_contexts", "services/identity/login.py", "from services.token.revocations import Standing"),
    ("foreign_contexts", "services/rbac/service.py", "from services import token"),
    ("foreign_contexts", "gateway/servicer.py", "import services.identity.store"),
    ("foreign_contexts", "services/token/service.py", "from gateway import health"),
    ("foreign_contexts", "services/chassis/edge.py", "from services.rbac.checker import Checker"),
    ("foreign_contexts", "watchword/status.py", "from services.chassis import edge"),
    ("stray_sql", "services/identity/login.py", 'X = "SELECT 1"'),
    ("stray_sql", "services/identity/servicer.py", 'X = """\n    UPDATE account a SET x = 1"""'),
    ("stray_sql", "gateway/health.py", 'X = f"DELETE FROM {x}"'),
    ("stray_sql", "services/rbac/checker.py", 'X = "INSERT INTO role VALUES (1)"'),
    ("forbidden_words", "services/a.py", f"# {UNFINISHED}: later"),
    ("forbidden_words", "services/a.py", joined("raise NotImplemented", "Error")),
    ("forbidden_words", "tests/unit/test_a.py", joined("@pytest.mark", ".skip")),
    ("forbidden_words", "tests/unit/test_a.py", joined("time", ".sleep(1)")),
    ("forbidden_words", "requirements/a.txt", f"--index-url https://{HOSTS[0]}/simple"),
    ("forbidden_words", "README.md", f"see {MACHINE}/README.md"),
    ("packages_among_tests", "tests/unit/token/__init__.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "text"), BREACHES)
def test_the_rule_sees_a_breach_and_says_where(rule: str, path: str, text: str) -> None:
    """A check that cannot fail is none."""
    breaches = list(RULES[rule]((path, text)))

    assert breaches
    assert all(re.match(rf"{re.escape(path)}:\d+: \w", breach) for breach in breaches)


GOOD = [
    ("services/token/verifier.py", "from services.chassis.clock import Clock\nfrom watchword.errors import NotFound"),
    ("services/token/servicer.py", "from watchword.token.v1 import token_pb2"),
    ("services/token/store.py", 'import asyncpg\nX = "SELECT 1"'),
    ("services/identity/login.py", 'X = "Select a tenant"\nY = "updates and selects"'),
]


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_the_rules_let_good_files_be(path: str, text: str) -> None:
    assert [breach for rule in RULES.values() for breach in rule((path, text))] == []


def test_the_standard_librarys_token_is_intact() -> None:
    """`services/token` would take its place if `services/` were on the path, and break tokenize, inspect and every traceback."""
    assert Path(standard_token.__file__).parent == Path(sysconfig.get_paths()["stdlib"])
    assert not {str(ROOT / "services"), str(ROOT / "watchword"), str(ROOT / "tests" / "unit")} & {str(Path(entry).absolute()) for entry in sys.path}


def methods() -> list[MethodDescriptor]:
    """Return every RPC of the contract."""
    files = sorted((ROOT / "protos").rglob("*.proto"))
    modules = [import_module(".".join(path.relative_to(ROOT / "protos").with_suffix("").parts) + "_pb2") for path in files]
    return [method for module in modules for service in module.DESCRIPTOR.services_by_name.values() for method in service.methods]


def line_of(method: MethodDescriptor) -> str:
    """Return file and line of the RPC in its proto."""
    name = method.containing_service.file.name
    lines = (ROOT / "protos" / name).read_text(encoding="utf-8").splitlines()
    number = next(number for number, line in enumerate(lines, 1) if re.match(rf"\s*rpc {method.name}\(", line))
    return f"protos/{name}:{number}"


def test_every_rpc_says_who_may_call_it() -> None:
    """Raises AccessUndeclared, which names the RPC."""
    assert len([rule_of(method) for method in methods()]) > 50


def test_exactly_the_changes_take_a_request_id() -> None:
    """So that a client may repeat any change; and nothing pretends to that does not keep it. It is a UUID, or the edge would stumble."""
    breaches = []
    for method in methods():
        field = method.input_type.fields_by_name.get("request_id")
        if rule_of(method).mutates is not (field is not None):
            breaches.append(f"{line_of(method)}: {method.name} changes something and has no request_id, or has one and does not")
        if field is not None and field.GetOptions().Extensions[field_pb2.field].format != field_pb2.FORMAT_UUID:
            breaches.append(f"{line_of(method)}: request_id of {method.name} must be of FORMAT_UUID")
    assert breaches == []


# These act without request_id: logins and OAuth answer with fresh credentials, which nobody may get twice; RFC 7009 revocation repeats harmlessly.
# A chunk of an import finds what is there already. A simulation costs what a change costs, and changes nothing.
UNREPEATABLE = {"Login", "Token", "Revoke", "ImportPolicy", "SimulateChange"}


def test_what_acts_without_a_request_id_is_listed() -> None:
    """A new RPC that writes and forgets `mutates` shows here: it is budgeted as a change or a credential."""
    acting = {
        method.name for method in methods() if rule_of(method).limit in (LimitClass.WRITE, LimitClass.CREDENTIAL) and not rule_of(method).mutates
    }
    assert acting == UNREPEATABLE


def spelt(rule: Rule) -> str:
    """Return a rule as the table has it."""
    alternatives = [
        *(["public"] if rule.public else []),
        *(["authenticated"] if rule.authenticated else []),
        *([f"permission={rule.permission}"] if rule.permission else []),
        *([f"scope={rule.scope}"] if rule.scope else []),
        *([f"peers={','.join(sorted(rule.peers))}"] if rule.peers else []),
    ]
    return f"{' or '.join(alternatives)}; {rule.limit}{'; mutates' if rule.mutates else ''}"


def test_a_changed_access_rule_shows_in_review() -> None:
    """tests/contracts/access.txt holds every RPC and who may call it; one line there is easier to judge than an option in a proto."""
    table = ROOT / "tests" / "contracts" / "access.txt"
    written = dict(line.split(": ", 1) for line in table.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    present = {method.full_name.removeprefix("watchword."): method for method in methods()}

    breaches = [
        f"{line_of(method)}: {name} is now '{spelt(rule_of(method))}', tests/contracts/access.txt says '{written.get(name, 'nothing')}'"
        for name, method in present.items()
        if written.get(name) != spelt(rule_of(method))
    ]
    breaches += [f"tests/contracts/access.txt: {name} is no RPC any more" for name in written if name not in present]

    assert breaches == []


def test_nobody_but_identity_may_have_tokens_made() -> None:
    """The one line of the table that must never grow."""
    rules = {method.name: rule_of(method) for method in methods()}
    assert spelt(rules["IssueToken"]).startswith("peers=identity;")


def test_what_is_open_to_all_is_counted() -> None:
    """Public RPCs are the attack surface: each is on purpose."""
    public = {method.name for method in methods() if rule_of(method).public}
    assert public == {
        *("GetHealth", "GetDetailedHealth", "GetReadiness", "GetLiveness", "GetJwks"),
        *("Register", "Login", "RefreshSession", "RequestPasswordReset", "ResetPassword", "RequestEmailVerification", "VerifyEmail"),
        *("Token", "Revoke", "Introspect"),
    }
