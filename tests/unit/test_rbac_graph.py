"""Hierarchies: cycles are named, depth is counted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rbac.graph import find_cycle, height, in_words, require_hierarchy
from services.rbac.model import MAX_DEPTH, Edge
from watchword.errors import Cycle, DepthExceeded

nodes = st.sampled_from("abcdef")
edges = st.lists(st.builds(Edge, nodes, nodes), max_size=12)


@given(edges, nodes)
def test_a_cycle_that_is_found_is_one(found: list[Edge], start: str) -> None:
    above: dict[str, list[str]] = {}
    for edge in found:
        above.setdefault(edge.child, []).append(edge.parent)

    path = find_cycle(above, start)

    if path is None:
        reached, todo = set(), [start]
        while todo:
            for parent in above.get(todo.pop(), ()):
                if parent not in reached:
                    reached.add(parent)
                    todo.append(parent)
        assert start not in reached
    else:
        assert path[0] == path[-1] == start
        assert all(Edge(child, parent) in found for child, parent in pairwise(path))


def chain(length: int) -> list[Edge]:
    return [Edge(str(number), str(number + 1)) for number in range(length - 1)]


@pytest.mark.parametrize("changed", ["0", "15", str(MAX_DEPTH - 1)])
def test_a_chain_of_the_greatest_depth_may_stand(changed: str) -> None:
    require_hierarchy(chain(MAX_DEPTH), changed)


@pytest.mark.parametrize("changed", ["0", "15", str(MAX_DEPTH)])
def test_a_longer_chain_may_not_wherever_it_was_changed(changed: str) -> None:
    with pytest.raises(DepthExceeded):
        require_hierarchy(chain(MAX_DEPTH + 1), changed)


def test_the_longest_way_counts_and_not_the_shortest() -> None:
    above = {"a": ["b", "c"], "b": ["d"], "c": ["b"], "d": []}

    assert height(above, "a") == 4


def test_many_ways_are_not_walked_one_by_one() -> None:
    """A ladder of 30 steps has 2**30 ways up."""
    ladder = [Edge(f"{side}{step}", f"{other}{step + 1}") for step in range(30) for side in "lr" for other in "lr"]

    require_hierarchy(ladder, "l0")


def test_a_cycle_is_named_and_a_long_one_in_short() -> None:
    with pytest.raises(Cycle, match="a > b > a"):
        require_hierarchy([Edge("a", "b"), Edge("b", "a")], "a")

    assert in_words([str(number) for number in range(40)]) == "0 > 1 > 2 > 3 > 4 > 5 > ... > 34 > 35 > 36 > 37 > 38 > 39"
