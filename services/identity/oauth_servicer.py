"""The RPCs of OAuth clients, and the OAuth 2 endpoints as HTTP bodies."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from google.api import httpbody_pb2

from services.chassis.call import Call
from services.identity import messages
from services.identity.clients import Clients
from services.identity.forms import Answer, Post
from services.identity.oauth import OAuth
from watchword.identity.v1 import oauth_pb2


class OAuthClientServicer:
    """watchword.identity.v1.OAuthClientService."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def CreateOAuthClient(self, request: oauth_pb2.CreateOAuthClientRequest, call: Call) -> oauth_pb2.CreateOAuthClientResponse:
        shown = await self._clients.create(request.display_name, request.scopes, call)
        return oauth_pb2.CreateOAuthClientResponse(client=messages.oauth_client(shown.client), client_secret=shown.secret)

    async def GetOAuthClient(self, request: oauth_pb2.GetOAuthClientRequest, call: Call) -> oauth_pb2.GetOAuthClientResponse:
        return oauth_pb2.GetOAuthClientResponse(client=messages.oauth_client(await self._clients.get(UUID(request.client_id), call)))

    async def ListOAuthClients(self, request: oauth_pb2.ListOAuthClientsRequest, call: Call) -> oauth_pb2.ListOAuthClientsResponse:
        page = await self._clients.list(call, page_size=request.page_size, page_token=request.page_token)
        return oauth_pb2.ListOAuthClientsResponse(clients=[messages.oauth_client(client) for client in page.items], next_page_token=page.next_token)

    async def RotateOAuthClientSecret(
        self, request: oauth_pb2.RotateOAuthClientSecretRequest, call: Call
    ) -> oauth_pb2.RotateOAuthClientSecretResponse:
        shown = await self._clients.rotate_secret(UUID(request.client_id), timedelta(seconds=request.overlap_seconds), call)
        return oauth_pb2.RotateOAuthClientSecretResponse(client=messages.oauth_client(shown.client), client_secret=shown.secret)

    async def DeleteOAuthClient(self, request: oauth_pb2.DeleteOAuthClientRequest, call: Call) -> oauth_pb2.DeleteOAuthClientResponse:
        return oauth_pb2.DeleteOAuthClientResponse(consistency_token=await self._clients.delete(UUID(request.client_id), call))


class OAuthServicer:
    """watchword.identity.v1.OAuthService. The HTTP status travels in `x-http-status`, which the edge obeys and removes."""

    def __init__(self, oauth: OAuth) -> None:
        self._oauth = oauth

    async def Token(self, request: httpbody_pb2.HttpBody, call: Call) -> httpbody_pb2.HttpBody:
        return await _answer(self._oauth.token, request, call)

    async def Revoke(self, request: httpbody_pb2.HttpBody, call: Call) -> httpbody_pb2.HttpBody:
        return await _answer(self._oauth.revoke, request, call)

    async def Introspect(self, request: httpbody_pb2.HttpBody, call: Call) -> httpbody_pb2.HttpBody:
        return await _answer(self._oauth.introspect, request, call)


async def _answer(endpoint: Callable[[Post, Call], Awaitable[Answer]], request: httpbody_pb2.HttpBody, call: Call) -> httpbody_pb2.HttpBody:
    answer = await endpoint(Post(request.content_type, request.data, call.headers.get("authorization", "")), call)
    call.response_headers += [("x-http-status", str(answer.status)), ("cache-control", "no-store"), *answer.headers]
    return httpbody_pb2.HttpBody(content_type="application/json", data=answer.body)
