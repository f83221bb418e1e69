"""What happened between two looks: rates, and how long calls took, of each instance, each method and the whole."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.top.scrape import Look

# What is wrong with the service, where all other codes say what is wrong with the call.
OURS = frozenset({"Unknown", "DeadlineExceeded", "Unimplemented", "Internal", "Unavailable", "DataLoss"})
HANDLING = "grpc_server_handling_seconds"


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds below which half, 95 and 99 of a hundred calls stayed; None if there were none."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Instance:
    """One process. What a process does not tell is None."""

    name: str
    state: str
    lease: bool | None = None
    calls: float = 0.0  # a second
    errors: float = 0.0  # a second, of the service's own making
    took: Durations = Durations(None, None, None)
    in_flight: float = 0.0
    cpu: float | None = None  # share of a core
    memory: float | None = None  # bytes
    pool: tuple[float, float] | None = None  # connections to Postgres: used, and at most


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC, on all instances. `hits` is the share that memory answered, None where memory is not asked."""

    name: str
    calls: float
    failed: float
    took: Durations
    hits: float | None


@dataclass(frozen=True, slots=True)
class Whole:
    """What concerns the suite: rates by name, and what holds now."""

    rates: Mapping[str, float]
    levels: Mapping[str, float]
    health: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two looks at the same instance."""

    before: Look
    after: Look

    @property
    def seconds(self) -> float:
        """The time between them."""
        return max(self.after.at - self.before.at, 1e-9)

    def grown(self, name: str, **labels: str) -> float:
        """Return how much a counter grew; a process that was started anew began at nought."""
        now = self.after.sum(name, **labels)
        growth = now - self.before.sum(name, **labels)
        return growth if growth >= 0 else now

    def rate(self, name: str, **labels: str) -> float:
        """Return the growth a second."""
        return self.grown(name, **labels) / self.seconds

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Return how much each bucket of a histogram grew, by its bound."""
        bounds = {sample.labels["le"] for sample in self.after.of(f"{name}_bucket", **labels)}
        return {float(bound): self.grown(f"{name}_bucket", le=bound, **labels) for bound in bounds}


def pairs(before: Iterable[Look], after: Iterable[Look]) -> list[Pair]:
    """Match two looks at all instances; one that is new has begun at nought."""
    known = {look.target: look for look in before}
    return [Pair(known.get(look.target, Look(look.target, look.at, is_up=False)), look) for look in after]


def instance(pair: Pair) -> Instance:
    """Say how one instance is."""
    look = pair.after
    if not look.is_up:
        return Instance(look.target.name, "down")
    if look.samples.get("envoy_server_live"):
        return _envoy(pair)
    return Instance(
        name=look.target.name,
        state="draining" if look.sum("watchword_draining") else "ready" if look.sum("watchword_ready") else "not ready",
        lease=bool(look.sum("watchword_lease_current")) if look.samples.get("watchword_lease_current") else None,
        calls=pair.rate("grpc_server_handled_total"),
        errors=sum(pair.rate("grpc_server_handled_total", grpc_code=code) for code in OURS),
        took=durations([pair.buckets(HANDLING)]),
        in_flight=look.sum("watchword_calls_in_flight") + look.sum("watchword_streams"),
        cpu=pair.rate("process_cpu_seconds_total") + pair.rate("watchword_identity_hash_cpu_seconds_total"),
        memory=look.sum("process_resident_memory_bytes") + look.sum("watchword_identity_hash_memory_bytes"),
        pool=_pool(look),
    )


def _envoy(pair: Pair) -> Instance:
    """Envoy counts milliseconds, by listener; its metrics listener is none of anybody's business."""
    look, listeners = pair.after, [{"envoy_http_conn_manager_prefix": name} for name in ("edge", "internal")]
    waits = [pair.buckets("envoy_http_downstream_rq_time", **labels) for labels in listeners]
    return Instance(
        name=look.target.name,
        state="ready" if look.sum("envoy_server_live") else "not ready",
        calls=sum(pair.rate("envoy_http_downstream_rq_total", **labels) for labels in listeners),
        errors=sum(pair.rate("envoy_http_downstream_rq_xx", envoy_response_code_class="5", **labels) for labels in listeners),
        took=durations([{bound / 1000: count for bound, count in buckets.items()} for buckets in waits]),
        in_flight=sum(look.sum("envoy_http_downstream_rq_active", **labels) for labels in listeners),
        memory=look.sum("envoy_server_memory_physical_size"),
    )


