"""The tenant that exists out of the box, so that a single-tenant user never sees tenants."""

from typing import NewType
from uuid import UUID

TenantId = NewType("TenantId", UUID)

DEFAULT_TENANT = TenantId(UUID("00000000-0000-7000-8000-000000000001"))
DEFAULT_TENANT_NAME = "default"
