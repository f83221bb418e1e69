"""Wakes the event loop at exact times: its own timers are up to a millisecond late, which is longer than most of what is measured here."""

import asyncio
import ctypes
import os
from collections.abc import Callable

CLOCK_MONOTONIC, TFD_TIMER_ABSTIME = 1, 1  # time.h, sys/timerfd.h
TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
BILLION = 1_000_000_000


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("value", _Moment))


class Alarm:
    """Calls `ring` at the moment that it was last set to. Source: timerfd_create(2)."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_FLAGS)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._ring = ring
        asyncio.get_running_loop().add_reader(self._file, self._heard)

    def set(self, moment: int) -> None:
        """Ring at `moment`, in nanoseconds of time.monotonic_ns; one that has passed rings at once."""
        setting = _Setting(_Moment(0, 0), _Moment(moment // BILLION, moment % BILLION))
        self._libc.timerfd_settime(self._file, TFD_TIMER_ABSTIME, ctypes.byref(setting), None)

    def close(self) -> None:
        """Never ring again."""
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)

    def _heard(self) -> None:
        os.read(self._file, 8)
        self._ring()
