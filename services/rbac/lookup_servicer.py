"""LookupResources and LookupSubjects: protobuf in, a page, protobuf out."""

from collections.abc import Mapping
from typing import Any

import msgspec

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager
from services.chassis.sealing import digest
from services.rbac.decisions import NO_CONTEXT, Question
from services.rbac.lookups import BOTH, Lookups
from services.rbac.messages import context_of, question, revision_of, tenant_of, wire_subject
from services.rbac.model import ANYBODY, SubjectType
from watchword.errors import InvalidRequest
from watchword.rbac.v1 import permission_pb2, rbac_pb2


class LookupServicer:
    """Serves the lookups."""

    def __init__(self, lookups: Lookups, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._lookups = lookups
        self._consistency = consistency
        self._pager = pager

    async def LookupResources(self, request: permission_pb2.LookupResourcesRequest, call: Call) -> permission_pb2.LookupResourcesResponse:
        tenant_id, asked = tenant_of(request.tenant_id, call.caller), question(request)
        if "." in request.resource_type:
            raise InvalidRequest.of("resource_type", "must be the part of a resource before its slash")
        who = (str(int(asked.subject.type)), str(asked.subject.id), asked.login.acr, str(asked.login.time))
        query = ("LookupResources", *who, asked.permission, request.resource_type, _mark(asked.context))
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        at_least = revision_of(request.consistency, self._consistency, tenant_id)
        found = await self._lookups.resources(tenant_id, asked, request.resource_type, page, at_least=at_least)
        resources = (_found_resource(name, outcome) for name, outcome in found.items)
        return permission_pb2.LookupResourcesResponse(
            resources=resources,
            all_resources=found.is_everything,
            consistency_token=self._consistency.write(tenant_id, found.revision),
            next_page_token="" if found.last is None else self._pager.token((found.last,), tenant_id=tenant_id, query=query),
        )

    async def LookupSubjects(self, request: permission_pb2.LookupSubjectsRequest, call: Call) -> permission_pb2.LookupSubjectsResponse:
        tenant_id, kinds = tenant_of(request.tenant_id, call.caller), _kinds(request.subject_type)
        context = context_of(request.context) if request.HasField("context") else NO_CONTEXT
        asked = Question(ANYBODY, request.permission, request.resource, context)
        query = ("LookupSubjects", asked.permission, asked.resource, *(kind.name for kind in kinds), _mark(context))
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        at_least = revision_of(request.consistency, self._consistency, tenant_id)
        found = await self._lookups.subjects(tenant_id, asked, kinds, page, at_least=at_least)
        last = None if found.last is None else (str(int(found.last.type)), str(found.last.id))
        return permission_pb2.LookupSubjectsResponse(
            subjects=(permission_pb2.FoundSubject(subject=wire_subject(one), decision=_decision(outcome)) for one, outcome in found.items),
            all_subjects=found.is_everything,
            consistency_token=self._consistency.write(tenant_id, found.revision),
            next_page_token="" if last is None else self._pager.token(last, tenant_id=tenant_id, query=query),
        )


def _kinds(wanted: rbac_pb2.SubjectType.ValueType) -> tuple[SubjectType, ...]:
    if not wanted:
        return BOTH
    kind = SubjectType(wanted)
    if kind not in BOTH:
        raise InvalidRequest.of("subject_type", "must be SUBJECT_TYPE_USER or SUBJECT_TYPE_CLIENT")
    return (kind,)


def _mark(context: Mapping[str, object]) -> str:
    """Return what tells contexts apart, so that a page token is good for one of them."""
    return digest(b"context", msgspec.json.encode(context, order="sorted")).hex()


def _found_resource(name: str, outcome: Any) -> permission_pb2.FoundResource:
    return permission_pb2.FoundResource(resource=name, decision=_decision(outcome))


def _decision(outcome: Any) -> permission_pb2.Decision.ValueType:
    return permission_pb2.Decision.ValueType(outcome)
