"""What an instance counts: plain integers, incremented where things happen, read when somebody asks for them (exposition.py).

A call that memory answers takes a few microseconds, so counting it must take a fraction of one: each method has its own slots, made when it is
registered, and nothing is looked up by name on the way. RPC names and labels are those of go-grpc-prometheus, for which dashboards exist. Labels
never come from callers.
"""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
LAG_EVERY = 0.25  # seconds between looks at the event loop
OK, CANCELLED = 0, 1
CODES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied", "ResourceExhausted"),
    *("FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)  # by number, in go-grpc-prometheus's spelling

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One number."""

    value: float
    labels: Labels = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """All numbers of one name. `kind` is counter, gauge or histogram; a counter's name ends in _total."""

    name: str
    kind: str
    text: str
    samples: Sequence[Sample]


Source = Callable[[], Iterable[Family] | Awaitable[Iterable[Family]]]


class Histogram:
    """How long things took."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def note(self, seconds: float) -> None:
        """Count one thing."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def samples(self, labels: Labels | None = None) -> Iterator[Sample]:
        """Yield what Prometheus makes quantiles of."""
        known, total = labels or {}, 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            yield Sample(total, {**known, "le": bound}, "_bucket")
        yield Sample(total, known, "_count")
        yield Sample(self.seconds, known, "_sum")


class Meter:
    """One method's calls.

    prompt    answered from memory, by number; they are among `taken` too
    taken     how long those took that have ended
    handled   of those that were not answered from memory, by code
    reasons   failures, by what `watchword.errors` calls them
    statuses  answers whose HTTP status is not the one of their gRPC code, such as the 401 of RFC 6749
    """

    __slots__ = ("handled", "has_prompt", "kind", "method", "prompt", "reasons", "received", "sent", "service", "started", "statuses", "taken")

    def __init__(self, service: str, method: str, *, kind: str, has_prompt: bool) -> None:
        self.service = service
        self.method = method
        self.kind = kind
        self.has_prompt = has_prompt
        self.prompt = self.started = self.received = self.sent = 0
        self.taken = Histogram()
        self.handled = [0] * len(CODES)
        self.reasons: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()

    @property
    def labels(self) -> Labels:
        """The labels of go-grpc-prometheus."""
        return {"grpc_type": self.kind, "grpc_service": self.service, "grpc_method": self.method}

    @property
    def answered(self) -> int:
        """Calls that ended with OK."""
        return self.prompt + self.handled[OK]

    def end(self, code: int, seconds: float, *, reason: str = "") -> None:
        """Count the end of a call that was not answered from memory."""
        self.handled[code] += 1
        self.taken.note(seconds)
        if reason:
            self.reasons[reason] += 1


def rpcs(meters: Iterable[Meter]) -> Iterator[Family]:
    """What go-grpc-prometheus tells, and what it does not know: reasons, HTTP statuses, and what memory answered."""
    every = tuple(meters)
    yield Family("grpc_server_started_total", "counter", "RPCs started.", [Sample(one.prompt + one.started, one.labels) for one in every])
    yield Family("grpc_server_handled_total", "counter", "RPCs ended, by code.", [sample for one in every for sample in _by_code(one)])
    received = [Sample(_messages(one, one.received, one.prompt + one.started), one.labels) for one in every]
    yield Family("grpc_server_msg_received_total", "counter", "Messages received.", received)
    sent = [Sample(_messages(one, one.sent, one.answered), one.labels) for one in every]
    yield Family("grpc_server_msg_sent_total", "counter", "Messages sent.", sent)
    taken = [sample for one in every if one.prompt + one.started for sample in one.taken.samples(one.labels)]
    yield Family("grpc_server_handling_seconds", "histogram", "Seconds from a call's arrival at its handler to its end.", taken)
    reasons = [Sample(count, {**_place(one), "reason": reason}) for one in every for reason, count in one.reasons.items()]
    yield Family("watchword_failures_total", "counter", "Failed RPCs, by reason.", reasons)
    statuses = [Sample(count, {**_place(one), "status": status}) for one in every for status, count in one.statuses.items()]
    yield Family("watchword_http_statuses_total", "counter", "Answers with an HTTP status of their own, such as OAuth's 401.", statuses)
    yield Family("watchword_cache_requests_total", "counter", "Answers that memory may give, by whether it did.", list(_hits(every)))


def _messages(meter: Meter, counted: int, calls: int) -> int:
    """A unary call has one message each way; of streams they are counted."""
    return calls if meter.kind == "unary" else counted


def _by_code(meter: Meter) -> Iterator[Sample]:
    yield Sample(meter.answered, {**meter.labels, "grpc_code": CODES[OK]})
    for code, count in enumerate(meter.handled):
        if code != OK and count:
            yield Sample(count, {**meter.labels, "grpc_code": CODES[code]})


def _hits(meters: Iterable[Meter]) -> Iterator[Sample]:
    for meter in meters:
        if meter.has_prompt:
            yield Sample(meter.prompt, {"cache": meter.method, "outcome": "hit"})
            yield Sample(meter.handled[OK], {"cache": meter.method, "outcome": "miss"})


def _place(meter: Meter) -> Labels:
    return {"grpc_service": meter.service, "grpc_method": meter.method}


def gauge(name: str, text: str, value: float, **labels: str) -> Family:
    """Return a family of one number that goes up and down."""
    return Family(name, "gauge", text, [Sample(value, labels)])


def counter(name: str, text: str, value: float, **labels: str) -> Family:
    """Return a family of one number that only grows."""
    return Family(name, "counter", text, [Sample(value, labels)])


def histogram(name: str, text: str, histogram: Histogram) -> Family:
    """Return a family of one histogram."""
    return Family(name, "histogram", text, list(histogram.samples()))


class LoopLag:
    """How late the event loop runs what is due: what every call waits for before anything else."""

    def __init__(self) -> None:
        self.late = Histogram()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look while inside."""
        task = asyncio.create_task(self._look(), name="loop-lag")
        try:
            yield
        finally:
            task.cancel()

    async def _look(self) -> None:
        while True:
            due = time.monotonic() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            self.late.note(max(0.0, time.monotonic() - due))
