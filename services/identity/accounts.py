"""What identity knows of an account, a tenant, an OAuth client: plain facts, frozen."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.chassis.tenancy import TenantId


class AccountState(StrEnum):
    """Whether an account may log in."""

    ACTIVE = "active"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Account:
    """An account, without its password."""

    id: UUID
    tenant_id: TenantId
    email: str
    email_key: str
    email_verified: bool
    username: str
    username_key: str | None
    display_name: str
    state: AccountState
    revision: int
    create_time: datetime
    update_time: datetime
    last_login_time: datetime | None
    locked_until: datetime | None

    @property
    def etag(self) -> str:
        """Changes with each change of the account."""
        return f"{self.revision}"

    @property
    def is_active(self) -> bool:
        """Whether it may log in."""
        return self.state is AccountState.ACTIVE

    @property
    def names(self) -> tuple[str, ...]:
        """What a password must not be made of."""
        return tuple(name for name in (self.email, self.username, self.display_name) if name)


@dataclass(frozen=True, slots=True)
class Credential:
    """An account with what proves it, and the tenant's revision at which both were read: a revocation since then refuses what is issued on it.

    familiar_places  where its owner logged in lately, as `Attempts` names places
    place            where it was proved just now
    """

    account: Account
    password_hash: str = field(repr=False)
    is_one_time: bool
    tenant_revision: int
    familiar_places: tuple[bytes, ...] = ()
    place: bytes = b""


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to be made."""

    id: UUID
    tenant_id: TenantId
    email: str
    email_key: str
    email_verified: bool
    username: str
    username_key: str | None
    display_name: str
    password_hash: str = field(repr=False)
    is_one_time: bool
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer."""

    id: TenantId
    name: str
    display_name: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """A confidential OAuth client, without its secrets."""

    id: UUID
    tenant_id: TenantId
    display_name: str
    scopes: tuple[str, ...]
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ClientCredential:
    """A client with the digests of its secrets, and the tenant's revision at which they were read."""

    client: OAuthClient
    secret_digest: bytes = field(repr=False)
    old_secret_digest: bytes = field(repr=False)
    old_secret_expire_time: datetime
    tenant_revision: int
