"""`watchword policy` as a pull request's CI runs it: in a process of its own, through Envoy, as an OAuth client; only its exit status counts."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port
from tests.suite.conftest import Client, Person, Suite, new_client, new_person

SCOPES = (
    *("roles.read", "roles.create", "roles.update", "roles.delete", "groups.read", "groups.create", "groups.update", "groups.delete"),
    *("role-bindings.read", "role-bindings.create", "role-bindings.update", "role-bindings.delete", "resources.read", "resources.update"),
    *("permissions.check", "policies.simulate", "policies.apply"),
)


@pytest.fixture(scope="module")
async def deployer(suite: Suite, admin: Person) -> Client:
    """The client of a pipeline: an administrator, as far as its scopes reach."""
    client = await new_client(suite, admin, *SCOPES)
    subject = {"type": "SUBJECT_TYPE_CLIENT", "id": client.id}
    async with suite.rest as rest:
        bound = await rest.post("/v1/role-bindings", json={"subject": subject, "role_name": "watchword.admin"}, headers=admin.headers)
    assert bound.status_code == 200, bound.text
    return client


def environment_of(suite: Suite, client: Client, **more: str) -> dict[str, str]:
    """Return what the tool reads, and nothing that this process has of it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("WATCHWORD_", "CLIENT_"))}
    return {**plain, "WATCHWORD_TARGET": suite.endpoints.grpc, "CLIENT_ID": client.id, "CLIENT_SECRET": client.secret, **more}


def tool(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run the tool to its end, without a terminal."""
    command = [sys.executable, "-m", "watchword", "policy", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)


def text_of(person: Person, decision: str = "ALLOW") -> str:
    """Return a file of one team."""
    return f"""
version: 1
owns: [billing., ledger/]
roles:
  billing.reader: {{permissions: [ledgers.read]}}
  billing.clerk: {{permissions: [ledgers.write], parents: [billing.reader]}}
groups:
  billing.staff: {{members: ["user:{person.id}"]}}
bindings:
  - {{subject: group:billing.staff, role: billing.clerk, resource: ledger/root}}
resources: {{ledger/1: ledger/root}}
expect:
  - {{subject: "user:{person.id}", permission: ledgers.read, resource: ledger/1, decision: {decision}}}
  - {{subject: group:billing.staff, permission: ledgers.write, resource: ledger/root, decision: ALLOW}}
  - {{subject: "user:{person.id}", permission: ledgers.write, decision: DENY}}
"""


async def test_a_pipeline_shows_applies_and_tests(suite: Suite, admin: Person, deployer: Client, tmp_path: Path) -> None:
    """diff 2, apply 1 without the digest that diff printed and 0 with it, diff 0, test 0 or 3, export what was applied."""
    person, path, environment = await new_person(suite, admin), tmp_path / "policy.yaml", environment_of(suite, deployer)
    path.write_text(text_of(person))

    shown = tool(environment, "diff", str(path))
    assert shown.returncode == 2, shown.stderr
    assert "+ binding: group:billing.staff holds billing.clerk on ledger/root" in shown.stdout
    digest = re.search(r"plan ([0-9a-f]{64})$", shown.stdout.strip())
    assert digest is not None
    assert suite.endpoints.rest in shown.stdout

    simulated = tool(environment, "test", str(path), "--simulate")
    assert (simulated.returncode, simulated.stderr) == (3, "")
    assert simulated.stdout.count("NOT MET") == 2  # it is not applied yet
    assert f"+ user:{person.id}: ledgers.read, ledgers.write on ledger/root" in simulated.stdout

    unseen = tool(environment, "apply", str(path))
    assert unseen.returncode == 1
    assert "--plan" in unseen.stderr
    assert tool(environment, "apply", str(path), "--plan", "0" * 64).returncode == 1
    assert tool(environment, "diff", str(path)).returncode == 2

    applied = tool(environment, "apply", str(path), "--plan", digest[1])
    assert applied.returncode == 0, applied.stderr
    assert tool(environment, "diff", str(path)).returncode == 0
    assert tool(environment, "apply", str(path)).returncode == 0  # nothing to do

    tested = tool(environment, "test", str(path))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    path.write_text(text_of(person, "DENY"))
    tested = tool(environment, "test", str(path))
    assert tested.returncode == 3
    assert tested.stdout.count("NOT MET") == 1

    exported = tool(environment, "export", "--owns", "billing.,ledger/")
    assert exported.returncode == 0, exported.stderr
    path.write_text(exported.stdout)
    assert tool(environment, "diff", str(path)).returncode == 0


def test_at_a_terminal_somebody_is_asked(suite: Suite, admin: Person, deployer: Client, tmp_path: Path) -> None:
    """What he types decides; what he sees is the difference."""
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nowns: [typed.]\nroles: {typed.role: {permissions: [typed.read]}}\n")
    for typed, status in (("no\n", 1), ("yes\n", 0)):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "watchword", "policy", "apply", str(path)]
        running = subprocess.Popen(command, cwd=ROOT, env=environment_of(suite, deployer), stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, typed.encode())
        told = b""
        try:
            while part := os.read(ours, 4096):
                told += part
        except OSError:  # the other side has closed its terminal
            pass
        assert running.wait(30) == status, told
        assert b"+ role typed.role may typed.read" in told
        os.close(ours)


async def test_whatever_goes_wrong_is_status_1(suite: Suite, deployer: Client, tmp_path: Path) -> None:
    """Never 0, and never 2, which would be a difference."""
    path, environment = tmp_path / "policy.yaml", environment_of(suite, deployer)
    path.write_text("version: 1\nowns: all\nrules: {}\n")
    wrong = tool(environment, "diff", str(path))
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith(f"{path}:3: a policy has no key rules")

    path.write_text("version: 1\nowns: [nothing.]\nroles: {}\n")
    for broken in (
        {"CLIENT_SECRET": "wrong"},
        {"WATCHWORD_TARGET": ""},
        {"WATCHWORD_TARGET": f"127.0.0.1:{free_port()}"},
        {"WATCHWORD_ACCESS_TOKEN": "x"},
        {"WATCHWORD_TLS": "on"},
    ):
        failed = tool({**environment, **broken}, "diff", str(path))
        assert (failed.returncode, failed.stdout) == (1, ""), broken
        assert failed.stderr.count("\n") == 1, failed.stderr
        assert deployer.secret not in failed.stderr
    assert tool(environment, "diff").returncode == 1
    assert tool(environment, "diff", str(path)).returncode == 0


def test_a_reader_that_goes_away_is_an_error(suite: Suite, deployer: Client) -> None:
    """`watchword policy export | head` must not look like success, nor print a traceback."""
    command = f"{sys.executable} -m watchword policy export | true; echo ${{PIPESTATUS[0]}}"
    environment = environment_of(suite, deployer)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() in ("0", "1")
    assert "Traceback" not in done.stderr
