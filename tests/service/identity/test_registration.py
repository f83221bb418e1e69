"""Opening accounts, codes and mail: no answer says whether an account exists, every code works once."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from email import message_from_bytes
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import aiosmtplib
import pytest
from aiosmtpd.controller import Controller

from services.identity.mail import Carrier, MailRoom, MailServer
from tests.conftest import eventually, free_port
from tests.service.identity.conftest import OTHER_PASSWORD, PASSWORD, TENANT, Stack, gather
from watchword.errors import AlreadyExists, CodeInvalid, FanoutPending, IdempotencyConflict, InvalidCredentials, InvalidRequest, PasswordRejected
from watchword.identity.v1 import authentication_pb2 as pb
from watchword.identity.v1 import user_pb2


async def register(stack: Stack, email: str, *, at: int = 0, **fields: Any) -> Any:
    """Register with PASSWORD."""
    request = pb.RegisterRequest(**{"email": email, "password": PASSWORD, **fields})
    return await stack.client(at=at).auth("Register", request)


async def reset_code(stack: Stack, email: str) -> str:
    """Return a fresh reset code."""
    await stack.client().auth("RequestPasswordReset", pb.RequestPasswordResetRequest(email=email))
    return await stack.code(email)


async def test_who_registers_can_log_in_and_verify(stack: Stack) -> None:
    """The whole way of a new account."""
    email, name = stack.email(), f"Ada.{secrets.token_hex(4)}"

    await register(stack, email, username=name, display_name="Ada Lovelace")
    before = await stack.login(name)
    code = await stack.code(email)
    await stack.client(at=1).auth("VerifyEmail", pb.VerifyEmailRequest(code=code))

    after = await stack.login(email)
    assert (before.user.email_verified, after.user.email_verified) == (False, True)
    assert (after.user.username, after.user.display_name, after.user.tenant_id) == (name, "Ada Lovelace", TENANT)


async def test_registering_twice_answers_the_same_and_changes_nothing(stack: Stack) -> None:
    """The owner of the address hears of it by mail; the stranger hears nothing (A107)."""
    email = stack.email()
    first = await register(stack, email)

    second = await register(stack, email.upper(), password=OTHER_PASSWORD, at=1)

    assert first == second
    subjects = [mail.split("Subject: ")[1].splitlines()[0] for mail in await stack.mails(email)]
    assert [subject.partition(" (")[0] for subject in subjects] == ["Confirm your e-mail address", "You already have an account"]
    assert "Code:" not in (await stack.mails(email))[-1]
    await stack.login(email)
    with pytest.raises(InvalidCredentials):
        await stack.login(email, OTHER_PASSWORD)


async def test_registering_takes_the_same_time_for_known_addresses(stack: Stack) -> None:
    """It hashes either way (A107): by CPU time, which others on the machine do not change."""
    known = stack.email()
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    await register(stack, known)
    for _ in range(10):
        for kind, email in (("known", known), ("unknown", stack.email())):
            started = time.process_time()
            await register(stack, email)
            times[kind].append(time.process_time() - started)

    assert median(times["known"]) == pytest.approx(median(times["unknown"]), rel=0.3)


async def test_a_taken_user_name_says_nothing_of_addresses(stack: Stack) -> None:
    """User names are public. Two registrations must not show by a name that is still free that the first one's address was known."""
    known, name = stack.email(), f"n{secrets.token_hex(6)}"
    await register(stack, known)

    await register(stack, known, username=name)  # nothing was made, and that must not show
    with pytest.raises(AlreadyExists):
        await register(stack, stack.email(), username=name.upper())

    fresh = f"n{secrets.token_hex(6)}"
    await register(stack, stack.email(), username=fresh)
    for email in (known, stack.email()):
        with pytest.raises(AlreadyExists):
            await register(stack, email, username=fresh)


