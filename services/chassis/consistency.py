"""Consistency tokens: "the state that includes this write", good at every instance of every context.

A token names a tenant and a revision of its counter in Postgres, which every change of every context bumps in its own transaction. Signed, so that
a made-up one is refused and not waited for.
"""

import base64
import binascii
import hmac
from uuid import UUID

from services.chassis.sealing import digest
from services.chassis.tenancy import TenantId
from watchword.errors import InvalidRequest

MAC_BYTES = 12
BODY_BYTES = 24


class ConsistencyTokens:
    """Writes and reads consistency tokens."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, tenant_id: TenantId, revision: int) -> str:
        """Return the token of a revision."""
        body = tenant_id.bytes + revision.to_bytes(8, "big")
        return base64.urlsafe_b64encode(body + self._mac(body)).decode()

    def read(self, token: str, tenant_id: TenantId, field: str = "consistency.at_least_as_fresh") -> int:
        """Return the revision that `token` asks for. Raises InvalidRequest for one that is not ours, or another tenant's."""
        try:
            raw = base64.urlsafe_b64decode(token)
        except (binascii.Error, ValueError):
            raw = b""
        body, mac = raw[:BODY_BYTES], raw[BODY_BYTES:]
        if len(body) != BODY_BYTES or not hmac.compare_digest(mac, self._mac(body)) or UUID(bytes=body[:16]) != tenant_id:
            raise InvalidRequest.of(field, "is not a consistency token of this tenant")
        return int.from_bytes(body[16:], "big")

    def _mac(self, body: bytes) -> bytes:
        return digest(self._key, body)[:MAC_BYTES]
