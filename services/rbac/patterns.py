"""Permission patterns: `type.verb`, where in a grant `*` may stand for either part as a whole. `doc.*` says nothing of `document.read`."""

from collections.abc import Iterable


def covering(permission: str) -> frozenset[str]:
    """Return the patterns that grant `permission`; of a pattern, those that grant all that it grants."""
    kind, _, verb = permission.partition(".")
    return frozenset((permission, f"{kind}.*", f"*.{verb}", "*.*"))


class Patterns:
    """A set of patterns."""

    __slots__ = ("_texts",)

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts)

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
        """Return those of `asked`, permissions or patterns, that the set does not cover, sorted."""
        return sorted(pattern for pattern in set(asked) if not self.grants(covering(pattern)))
