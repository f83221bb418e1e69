"""The floor: a bare grpc.aio server that does nothing but read the request of a method and write an answer of it made long ago.

The messages are those of the method that is measured, of the same sizes, so that what it costs above this is what we do. It ends by SIGTERM.
It runs as gRPC's examples do, on Python's own event loop, or on the event loop and the threads of our services.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from bench.methods import METHODS

AS_SERVICE = "--as-service"


async def main(name: str, sample: Path) -> None:
    """Serve on GRPC_ADDRESS, whatever is asked of the method `name`, the answer that `sample` holds."""
    method = METHODS[name]
    answer = method.answer.FromString(sample.read_bytes())  # noqa: ASYNC240  (before anything is served)

    async def echo(_request: Any, _context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=method.request.FromString,
        response_serializer=method.answer.SerializeToString,
    )
    server = grpc.aio.server()
    service = method.path.split("/")[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    health = HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(os.environ["GRPC_ADDRESS"])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await stop.wait()
    await server.stop(0.1)


def _run_as_service(name: str, sample: Path) -> None:
    import uvloop  # noqa: PLC0415  (not in the bare one's process)

    from services.chassis import grpc_threads  # noqa: PLC0415  (not in the bare one's process)

    async def begin() -> None:
        grpc_threads.begin()
        await main(name, sample)

    uvloop.run(begin())


if __name__ == "__main__":
    if AS_SERVICE in sys.argv:
        _run_as_service(sys.argv[1], Path(sys.argv[2]))
    else:
        asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
