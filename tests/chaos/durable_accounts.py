"""Writes of identity: accounts, passwords, codes."""

import secrets
from typing import Any
from uuid import uuid4

from tests.chaos.durable_deeds import Deed
from tests.chaos.durable_stack import Instance, answered, outcome
from tests.chaos.durable_town import AUTH, NEW_PASSWORD, PASSWORD, USERS, Town, bearer, refresh
from watchword.errors import CodeInvalid, InvalidCredentials, WatchwordError
from watchword.identity.v1 import authentication_pb2, user_pb2


class CreateUser(Deed):
    """An administrator makes an account."""

    service, event = "identity", "user_created"
    effect = "SELECT count(*) FROM identity.account WHERE email_key = $1"

    def __init__(self, town: Town) -> None:
        super().__init__(town)
        self.email = f"{secrets.token_hex(8)}@example.com"

    @property
    def key(self) -> object:
        return self.email

    async def do(self, at: Instance) -> Any:
        request = user_pb2.CreateUserRequest(email=self.email, password=PASSWORD, email_verified=True, request_id=self.request_id)
        return await self._ask(at, USERS, "CreateUser", request, self.town.admin)

    async def check(self, result: Any) -> list[str]:
        there = str(await self.suite.ask("SELECT id FROM identity.account WHERE email_key = $1", self.email))
        broken = [] if there == result.user.id else [f"the answer names {result.user.id}, the account is {there}"]
        login = await self.town.login(self.email, PASSWORD)
        return [*broken, *([f"login: {login!r}"] if isinstance(login, WatchwordError) else [])]


class Replacing(Deed):
    """A password is replaced: the old one and the tokens that it got are worth nothing from then on."""

    service = "identity"
    effect = """
        SELECT count(*) FROM identity.account WHERE id = $1
        AND password_hash <> (SELECT password_hash FROM identity.account WHERE email_key = 'first@example.com')
    """

    async def prepare(self) -> None:
        self.account, self.email = await self.town.person()
        self.old = await self.town.session(self.account)
        assert len(await self.town.believers(self.old.access_token)) == len(self.suite.of("token"))

    @property
    def key(self) -> object:
        return self.account

    async def check(self, result: Any) -> list[str]:
        broken = [f"{one} takes an old token" for one in await self.town.believers(self.old.access_token)]
        renewed = await outcome(answered(lambda: refresh(self.suite.of("token")[0], self.suite, self.old.refresh_token)))
        old, new = await self.town.login(self.email, PASSWORD), await self.town.login(self.email, NEW_PASSWORD)
        broken += [] if isinstance(renewed, WatchwordError) else ["an old refresh token was redeemed"]
        broken += [] if isinstance(old, InvalidCredentials) else [f"the old password: {old!r}"]
        return [*broken, *([f"the new password: {new!r}"] if isinstance(new, WatchwordError) else [])]


class ChangePassword(Replacing):
    """Somebody changes their own password, in a session that goes on."""

    event = "password_changed"

    async def prepare(self) -> None:
        await super().prepare()
        self.own = await self.town.session(self.account)

    async def do(self, at: Instance) -> Any:
        request = authentication_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW_PASSWORD, request_id=self.request_id)
        return await self._ask(at, AUTH, "ChangePassword", request, bearer(self.own.access_token))

    async def check(self, result: Any) -> list[str]:
        spared = await self.town.believers(self.own.access_token)
        return [*await super().check(result), *([] if len(spared) == len(self.suite.of("token")) else ["the spared session ended"])]


class ResetPassword(Replacing):
    """Somebody sets a new password with a code that came by mail."""

    event = "password_reset"

    async def prepare(self) -> None:
        await super().prepare()
        self.code = await self.town.code(self.account, self.email, "password_reset")

    async def do(self, at: Instance) -> Any:
        request = authentication_pb2.ResetPasswordRequest(code=self.code, new_password=NEW_PASSWORD, request_id=self.request_id)
        return await self._ask(at, AUTH, "ResetPassword", request, ())

    async def check(self, result: Any) -> list[str]:
        request = authentication_pb2.ResetPasswordRequest(code=self.code, new_password=PASSWORD, request_id=str(uuid4()))
        again = await outcome(answered(lambda: self.suite.of("identity")[0].ask(AUTH, "ResetPassword", request, (), timeout=20)))
        return [*await super().check(result), *([] if isinstance(again, CodeInvalid) else [f"the code once more: {again!r}"])]


class VerifyEmail(Deed):
    """Somebody proves to read an address, by a code that came by mail."""

    service, event = "identity", "email_verified"
    effect = """
        SELECT count(*) FROM identity.account a WHERE id = $1
        AND (email_verified OR NOT EXISTS (SELECT FROM identity.code c WHERE c.account_id = a.id))
    """

    async def prepare(self) -> None:
        self.account, email = await self.town.person(verified=False)
        self.code = await self.town.code(self.account, email, "email_verification")

    @property
    def key(self) -> object:
        return self.account

    async def do(self, at: Instance) -> Any:
        request = authentication_pb2.VerifyEmailRequest(code=self.code, request_id=self.request_id)
        return await self._ask(at, AUTH, "VerifyEmail", request, ())

    async def check(self, result: Any) -> list[str]:
        request = authentication_pb2.VerifyEmailRequest(code=self.code, request_id=str(uuid4()))
        again = await outcome(answered(lambda: self.suite.of("identity")[0].ask(AUTH, "VerifyEmail", request, ())))
        verified = await self.suite.ask("SELECT email_verified FROM identity.account WHERE id = $1", self.account)
        broken = [] if isinstance(again, CodeInvalid) else [f"the code once more: {again!r}"]
        return [*broken, *([] if verified else ["the address is not verified"])]
