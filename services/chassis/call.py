"""What a handler knows of a call: who, from where, until when, and under which request id. Nothing of grpc."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.chassis.tenancy import DEFAULT_TENANT, TenantId
from watchword.errors import TokenInvalid


class CallerKind(StrEnum):
    """What a caller is."""

    ANONYMOUS = "anonymous"
    USER = "user"
    CLIENT = "client"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as proved by a bearer token; `id` is an account's, a client's, or a service's name."""

    kind: CallerKind
    id: str
    tenant_id: TenantId = DEFAULT_TENANT
    scopes: frozenset[str] = frozenset()
    roles: tuple[str, ...] = ()
    session_id: UUID | None = None
    token_id: str = ""
    token: str = field(default="", repr=False)
    expire_time: datetime | None = None
    is_acted_for: bool = False

    @property
    def is_bounded(self) -> bool:
        """Whether the token's scopes bound what its subject may do: a client's, and a person's that somebody else acts with."""
        return self.kind is CallerKind.CLIENT or self.is_acted_for

    @property
    def is_peer(self) -> bool:
        """Whether the caller is a service of the suite."""
        return self.kind is CallerKind.SERVICE

    @property
    def uuid(self) -> UUID:
        """The caller's id, of a user or client."""
        if self.kind not in (CallerKind.USER, CallerKind.CLIENT):
            raise TokenInvalid
        return UUID(self.id)


ANONYMOUS = Caller(CallerKind.ANONYMOUS, "anonymous")


@dataclass(frozen=True, slots=True)
class Once:
    """A request_id, and what it was used for: the same id with another fingerprint is a conflict."""

    request_id: UUID
    method: str
    fingerprint: bytes


@dataclass(slots=True)
class Call:
    """One call. `response_headers` may be filled by the handler; they are sent before the answer."""

    method: str
    caller: Caller = ANONYMOUS
    request_id: str = ""
    address: str = ""
    user_agent: str = ""
    deadline: float = field(default_factory=lambda: time.monotonic() + 2.0)
    once: Once | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    response_headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def remaining(self) -> float:
        """Seconds until the caller's deadline; negative once it has passed."""
        return self.deadline - time.monotonic()
