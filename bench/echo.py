"""The floor: a bare grpc.aio server that does nothing but read a VerifyTokenRequest and write a VerifyTokenResponse made long ago.

The messages are those of VerifyToken, of the same sizes, so that what VerifyToken costs above this is what we do. It ends by SIGTERM.
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

from watchword.token.v1 import token_pb2

METHOD = "/watchword.token.v1.TokenService/VerifyToken"


async def main(sample: Path) -> None:
    """Serve on GRPC_ADDRESS the answer that `sample` holds."""
    answer = token_pb2.VerifyTokenResponse.FromString(sample.read_bytes())  # noqa: ASYNC240  (before anything is served)

    async def echo(_request: token_pb2.VerifyTokenRequest, _context: "grpc.aio.ServicerContext[Any, Any]") -> token_pb2.VerifyTokenResponse:
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=token_pb2.VerifyTokenRequest.FromString,
        response_serializer=token_pb2.VerifyTokenResponse.SerializeToString,
    )
    server = grpc.aio.server()
    service, method = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    health = HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(os.environ["GRPC_ADDRESS"])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await stop.wait()
    await server.stop(0.1)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
