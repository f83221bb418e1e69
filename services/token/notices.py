"""What instances tell one another: a revocation, many sessions at once, or a key. One line of JSON each, the form that the log in Redis holds."""

from collections.abc import Iterator, Sequence
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


class SessionsNotice(msgspec.Struct, frozen=True, tag_field="type", tag="sessions"):
    """Many sessions of a tenant that one change revoked. Their ids lie end to end, so that a notice that is kept costs little more than they do."""

    tenant_id: UUID
    revision: int
    expire_time: datetime
    ids: bytes

    @classmethod
    def of(cls, tenant_id: UUID, session_ids: Sequence[UUID], *, revision: int, expire_time: datetime) -> "SessionsNotice":
        """Return the notice of these sessions."""
        return cls(tenant_id, revision, expire_time, b"".join(session_id.bytes for session_id in session_ids))

    def revocations(self) -> Iterator[Revocation]:
        """Yield the revocation of each session."""
        for at in range(0, len(self.ids), 16):
            yield Revocation(self.tenant_id, RevokedKind.SESSION, UUID(bytes=self.ids[at : at + 16]), self.revision, self.expire_time)


class KeyNotice(msgspec.Struct, frozen=True, tag_field="type", tag="key"):
    """One key as it now is: its public part, and where it is in its life."""

    kid: str
    algorithm: str
    state: str
    public_pem: str


Notice = RevocationNotice | SessionsNotice | KeyNotice

_decoder = msgspec.json.Decoder(Notice)


def encode(notice: Revocation | SessionsNotice | KeyNotice) -> str:
    """Return a notice as text."""
    if not isinstance(notice, Revocation):
        return msgspec.json.encode(notice).decode()
    fields = {name: getattr(notice, name) for name in RevocationNotice.__struct_fields__}
    return msgspec.json.encode(RevocationNotice(**fields)).decode()


def decode(text: str) -> Revocation | SessionsNotice | KeyNotice:
    """Return the notice that `text` is. Raises ValueError for anything else, which only a foreign hand in Redis can have written."""
    notice: Notice = _decoder.decode(text)
    if not isinstance(notice, RevocationNotice):
        return notice
    return Revocation(**{name: getattr(notice, name) for name in RevocationNotice.__struct_fields__})
