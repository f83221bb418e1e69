"""The results of a run, as JSON."""

from dataclasses import dataclass

import msgspec

from bench.figures import Figure


@dataclass(frozen=True, slots=True)
class Failure:
    """A group that gave no figures, and why."""

    group: str
    words: str


@dataclass(frozen=True, slots=True)
class Results:
    """All that one run found, and on what."""

    started: str  # RFC 3339
    seconds: float
    quick: bool
    groups: tuple[str, ...]
    machine: dict[str, str | int]
    cores_apart: bool  # whether the load ran on another core than what was measured
    settings: dict[str, str]
    figures: tuple[Figure, ...]
    failures: tuple[Failure, ...] = ()

    def encode(self) -> bytes:
        """Return the JSON, with each figure's verdict written out."""
        plain = msgspec.to_builtins(self)
        for member, figure in zip(plain["figures"], self.figures, strict=True):
            member["is_met"] = figure.is_met
        return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> "Results":
        """Read what `encode` wrote."""
        return msgspec.json.decode(raw, type=cls)
