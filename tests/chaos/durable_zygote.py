"""Starts instances by forking one process that has everything imported: in milliseconds instead of seconds, so that hundreds can be killed.

It reads orders from standard input, a JSON line each, and says on standard output whom it started and who has ended. When its input ends, it ends
everybody. What runs in a fork is the service's own `main`, with hashes that cost nothing; beside it listens a socket on which a test says where the
process dies next, and what dies: the process, or the Postgres backend of the session that is being used.
"""

import asyncio
import gc
import os
import select
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, NoReturn

import msgspec

from services.chassis import crashpoint
from services.chassis.postgres import Database
from services.identity import hashing, service
from tests.chaos.durable_hashes import CheapPasswords, OwnHasher
from tests.chaos.durable_sabotage import SABOTAGE

SERVICES = ("identity", "token", "rbac")


class Order(msgspec.Struct, frozen=True):
    """An instance to be started. `control` is the path of its socket; `without` names defences that are taken away in it."""

    service: str
    environment: Mapping[str, str]
    log: str
    control: str
    without: tuple[str, ...] = ()


class News(msgspec.Struct, frozen=True):
    """An instance has started; or it has ended, by exit or, if negative, by a signal."""

    pid: int
    ended: int | None = None


class Mark:
    """What dies at the crash point: this process, or the backend of the session that the running task, or else this process, has used last."""

    kills_backends = False
    was_hit = False
    last = 0
    own: ContextVar[int] = ContextVar("own", default=0)


def serve() -> None:
    """Start whom the orders name, until they end."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    alive: set[int] = set()
    unread = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            alive -= _reap()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                alive.add(_start(msgspec.json.decode(line, type=Order)))
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _start(order: Order) -> int:
    pid = os.fork()
    if pid == 0:
        _become(order)
    _say(News(pid))
    return pid


def _reap() -> set[int]:
    ended = set[int]()
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)
        _say(News(pid, os.waitstatus_to_exitcode(status)))


def _say(news: News) -> None:
    os.write(1, msgspec.json.encode(news) + b"\n")


def _become(order: Order) -> NoReturn:
    """Be the instance; never return."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text stream
    os.environ.update(order.environment)
    crashpoint._armed, crashpoint._die = crashpoint.read(os.environ), _strike
    _watch_sessions()
    for name in order.without:
        SABOTAGE[name]()
    try:
        asyncio.run(_run(order))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(1)


async def _run(order: Order) -> None:
    listening = await asyncio.start_unix_server(_control, order.control)
    async with listening:
        await import_module(f"services.{order.service}.service").main()


async def _control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one line: `process POINT`, `backend POINT`, or `was hit`."""
    what, _, where = (await reader.readline()).decode().strip().partition(" ")
    if what == "was":
        writer.write(b"yes\n" if Mark.was_hit else b"no\n")
    else:
        Mark.kills_backends, Mark.was_hit = what == "backend", False
        crashpoint._armed = crashpoint.read({crashpoint.VARIABLE: where})
        writer.write(b"armed\n")
    await writer.drain()
    writer.close()


def _strike() -> None:
    if not Mark.kills_backends:
        os.kill(os.getpid(), signal.SIGKILL)
    crashpoint._armed = None
    Mark.was_hit = True
    os.kill(Mark.own.get() or Mark.last, signal.SIGKILL)


def _watch_sessions() -> None:
    """Note which backend the running task has used last, and which this process has."""
    opened = Database.connection

    @asynccontextmanager
    async def connection(self: Database) -> AsyncIterator[Any]:
        async with opened(self) as found:
            Mark.last = found.get_server_pid()
            Mark.own.set(Mark.last)
            yield found

    Database.connection = connection  # type: ignore[method-assign]


if __name__ == "__main__":
    for each in SERVICES:
        import_module(f"services.{each}.service")
    for module, name, cheap in ((service, "Passwords", CheapPasswords), (hashing, "Hasher", OwnHasher)):
        setattr(module, name, cheap)
    gc.collect()
    gc.freeze()  # what is loaded stays: no fork needs to look through it, and copy it for that
    serve()
