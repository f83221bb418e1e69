"""OAuth clients: programs with an id and a secret.

A secret is 256 random bits. Nobody guesses that, so a keyed digest keeps it safe in the database: a slow hash protects what people choose,
and would only slow every token request down. An administrator who may create clients may give them any of the suite's scopes: a scope opens
a door only as far as the client's own roles reach, but for verifying, introspecting and revoking tokens of its own tenant, which is what
clients are for.
"""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from services.chassis.audit import AuditEvent
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.pages import Page, Pager
from services.chassis.postgres import Change, new_id
from services.chassis.sealing import digest
from services.identity.accounts import ClientCredential, OAuthClient
from services.identity.registration import Began
from services.identity.tasks import Tasks, revoke_client
from watchword.errors import InvalidCredentials, InvalidRequest, NotFound, PermissionDenied, Violation

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.attempts import Attempts
    from services.identity.peers import RbacPeer
    from services.identity.store.clients import ClientStore
    from services.identity.store.outbox import TaskStore

PREFIX = "wwcs_"  # lets secret scanners find a leaked one
SECRET_BYTES = 32
MAX_OVERLAP = timedelta(days=7)
_NOBODY = UUID(int=0)
_UNKNOWN = bytes(32)  # what a secret for an unknown client is compared with


@dataclass(frozen=True, slots=True)
class Shown:
    """A client and its new secret, shown once. A repeat with the same request_id shows it again: it is kept sealed for that."""

    client: OAuthClient
    secret: str = field(repr=False)


