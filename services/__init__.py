"""The server half of Watchword: one package per context, each run as `python -m services.<context>`."""

import os

# gRPC reads this when it is first loaded: connections are served by the thread that waits for calls, and not by a pool beside it (decision 22).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
