"""Requests checked against the rules their protos declare, before a handler sees them.

Compiled once per message type. A string without rules holds at most 256 bytes; no string holds a control character unless it is secret text, and
none holds NUL. Each breach is one field violation, named by its path in the JSON form; beyond the first twenty none is told, because violations
travel in trailers, which are refused at 8 KiB.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

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
    field_pb2.FORMAT_UUID: (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "must be a UUID"),
    field_pb2.FORMAT_PERMISSION: (re.compile(rf"{_NAME}\.{_NAME}"), "must be a permission, such as invoices.read"),
    field_pb2.FORMAT_PERMISSION_PATTERN: (
        re.compile(rf"(\*|{_NAME})\.(\*|{_NAME})"),
        "must be a permission pattern, such as invoices.read or invoices.*",
    ),
    field_pb2.FORMAT_RESOURCE: (re.compile(rf"{_NAME}/[A-Za-z0-9._~@:+=-]{{1,180}}"), "must be a resource, such as folder/a"),
    field_pb2.FORMAT_SLUG: (re.compile(r"[a-z0-9][a-z0-9._-]*"), "must be lower-case letters, digits, '.', '_' and '-'"),
}

# Not our messages: their handlers read them, an HttpBody in the words of its own standard, and a Struct has no fixed shape.
_READ_BY_HANDLERS = frozenset({"google.api.HttpBody", "google.protobuf.Struct"})
_GOOD: Sequence[Violation] = ()

# What a message, or a value, breaks. Paths begin at what is checked: a field's is ".name", a member's "[0]", and the value's own is empty.
Check = Callable[[Any], Sequence[Violation]]


class Validator:
    """Checks messages of the types it has seen, and compiles those it has not."""

    def __init__(self) -> None:
        self._checks: dict[str, list[Check]] = {}

    def check(self, request: Message) -> None:
        """Return if `request` keeps its rules. Raises InvalidRequest with the first breaches."""
        violations = self._breaches(request)
        if violations:
            raise InvalidRequest(violations=[Violation(violation.field[1:], violation.description) for violation in violations])

    def _breaches(self, message: Message) -> Sequence[Violation]:
        found: list[Violation] = []
        for check in self._compiled(message.DESCRIPTOR):
            if breaches := check(message):
                found.extend(breaches)
                if len(found) >= MAX_VIOLATIONS:
                    break
        return found[:MAX_VIOLATIONS]

    def _compiled(self, descriptor: Any) -> list[Check]:
        found = self._checks.get(descriptor.full_name)
        if found is None:
            found = [] if descriptor.full_name in _READ_BY_HANDLERS else [self._compile(field) for field in descriptor.fields]
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
        if name == "google.protobuf.Duration":
            return _seconds(0, MAX_DURATION, "must not be negative")
        return self._breaches


def _single(field: FieldDescriptor, rules: field_pb2.FieldRules, one: Check) -> Check:
    name, path, tracks = field.name, f".{field.name}", field.has_presence
    absent = _breach("is required", path) if rules.required else _GOOD

    def check(message: Any) -> Sequence[Violation]:
        if not (message.HasField(name) if tracks else getattr(message, name)):
            return absent
        found = one(getattr(message, name))
        return _within(path, found) if found else _GOOD

    return check


def _many(field: FieldDescriptor, rules: field_pb2.FieldRules, one: Check) -> Check:
    name, path, limit = field.name, f".{field.name}", rules.max_items or DEFAULT_ITEMS
    absent = _breach("is required", path) if rules.required else _GOOD
    is_text = field.type == FieldDescriptor.TYPE_STRING

    def check(message: Any) -> Sequence[Violation]:
        values = getattr(message, name)
        if not values:
            return absent
        if len(values) > limit:
            return _breach(f"must hold at most {limit} members", path)
        found: list[Violation] = []
        for index, value in enumerate(values):
            if breaches := (_EMPTY if is_text and not value else one(value)):
                found.extend(_within(f"{path}[{index}]", breaches))
                if len(found) >= MAX_VIOLATIONS:
                    break
        return found

    return check


def _text(rules: field_pb2.FieldRules) -> Check:
    limit, shape, is_secret = rules.max_bytes or DEFAULT_BYTES, _SHAPES.get(rules.format), rules.secret
    may_be_empty = rules.format != field_pb2.FORMAT_UUID
    too_long, wrong = _breach(f"must be at most {limit} bytes"), _GOOD if shape is None else _breach(shape[1])

    def check(value: str) -> Sequence[Violation]:
        is_ascii = value.isascii()
        if (len(value) if is_ascii else len(value.encode())) > limit:
            return too_long
        if not (is_ascii and value.isprintable()) and ("\0" in value or (not is_secret and _CONTROL.search(value))):
            return _UNPRINTABLE
        if shape is None or (may_be_empty and not value):
            return _GOOD
        return _GOOD if shape[0].fullmatch(value) else wrong

    return check


def _bytes(rules: field_pb2.FieldRules) -> Check:
    limit = rules.max_bytes or DEFAULT_BYTES
    too_long = _breach(f"must be at most {limit} bytes")
    return lambda value: too_long if len(value) > limit else _GOOD


def _enum(field: FieldDescriptor) -> Check:
    assert field.enum_type is not None
    known = frozenset(value.number for value in field.enum_type.values)
    unknown = _breach("is not one of the known values")
    return lambda value: _GOOD if value in known else unknown


def _seconds(low: int, high: int, words: str) -> Check:
    outside = _breach(words)
    return lambda value: _GOOD if low <= value.seconds <= high and 0 <= value.nanos < 1_000_000_000 else outside


def _anything(_value: Any) -> Sequence[Violation]:
    return _GOOD


def _breach(words: str, path: str = "") -> Sequence[Violation]:
    return (Violation(path, words),)


def _within(path: str, violations: Sequence[Violation]) -> Sequence[Violation]:
    return [Violation(path + violation.field, violation.description) for violation in violations]


_EMPTY, _UNPRINTABLE = _breach("must not be empty"), _breach("must not hold control characters")
