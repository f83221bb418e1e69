"""A grpc.aio service behind Watchword: what each method requires stands in one table, and what the table does not name is refused.

With the stack of scripts/up running, and an OAuth client that has the scopes tokens.verify and permissions.check:

    WATCHWORD_TARGET=127.0.0.1:9090 WATCHWORD_ISSUER=http://127.0.0.1:8080 CLIENT_ID=... CLIENT_SECRET=... \\
        .venv/bin/python -m docs.examples.grpc_service 127.0.0.1:8001

It serves grpc.health.v1: Check needs a good token, Watch the permission `health.watch`.
"""

import asyncio
import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from watchword import ClientCredentials, TokenVerifier
from watchword.guards import authenticated, require
from watchword.guards.grpc import TokenGuard

RULES = {"/grpc.health.v1.Health/Check": authenticated, "/grpc.health.v1.Health/Watch": require("health.watch")}


async def main(address: str) -> None:
    """Serve until interrupted."""
    credentials = ClientCredentials(os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"])
    async with TokenVerifier(os.environ["WATCHWORD_TARGET"], credentials=credentials, issuer=os.environ["WATCHWORD_ISSUER"]) as verifier:
        server = grpc.aio.server(interceptors=[TokenGuard(verifier, RULES)])
        health = HealthServicer()
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(address)
        await server.start()
        print(f"serving on {address}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
