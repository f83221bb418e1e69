"""The machine that a run was made on: its cores, its versions, and what it charges a process for."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from services.embedded import envoy_binary, postgres_binary, valkey_binary

MIB = 1024 * 1024
CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the time that the scheduler counted, in nanoseconds


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: what is measured has a core of its own, as far as there is one."""

    measured: int
    others: int

    @classmethod
    def here(cls) -> "Cores":
        """Choose from the cores that this process may use. Interrupts mostly land on the first one."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(measured=usable[-1], others=usable[0])

    @property
    def are_apart(self) -> bool:
        """Whether the load is made on another core than the one that is measured."""
        return self.measured != self.others


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started inside stay on `core`; None leaves them to the scheduler."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """Return the process, and all that it started, and they in turn, as long as they run."""
    children = list[int]()
    with suppress(OSError):  # it may have ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # a thread, too
                children += map(int, (task / "children").read_text(encoding="ascii").split())
    return [pid, *(each for child in children for each in family(child))]


def keep_on(pids: Iterable[int], cores: Iterable[int]) -> None:
    """Keep all threads of these processes on these cores."""
    for thread in [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]:
        with suppress(ProcessLookupError):  # it may have ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


def cpu_nanoseconds(pid: int) -> int:
    """Return the CPU time, user and system, of all threads that the process has or had. Source: clock_getcpuclockid(3)."""
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)


def resident_bytes(*pids: int, peak: bool = False) -> int:
    """Return the resident sets of processes, or the largest that they ever were."""
    return sum(_status_bytes(pid, "VmHWM:" if peak else "VmRSS:") for pid in pids)


def _status_bytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@dataclass(frozen=True, slots=True)
class Weight:
    """What a process holds in memory: bytes in all, and those that are no pages of files and of no shared memory."""

    resident: int
    own: int

    @classmethod
    def of(cls, *pids: int) -> "Weight":
        """Weigh processes."""
        return cls(sum(_status_bytes(pid, "VmRSS:") for pid in pids), sum(_status_bytes(pid, "RssAnon:") for pid in pids))


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures depend on and the code does not decide."""

    processor: str
    cores: int
    memory_mib: int
    kernel: str
    python: str
    grpcio: str
    protobuf: str
    cryptography: str
    postgres: str
    valkey: str
    envoy: str

    @classmethod
    def here(cls) -> "Machine":
        """Look."""
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB,
            kernel=platform.release(),
            python=sys.version.split()[0],
            grpcio=version("grpcio"),
            protobuf=version("protobuf"),
            cryptography=version("cryptography"),
            postgres=_said(str(postgres_binary("postgres"))).split()[-1],
            valkey=_said(str(valkey_binary())).partition("v=")[2].split()[0],
            envoy=_said(str(envoy_binary())).partition("version: ")[2].split("/")[1],
        )

    def facts(self) -> dict[str, str | int]:
        """Return name and value of each fact."""
        return asdict(self)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _said(binary: str) -> str:
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
