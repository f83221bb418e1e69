"""One look at all instances: what each tells Prometheus, as numbers that can be asked for."""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.request import urlopen

PATIENCE = 2.0  # seconds that an instance may take to answer
_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """An instance: its name, and the URL of its numbers."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One number."""

    name: str
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Look:
    """What one instance told, and when; `is_up` is False if it did not answer."""

    target: Target
    at: float
    is_up: bool
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)

    def of(self, name: str, **labels: str) -> Iterator[Sample]:
        """Yield the samples called `name` that have these labels."""
        return (sample for sample in self.samples.get(name, ()) if sample.labels.items() >= labels.items())

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of such samples; 0 if there are none."""
        return sum(sample.value for sample in self.of(name, **labels))


def parse(text: str) -> Iterator[Sample]:
    """Yield the samples of an exposition in Prometheus's text format, by the names that it gives them."""
    for line in text.splitlines():
        if not line.startswith("#") and (match := _LINE.match(line)):
            labels = {name: _ESCAPED.sub(_plain, value) for name, value in _LABEL.findall(match[2] or "")}
            yield Sample(match[1], labels, float(match[3]))


async def look(targets: Sequence[Target]) -> list[Look]:
    """Ask all of them at once."""
    return list(await asyncio.gather(*(_look_at(target) for target in targets)))


async def _look_at(target: Target) -> Look:
    try:
        text = await asyncio.to_thread(_get, target.url)
    except (OSError, HTTPException):
        return Look(target, time.monotonic(), is_up=False)
    found: dict[str, list[Sample]] = {}
    for sample in parse(text):
        found.setdefault(sample.name, []).append(sample)
    return Look(target, time.monotonic(), is_up=True, samples=found)


def _get(url: str) -> str:
    """Return the body of an answer. Raises OSError, HTTPException."""
    with urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310  (the command line and endpoints.json name http only)
        body: bytes = answer.read()
    return body.decode()


def _plain(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
