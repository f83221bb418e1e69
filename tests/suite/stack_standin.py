"""A stack whose services are stand-ins that answer health checks, one call and Prometheus: what `services.up` does can be seen without ours.

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
from tests.conftest import eventually
from watchword.token.v1 import token_pb2

MODULE = "tests.suite.stack_standin"


def stand_in(row: Process) -> Process:
    """Return the row with its module replaced by this one, and one instance where there would be two."""
    return row if row.kind in (Kind.STORE, Kind.EDGE) else replace(row, module=MODULE, replicas=1)


async def verify(request: token_pb2.VerifyTokenRequest, context: object) -> token_pb2.VerifyTokenResponse:
    """Know no token."""
    return token_pb2.VerifyTokenResponse(status=token_pb2.MALFORMED)


VERIFY = grpc.unary_unary_rpc_method_handler(
    verify,
    request_deserializer=token_pb2.VerifyTokenRequest.FromString,
    response_serializer=token_pb2.VerifyTokenResponse.SerializeToString,
)


class Numbers:
    """What Prometheus is told: with GUILTY, that between any two looks a call failed by our fault."""

    def __init__(self) -> None:
        self._failed = 0

    async def tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self._failed += bool(os.environ.get("GUILTY"))
        body = "".join(
            f'grpc_server_handled_total{{grpc_code="{code}"}} {self._failed * times}\n' for code, times in (("Internal", 1), ("NotFound", 9))
        )
        writer.write(f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()


async def may_end() -> bool:
    """Whether nobody wants this to linger."""
    return "LINGER" not in os.environ or not os.path.exists(os.environ["LINGER"])  # noqa: ASYNC240


async def serve() -> int:
    """Be healthy until SIGTERM and, with LINGER, until the file of that name is gone.

    With BROKEN naming this instance, end at once with some last words; with MUTE, be healthy and answer nothing.
    """
    if os.environ.get("BROKEN") == os.environ["INSTANCE_ID"]:
        print("alas")
        return 3
    server, servicer = grpc.aio.server(), HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    if "MUTE" not in os.environ:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("watchword.token.v1.TokenService", {"VerifyToken": VERIFY}),))
    server.add_insecure_port(os.environ["GRPC_ADDRESS"])
    await server.start()
    await asyncio.start_server(Numbers().tell, *os.environ["METRICS_ADDRESS"].split(":"))
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    print("at your service")
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()
    print("asked to end", flush=True)
    await eventually(may_end)
    await server.stop(None)
    return 0


def main() -> int:
    """Be what the arguments and the environment say."""
    if len(sys.argv) > 1:
        return up(processes=tuple(stand_in(row) for row in PROCESSES))
    return asyncio.run(serve()) if "GRPC_ADDRESS" in os.environ else 0


if __name__ == "__main__":
    sys.exit(main())
