"""Names people log in by, and the one canonical form of each: computed here, unique by its bytes in the database.

A user name follows RFC 8265 UsernameCaseMapped; Latin is not mixed with Cyrillic or Greek, which have letters that look alike. An e-mail address is
taken in lower case as a whole: RFC 5321 lets the local part distinguish case, no mail provider of note does, and two accounts whose addresses look
alike would be worse. What is shown is always what was given.
"""

import unicodedata
from dataclasses import dataclass

import regex
from email_validator import EmailNotValidError, validate_email
from precis_i18n import get_profile

MAX_EMAIL_BYTES = 254  # RFC 5321 section 4.5.3.1.3, less the angle brackets
MAX_USERNAME_BYTES = 256
FULL_WIDTH_AT = "\uff20"
_PROFILE = get_profile("UsernameCaseMapped")
_LATIN = regex.compile(r"\p{Script=Latin}")
_ALIKE = regex.compile(r"[\p{Script=Cyrillic}\p{Script=Greek}]")
_NEEDS_CARE = regex.compile(r"[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]")


class NameUnusable(Exception):
    """The name cannot be an account's; the text says why."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name as it was given, and the key it is found by."""

    given: str
    key: str


def email_name(text: str) -> Name:
    """Return an e-mail address as a name. Raises NameUnusable."""
    if len(text.encode()) > MAX_EMAIL_BYTES:
        raise NameUnusable(f"must be at most {MAX_EMAIL_BYTES} bytes")
    if _NEEDS_CARE.search(text):
        raise NameUnusable("must not hold spaces or invisible characters")
    local, domain = _parted(text)
    local = _folded(local)
    if _is_mixed(local):
        raise NameUnusable("must not mix Latin with Cyrillic or Greek letters")
    key = f"{local}@{domain.lower()}"
    _parted(key)  # folding may have made signs that no address may hold, such as a second @
    if len(key.encode()) > MAX_EMAIL_BYTES:
        raise NameUnusable(f"must be at most {MAX_EMAIL_BYTES} bytes")
    return Name(text, key)


def username(text: str) -> Name:
    """Return a user name. Raises NameUnusable."""
    if len(text.encode()) > MAX_USERNAME_BYTES:
        raise NameUnusable(f"must be at most {MAX_USERNAME_BYTES} bytes")
    try:
        key = _PROFILE.enforce(text)
    except UnicodeEncodeError:
        raise NameUnusable("must hold letters, digits and simple signs only, without spaces or invisible characters") from None
    if "@" in key:
        raise NameUnusable("must not hold an @, so that it is never taken for an e-mail address")
    if _is_mixed(key):
        raise NameUnusable("must not mix Latin with Cyrillic or Greek letters")
    if len(key.encode()) > MAX_USERNAME_BYTES:
        raise NameUnusable(f"must be at most {MAX_USERNAME_BYTES} bytes")
    return Name(text, key)


def login_key(text: str) -> str | None:
    """Return the key that a login is looked up by, or None if no account can have that name."""
    try:
        return email_name(text).key if "@" in text or FULL_WIDTH_AT in text else username(text).key
    except NameUnusable:
        return None


def _parted(text: str) -> tuple[str, str]:
    try:
        parsed = validate_email(text, check_deliverability=False, test_environment=True, strict=True)
    except EmailNotValidError:
        raise NameUnusable("must be an e-mail address, such as ada@example.com") from None
    return parsed.local_part, parsed.domain


def _folded(local: str) -> str:
    """Return a local part so that two that print alike under NFKC are the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", local).lower())


def _is_mixed(text: str) -> bool:
    return _LATIN.search(text) is not None and _ALIKE.search(text) is not None
