"""The control socket of a running stack: stops, pauses and starts single instances, for tests and for trying out what a failure does.

    python -m services.up.control stop token-1 --signal KILL
    python -m services.up.control start token-1

One JSON object a line each way: {"stop": NAME, "signal": "TERM"} or {"start": NAME}; the answer is {} or {"error": TEXT}. The signals are TERM,
KILL, STOP (pause) and CONT (go on). Only who may enter the home may connect.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.up.supervisor import Failed, Stack

SIGNALS = {"TERM": signal.SIGTERM, "KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "CONT": signal.SIGCONT}
LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 elsewhere


class ControlError(Exception):
    """The stack did not do what it was told; the text says why."""


async def serve(path: Path, stack: Stack, changed: Callable[[], None]) -> asyncio.Server:
    """Listen on `path`; call `changed` after each command that was carried out, because process ids may have changed."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = await _obey(stack, line)
                changed()
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()

    with _short(path) as address:
        return await asyncio.start_unix_server(converse, address)


async def _obey(stack: Stack, line: bytes) -> dict[str, str]:
    try:
        await _action(stack, json.loads(line))
    except (Failed, LookupError, ValueError, TypeError, AttributeError) as error:
        return {"error": str(error)}
    return {}


def _action(stack: Stack, command: dict[str, str]) -> Awaitable[None]:
    match command:
        case {"stop": str(name)}:
            return stack.stop_instance(name, SIGNALS[command.get("signal", "TERM")])
        case {"start": str(name)}:
            return stack.start_instance(name)
        case _:
            raise ValueError('the commands are {"stop": NAME, "signal": "TERM"} and {"start": NAME}')


def tell(home: Path, command: dict[str, str], timeout: float = 120.0) -> None:
    """Have the stack in `home` carry `command` out; return when it is done. Raises ControlError, OSError, TimeoutError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _short(home / "control.sock") as address:
        connection.settimeout(timeout)
        connection.connect(address)
        connection.sendall(json.dumps(command).encode() + b"\n")
        with connection.makefile() as answers:
            answer = json.loads(answers.readline() or '{"error": "the stack went away"}')
    if "error" in answer:
        raise ControlError(answer["error"])


def stop_instance(home: Path, name: str, number: str = "TERM") -> None:
    """Signal an instance with TERM, KILL, STOP or CONT; for the first two, return when it has ended."""
    tell(home, {"stop": name, "signal": number})


def start_instance(home: Path, name: str) -> None:
    """Start an instance that was stopped; return when it is healthy."""
    tell(home, {"start": name})


@contextmanager
def _short(path: Path) -> Iterator[str]:
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
