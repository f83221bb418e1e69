"""One-time codes: 256 random bits sent by mail, kept as a digest, good once and for a while.

Plain SHA-256 suffices for what nobody can guess. A code is bound to the address it was sent to: when the account gets another, the code is dead.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from services.chassis.tenancy import TenantId

CODE_BYTES = 32


class CodeKind(StrEnum):
    """What a code is good for."""

    EMAIL_VERIFICATION = "email_verification"
    PASSWORD_RESET = "password_reset"  # noqa: S105


VERIFICATION_TTL = timedelta(hours=24)
RESET_TTL = timedelta(hours=1)
INVITATION_TTL = timedelta(hours=24)  # for an account made by an administrator, whose owner does not wait for the mail


@dataclass(frozen=True, slots=True)
class Redeemed:
    """Whom a used code belonged to, and the address it was sent to."""

    account_id: UUID
    tenant_id: TenantId
    email_key: str


def new_code() -> str:
    """Return a code that nobody can guess."""
    return secrets.token_urlsafe(CODE_BYTES)


def digest_of(code: str) -> bytes:
    """Return what is kept of a code."""
    return hashlib.sha256(code.encode()).digest()
