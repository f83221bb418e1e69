"""The RPCs of ResourceService: protobuf in, a change or a read of where resources lie, protobuf out."""

from services.chassis.call import Call
from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import Pager
from services.rbac.messages import wire_impact
from services.rbac.model import Edge, Written
from services.rbac.policy import Policy, PolicyEffect
from services.rbac.resources import Resources
from watchword.rbac.v1 import rbac_pb2


class ResourceServicer:
    """watchword.rbac.v1.ResourceService."""

    def __init__(self, resources: Resources, policy: Policy, consistency: ConsistencyTokens, pager: Pager) -> None:
        self._resources = resources
        self._policy = policy
        self._consistency = consistency
        self._pager = pager

    def placing(self, request: rbac_pb2.SetResourceParentRequest, call: Call) -> PolicyEffect[None]:
        """Return the change that is asked for."""
        return self._resources.placing(request.resource, request.parent, request.etag)

    async def SetResourceParent(self, request: rbac_pb2.SetResourceParentRequest, call: Call) -> rbac_pb2.SetResourceParentResponse:
        tenant_id, effect = call.caller.tenant_id, self.placing(request, call)
        done = await self._policy.run(call, tenant_id, Written[None], effect, validate_only=request.validate_only)
        token = self._consistency.write(tenant_id, done.revision)
        etag = Edge(request.resource, request.parent).etag
        return rbac_pb2.SetResourceParentResponse(consistency_token=token, impact=wire_impact(done.impact), etag=etag)

    async def GetResource(self, request: rbac_pb2.GetResourceRequest, call: Call) -> rbac_pb2.GetResourceResponse:
        return _resource(await self._resources.find(call.caller.tenant_id, request.resource))

    async def ListResources(self, request: rbac_pb2.ListResourcesRequest, call: Call) -> rbac_pb2.ListResourcesResponse:
        tenant_id, query = call.caller.tenant_id, ("ListResources", request.parent)
        page = self._pager.read(page_size=request.page_size, page_token=request.page_token, tenant_id=tenant_id, query=query)
        edges = await self._resources.list_page(tenant_id, page, parent=request.parent)
        listed = self._pager.page(edges, page, key=lambda edge: (edge.child,), tenant_id=tenant_id, query=query)
        return rbac_pb2.ListResourcesResponse(resources=map(_resource, listed.items), next_page_token=listed.next_token)


def _resource(edge: Edge) -> rbac_pb2.GetResourceResponse:
    return rbac_pb2.GetResourceResponse(resource=edge.child, parent=edge.parent, etag=edge.etag)