@pytest.mark.parametrize(
    ("fields", "field", "failure"),
    [
        ({"email": "no address"}, "email", InvalidRequest),
        ({"email": "a@" + "b" * 260}, "email", InvalidRequest),
        ({"email": "x@example.com\r\nBcc: y@example.com"}, "email", InvalidRequest),
        ({"email": ""}, "email", InvalidRequest),
        ({"username": "ada@example.com"}, "username", InvalidRequest),
        ({"username": "\u0430dmin"}, "username", InvalidRequest),
        ({"username": "a\u200bb"}, "username", InvalidRequest),
        ({"password": ""}, "password", InvalidRequest),
        ({"password": "x" * 1025}, "password", InvalidRequest),
        ({"password": "fourteen chars"}, "password", PasswordRejected),
        ({"tenant": "nowhere"}, "tenant", InvalidRequest),
        ({"tenant": "Not A Slug"}, "tenant", InvalidRequest),
        ({"request_id": "1"}, "request_id", InvalidRequest),
        ({"display_name": "x\x1b[31m"}, "display_name", InvalidRequest),
    ],
)
async def test_what_is_wrong_is_named(stack: Stack, fields: dict[str, Any], field: str, failure: type[InvalidRequest]) -> None:
    """A program must be able to show the message beside the right box."""
    with pytest.raises(failure) as refusal:
        await register(stack, **{"email": stack.email(), **fields})

    assert [violation.field for violation in refusal.value.violations] == [field]


async def test_a_password_made_of_the_own_names_is_refused(stack: Stack) -> None:
    """The first thing that is tried."""
    with pytest.raises(PasswordRejected):
        await register(stack, "ada.lovelace@example.com", display_name="Countess Lovelace", password="ada.lovelace@example.com")


async def test_the_same_request_registers_once(stack: Stack) -> None:
    """A repeat after a lost answer; and a request_id that means something else is a conflict."""
    email, request_id = stack.email(), str(uuid4())

    await gather(*(register(stack, email, request_id=request_id, at=n % 2) for n in range(4)))

    assert len(await stack.mails(email)) == 1
    with pytest.raises(IdempotencyConflict):
        await register(stack, stack.email(), request_id=request_id)


async def test_a_verification_code_works_once(stack: Stack) -> None:
    """At whichever instance, among many at once."""
    email = stack.email()
    await register(stack, email)
    code = await stack.code(email)

    outcomes = await gather(*(stack.client(at=n % 2).auth("VerifyEmail", pb.VerifyEmailRequest(code=code)) for n in range(10)))

    assert [type(each) for each in outcomes].count(pb.VerifyEmailResponse) == 1
    assert {type(each) for each in outcomes} == {pb.VerifyEmailResponse, CodeInvalid}


async def test_a_code_is_good_for_its_kind_its_time_and_its_address(stack: Stack) -> None:
    """And only until the next one of its kind."""
    email = stack.email()
    await register(stack, email)
    verification, reset = await stack.code(email), await reset_code(stack, email)

    with pytest.raises(CodeInvalid):
        await stack.client().auth("VerifyEmail", pb.VerifyEmailRequest(code=reset))
    with pytest.raises(CodeInvalid):
        await stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=verification, new_password=OTHER_PASSWORD))
    stack.clock.ahead = timedelta(hours=1, seconds=1)
    with pytest.raises(CodeInvalid):
        await stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=reset, new_password=OTHER_PASSWORD))
    stack.clock.ahead = timedelta()
    newer = await reset_code(stack, email)
    with pytest.raises(CodeInvalid):
        await stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=reset, new_password=OTHER_PASSWORD))
    user = (await stack.login(email)).user
    moved = user_pb2.UpdateUserRequest(user_id=user.id, user=user_pb2.UserUpdate(email=stack.email("moved")))
    await stack.admin().users("UpdateUser", moved)
    for method, request in (
        ("VerifyEmail", pb.VerifyEmailRequest(code=verification)),
        ("ResetPassword", pb.ResetPasswordRequest(code=newer, new_password=OTHER_PASSWORD)),
    ):
        with pytest.raises(CodeInvalid):
            await stack.client().auth(method, request)


async def test_a_reset_replaces_the_password_and_ends_all_sessions(stack: Stack) -> None:
    """One of many uses of the code; whoever had a session may have been the thief."""
    email = stack.email()
    await register(stack, email)
    session = await stack.login(email)
    for _ in range(10):
        with pytest.raises(InvalidCredentials):
            await stack.login(email, "wrong " + PASSWORD)
    code = await reset_code(stack, email)

    requests = [pb.ResetPasswordRequest(code=code, new_password=f"{OTHER_PASSWORD} {n}") for n in range(4)]
    outcomes = await gather(*(stack.client(at=n % 2).auth("ResetPassword", request) for n, request in enumerate(requests)))

    winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, pb.ResetPasswordResponse)]
    assert len(winners) == 1
    assert {type(outcome) for outcome in outcomes} == {pb.ResetPasswordResponse, CodeInvalid}
    assert (await stack.login(email, requests[winners[0]].new_password)).user.email_verified
    with pytest.raises(InvalidCredentials):
        await stack.login(email)
    revocation = stack.peers.token.revocations_of(session.user.id)[0]
    assert (revocation.cause, revocation.except_session_id, revocation.subject_disabled) == ("password_reset", "", False)