class Clients:
    """Keeps clients, and checks their secrets."""

    def __init__(
        self,
        *,
        database: "Database",
        store: "ClientStore",
        task_store: "TaskStore",
        tasks: Tasks,
        attempts: "Attempts",
        rbac: "RbacPeer",
        pager: Pager,
        clock: Clock,
        key: bytes,
        known_scopes: frozenset[str],
    ) -> None:
        self._database = database
        self._store = store
        self._task_store = task_store
        self._tasks = tasks
        self._attempts = attempts
        self._rbac = rbac
        self._pager = pager
        self._clock = clock
        self._key = key
        self._known_scopes = known_scopes

    async def create(self, display_name: str, scopes: Sequence[str], call: Call) -> Shown:
        """Make a client, with scopes that the caller holds as permissions. Raises InvalidRequest for unknown ones, PermissionDenied."""
        unknown = [index for index, scope in enumerate(scopes) if scope not in self._known_scopes]
        if unknown:
            raise InvalidRequest(violations=[Violation(f"scopes[{index}]", "is not a scope that a client can have") for index in unknown])
        if scopes:
            await self._rbac.require_authority(call, permissions=tuple(dict.fromkeys(scopes)))
        now, secret = self._clock.now(), _new_secret()
        client = OAuthClient(new_id(), call.caller.tenant_id, display_name, tuple(dict.fromkeys(scopes)), now, now)

        async def effect(change: Change) -> Shown:
            await self._store.insert(change, client, self._digest(secret))
            change.audit(AuditEvent("oauth_client_created", "oauth_client", str(client.id), details={"scopes": " ".join(client.scopes)}))
            return Shown(client, secret)

        return await self._database.change(call, Shown, effect)

    async def get(self, client_id: UUID, call: Call) -> OAuthClient:
        """Return a client. Raises NotFound."""
        client = await self._store.find(call.caller.tenant_id, client_id)
        if client is None:
            raise NotFound
        return client

    async def list(self, call: Call, *, page_size: int, page_token: str) -> Page[OAuthClient]:
        """Return a page of clients, oldest first."""
        tenant_id, query = call.caller.tenant_id, ("oauth-clients",)
        page = self._pager.read(page_size=page_size, page_token=page_token, tenant_id=tenant_id, query=query)
        rows = await self._store.list(tenant_id, after=UUID(page.after[0]) if page.after else None, limit=page.size + 1)
        return self._pager.page(rows, page, key=lambda client: (str(client.id),), tenant_id=tenant_id, query=query)

    async def rotate_secret(self, client_id: UUID, overlap: timedelta, call: Call) -> Shown:
        """Give a client a new secret; the old one holds for `overlap`, one that is older no more. Raises InvalidRequest, NotFound."""
        if not timedelta() <= overlap <= MAX_OVERLAP:
            raise InvalidRequest.of("overlap_seconds", f"must lie between 0 and {int(MAX_OVERLAP.total_seconds())}")
        await self._require_authority(client_id, call)
        now, secret = self._clock.now(), _new_secret()

        async def effect(change: Change) -> Shown:
            client = await self._store.rotate(change, call.caller.tenant_id, client_id, self._digest(secret), old_until=now + overlap, now=now)
            if client is None:
                raise NotFound
            facts = {"overlap_seconds": str(int(overlap.total_seconds()))}
            change.audit(AuditEvent("oauth_client_secret_rotated", "oauth_client", str(client_id), details=facts))
            return Shown(client, secret)

        return await self._database.change(call, Shown, effect)

    async def delete(self, client_id: UUID, call: Call) -> str:
        """Delete a client with all its roles; its tokens are refused. Return a consistency token.

        Raises  NotFound, PermissionDenied, FanoutPending
        """
        async with self._tasks.settled(client_id, call):
            return await self._delete(client_id, call)

    async def _delete(self, client_id: UUID, call: Call) -> str:
        kept = await self._database.kept(call, Began)
        if kept is not None:
            return await self._tasks.settle(kept.task_id, call)
        await self._require_authority(client_id, call)
        await self._rbac.delete_subject(call, client_id, is_client=True)

        async def effect(change: Change) -> Began:
            if not await self._store.delete(change, call.caller.tenant_id, client_id):
                raise NotFound
            change.audit(AuditEvent("oauth_client_deleted", "oauth_client", str(client_id)))
            return Began(await self._task_store.insert(change, revoke_client(call.caller.tenant_id, client_id, "oauth_client_deleted")))

        began = await self._database.change(call, Began, effect)
        return await self._tasks.settle(began.task_id, call)

    async def _require_authority(self, client_id: UUID, call: Call) -> None:
        """Whoever may do less than a client may not get at its secret. Raises NotFound, PermissionDenied."""
        client = await self.get(client_id, call)
        try:
            await self._rbac.require_authority(call, target=client_id, is_client=True, permissions=client.scopes)
        except PermissionDenied as denied:
            facts = {"method": call.method, "why": denied.text}
            await self._database.note(call, AuditEvent("access_denied", "oauth_client", str(client_id), "failure", facts))
            raise

    async def authenticate(self, client_id: str, secret: str, call: Call) -> ClientCredential:
        """Return the client whose secret this is. Raises InvalidCredentials, alike for an unknown client and a wrong secret; RateLimited."""
        reservation = await self._attempts.reserve_client(client_id=client_id, address=call.address)
        found = await self._store.find_credential(_uuid(client_id))
        if self._matches(found, secret) and found is not None:
            await self._attempts.succeeded(reservation)
            return found
        await self._note_failure(found, call)
        raise InvalidCredentials

    def _matches(self, found: ClientCredential | None, secret: str) -> bool:
        given = self._digest(secret)
        current = hmac.compare_digest(given, found.secret_digest if found else _UNKNOWN)
        old = hmac.compare_digest(given, (found.old_secret_digest if found else b"") or _UNKNOWN)
        return current or (old and found is not None and self._clock.now() < found.old_secret_expire_time)

    async def _note_failure(self, found: ClientCredential | None, call: Call) -> None:
        target = str(found.client.id) if found else ""
        tenant_id = found.client.tenant_id if found else None
        facts = {"why": "wrong_secret" if found else "unknown_client", "method": call.method}
        await self._database.note(call, AuditEvent("client_authentication_failed", "oauth_client", target, "failure", facts, tenant_id=tenant_id))

    def _digest(self, secret: str) -> bytes:
        return digest(self._key, secret.encode())


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _uuid(text: str) -> UUID:
    """Return the id that `text` is, or one that nobody has: an unknown client takes the same steps as a known one.

    Only the canonical form is an id: other spellings would each have their own counter of attempts.
    """
    try:
        parsed = UUID(text)
    except ValueError:
        return _NOBODY
    return parsed if str(parsed) == text else _NOBODY
