"""What a condition may take at worst, told from its syntax tree: so that no stored expression can hold an instance.

The library counts the steps of comprehensions, and nothing else: what one step costs depends on what it does to values that a question brings. So
each operation is charged by the largest values that it can meet, as often as it can be done. The prices are nanoseconds, measured on one core, for
the worst that was found: regular expressions that remember many ways at once, lists that differ in their last member.

The tree is the protobuf message cel.expr.CheckedExpr, of which this reads what it needs.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LARGEST = 8 * 1024  # bytes of a context
MOST = 100_000_000  # ns of one evaluation
MAX_STEPS = 10_000  # of all comprehensions; the library gives up beyond
MAX_NESTED = 3  # comprehensions inside one another
SMALLEST = 4  # bytes of a list's member on the wire
NODE = 100
COMPARED, COPIED, READ = 15, 5, 1  # a byte
LOOKED_FOR = 0.02  # a byte of the text, for each byte that is looked for in it
APPENDED = 35  # a member, for each member that is there
MATCHED = 85  # a byte, for each item of the pattern
ITEM, CATEGORY, PATTERN = 1_000, 5_000_000, 10_000  # to compile an item of a pattern, a category of Unicode's, and anything
SCALAR = 8  # bytes

_SCALARS = frozenset(("_-_", "_*_", "_/_", "_%_", "-_", "int", "uint", "double", "bool", "timestamp", "duration", "type"))
_ANSWERS = frozenset(("_&&_", "_||_", "!_", "@not_strictly_false", "@in", "contains", "startsWith", "endsWith", "matches", "size"))
_COMPARISONS = frozenset(("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_"))
_CONTEXT = "context"


class TooCostly(ValueError):
    """An expression could hold an instance."""


@dataclass(frozen=True, slots=True)
class _Node:
    """An expression's kind, a field of cel.expr.Expr, and its message."""

    kind: int
    raw: bytes


_CONSTANT, _IDENTIFIER, _SELECT, _CALL, _LIST, _STRUCT, _LOOP = range(3, 10)


def require_affordable(checked: bytes) -> None:
    """Return if an expression, serialized, takes at most MOST with whatever context. Raises TooCostly."""
    any_message = dict(_fields(checked))[2]
    root = next(value for number, value in _fields(_bytes(any_message)) if number == 4)
    _Bill().charge(_node(_bytes(root)), 1, {_CONTEXT: LARGEST}, 0)


