"""A crash point kills whom it was told to kill, and nobody in production."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PASSING = "from services.chassis.crashpoint import crashpoint; [crashpoint(name) for name in ('a', 'b', 'a')]; print('lives')"


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    """Pass the points a, b, a in a process of this environment."""
    whole = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", PASSING], env=whole, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("where", ["a", "b", "a:2"])
def test_a_process_dies_where_it_was_told_to(where: str) -> None:
    """At once: nothing is flushed, and no handler runs."""
    died = run(WATCHWORD_CRASHPOINT=where)

    assert (died.returncode, died.stdout, died.stderr) == (-signal.SIGKILL, "", "")


@pytest.mark.parametrize("environment", [{}, {"WATCHWORD_CRASHPOINT": "c"}, {"WATCHWORD_CRASHPOINT": "a:3"}])
def test_everybody_else_passes(environment: dict[str, str]) -> None:
    assert run(**environment).stdout == "lives\n"


@pytest.mark.parametrize("production", [{"APP_ENV": "production"}, {"APP_ENV_FILE": "anywhere"}])
def test_in_production_nobody_dies(production: dict[str, str]) -> None:
    """Whoever can set a variable there must not have a way to stop writes one by one."""
    assert run(WATCHWORD_CRASHPOINT="a", **production).stdout == "lives\n"
