"""Permission patterns: `type.verb`, where in a grant `*` may stand for either part as a whole. `doc.*` says nothing of `document.read`."""

from collections.abc import Iterable
from functools import lru_cache

EVERYTHING = "*.*"


@lru_cache(maxsize=4096)
def covering(permission: str) -> frozenset[str]:
    """Return the patterns that grant `permission`; of a pattern, those that grant all that it grants."""
    kind, _, verb = permission.partition(".")
    return frozenset((permission, f"{kind}.*", f"*.{verb}", "*.*"))


def overlap(one: str, other: str) -> bool:
    """Whether there is a permission that both patterns grant."""
    (kind, _, verb), (other_kind, _, other_verb) = one.partition("."), other.partition(".")
    return (kind == other_kind or "*" in (kind, other_kind)) and (verb == other_verb or "*" in (verb, other_verb))


def common(one: str, other: str) -> str:
    """Return the pattern of what two overlapping patterns both grant."""
    (kind, _, verb), (other_kind, _, other_verb) = one.partition("."), other.partition(".")
    return f"{other_kind if kind == '*' else kind}.{other_verb if verb == '*' else verb}"


class Patterns:
    """A set of patterns, besides what others exclude."""

    __slots__ = ("_excluded", "_texts")

    def __init__(self, texts: Iterable[str], besides: Iterable[str] = ()) -> None:
        self._texts = frozenset(texts)
        self._excluded = tuple(besides)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def texts(self) -> list[str]:
        """The patterns, sorted."""
        return sorted(self._texts)

    def grants(self, patterns: frozenset[str]) -> bool:
        """Whether one of `patterns`, as `covering` returned them, is in the set."""
        return not self._texts.isdisjoint(patterns)

    def lacking(self, asked: Iterable[str]) -> list[str]:
        """Return those of `asked`, permissions or patterns, that the set does not cover or of which anything is excluded, sorted."""
        return sorted(pattern for pattern in set(asked) if not self.grants(covering(pattern)) or self._excludes(pattern))

    def _excludes(self, pattern: str) -> bool:
        return any(overlap(pattern, excluded) for excluded in self._excluded)
