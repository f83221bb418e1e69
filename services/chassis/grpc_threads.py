"""gRPC's own threads, begun so that they do not interrupt the event loop.

A thread that wakes usually takes its core from the one that runs there. gRPC's threads wake several times a call, and each time in the middle of what
the event loop does for another call. As batch tasks they wait until the loop has nothing to do or has had its time slice, and then do in one go what
has come meanwhile (decision 22). Source: sched(7), SCHED_BATCH.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import grpc


def begin() -> None:
    """Begin gRPC's threads. Call it once in a running event loop, before anything else of gRPC is made."""
    with _yielding():
        grpc.aio.init_grpc_aio()  # begins the thread that serves connections
        grpc.aio.server()  # the first one begins the others


@contextmanager
def _yielding() -> Iterator[None]:
    """Make batch tasks of threads that are begun inside, and of those that they begin. Where the system does not allow that, nothing changes."""
    is_batch = False
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # else somebody chose for this process
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            is_batch = True
    try:
        yield
    finally:
        if is_batch:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
