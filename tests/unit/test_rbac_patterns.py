"""Permission patterns: what covers what."""

from hypothesis import given
from hypothesis import strategies as st

from services.rbac.patterns import Patterns, covering

part = st.sampled_from(["*", "a", "b", "doc", "read"])
patterns = st.builds(lambda kind, verb: f"{kind}.{verb}", part, part)
permissions = st.builds(lambda kind, verb: f"{kind}.{verb}", st.sampled_from(["a", "b", "doc"]), st.sampled_from(["a", "read", "write"]))


def says(pattern: str, permission: str) -> bool:
    """The meaning of a pattern, said the slow way."""
    return all(wanted in ("*", given_) for wanted, given_ in zip(pattern.split("."), permission.split("."), strict=True))


@given(st.lists(patterns), permissions)
def test_a_set_grants_what_one_of_its_patterns_says(texts: list[str], permission: str) -> None:
    assert Patterns(texts).grants(covering(permission)) == any(says(text, permission) for text in texts)


@given(patterns, patterns)
def test_one_pattern_covers_another_if_it_says_all_that_it_says(wide: str, narrow: str) -> None:
    expected = all(w in ("*", n) for w, n in zip(wide.split("."), narrow.split("."), strict=True))

    assert (Patterns([wide]).lacking([narrow]) == []) == expected


def test_what_is_lacking_is_named_once_and_sorted() -> None:
    assert Patterns(["a.*"]).lacking(["c.d", "a.b", "*.b", "c.d"]) == ["*.b", "c.d"]