def methods(every: Sequence[Pair]) -> list[Method]:
    """Return the RPCs that were called, the busiest first."""
    names = {(sample.labels["grpc_service"], sample.labels["grpc_method"]) for pair in every for sample in pair.after.of("grpc_server_handled_total")}
    found = [_method(every, service, name) for service, name in names]
    return sorted((one for one in found if one.calls), key=lambda one: (-one.calls, one.name))


def _method(every: Sequence[Pair], service: str, name: str) -> Method:
    labels = {"grpc_service": service, "grpc_method": name}
    calls = sum(pair.rate("grpc_server_handled_total", **labels) for pair in every)
    good = sum(pair.rate("grpc_server_handled_total", **labels, grpc_code="OK") for pair in every)
    took = durations([pair.buckets(HANDLING, **labels) for pair in every])
    return Method(f"{service.split('.')[1]}.{name}", calls, max(calls - good, 0.0), took, _hits(every, cache=name))


def whole(every: Sequence[Pair]) -> Whole:
    """Say how the suite is."""

    def rate(name: str, **labels: str) -> float:
        return sum(pair.rate(name, **labels) for pair in every)

    logins, good = rate("watchword_identity_logins_total"), rate("watchword_identity_logins_total", outcome="SUCCEEDED")
    edge = {
        f"REST {digit}xx": rate("envoy_http_downstream_rq_xx", envoy_http_conn_manager_prefix="edge", envoy_response_code_class=digit)
        for digit in "245"
    }
    rates = {**edge, "retries": rate("envoy_cluster_upstream_rq_retry"), "logins": good, "failed": logins - good}
    rates["tokens"] = rate("watchword_token_issued_total")
    levels = {"revocations": max((pair.after.sum("watchword_token_revocations_held") for pair in every), default=0.0)}
    if (hits := _hits(every)) is not None:
        levels["cache hits"] = hits
    if (spread := durations([pair.buckets("watchword_propagation_seconds") for pair in every]).p99) is not None:
        levels["propagation p99"] = spread
    health: dict[str, bool] = {}
    for sample in (sample for pair in every for sample in pair.after.of("watchword_gateway_healthy")):
        health[sample.labels["of"]] = health.get(sample.labels["of"], True) and bool(sample.value)
    return Whole(rates, levels, health)


def durations(grown: Iterable[Mapping[float, float]]) -> Durations:
    """Put histograms together and read quantiles off them, as Prometheus would: straight lines between the bounds."""
    total: dict[float, float] = {}
    for buckets in grown:
        for bound, count in buckets.items():
            total[bound] = total.get(bound, 0.0) + count
    return Durations(*(_quantile(total, share) for share in (0.5, 0.95, 0.99)))


def _quantile(buckets: Mapping[float, float], share: float) -> float | None:
    steps = [(0.0, 0.0), *sorted(buckets.items())]
    wanted = steps[-1][1] * share
    if wanted == 0:
        return None
    for (low, below), (high, count) in itertools.pairwise(steps):
        if count >= wanted:
            return low if high == float("inf") else low + (high - low) * (wanted - below) / (count - below)
    return None


def _hits(every: Sequence[Pair], **labels: str) -> float | None:
    hits, misses = (sum(pair.grown("watchword_cache_requests_total", outcome=name, **labels) for pair in every) for name in ("hit", "miss"))
    return hits / (hits + misses) if hits + misses else None


def _pool(look: Look) -> tuple[float, float] | None:
    if not look.samples.get("watchword_database_connections_max"):
        return None
    return look.sum("watchword_database_connections", state="used"), look.sum("watchword_database_connections_max")


def instances(every: Iterable[Pair]) -> Iterator[Instance]:
    """Yield how each instance is."""
    return (instance(pair) for pair in every)
