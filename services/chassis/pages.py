"""Page tokens: opaque, signed, bound to tenant, method and filter. Source: AIP-158; keyset paging, so a page costs the same wherever it is."""

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

from services.chassis.sealing import digest
from watchword.errors import InvalidRequest, PageTokenInvalid

T = TypeVar("T")
DEFAULT_SIZE = 50
MAX_SIZE = 1000
MAC_BYTES = 16


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Where a page begins (exclusive; None is the beginning) and how many rows it may hold."""

    after: tuple[str, ...] | None
    size: int


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of rows and the token of the next, empty on the last."""

    items: Sequence[T]
    next_token: str


class Pager:
    """Reads and writes page tokens. `query` names what they are good for: the method and its filters."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def read(self, *, page_size: int, page_token: str, tenant_id: UUID, query: Sequence[str]) -> PageRequest:
        """Return the page that is asked for. Raises InvalidRequest, PageTokenInvalid."""
        if page_size < 0:
            raise InvalidRequest.of("page_size", "must not be negative")
        size = min(page_size or DEFAULT_SIZE, MAX_SIZE)
        if not page_token:
            return PageRequest(None, size)
        try:
            raw = base64.urlsafe_b64decode(page_token.encode("ascii") + b"=" * (-len(page_token) % 4))
        except (binascii.Error, ValueError):
            raise PageTokenInvalid from None
        mac, body = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body, tenant_id, query)):
            raise PageTokenInvalid
        return PageRequest(msgspec.json.decode(body, type=tuple[str, ...]), size)

    def page(self, rows: Sequence[T], request: PageRequest, *, key: Callable[[T], tuple[str, ...]], tenant_id: UUID, query: Sequence[str]) -> Page[T]:
        """Return `rows`, read with a limit of one more than the page's size, as a page."""
        if len(rows) <= request.size:
            return Page(rows, "")
        kept = rows[: request.size]
        return Page(kept, self.token(key(kept[-1]), tenant_id=tenant_id, query=query))

    def token(self, after: tuple[str, ...], *, tenant_id: UUID, query: Sequence[str]) -> str:
        """Return the token of a page that begins after a key."""
        body = msgspec.json.encode(after)
        return base64.urlsafe_b64encode(self._mac(body, tenant_id, query) + body).rstrip(b"=").decode()

    def _mac(self, body: bytes, tenant_id: UUID, query: Sequence[str]) -> bytes:
        return digest(self._key, body, tenant_id.bytes, *(part.encode() for part in query))[:MAC_BYTES]
