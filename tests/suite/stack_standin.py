"""A stack whose services are stand-ins that only answer health checks: what `services.up` does can be seen without ours.

With arguments it is `scripts/up` with another table; without, it is one of that table's services or jobs.
"""

import asyncio
import os
import signal
import sys
from dataclasses import replace

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from services.up.__main__ import main as up
from services.up.processes import PROCESSES, Kind, Process

MODULE = "tests.suite.stack_standin"


def stand_in(row: Process) -> Process:
    """Return the row with its module replaced by this one, and one instance where there would be two."""
    return row if row.kind in (Kind.STORE, Kind.EDGE) else replace(row, module=MODULE, replicas=1)


async def serve() -> int:
    """Be healthy until SIGTERM; with BROKEN naming this instance, end at once with some last words."""
    if os.environ.get("BROKEN") == os.environ["INSTANCE_ID"]:
        print("alas")
        return 3
    server, servicer = grpc.aio.server(), HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(os.environ["GRPC_ADDRESS"])
    await server.start()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    print("at your service")
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()
    await server.stop(None)
    return 0


def main() -> int:
    """Be what the arguments and the environment say."""
    if len(sys.argv) > 1:
        return up(processes=tuple(stand_in(row) for row in PROCESSES))
    return asyncio.run(serve()) if "GRPC_ADDRESS" in os.environ else 0


if __name__ == "__main__":
    sys.exit(main())