async def test_a_reset_may_be_repeated_after_a_lost_answer(stack: Stack) -> None:
    """The code is used up by then, and the same request_id still gets the first answer."""
    email, request_id = stack.email(), str(uuid4())
    await register(stack, email)
    request = pb.ResetPasswordRequest(code=await reset_code(stack, email), new_password=OTHER_PASSWORD, request_id=request_id)
    stack.peers.token.is_down = True
    with pytest.raises(FanoutPending):
        await stack.client().auth("ResetPassword", request)

    stack.peers.token.is_down = False
    await stack.client(at=1).auth("ResetPassword", request)

    await stack.login(email, OTHER_PASSWORD)
    request.new_password = PASSWORD
    with pytest.raises(IdempotencyConflict):
        await stack.client().auth("ResetPassword", request)


async def test_a_weak_new_password_leaves_the_code_good(stack: Stack) -> None:
    """Or a typing mistake would cost another mail."""
    email = stack.email()
    await register(stack, email)
    code = await reset_code(stack, email)

    with pytest.raises(PasswordRejected) as refusal:
        await stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=code, new_password="aaaaaaaaaaaaaaa"))

    assert refusal.value.violations[0].field == "new_password"
    await stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=code, new_password=OTHER_PASSWORD))


async def test_asking_for_mail_answers_the_same_for_all(stack: Stack) -> None:
    """Known, unknown, disabled, verified, in a tenant that is none: the same answer, and mail only where it belongs."""
    known, disabled, verified, unknown = (stack.email() for _ in range(4))
    await register(stack, known)
    await register(stack, disabled)
    await stack.account(email=verified)
    await stack.mails(known)
    await stack.sql("UPDATE account SET state = 'disabled' WHERE email = $1", disabled)

    resets = [
        await stack.client().auth("RequestPasswordReset", pb.RequestPasswordResetRequest(email=email, tenant=tenant))
        for email, tenant in ((known, ""), (unknown, ""), (disabled, ""), (known, "nowhere"))
    ]
    verifications = [
        await stack.client().auth("RequestEmailVerification", pb.RequestEmailVerificationRequest(email=email)) for email in (known, unknown, verified)
    ]

    assert resets == [pb.RequestPasswordResetResponse()] * 4
    assert verifications == [pb.RequestEmailVerificationResponse()] * 3
    assert [len(await stack.mails(email)) for email in (known, disabled, verified, unknown)] == [3, 1, 0, 0]


async def test_a_mailbox_is_not_flooded(stack: Stack) -> None:
    """Five of a kind an hour, whoever asks and from wherever. The last reset that came is good still: the owner is not kept from it."""
    email = stack.email()
    await stack.account(email=email)

    for _ in range(8):
        await stack.client().auth("RequestPasswordReset", pb.RequestPasswordResetRequest(email=email))

    assert len(await stack.mails(email)) == 5
    await stack.client().auth("RequestPasswordReset", pb.RequestPasswordResetRequest(email=email))
    await stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=await stack.code(email), new_password=OTHER_PASSWORD))
    await stack.login(email, OTHER_PASSWORD)


async def test_strangers_do_not_use_up_the_owners_resets(stack: Stack) -> None:
    """They register the address again and again and ask for its verification; the reset that the owner asks for comes."""
    email = stack.email()
    await register(stack, email)
    for _ in range(12):
        await register(stack, email)
        await stack.client().auth("RequestEmailVerification", pb.RequestEmailVerificationRequest(email=email))
    before = await stack.mails(email)

    await stack.client().auth("RequestPasswordReset", pb.RequestPasswordResetRequest(email=email))

    assert len(before) == 10
    assert "Subject: Reset your password" in (await stack.mails(email))[-1]


