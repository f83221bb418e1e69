"""What an instance itself says that it answered, read from its metrics: the load's own count is believed only if both agree."""

import asyncio
import re
import urllib.request

OK = re.compile(r'^grpc_server_handled_total\{(?=[^}]*grpc_code="OK")[^}]*grpc_method="(\w+)"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)

LOADS = re.compile(r'^watchword_rbac_views_total\{[^}]*source="postgres"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)


async def exposition(metrics: str) -> str:
    """Return the text that Prometheus would get. `metrics` is host:port."""
    return await asyncio.to_thread(_read, metrics)


async def answered(metrics: str, method: str) -> int:
    """Return how many calls of `method` ended with OK since the instance started."""
    counts = dict(OK.findall(await exposition(metrics)))
    return int(float(counts.get(method, "0")))


async def loaded(metrics: str) -> int:
    """Return how many times rbac has read a policy from Postgres since the instance started."""
    return sum(int(float(count)) for count in LOADS.findall(await exposition(metrics)))


def _read(metrics: str) -> str:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
