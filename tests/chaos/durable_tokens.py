"""Writes of token, and of identity through token: revocations, sessions, refresh tokens."""

import base64
import json
from contextlib import suppress
from typing import Any
from uuid import uuid4

from services.token.sessions import digest_of
from tests.chaos.durable_deeds import Deed
from tests.chaos.durable_stack import Instance, answered, outcome
from tests.chaos.durable_town import AUTH, TENANT, TOKENS, USERS, Town, bearer, refresh
from watchword.errors import RefreshTokenReused, TokenInvalid, WatchwordError
from watchword.identity.v1 import authentication_pb2, user_pb2
from watchword.token.v1 import token_pb2


class Revoking(Deed):
    """Tokens of a session are refused everywhere, from the answer on."""

    service = "token"
    dead: "token_pb2.TokenSet"

    async def prepare(self) -> None:
        self.subject = str(uuid4())
        self.dead = await self.town.session(self.subject)
        assert len(await self.town.believers(self.dead.access_token)) == len(self.suite.of("token"))

    async def check(self, result: Any) -> list[str]:
        return [f"{one} takes a revoked token" for one in await self.town.believers(self.dead.access_token)]

    async def is_refused(self) -> bool:
        """Whether every standing instance of token refuses what was revoked."""
        return not await self.town.believers(self.dead.access_token)


class RevokeToken(Revoking):
    """One access token."""

    event, effect = "token_revoked", "SELECT count(*) FROM token.revocation WHERE key = $1"

    @property
    def key(self) -> object:
        claims = self.dead.access_token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(claims + "=="))["jti"]

    async def do(self, at: Instance) -> Any:
        request = token_pb2.RevokeTokenRequest(token=self.dead.access_token, request_id=self.request_id)
        return await self._ask(at, TOKENS, "RevokeToken", request, self.suite.peer(to="token"))


class RevokeSubject(Revoking):
    """All tokens of somebody, refresh tokens included."""

    event, effect = "tokens_revoked", "SELECT count(*) FROM token.revocation WHERE key = $1"

    @property
    def key(self) -> object:
        return self.subject

    async def do(self, at: Instance) -> Any:
        request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=self.subject, request_id=self.request_id)
        return await self._ask(at, TOKENS, "RevokeTokens", request, self.suite.peer(to="token"))

    async def check(self, result: Any) -> list[str]:
        renewed = await outcome(answered(lambda: refresh(self.suite.of("token")[0], self.suite, self.dead.refresh_token)))
        return [*await super().check(result), *([] if isinstance(renewed, WatchwordError) else ["a revoked refresh token was redeemed"])]


class OfAccount(Revoking):
    """What identity has token do about an account."""

    service, effect = "identity", "SELECT count(*) FROM identity.task WHERE target_id = $1"

    async def prepare(self) -> None:
        self.subject, _ = await self.town.person()
        self.dead = await self.town.session(self.subject)
        assert len(await self.town.believers(self.dead.access_token)) == len(self.suite.of("token"))

    @property
    def key(self) -> object:
        return self.subject


class LogOutAll(OfAccount):
    """Somebody ends all of their sessions: who repeats it may be told that the token is not valid any more."""

    event = "logged_out_everywhere"

    async def prepare(self) -> None:
        await super().prepare()
        self.metadata = bearer(self.dead.access_token)

    async def do(self, at: Instance) -> Any:
        with suppress(TokenInvalid):
            await self._ask(at, AUTH, "LogoutAll", authentication_pb2.LogoutAllRequest(request_id=self.request_id), self.metadata)


class Disable(OfAccount):
    """An administrator keeps somebody out."""

    event = "user_disabled"

    async def do(self, at: Instance) -> Any:
        request = user_pb2.DisableUserRequest(user_id=self.subject, request_id=self.request_id)
        return await self._ask(at, USERS, "DisableUser", request, self.town.admin)


class Refresh(Deed):
    """A refresh token is traded for its successor."""

    service, event = "token", "refresh_token_redeemed"
    is_over_once_checked = True  # it presents the predecessor once more, which ends the session
    effect = "SELECT count(*) FROM token.refresh_token WHERE session_id = $1 AND used_time IS NOT NULL"

    async def prepare(self) -> None:
        self.tokens = await self.town.session(str(uuid4()))

    @property
    def key(self) -> object:
        return self.tokens.session_id

    async def do(self, at: Instance) -> Any:
        return await refresh(at, self.suite, self.tokens.refresh_token, self.request_id, trace=self.trace)

    async def check(self, result: Any) -> list[str]:
        family = "SELECT array_agg(digest) FROM token.refresh_token WHERE session_id = $1 AND used_time IS NULL"
        unused = await self.suite.ask(family, self.key)
        broken = [] if unused == [digest_of(result.tokens.refresh_token)] else ["the session has not exactly one successor"]
        at = self.suite.of("token")[1]
        successor = await outcome(answered(lambda: refresh(at, self.suite, result.tokens.refresh_token)))
        broken += [f"the successor: {successor!r}"] if isinstance(successor, WatchwordError) else []
        again = await outcome(answered(lambda: refresh(at, self.suite, self.tokens.refresh_token)))
        return [*broken, *([] if isinstance(again, (RefreshTokenReused, TokenInvalid)) else [f"the predecessor: {again!r}"])]


class OpenSession(Deed):
    """A session is opened: with its first refresh token, once."""

    service, event = "token", "session_opened"
    effect = "SELECT count(*) FROM token.session WHERE subject = $1"

    def __init__(self, town: Town) -> None:
        super().__init__(town)
        self.subject = str(uuid4())

    @property
    def key(self) -> object:
        return self.subject

    async def do(self, at: Instance) -> Any:
        request = token_pb2.IssueTokenRequest(
            subject=self.subject, tenant_id=TENANT, type=token_pb2.PRINCIPAL_TYPE_USER, with_refresh_token=True, request_id=self.request_id
        )
        return await self._ask(at, TOKENS, "IssueToken", request, self.suite.peer(to="token"))

    async def check(self, result: Any) -> list[str]:
        at = self.suite.of("token")[1]
        successor = await outcome(answered(lambda: refresh(at, self.suite, result.tokens.refresh_token)))
        return [f"the first refresh token: {successor!r}"] if isinstance(successor, WatchwordError) else []
