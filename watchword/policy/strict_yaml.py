"""YAML read strictly, with a line for everything that is wrong: no keys twice, no aliases, no tags, no text that YAML takes for something else."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from watchword.policy.shapes import instant, misshapen

MAX_DEPTH = 32  # of nested lists and mappings
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq"))
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast

Node = Any  # yaml.MappingNode, SequenceNode or ScalarNode


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong on a line; 0 for the whole file."""

    line: int
    text: str


class FileInvalid(Exception):
    """A file says something that it cannot say; all that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("; ".join(f"line {problem.line}: {problem.text}" for problem in self.problems))


def line_of(node: Node) -> int:
    """Return the line that a node begins on, from 1."""
    return int(node.start_mark.line) + 1


def compose(text: str) -> Node:
    """Return the one document of a text. Raises FileInvalid."""
    try:
        _scan(text)
        return yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise FileInvalid([Problem(mark.line + 1 if mark else 0, _in_words(error))]) from None
    except yaml.YAMLError as error:  # signs that YAML does not have
        raise FileInvalid([Problem(0, " ".join(str(error).split()))]) from None


def _in_words(error: yaml.MarkedYAMLError) -> str:
    hint = ' (text that begins with "*" must be quoted)' if "alias" in (error.context or "") else ""
    return f"this is not YAML: {error.problem or error.context}{hint}"


def _scan(text: str) -> None:
    """Look for what must not be there before anything is made of it. Raises FileInvalid, YAMLError."""
    depth = documents = 0
    events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
    for event in events:
        line = event.start_mark.line + 1
        depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
        depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
        documents += isinstance(event, yaml.DocumentStartEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise FileInvalid([Problem(line, 'anchors and aliases are not read; text that begins with "*" or "&" must be quoted')])
        if depth > MAX_DEPTH:
            raise FileInvalid([Problem(line, f"nested deeper than {MAX_DEPTH}")])
        if documents > 1:
            raise FileInvalid([Problem(line, "a file is one document")])
    if documents == 0:
        raise FileInvalid([Problem(0, "the file is empty")])


@dataclass(slots=True)
class Reader:
    """Reads nodes as what they must be. What is wrong is noted, and read as if it were not there."""

    problems: list[Problem] = field(default_factory=list)

    def note(self, node: Node, text: str) -> None:
        """Note what is wrong with a node."""
        self.problems.append(Problem(line_of(node), text))

    def entries(self, node: Node, what: str) -> Iterator[tuple[str, Node, Node]]:
        """Yield the keys of a mapping, with their nodes and those of their values."""
        if not isinstance(node, yaml.MappingNode):
            self.note(node, f"{what} must be a mapping{' ({} for an empty one)' if _is_null(node) else ''}")
            return
        seen = dict[str, int]()
        for key_node, value in node.value:
            key = self.text(key_node, f"a key of {what}")
            if key in seen:
                self.note(key_node, f"{key} stands there twice, first on line {seen[key]}")
            elif key:
                seen[key] = line_of(key_node)
                yield key, key_node, value

    def members(self, node: Node, what: str, known: Sequence[str], *, required: Sequence[str] = ()) -> dict[str, Node]:
        """Return the values of a mapping whose keys are known."""
        found = dict[str, Node]()
        for key, key_node, value in self.entries(node, what):
            if key in known:
                found[key] = value
            else:
                self.note(key_node, f"{what} has no key {key}; there are {', '.join(known)}")
        for key in required:
            if key not in found and isinstance(node, yaml.MappingNode):
                self.note(node, f"{what} needs the key {key}")
        return found

    def items(self, node: Node, what: str) -> list[Node]:
        """Return the members of a list."""
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        self.note(node, f"{what} must be a list{' ([] for an empty one)' if _is_null(node) else ''}")
        return []

    def text(self, node: Node, what: str, *, shape: str = "", max_bytes: int = 1000, may_be_empty: bool = False) -> str:
        """Return a text; an empty one if it is wrong."""
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            self.note(node, f"{what} must be text{'; put it in quotes' if isinstance(node, yaml.ScalarNode) and node.value else ''}")
            return ""
        found = str(node.value)
        wrong = misshapen(shape, found) if shape else ("" if found or may_be_empty else "text that is not empty")
        if not wrong and len(found.encode("utf-8", "surrogatepass")) > max_bytes:
            wrong = f"at most {max_bytes} bytes"
        if not wrong and not found.isprintable():
            wrong = "text without control characters and line breaks"
        if wrong:
            self.note(node, f"{what} must be {wrong}")
            return ""
        return found

    def texts(self, node: Node, what: str, each: Callable[[Node], str], *, max_items: int = 1_000_000) -> tuple[str, ...]:
        """Return the texts of a list, sorted, none of them twice."""
        found = dict[str, int]()
        for item in self.items(node, what):
            text = each(item)
            if text in found:
                self.note(item, f"{text} stands there twice, first on line {found[text]}")
            elif text:
                found[text] = line_of(item)
        if len(found) > max_items:
            self.note(node, f"{what} must hold at most {max_items}")
        return tuple(sorted(found))

    def choice(self, node: Node, what: str, choices: Sequence[str]) -> str:
        """Return one of `choices`; the first if it is wrong."""
        found = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        if found in choices:
            return found
        self.note(node, f"{what} must be one of {', '.join(choices)}")
        return choices[0]

    def seconds(self, node: Node, what: str, *, least: int) -> int | None:
        """Return a whole number of seconds."""
        if isinstance(node, yaml.ScalarNode) and node.value.isascii() and node.value.isdigit() and len(node.value) < 10 and int(node.value) >= least:
            return int(node.value)
        self.note(node, f"{what} must be a whole number of seconds, at least {least}")
        return None

    def instant(self, node: Node, what: str) -> Any:
        """Return an instant."""
        found = instant(node.value) if isinstance(node, yaml.ScalarNode) else None
        if found is None:
            self.note(node, f"{what} must be a time with its offset, such as 2027-01-01T00:00:00Z")
        return found

    def anything(self, node: Node, what: str) -> Any:
        """Return what JSON can say."""
        if node.tag not in _PLAIN_TAGS or node.tag.endswith(":timestamp"):
            self.note(node, f"{what} must hold what JSON can say; put times in quotes")
            return None
        if isinstance(node, yaml.MappingNode):
            return {key: self.anything(value, what) for key, _, value in self.entries(node, what)}
        if isinstance(node, yaml.SequenceNode):
            return [self.anything(item, what) for item in node.value]
        return self._scalar(node, what)

    def _scalar(self, node: Node, what: str) -> Any:
        if node.tag == "tag:yaml.org,2002:str":
            return node.value
        try:
            return json.loads(node.value)
        except ValueError:  # such as yes, 0x1f, 1:30 or .nan, which YAML takes for something
            self.note(node, f"{what} must hold what JSON can say; put {node.value or 'it'} in quotes, or write null")
            return None


def _is_null(node: Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
