"""A health probe for containers without one: `python -m services.chassis.probe -addr HOST:PORT [-service NAME]`.

Takes grpc_health_probe's flags and ends with its exit codes: 0 serving, 1 wrong flags, 2 no connection, 3 the RPC failed, 4 not serving.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1, f"error: {message}\n")


def _arguments() -> argparse.Namespace:
    parser = _Parser(prog="probe", description=__doc__)
    parser.add_argument("-addr", default=os.environ.get("GRPC_ADDRESS", "127.0.0.1:50051").replace("0.0.0.0", "127.0.0.1"))  # noqa: S104
    parser.add_argument("-service", default="")
    parser.add_argument("-connect-timeout", type=float, default=1.0, help="seconds")
    parser.add_argument("-rpc-timeout", type=float, default=1.0, help="seconds")
    parser.add_argument("-tls", action="store_true")
    parser.add_argument("-tls-ca-cert", type=Path)
    parser.add_argument("-tls-client-cert", type=Path)
    parser.add_argument("-tls-client-key", type=Path)
    return parser.parse_args()


def _channel(flags: argparse.Namespace) -> grpc.Channel:
    if not flags.tls:
        return grpc.insecure_channel(flags.addr)
    files = (flags.tls_ca_cert, flags.tls_client_key, flags.tls_client_cert)
    return grpc.secure_channel(flags.addr, grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files)))


def main() -> int:
    """Probe once."""
    flags = _arguments()
    with _channel(flags) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=flags.connect_timeout)
        except grpc.FutureTimeoutError:
            print(f"error: no connection to {flags.addr} within {flags.connect_timeout} s", file=sys.stderr)
            return 2
        try:
            request = health_pb2.HealthCheckRequest(service=flags.service)
            stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            answer = stub.Check(request, timeout=flags.rpc_timeout)
        except grpc.RpcError as error:
            print(f"error: {error.code().name}", file=sys.stderr)
            return 3
    word = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"status: {word}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 4


if __name__ == "__main__":
    sys.exit(main())
