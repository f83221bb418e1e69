"""The RPC ImportPolicy: chunks in protobuf in, columns to the domain, and an answer for each that is taken in."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from google.protobuf.message import Message

from services.chassis.access import Authenticator
from services.chassis.call import Call, Caller
from services.chassis.consistency import ConsistencyTokens
from services.chassis.validation import MAX_SECONDS, Validator
from services.rbac.importing import Chunk, ImportedRole, Imports, Members, PlainBindings
from services.rbac.messages import subject
from services.rbac.model import ANYBODY, Edge, SubjectType
from services.rbac.policy import at
from watchword.errors import InvalidRequest, PermissionDenied
from watchword.rbac.v1 import policy_pb2

PERMISSION = "policies.import"
_SOMEBODY = (SubjectType.USER, SubjectType.CLIENT)
_NOBODY = str(ANYBODY.id)
_validator = Validator()
_is_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_is_slug = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}").fullmatch
_is_resource = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}/[A-Za-z0-9._~@:+=-]{1,180}").fullmatch

Row = tuple[Any, ...]


class Decider(Protocol):
    """Says whether a caller holds a permission of the suite, now."""

    async def allows(self, caller: Caller, permission: str) -> bool:
        """Return whether `caller` holds `permission` tenant-wide. Raises DependencyUnavailable."""


class ImportServicer:
    """Serves ImportPolicy."""

    def __init__(self, imports: Imports, authenticator: Authenticator, decider: Decider, consistency: ConsistencyTokens) -> None:
        self._imports = imports
        self._authenticator = authenticator
        self._decider = decider
        self._consistency = consistency

    async def ImportPolicy(
        self, requests: AsyncIterator[policy_pb2.ImportPolicyRequest], call: Call
    ) -> AsyncIterator[policy_pb2.ImportPolicyResponse]:
        async for position, chunk in _ahead(requests):
            await self._require_caller(call)
            done = await self._imports.take_in(call, chunk)
            yield policy_pb2.ImportPolicyResponse(
                position=position,
                created_count=done.item.created,
                existing_count=done.item.existing,
                consistency_token=self._consistency.write(call.caller.tenant_id, done.revision),
            )

    async def _require_caller(self, call: Call) -> None:
        """Return if the caller could still begin: a stream may be long. Raises TokenInvalid, PermissionDenied, DependencyUnavailable."""
        await self._authenticator.authenticate(call.caller.token)
        if not await self._decider.allows(call.caller, PERMISSION):
            raise PermissionDenied


async def _ahead(requests: AsyncIterator[policy_pb2.ImportPolicyRequest]) -> AsyncIterator[tuple[int, Chunk]]:
    """Yield positions and chunks; read the next while Postgres works upon one. Raises InvalidRequest that names the member."""

    async def read() -> tuple[int, Chunk] | None:
        request = await anext(requests, None)
        return None if request is None else (request.position, chunk_of(request))

    following = asyncio.create_task(read(), name="import-ahead")
    try:
        while (found := await following) is not None:
            following = asyncio.create_task(read(), name="import-ahead")
            yield found
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await following


def chunk_of(request: policy_pb2.ImportPolicyRequest) -> Chunk:
    """Return a chunk. Raises InvalidRequest that names the member."""
    places = _rows("resources", request.resources, _place, _fits_place)
    return Chunk(
        roles=[ImportedRole(one.name, one.description, tuple(one.permissions), tuple(one.parents)) for one in request.roles],
        groups=[(one.name, one.description) for one in request.groups],
        members=Members(*_columns(_rows("members", request.members, _member, _fits_member))),
        places=[Edge(*row) for row in places],
        bindings=_bindings(_rows("bindings", request.bindings, _binding, _fits_binding)),
    )


def _bindings(rows: Sequence[Row]) -> PlainBindings:
    if not rows:
        return PlainBindings()
    types, ids, groups, roles, resources, seconds = _columns(rows)
    ends = [datetime.fromtimestamp(one, UTC) if one else None for one in seconds]
    return PlainBindings(types, [one or _NOBODY for one in ids], groups, roles, resources, ends)


def _columns(rows: Sequence[Row]) -> Iterable[list[Any]]:
    return map(list, zip(*rows, strict=True))


def _rows(field: str, members: Iterable[Any], read: Callable[[Any], Row], fits: Callable[[Any, Row], bool]) -> list[Row]:
    """Return members as rows. `fits` lets nothing pass that `require_member` refuses, and takes a twentieth of its time."""
    rows = []
    for number, member in enumerate(members):
        row = read(member)
        if not fits(member, row):
            try:
                require_member(member)
            except InvalidRequest as error:
                raise at(error, f"{field}[{number}]") from None
        rows.append(row)
    return rows


def require_member(member: Message) -> None:
    """Return if a membership, resource or binding may be taken in. Raises InvalidRequest."""
    _validator.check(member)
    if isinstance(member, policy_pb2.ImportedMember):
        _require_one(member, "member", "member_group", _SOMEBODY)
    if isinstance(member, policy_pb2.ImportedBinding):
        _require_one(member, "subject", "subject_group", (*_SOMEBODY, SubjectType.ANY))
        if not 0 <= member.expire_time_seconds <= MAX_SECONDS:
            raise InvalidRequest.of("expire_time_seconds", "must lie in the years 1970 to 9999")


def _require_one(member: Any, who: str, group: str, types: Sequence[SubjectType]) -> None:
    """Return if a member names a group, or else somebody of `types`."""
    if member.HasField(who) == bool(getattr(member, group)):
        raise InvalidRequest.of(who, f"exactly one of {who} and {group} must be set")
    if member.HasField(who) and subject(getattr(member, who), who).type not in types:
        raise InvalidRequest.of(f"{who}.type", f"must be one of {', '.join(kind.name for kind in types)}; groups are named by {group}")


def _member(one: policy_pb2.ImportedMember) -> Row:
    who = one.member
    return one.group, who.type, who.id, one.member_group


def _fits_member(one: policy_pb2.ImportedMember, row: Row) -> bool:
    group, kind, name, inner = row
    if inner:
        return bool(_is_slug(group) and _is_slug(inner)) and not one.HasField("member")
    return bool(_is_slug(group) and _is_uuid(name)) and kind in _SOMEBODY


def _place(one: policy_pb2.ImportedResource) -> Row:
    return one.resource, one.parent


def _fits_place(one: policy_pb2.ImportedResource, row: Row) -> bool:
    return bool(_is_resource(row[0]) and _is_resource(row[1]))


def _binding(one: policy_pb2.ImportedBinding) -> Row:
    who = one.subject
    return who.type, who.id, one.subject_group, one.role, one.resource, one.expire_time_seconds


def _fits_binding(one: policy_pb2.ImportedBinding, row: Row) -> bool:
    kind, name, group, role, resource, end = row
    if not _is_slug(role) or (resource and not _is_resource(resource)) or not 0 <= end <= MAX_SECONDS:
        return False
    if group:
        return bool(_is_slug(group)) and not one.HasField("subject")
    return not name if kind == SubjectType.ANY else bool(_is_uuid(name)) and kind in _SOMEBODY
