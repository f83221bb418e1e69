"""Processes of the bench itself: each takes one job a line and answers one line, both JSON, and ends when nobody asks any more."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.machine import pinned

ROOT = Path(__file__).parent.parent
MAX_LINE = 4 * 1024 * 1024  # bytes

Answer = dict[str, Any]  # at the border to another process


class BenchError(Exception):
    """The run cannot give honest figures; the text says why."""


class Worker:
    """A running worker."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, **job: Any) -> Answer:
        """Return what became of one job. Raises BenchError with the worker's last words if it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise BenchError(f"a worker ended: {self._log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        answer: Answer = json.loads(line)
        return answer


@asynccontextmanager
async def worker(module: str, *arguments: str, log: Path, core: int | None) -> AsyncIterator[Worker]:
    """Run `python -m module` as a worker while inside."""
    with log.open("ab") as errors, pinned(core):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            limit=MAX_LINE,
            start_new_session=True,
        )
    try:
        yield Worker(process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


async def work(do: Callable[[Answer], Awaitable[Answer]]) -> None:
    """Be a worker: do the jobs of standard input until it ends."""
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        answer = await do(json.loads(line))
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")
