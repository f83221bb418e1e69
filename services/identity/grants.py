"""What passes between identity and token: for whom tokens are issued, what comes back, what a token is."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.chassis.tenancy import TenantId
from services.identity.accounts import Credential

SESSION_SCOPES = ("account", "tokens.verify")  # what a person's own session may do besides its account's permissions
ACR_PASSWORD = "pwd"  # RFC 8176's word for the method, for lack of one for the class  # noqa: S105


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login or refresh hands out, in the words of RFC 6749 section 5.1."""

    access_token: str = field(repr=False)
    token_type: str
    expires_in: int
    refresh_token: str = field(repr=False)
    scope: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Grant:
    """For whom tokens are issued.

    revision  the tenant's, at which the subject was found good
    """

    subject: UUID
    tenant_id: TenantId
    client_id: UUID | None
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    acr: str
    auth_time: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """A token that is to be traded for a narrower one; empty scopes and audience mean all that the client may have of the token's."""

    subject_token: str = field(repr=False)
    scopes: tuple[str, ...]
    audience: str


@dataclass(frozen=True, slots=True)
class Introspection:
    """What an active token is."""

    subject: UUID
    tenant_id: TenantId
    client_id: UUID | None
    is_client: bool
    token_use: str
    scopes: tuple[str, ...]
    issue_time: int
    expire_time: int
    token_id: str
    issuer: str
    audiences: tuple[str, ...]
    actors: tuple[UUID, ...] = ()  # who acts for the subject, the present one first


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session of an account, as token keeps it. Without a client it was opened by the suite's own login."""

    id: UUID
    subject: UUID
    client_id: UUID | None
    scopes: tuple[str, ...]
    acr: str
    address: str
    user_agent: str
    create_time: datetime
    last_used_time: datetime
    expire_time: datetime


def session_grant(credential: Credential, roles: tuple[str, ...], auth_time: datetime) -> Grant:
    """Return the grant of a session opened by a password."""
    account = credential.account
    return Grant(account.id, account.tenant_id, None, roles, SESSION_SCOPES, ACR_PASSWORD, auth_time, credential.tenant_revision)
