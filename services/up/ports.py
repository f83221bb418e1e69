"""Ports on the loopback address: found free, and kept so until their process takes them over."""

import errno
import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
LOWEST = 20000
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL_START = 32768  # Linux's default


class PortBusy(Exception):
    """A port that was asked for is not to be had; the text names the option that chooses another."""


class Reservation:
    """A port that this process holds, so that nobody else gets it, until `release`."""

    def __init__(self, holder: socket.socket) -> None:
        self._holder = holder
        self.port: int = holder.getsockname()[1]

    @property
    def address(self) -> tuple[str, int]:
        """The loopback host and the port."""
        return HOST, self.port

    def release(self) -> None:
        """Let the process that it is meant for bind it. May be called again."""
        self._holder.close()


def reserve(port: int, *, option: str) -> Reservation:
    """Hold `port`, or any free one if it is 0. Raises PortBusy naming `option`."""
    if port == 0:
        return reserve_any()
    try:
        return _hold(port)
    except PermissionError:
        raise PortBusy(f"this user may not listen on port {port}; choose another with {option}") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortBusy(f"port {port} is in use; choose another with {option}, or 0 for any free one") from None


def reserve_any() -> Reservation:
    """Hold a free port below the range that outgoing connections take theirs from.

    So an instance that is down for a moment finds its port free again, however many connections its clients opened meanwhile.
    """
    for port in random.sample(range(LOWEST, _ephemeral_start()), k=200):
        try:
            return _hold(port)
        except OSError:
            continue
    raise PortBusy(f"found no free port from {LOWEST} on")


def _hold(port: int) -> Reservation:
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of an earlier run may linger; only a listener counts as busy, and listening keeps other reservations out.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((HOST, port))
        holder.listen(1)
    except OSError:
        holder.close()
        raise
    return Reservation(holder)


def _ephemeral_start() -> int:
    try:
        start = int(EPHEMERAL_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        start = EPHEMERAL_START
    return start if start >= LOWEST + 1000 else 65536
