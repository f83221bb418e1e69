"""watchword.token.v1.KeyService: the key set for everybody, and the keys' life for clients of the default tenant."""

from google.api import httpbody_pb2

from services.chassis.call import Call
from services.chassis.tenancy import DEFAULT_TENANT
from services.token.keys import KeyRing
from services.token.rotation import Rotation
from services.token.store.keys import ListedKey
from watchword.errors import PermissionDenied
from watchword.token.v1 import key_pb2

CONTENT_TYPE = "application/jwk-set+json"  # RFC 7517 section 8.5.2


class KeyServicer:
    """Answers for the ring."""

    def __init__(self, ring: KeyRing, rotation: Rotation, *, max_age: float) -> None:
        self._ring = ring
        self._rotation = rotation
        self._cache_control = f"public, max-age={int(max_age)}"

    async def GetJwks(self, _request: key_pb2.GetJwksRequest, call: Call) -> httpbody_pb2.HttpBody:
        await self._ring.settle()
        etag = self._ring.etag
        call.response_headers += [("cache-control", self._cache_control), ("etag", etag)]
        if etag in _tags(call.headers.get("if-none-match", "")):
            call.response_headers.append(("x-http-status", "304"))
            return httpbody_pb2.HttpBody(content_type=CONTENT_TYPE)
        return httpbody_pb2.HttpBody(content_type=CONTENT_TYPE, data=self._ring.jwks)

    async def ListSigningKeys(self, _request: key_pb2.ListSigningKeysRequest, call: Call) -> key_pb2.ListSigningKeysResponse:
        _require_default_tenant(call)
        return key_pb2.ListSigningKeysResponse(keys=[_key(key) for key in await self._rotation.list()])

    async def RotateSigningKeys(self, _request: key_pb2.RotateSigningKeysRequest, call: Call) -> key_pb2.RotateSigningKeysResponse:
        _require_default_tenant(call)
        return key_pb2.RotateSigningKeysResponse(key=_key(await self._rotation.rotate(call)))

    async def RevokeSigningKey(self, request: key_pb2.RevokeSigningKeyRequest, call: Call) -> key_pb2.RevokeSigningKeyResponse:
        _require_default_tenant(call)
        return key_pb2.RevokeSigningKeyResponse(key=_key(await self._rotation.revoke(call, request.key_id)))


def _require_default_tenant(call: Call) -> None:
    """The keys sign for all tenants."""
    if call.caller.tenant_id != DEFAULT_TENANT:
        raise PermissionDenied


def _tags(header: str) -> set[str]:
    """Return the entity tags that a caller has. A proxy that compresses makes them weak: RFC 9110 section 8.8.3.2 compares so here."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _key(key: ListedKey) -> key_pb2.SigningKey:
    message = key_pb2.SigningKey(
        key_id=key.kid, algorithm=key.algorithm, state=key_pb2.SigningKeyState.Value(key.state.value), revoked=key.is_revoked
    )
    message.create_time.FromDatetime(key.create_time)
    message.state_time.FromDatetime(key.state_time)
    return message
