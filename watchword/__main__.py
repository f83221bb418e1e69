"""`watchword`, the command: `watchword policy export | diff | apply | test` and, in a checkout, `watchword top`."""

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

USAGE = """usage: watchword policy export | diff | apply | test ...   (watchword policy --help)
       watchword top ...   in a checkout, the same as scripts/top"""
TOP = Path(__file__).parent.parent / "scripts" / "top"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool that the first word names; return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["top"]:
        return top(words[1:])
    if not words or words[0] != "policy":
        print(USAGE, file=sys.stdout if words[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if words[:1] in (["-h"], ["--help"]) else 1
    try:
        policy = import_module("watchword.policy.__main__")
    except ImportError as error:
        print(f"this command needs {error.name}: install watchword[policy]", file=sys.stderr)
        return 1
    return int(policy.main(words[1:]))


def top(words: Sequence[str], script: Path = TOP) -> int:
    """Show a running stack. What shows it belongs to the services, which this package goes without."""
    if not script.exists():
        print("this command needs a checkout of Watchword: it is its scripts/top", file=sys.stderr)
        return 1
    return subprocess.run([script, *words], check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
