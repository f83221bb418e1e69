"""The control socket of a running stack, from the outside: stops, pauses and starts single instances, and has the fleet changed.

    python -m services.up.control stop token-1 --signal KILL
    python -m services.up.control start token-1

One JSON object a line each way, one command a connection: {"stop": NAME, "signal": "TERM"}, {"start": NAME}, {"scale": {SERVICE: N}},
{"restart": [SERVICE]}, {"switch": [SERVICE], "settings": {NAME: VALUE}, "watch": SECONDS, "tolerate": N} and {"rollback": true}. While it is carried
out, lines {"said": TEXT} may come; the last line is {} or {"error": TEXT}. The signals are TERM, KILL, STOP (pause) and CONT (go on). Only who may
enter the home may connect.
"""

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIGNALS = {"TERM": signal.SIGTERM, "KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "CONT": signal.SIGCONT}
LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 elsewhere


class ControlError(Exception):
    """The stack did not do what it was told; the text says why."""


def tell(home: Path, command: dict[str, Any], timeout: float | None = 120.0, said: Callable[[str], None] = print) -> None:
    """Have the stack in `home` carry `command` out; return when it is done. Raises ControlError, OSError, TimeoutError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, short(home / "control.sock") as address:
        connection.settimeout(timeout)
        connection.connect(address)
        connection.sendall(json.dumps(command).encode() + b"\n")
        with connection.makefile() as answers:
            for line in answers:
                answer = json.loads(line)
                if "said" not in answer:
                    break
                said(answer["said"])
            else:
                answer = {"error": "the stack went away, or is being stopped"}
    if "error" in answer:
        raise ControlError(answer["error"])


def stop_instance(home: Path, name: str, number: str = "TERM") -> None:
    """Signal an instance with TERM, KILL, STOP or CONT; for the first two, return when it has ended."""
    tell(home, {"stop": name, "signal": number})


def start_instance(home: Path, name: str) -> None:
    """Start an instance that was stopped; return when it is healthy."""
    tell(home, {"start": name})


@contextmanager
def short(path: Path) -> Iterator[str]:
    """Give a name of the socket that fits into sun_path, however deep its home is."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def main() -> int:
    """Carry out one command from the command line."""
    parser = argparse.ArgumentParser(prog="python -m services.up.control", description="Stop, pause or start one instance of a running stack.")
    parser.add_argument("verb", choices=("stop", "start"))
    parser.add_argument("instance", help="such as token-1")
    parser.add_argument("--signal", choices=tuple(SIGNALS), default="TERM", help="what `stop` sends (default: TERM)")
    parser.add_argument("--home", type=Path, default=Path(".watchword"), help="the stack's home (default: .watchword)")
    options = parser.parse_args()
    command = {"start": options.instance} if options.verb == "start" else {"stop": options.instance, "signal": options.signal}
    try:
        tell(options.home.resolve(), command)
    except ControlError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"no stack answers in {options.home}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
