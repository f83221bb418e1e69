"""What names, ids and times look like, as the contract has it: so that a file's errors have lines before anybody is asked."""

import re
from datetime import datetime
from uuid import UUID

MAX_BYTES = {"name": 100, "description": 1000, "condition": 2048, "acr": 64}
MAX_ITEMS = {"permissions": 1000, "parents": 100}

_PART = r"[a-z0-9][a-z0-9_-]{0,62}"
_SHAPES = {
    "permission": (re.compile(rf"{_PART}\.{_PART}"), "a permission, such as invoices.read"),
    "pattern": (re.compile(rf"(\*|{_PART})\.(\*|{_PART})"), "a permission pattern, such as invoices.read or invoices.*"),
    "resource": (re.compile(rf"{_PART}/[A-Za-z0-9._~@:+=-]{{1,180}}"), "a resource, such as folder/a"),
    "name": (re.compile(r"[a-z0-9][a-z0-9._-]{0,99}"), "a name: lower-case letters, digits, '.', '_' and '-', at most 100"),
    "prefix": (re.compile(r"[a-z0-9][A-Za-z0-9._~@:+=/-]*"), "the beginning of names, such as invoices. or folder/"),
}


def misshapen(shape: str, text: str) -> str:
    """Return what `text` should be, or nothing if it is of that shape."""
    pattern, words = _SHAPES[shape]
    return "" if pattern.fullmatch(text) else words


def is_uuid(text: str) -> bool:
    """Whether it is a UUID in its canonical form."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def instant(text: str) -> datetime | None:
    """Return the instant that RFC 3339 text names; None for anything else, and without an offset."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None and "T" in text.upper() else None


def quoted(text: str) -> str:
    """Return a text between quotes, in one line, with every sign visible: none may mislead who reads it on a terminal."""
    return f'"{"".join(map(_visible, text))}"'


def _visible(sign: str) -> str:
    if sign in '"\\':
        return f"\\{sign}"
    return sign if sign.isprintable() else sign.encode("unicode_escape").decode()
