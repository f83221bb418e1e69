"""What an instance itself says that it answered, read from its metrics: the load's own count is believed only if both agree."""

import asyncio
import re
import urllib.request

from bench.workers import BenchError

OK = re.compile(r'^grpc_server_handled_total\{(?=[^}]*grpc_code="OK")[^}]*grpc_method="(\w+)"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)

CACHE = re.compile(r'^watchword_cache_requests_total\{(?=[^}]*cache="(\w+)")(?=[^}]*outcome="(\w+)")[^}]*\} ([0-9.e+]+)$', re.MULTILINE)
LOADS = re.compile(r'^watchword_rbac_views_total\{[^}]*source="postgres"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)

HELD = re.compile(r"^watchword_lease_current(\{.*\})? 1(\.0)?$", re.MULTILINE)
LOOKS = 100  # for a lease


async def exposition(metrics: str) -> str:
    """Return the text that Prometheus would get. `metrics` is host:port."""
    return await asyncio.to_thread(_read, metrics)


async def answered(metrics: str, method: str) -> int:
    """Return how many calls of `method` ended with OK since the instance started."""
    counts = dict(OK.findall(await exposition(metrics)))
    return int(float(counts.get(method, "0")))


async def hit_ratio(metrics: str, method: str) -> float:
    """Return which share of all calls of `method` was answered from memory since the instance started."""
    counts = {(name, outcome): float(count) for name, outcome, count in CACHE.findall(await exposition(metrics))}
    hits, misses = (counts.get((method, outcome), 0.0) for outcome in ("hit", "miss"))
    return hits / max(1.0, hits + misses)


async def total(metrics: str, name: str, **labels: str) -> float:
    """Return the sum of all samples of one name that have these labels. Raises BenchError if there are none."""
    having = "".join(f'(?=[^}}]*{label}="{value}")' for label, value in labels.items())
    found = re.findall(rf"^{name}\{{{having}[^}}]*\}} ([0-9.e+]+)$", await exposition(metrics), re.MULTILINE)
    if not found:
        raise BenchError(f"{metrics} says nothing of {name}")
    return sum(float(one) for one in found)


async def loaded(metrics: str) -> int:
    """Return how many times rbac has read a policy from Postgres since the instance started."""
    return sum(int(float(count)) for count in LOADS.findall(await exposition(metrics)))


async def believing(metrics: str) -> None:
    """Return once the instance believes its memory, or after some seconds: then the counts will show."""
    for _ in range(LOOKS):
        if HELD.search(await exposition(metrics)):
            return
        await asyncio.sleep(0.1)


def _read(metrics: str) -> str:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