async def test_links_come_from_the_settings(stack: Stack) -> None:
    """Whatever host a request names (A133)."""
    email = stack.email()
    client = stack.client()
    headers = (("x-forwarded-host", "evil.test"), ("forwarded", "host=evil.test"))
    await client.ask(_stub(), "Register", pb.RegisterRequest(email=email, password=PASSWORD), metadata=headers)

    mail = (await stack.mails(email))[0]

    code = await stack.code(email)
    assert f"Link: https://auth.test/verify-email#code={code}\n" in mail
    assert "evil" not in mail


async def test_mail_files_are_for_their_owner_only(stack: Stack) -> None:
    """They hold codes; and they are either there as a whole or not at all."""
    email = stack.email()
    await register(stack, email)
    await stack.mails(email)

    files = stack.mail_files()

    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.suffix for path in files} == {".eml"}
    assert (await stack.sql("SELECT count(*) AS n FROM mail"))[0]["n"] == 0


class Postman:
    """A mail server that refuses at first."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.received: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refusals > 0:
            self.refusals -= 1
            return "451 try again later"
        self.received.append(message_from_bytes(envelope.content))
        return "250 OK"


@pytest.fixture
async def postman() -> AsyncIterator[tuple[Postman, int]]:
    """A mail server that refuses twice, and its port."""
    handler, port = Postman(2), free_port()
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    yield handler, port
    controller.stop()


async def test_mail_is_tried_again_until_the_server_takes_it(stack: Stack, postman: tuple[Postman, int]) -> None:
    """A mail server's bad quarter of an hour loses no mail, and the request never waits for it."""
    handler, port = postman
    room = _with_carrier(stack, MailServer("127.0.0.1", port, "none"))
    email = stack.email()
    await register(stack, email)

    sent = []
    for _ in range(3):
        sent.append(await room.send_due())
        again = await stack.sql("SELECT next_attempt_time > now() AS later FROM mail")
        assert all(row["later"] for row in again)
        await stack.sql("UPDATE mail SET next_attempt_time = now()")

    assert sent == [0, 0, 1]
    assert await room.send_due() == 0
    (message,) = handler.received
    assert message["To"] == email
    code = next(line for line in message.get_payload().splitlines() if line.startswith("Code: ")).removeprefix("Code: ")
    await stack.client().auth("VerifyEmail", pb.VerifyEmailRequest(code=code))


async def test_two_instances_send_a_mail_once(stack: Stack, postman: tuple[Postman, int]) -> None:
    """Each takes what the other has not."""
    handler, port = postman
    handler.refusals = 0
    rooms = [_with_carrier(stack, MailServer("127.0.0.1", port, "none"), at=at) for at in (0, 1)]
    emails = [stack.email() for _ in range(8)]
    for email in emails:
        await stack.client().auth("Register", pb.RegisterRequest(email=email, password=PASSWORD))

    while sum(await asyncio.gather(*(room.send_due() for room in rooms))):
        pass

    assert sorted(message["To"] for message in handler.received) == sorted(emails)


async def test_a_mail_is_taken_when_its_turn_comes(stack: Stack) -> None:
    """While a slow server takes one, the others are anybody's; taken all at once they would come up again, and their codes be replaced."""
    due: list[int] = []

    class Slow:
        """Looks at what is due while it sends."""

        async def send(self, _message: object) -> None:
            due.append((await stack.sql("SELECT count(*) AS n FROM mail WHERE next_attempt_time <= now()"))[0]["n"])

    await stack.sql("DELETE FROM mail")
    for _ in range(3):
        await register(stack, stack.email())

    assert await _with_carrier(stack, Slow()).send_due() == 3
    assert due == [2, 1, 0]


async def test_mail_goes_out_until_none_is_due(stack: Stack) -> None:
    """Ten a second are too few when a newsletter asks everybody to choose a password; who waits wants his code. Every third is refused here."""
    sent = list[object]()

    class Choosy:
        """Refuses some of what it is given."""

        async def send(self, message: object) -> None:
            sent.append(message)
            if len(sent) % 3 == 0:
                raise aiosmtplib.SMTPRecipientsRefused([])

    await stack.sql("DELETE FROM mail")
    for _ in range(24):
        await register(stack, stack.email())

    assert await _with_carrier(stack, Choosy()).send_due() == 16
    assert len(sent) == 24
    await stack.sql("DELETE FROM mail")


