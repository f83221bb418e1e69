"""Whether an instance says that it serves."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


async def says_serving(channel: grpc.aio.Channel, timeout: float = 1.0) -> bool:
    """Ask it by grpc.health.v1, past Envoy; no answer is no."""
    health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
    try:
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
