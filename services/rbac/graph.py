"""Hierarchies without cycles, of bounded depth: roles with parents, groups in groups, resources below resources.

Judged when an edge is added, under the tenant's lock, so that two changes cannot make a cycle together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from services.rbac.model import MAX_DEPTH, Edge
from watchword.errors import Cycle, DepthExceeded

NAMES_SHOWN = 12  # of a cycle: the message must fit into the headers of an answer

Neighbours = Mapping[str, Sequence[str]]


def require_hierarchy(edges: Iterable[Edge], changed: str) -> None:
    """Return if `edges`, all that lies above and below `changed`, may stand.

    Raises  Cycle with the path in words, DepthExceeded for a chain of more than MAX_DEPTH members
    """
    above, below = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for edge in edges:
        above[edge.child].append(edge.parent)
        below[edge.parent].append(edge.child)
    path = find_cycle(above, changed)
    if path is not None:
        raise Cycle(f"this would make a cycle: {in_words(path)}")
    if height(above, changed) + height(below, changed) - 1 > MAX_DEPTH:
        raise DepthExceeded(f"nested too deep: at most {MAX_DEPTH} in a chain")


def require_additions(added: Iterable[Edge], above: Iterable[Edge], heights: Mapping[str, int]) -> None:
    """Return if the edges `added` may stand beside what is there.

    above    all edges above the parents of `added`
    heights  of a child of `added`, how many members the longest chain has that goes down from it already, itself included; 1 for those not named
    Raises   Cycle with the path in words, DepthExceeded. Cost: one look at each edge
    """
    parents, children = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for edge in chain(added, above):
        parents[edge.child].add(edge.parent)
        children[edge.parent].add(edge.child)
    order = _topmost_first(parents, children)
    up: dict[str, int] = {}
    for name in order:
        up[name] = 1 + max((up[parent] for parent in parents[name]), default=0)
    down: dict[str, int] = {}
    for name in reversed(order):
        down[name] = max(heights.get(name, 1), 1 + max((down[child] for child in children[name]), default=0))
    if any(up[name] + down[name] - 1 > MAX_DEPTH for name in order):
        raise DepthExceeded(f"nested too deep: at most {MAX_DEPTH} in a chain")


def _topmost_first(parents: Mapping[str, set[str]], children: Mapping[str, set[str]]) -> list[str]:
    """Return all names, each after all above it. Raises Cycle."""
    waiting = {name: len(found) for name, found in parents.items()}
    order = [name for name in children if not waiting.get(name)]
    for name in order:  # which grows meanwhile
        for child in children.get(name, ()):
            waiting[child] -= 1
            if not waiting[child]:
                order.append(child)
    left = next((name for name, count in waiting.items() if count), None)
    if left is None:
        return order
    seen: set[str] = set()
    while left not in seen:  # up among those that wait, which have no topmost
        seen.add(left)
        left = next(parent for parent in parents[left] if waiting.get(parent))
    path = find_cycle({name: sorted(found) for name, found in parents.items()}, left)
    assert path is not None
    raise Cycle(f"this would make a cycle: {in_words(path)}")


def find_cycle(above: Neighbours, start: str) -> list[str] | None:
    """Return the shortest way up from `start` back to itself, or None."""
    came_from: dict[str, str] = {}
    level = [start]
    while level:
        following = []
        for child in level:
            for parent in above.get(child, ()):
                if parent == start:
                    return [*_way(came_from, start, child), start]
                if parent not in came_from:
                    came_from[parent] = child
                    following.append(parent)
        level = following
    return None


def _way(came_from: Mapping[str, str], start: str, end: str) -> list[str]:
    way = [end]
    while way[-1] != start:
        way.append(came_from[way[-1]])
    return way[::-1]


def height(neighbours: Neighbours, start: str) -> int:
    """Return the members of the longest chain from `start`; more than MAX_DEPTH are not counted. Cost: members times depth."""
    level, count = {start}, 0
    while level and count <= MAX_DEPTH:
        count += 1
        level = {following for name in level for following in neighbours.get(name, ())}
    return count


def in_words(path: Sequence[str]) -> str:
    """Return `a > b > a`; a long path loses its middle."""
    if len(path) > NAMES_SHOWN:
        half = NAMES_SHOWN // 2
        path = [*path[:half], "...", *path[-half:]]
    return " > ".join(path)