@pytest.mark.parametrize("trouble", [ConnectionRefusedError(), aiosmtplib.SMTPServerDisconnected(""), aiosmtplib.SMTPAuthenticationError(535, "")])
async def test_a_mail_server_that_is_away_is_left_alone(stack: Stack, trouble: Exception) -> None:
    """For each try a code is written, and a row into the audit log."""
    tried = list[object]()

    class Away:
        """Takes nothing."""

        async def send(self, message: object) -> None:
            tried.append(message)
            raise trouble

    await stack.sql("DELETE FROM mail")
    for _ in range(3):
        await register(stack, stack.email())

    assert await _with_carrier(stack, Away()).send_due() == 0
    assert len(tried) == 1
    assert (await stack.sql("SELECT count(*) AS n FROM mail WHERE next_attempt_time <= now()"))[0]["n"] == 2
    await stack.sql("DELETE FROM mail")


async def test_a_code_is_redeemed_by_who_has_locked_its_account(stack: Stack) -> None:
    """All that change both lock the account first: else a reset and a disabling would wait for each other."""
    email = stack.email()
    user = (await stack.account(email=email)).user
    await stack.client().auth("RequestPasswordReset", pb.RequestPasswordResetRequest(email=email))
    code = await stack.code(email)
    waiting = "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%DELETE FROM code%'"

    async def is_waiting() -> bool:
        return bool((await stack.sql(waiting))[0]["n"])

    async with stack.locked_account(user.id):
        resetting = asyncio.ensure_future(stack.client().auth("ResetPassword", pb.ResetPasswordRequest(code=code, new_password=OTHER_PASSWORD)))
        await eventually(is_waiting)
        free = await stack.sql("SELECT count(*) AS n FROM (SELECT 1 FROM code WHERE account_id = $1 FOR UPDATE SKIP LOCKED) AS free", UUID(user.id))
    await resetting

    assert free[0]["n"] == 1


async def test_a_mail_that_cannot_be_read_keeps_no_other_from_being_sent(stack: Stack) -> None:
    """Sealed with another salt, altered, or of a kind of the next release: it stays for who can read it, for a day."""
    emails = [stack.email() for _ in range(4)]
    for email in emails:
        await register(stack, email)
    first, second = await stack.sql("SELECT id FROM mail ORDER BY id LIMIT 2")
    await stack.sql("UPDATE mail SET recipient = '\\x00' WHERE id = $1", first["id"])
    await stack.sql("UPDATE mail SET kind = 'telegram' WHERE id = $1", second["id"])

    assert [len(await stack.mails(email)) for email in emails] == [0, 0, 1, 1]
    assert (await stack.sql("SELECT count(*) AS n FROM mail"))[0]["n"] == 2

    await stack.sql("UPDATE mail SET next_attempt_time = now()")
    stack.clock.ahead = timedelta(hours=25)
    assert await stack.identity.mail_room.send_due() == 0
    assert (await stack.sql("SELECT count(*) AS n FROM mail"))[0]["n"] == 0


async def test_a_mail_that_cannot_be_written_keeps_no_other_from_being_sent(stack: Stack) -> None:
    """Whatever is wrong with it: the next ones of its batch go out."""
    emails = [stack.email() for _ in range(3)]
    for email in emails:
        await register(stack, email)
    await stack.sql("UPDATE account SET email = 'two' || chr(10) || 'lines' WHERE email = $1", emails[0])

    assert [len(await stack.mails(email)) for email in emails] == [0, 1, 1]

    await stack.sql("DELETE FROM mail")


async def test_mail_is_given_up_after_a_day(stack: Stack) -> None:
    """Nobody waits that long, and the outbox must not fill up."""
    room = _with_carrier(stack, MailServer("127.0.0.1", free_port(), "none"))
    email = stack.email()
    await register(stack, email)
    assert await room.send_due() == 0

    await stack.sql("UPDATE mail SET next_attempt_time = now()")
    stack.clock.ahead = timedelta(hours=25)
    assert await room.send_due() == 0

    assert (await stack.sql("SELECT count(*) AS n FROM mail"))[0]["n"] == 0


def _with_carrier(stack: Stack, carrier: Carrier, *, at: int = 0) -> MailRoom:
    """Return an instance's mail room with another way out."""
    room = stack.instances[at].identity.mail_room
    twin = object.__new__(MailRoom)
    twin.__dict__.update(room.__dict__, _carrier=carrier)
    return twin


def _stub() -> Any:
    from watchword.identity.v1 import authentication_pb2_grpc

    return authentication_pb2_grpc.AuthenticationServiceStub
