"""What instances tell one another: a revocation, or that the ring of keys changed. One line of JSON each, the form that the log in Redis holds."""

from datetime import datetime
from uuid import UUID

import msgspec

from services.token.revocations import Revocation, RevokedKind


class RevocationNotice(msgspec.Struct, frozen=True, tag_field="type", tag="revocation", omit_defaults=True):
    """The state of one revocation's row."""

    tenant_id: UUID
    kind: RevokedKind
    key: UUID
    revision: int
    expire_time: datetime
    spared_revision: int = 0
    spared_session_id: UUID | None = None
    is_disabled: bool = False
    issued_before: datetime | None = None


class KeyNotice(msgspec.Struct, frozen=True, tag_field="type", tag="key"):
    """One key as it now is: its public part, and where it is in its life."""

    kid: str
    algorithm: str
    state: str
    public_pem: str


Notice = RevocationNotice | KeyNotice

_decoder = msgspec.json.Decoder(Notice)


def encode(notice: Revocation | KeyNotice) -> str:
    """Return a notice as text."""
    if isinstance(notice, KeyNotice):
        return msgspec.json.encode(notice).decode()
    fields = {name: getattr(notice, name) for name in RevocationNotice.__struct_fields__}
    return msgspec.json.encode(RevocationNotice(**fields)).decode()


def decode(text: str) -> Revocation | KeyNotice:
    """Return the notice that `text` is. Raises ValueError for anything else, which only a foreign hand in Redis can have written."""
    notice = _decoder.decode(text)
    if isinstance(notice, KeyNotice):
        return notice
    return Revocation(**{name: getattr(notice, name) for name in RevocationNotice.__struct_fields__})