class _Bill:
    """Adds up what an expression costs."""

    def __init__(self) -> None:
        self._sum = 0.0

    def charge(self, node: _Node, times: int, sizes: Mapping[str, int], nested: int) -> int:
        """Charge a node that is evaluated so many times; return how large its value can be, in bytes. `sizes` are those of the variables."""
        self._add(NODE * times)
        if node.kind == _CONSTANT:
            return _constant_size(node)
        if node.kind == _IDENTIFIER:
            return sizes.get(_text(node, 1), SCALAR)
        if node.kind == _CALL:
            return self._call(node, times, sizes, nested)
        if node.kind == _LOOP:
            return self._loop(node, times, sizes, nested)
        return sum(self.charge(part, times, sizes, nested) for part in _parts(node))

    def _call(self, node: _Node, times: int, sizes: Mapping[str, int], nested: int) -> int:
        function, parts = _text(node, 2), _parts(node)
        found = [self.charge(part, times, sizes, nested) for part in parts]
        self._add(times * self._price(function, parts, found))
        if function in _ANSWERS or function in _COMPARISONS:
            return 1
        if function in _SCALARS or function.startswith("get"):
            return SCALAR
        if function == "_?_:_":
            return max(found)
        return found[0] if function == "_[_]" else sum(found) + SCALAR

    def _price(self, function: str, parts: list[_Node], found: list[int]) -> float:
        """Return what a function costs beside its arguments."""
        if function in _COMPARISONS:
            return COMPARED * min(found)
        if function == "@in":
            return COMPARED * found[1]
        if function == "contains":
            return found[0] * (READ + LOOKED_FOR * found[1])
        if function == "matches":
            return _matching(parts[1], found[0])
        if function in _ANSWERS or function in ("_?_:_", "_[_]"):
            return READ * found[0] if function == "size" else 0
        return COPIED * 2 * sum(found)

    def _loop(self, node: _Node, times: int, sizes: Mapping[str, int], nested: int) -> int:
        """Charge a comprehension for many small members, and once for a member that is all there is.

        Of what the context holds, members and what each is compared with share the room: so half of it is charged for both.
        """
        if nested == MAX_NESTED:
            raise TooCostly(f"must not have more than {MAX_NESTED} macros inside one another")
        one, accumulated, ranged, begin, condition, step, result = _loop_parts(node)
        size = self.charge(ranged, times, sizes, nested)
        self.charge(begin, times, sizes, nested)
        is_literal = ranged.kind in (_LIST, _STRUCT)
        members = len(_parts(ranged)) if is_literal else size // SMALLEST
        steps = min(MAX_STEPS, times * (members if is_literal else -(-members // 2)))
        largest = size if not is_literal else max((self.charge(part, 0, sizes, nested) for part in _parts(ranged)), default=0)
        inner = dict(sizes) if is_literal else {**sizes, _CONTEXT: sizes[_CONTEXT] // 2}
        is_gathering = begin.kind == _LIST
        gathered = 0
        for count, member, known in ((steps, largest if is_literal else SMALLEST, inner), (times, largest, dict(sizes))):
            known |= {**dict.fromkeys(one, member), accumulated: SCALAR}
            self.charge(condition, count, known, nested + 1)
            gathered = max(gathered, members * self.charge(step, count, known, nested + 1))
        if is_gathering:  # a list is copied for each member that is added
            self._add(APPENDED * times * min(members, MAX_STEPS) ** 2 / 2)
        self.charge(result, times, {**sizes, accumulated: gathered}, nested)
        return gathered if is_gathering else SCALAR

    def _add(self, nanoseconds: float) -> None:
        self._sum += nanoseconds
        if self._sum > MOST:
            raise TooCostly("could take too long: inside macros, compare, search and match less, or only with what is written in the expression")


_REPEATED = re.compile(r"\{(\d+)?(?:,(\d*))?\}")
_ATOM = re.compile(r"\\[pP](?:\{[^}]*\}|.)|\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\(\?[^:)]*[:)]|[(|)]|[?*+]|.", re.DOTALL)

_CATEGORY = re.compile(r"\\[pP]")


def _matching(pattern: _Node, size: int) -> float:
    """Return what it costs to match `size` bytes."""
    if pattern.kind != _CONSTANT:
        raise TooCostly("must not match with a pattern that is made while it is evaluated")
    items, categories = weight(_constant(pattern))
    return PATTERN + items * ITEM + categories * CATEGORY + items * size * MATCHED


def weight(pattern: str) -> tuple[int, int]:
    """Return how many items, and categories of Unicode's, a pattern of RE2's has when what is repeated by number is written out."""
    groups, last, position = [(0, 0)], (0, 0), 0
    while position < len(pattern):
        repeated = _REPEATED.match(pattern, position)
        found = repeated or _ATOM.match(pattern, position)
        assert found is not None  # whatever is left, a single sign is an atom
        position, text = found.end(), found[0]
        if text[0] == "(" and text[-1] in "(:":
            groups.append((0, 0))
            continue
        if repeated is not None:
            more = _times(last, max([1, *(int(one[:5]) for one in repeated.groups("") if one)]) - 1)
            last = _sum(last, more)
        elif text == ")" and len(groups) > 1:
            last = more = groups.pop()
        elif text in "|?*+":
            continue
        else:
            last = more = 1 + sum(sign > "\x7f" for sign in text), len(_CATEGORY.findall(text))
        groups[-1] = _sum(groups[-1], more)
    return sum(one[0] for one in groups), sum(one[1] for one in groups)


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _times(one: tuple[int, int], number: int) -> tuple[int, int]:
    return one[0] * number, one[1] * number


def _node(raw: bytes) -> _Node:
    return next(_Node(number, _bytes(value)) for number, value in _fields(raw) if number >= _CONSTANT)


def _parts(node: _Node) -> list[_Node]:
    """Return what a select, call, list or struct is made of."""
    if node.kind == _STRUCT:
        entries = [_bytes(value) for number, value in _fields(node.raw) if number == 2]
        return [_node(_bytes(value)) for entry in entries for number, value in _fields(entry) if number in (3, 4)]
    fields = {_SELECT: (1,), _CALL: (1, 3), _LIST: (1,)}[node.kind]
    return [_node(_bytes(value)) for number, value in _fields(node.raw) if number in fields]


def _loop_parts(node: _Node) -> tuple[list[str], str, _Node, _Node, _Node, _Node, _Node]:
    found = dict(_fields(node.raw))
    names = [_bytes(found[number]).decode() for number in (1, 8) if number in found]
    return names, _bytes(found[3]).decode(), *(_node(_bytes(found[number])) for number in (2, 4, 5, 6, 7))  # type: ignore[return-value]


def _constant(node: _Node) -> str:
    return next((_bytes(value).decode(errors="replace") for number, value in _fields(node.raw) if number in (6, 7)), "")


def _constant_size(node: _Node) -> int:
    return next((len(_bytes(value)) for number, value in _fields(node.raw) if number in (6, 7)), SCALAR)


def _text(node: _Node, field: int) -> str:
    return next((_bytes(value).decode() for number, value in _fields(node.raw) if number == field), "")


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message of protobuf's."""
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position)
        if key & 7 == 0:
            value, position = _varint(raw, position)
            yield key >> 3, value
            continue
        length, position = (8, position) if key & 7 == 1 else _varint(raw, position)
        yield key >> 3, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
