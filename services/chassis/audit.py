"""What the audit log says of one thing that happened. Written in the transaction of what it tells of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.chassis.tenancy import TenantId


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event. Actor, address and request id come from the call, unless said here. Details never hold a secret."""

    type: str
    target_type: str = ""
    target_id: str = ""
    outcome: Literal["success", "failure"] = "success"
    details: Mapping[str, str] = field(default_factory=dict)
    tenant_id: TenantId | None = None
    actor_type: str = ""
    actor_id: str = ""
