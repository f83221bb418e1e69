"""Requests checked against the rules their protos declare, before a handler sees them.

Compiled once per message type. A string without rules holds at most 256 bytes; no string holds a control character unless it is secret text, and
none holds NUL. Each breach is one field violation, named by its path in the JSON form; beyond the first twenty none is told, because violations
travel in trailers, which are refused at 8 KiB.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from uuid import UUID

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from watchword.errors import InvalidRequest, Violation
from watchword.options.v1 import field_pb2

DEFAULT_BYTES = 256
DEFAULT_ITEMS = 100
MAX_VIOLATIONS = 20
MIN_SECONDS, MAX_SECONDS = -62_135_596_800, 253_402_300_799  # years 1 to 9999: google/protobuf/timestamp.proto
MAX_DURATION = 315_576_000_000  # seconds: google/protobuf/duration.proto

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\u202a-\u202e\u2066-\u2069]")
_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
_SHAPES = {
    field_pb2.FORMAT_PERMISSION: (re.compile(rf"{_NAME}\.{_NAME}"), "must be a permission, such as invoices.read"),
    field_pb2.FORMAT_PERMISSION_PATTERN: (
        re.compile(rf"(\*|{_NAME})\.(\*|{_NAME})"),
        "must be a permission pattern, such as invoices.read or invoices.*",
    ),
    field_pb2.FORMAT_RESOURCE: (re.compile(rf"{_NAME}/[A-Za-z0-9._~@:+=-]{{1,180}}"), "must be a resource, such as folder/a"),
    field_pb2.FORMAT_SLUG: (re.compile(r"[a-z0-9][a-z0-9._-]*"), "must be lower-case letters, digits, '.', '_' and '-'"),
}

Check = Callable[[Any, str], Iterator[Violation]]


class Validator:
    """Checks messages of the types it has seen, and compiles those it has not."""

    def __init__(self) -> None:
        self._checks: dict[str, list[tuple[FieldDescriptor, Check]]] = {}

    def check(self, request: Message) -> None:
        """Return if `request` keeps its rules. Raises InvalidRequest with the first breaches."""
        violations = list(islice(self._breaches(request, ""), MAX_VIOLATIONS))
        if violations:
            raise InvalidRequest(violations=violations)

    def _breaches(self, message: Message, path: str) -> Iterator[Violation]:
        for field, check in self._compiled(message.DESCRIPTOR):
            yield from check(message, path + field.name)

    def _compiled(self, descriptor: Any) -> list[tuple[FieldDescriptor, Check]]:
        if descriptor.full_name == "google.api.HttpBody":
            return []  # not our message: its handler reads the body, in the words of its own standard
        found = self._checks.get(descriptor.full_name)
        if found is None:
            found = [(field, self._compile(field)) for field in descriptor.fields]
            self._checks[descriptor.full_name] = found
        return found

    def _compile(self, field: FieldDescriptor) -> Check:
        rules = field.GetOptions().Extensions[field_pb2.field]
        one = self._one(field, rules)
        if field.is_repeated:
            return _many(field, rules, _anything if rules.each_alone else one)
        return _single(field, rules, one)

    def _one(self, field: FieldDescriptor, rules: field_pb2.FieldRules) -> Check:
        if field.type == FieldDescriptor.TYPE_STRING:
            return _text(rules)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes(rules)
        if field.type == FieldDescriptor.TYPE_ENUM:
            return _enum(field)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return self._message(field)
        return _anything

    def _message(self, field: FieldDescriptor) -> Check:
        assert field.message_type is not None
        name = field.message_type.full_name
        if name == "google.protobuf.Timestamp":
            return _seconds(MIN_SECONDS, MAX_SECONDS, "must lie in the years 1 to 9999")
        if name == "google.protobuf.Struct":
            return _anything  # of no fixed shape: its handler bounds it
        if name == "google.protobuf.Duration":
            return _seconds(0, MAX_DURATION, "must not be negative")
        return lambda value, path: self._breaches(value, path + ".")


def _single(field: FieldDescriptor, rules: field_pb2.FieldRules, one: Check) -> Check:
    tracks = field.has_presence

    def check(message: Any, path: str) -> Iterator[Violation]:
        present = message.HasField(field.name) if tracks else bool(getattr(message, field.name))
        if present:
            yield from one(getattr(message, field.name), path)
        elif rules.required:
            yield Violation(path, "is required")

    return check


def _many(field: FieldDescriptor, rules: field_pb2.FieldRules, one: Check) -> Check:
    limit = rules.max_items or DEFAULT_ITEMS

    def check(message: Any, path: str) -> Iterator[Violation]:
        values = getattr(message, field.name)
        if len(values) > limit:
            yield Violation(path, f"must hold at most {limit} members")
            return
        if rules.required and not values:
            yield Violation(path, "is required")
        for index, value in enumerate(values):
            if field.type == FieldDescriptor.TYPE_STRING and not value:
                yield Violation(f"{path}[{index}]", "must not be empty")
            yield from one(value, f"{path}[{index}]")

    return check


def _text(rules: field_pb2.FieldRules) -> Check:
    limit, shape = rules.max_bytes or DEFAULT_BYTES, _SHAPES.get(rules.format)

    def check(value: str, path: str) -> Iterator[Violation]:
        if len(value.encode()) > limit:
            yield Violation(path, f"must be at most {limit} bytes")
        elif "\0" in value or (not rules.secret and _CONTROL.search(value)):
            yield Violation(path, "must not hold control characters")
        elif rules.format == field_pb2.FORMAT_UUID and not _is_uuid(value):
            yield Violation(path, "must be a UUID")
        elif value and shape is not None and shape[0].fullmatch(value) is None:
            yield Violation(path, shape[1])

    return check


def _bytes(rules: field_pb2.FieldRules) -> Check:
    limit = rules.max_bytes or DEFAULT_BYTES

    def check(value: bytes, path: str) -> Iterator[Violation]:
        if len(value) > limit:
            yield Violation(path, f"must be at most {limit} bytes")

    return check


def _enum(field: FieldDescriptor) -> Check:
    assert field.enum_type is not None
    known = frozenset(value.number for value in field.enum_type.values)

    def check(value: int, path: str) -> Iterator[Violation]:
        if value not in known:
            yield Violation(path, "is not one of the known values")

    return check


def _seconds(low: int, high: int, words: str) -> Check:
    def check(value: Any, path: str) -> Iterator[Violation]:
        if not low <= value.seconds <= high or not 0 <= value.nanos < 1_000_000_000:
            yield Violation(path, words)

    return check


def _anything(value: Any, path: str) -> Iterator[Violation]:
    return iter(())


def _is_uuid(value: str) -> bool:
    try:
        return str(UUID(value)) == value
    except ValueError:
        return False
