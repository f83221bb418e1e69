"""`watchword`, the command: `watchword policy export | diff | apply | test`."""

import sys
from collections.abc import Sequence
from importlib import import_module

USAGE = "usage: watchword policy export | diff | apply | test ...   (watchword policy --help)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool that the first word names; return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] != "policy":
        print(USAGE, file=sys.stdout if words[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if words[:1] in (["-h"], ["--help"]) else 1
    try:
        policy = import_module("watchword.policy.__main__")
    except ImportError as error:
        print(f"this command needs {error.name}: install watchword[policy]", file=sys.stderr)
        return 1
    return int(policy.main(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
