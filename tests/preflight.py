"""`scripts/preflight` as tests run it."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def preflight(*options: str, **environment: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Return the exit status, and by name of each check its state and words."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", "CLIENT_ID", "CLIENT_SECRET")}
    command = (sys.executable, "-m", "services.preflight", *options)
    done = subprocess.run(command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False, timeout=100)
    assert done.stderr == ""
    lines = [(line[:10].strip(), line[11:27].strip(), line[28:]) for line in done.stdout.splitlines()]
    return done.returncode, {name: (state, words) for state, name, words in lines}
