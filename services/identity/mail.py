"""Mail: ordered in the transaction of what it tells of, written and sent later by any instance, tried again until it is a day old.

A request only orders a mail to an address. Who has the address, and with which code, is settled when the mail is sent: so the request takes the
same time whether an account exists or not, and no code lies in the outbox. Links begin with PUBLIC_BASE_URL and nothing else; the code stands
behind the `#`, which browsers send to nobody.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, parseaddr
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from uuid import UUID

import aiosmtplib
import structlog

from services.chassis.audit import AuditEvent
from services.chassis.call import Call, Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.postgres import Change
from services.chassis.tenancy import TenantId
from services.identity.accounts import Account
from services.identity.codes import INVITATION_TTL, RESET_TTL, VERIFICATION_TTL, CodeKind, digest_of, new_code
from watchword.errors import WatchwordError

if TYPE_CHECKING:
    from services.chassis.postgres import Database
    from services.identity.attempts import Attempts
    from services.identity.store.accounts import AccountStore
    from services.identity.store.outbox import MailStore

SEND_TIMEOUT = 10.0  # seconds for one mail
GIVE_UP_AFTER = timedelta(hours=24)

log = structlog.get_logger()


class MailKind(StrEnum):
    """What a mail is for."""

    VERIFICATION = "verification"
    ALREADY_REGISTERED = "already_registered"
    PASSWORD_RESET = "password_reset"  # noqa: S105
    INVITATION = "invitation"


@dataclass(frozen=True, slots=True)
class MailOrder:
    """A mail to be sent to whoever has an address."""

    id: UUID
    tenant_id: TenantId
    kind: MailKind
    recipient_key: str
    attempts: int
    create_time: datetime


@dataclass(frozen=True, slots=True)
class UnreadableMail:
    """A mail that this instance cannot read: sealed with another salt, or of a kind that only a newer release knows. Another instance may."""

    id: UUID
    create_time: datetime
    cause: str


@dataclass(frozen=True, slots=True)
class _Letter:
    subject: str
    text: str
    page: str = ""
    code: CodeKind | None = None
    ttl: timedelta = timedelta()


_LETTERS = {
    MailKind.VERIFICATION: _Letter(
        "Confirm your e-mail address",
        "somebody, hopefully you, opened an account with this address.\nIf it was not you, ignore this mail.",
        "verify-email",
        CodeKind.EMAIL_VERIFICATION,
        VERIFICATION_TTL,
    ),
    MailKind.ALREADY_REGISTERED: _Letter(
        "You already have an account",
        "somebody, hopefully you, tried to open an account with this address. It has one already.\n"
        "If you have forgotten its password, or never opened it, ask for a password reset.",
    ),
    MailKind.PASSWORD_RESET: _Letter(
        "Reset your password",
        "somebody, hopefully you, asked to reset the password of this address's account.\nIf it was not you, ignore this mail.",
        "reset-password",
        CodeKind.PASSWORD_RESET,
        RESET_TTL,
    ),
    MailKind.INVITATION: _Letter(
        "Your new account",
        "an account was made for you. Choose a password to use it.",
        "reset-password",
        CodeKind.PASSWORD_RESET,
        INVITATION_TTL,
    ),
}


class Carrier(Protocol):
    """Takes mail to where it goes."""

    async def send(self, message: EmailMessage) -> None:
        """Hand over `message`. Raises OSError or aiosmtplib.SMTPException; it may then be tried again."""


class _CarrierAway(Exception):
    """No mail can be handed over now: each further try would write a code, and its row in the audit log, for nothing."""


class MailRoom:
    """Writes and sends what was ordered."""

    def __init__(
        self,
        *,
        database: "Database",
        orders: "MailStore",
        accounts: "AccountStore",
        attempts: "Attempts",
        carrier: Carrier,
        clock: Clock,
        sender: str,
        base_url: str,
        service_name: str,
    ) -> None:
        self._database = database
        self._orders = orders
        self._accounts = accounts
        self._attempts = attempts
        self._carrier = carrier
        self._clock = clock
        self._sender = sender
        self._base_url = base_url
        self._service_name = service_name

    async def send_due(self) -> int:
        """Send mails until none is due, or none can be sent; return how many were. One that cannot be read or written keeps no other from being sent.

        Each is taken when its turn comes: a slow mail server must not let one that waits for it come up again elsewhere.
        """
        sent = 0
        with contextlib.suppress(_CarrierAway):
            while (order := await self._orders.take_due()) is not None:
                try:
                    sent += await (self._put_by(order) if isinstance(order, UnreadableMail) else self._send(order))
                except (WatchwordError, _CarrierAway):
                    raise  # a dependency is away: the others would fare no better
                except Exception:  # a defect in one mail; it comes again, and is given up after a day
                    log.exception("mail_failed", id=str(order.id))
        return sent

    async def _put_by(self, mail: UnreadableMail) -> bool:
        """Leave a mail to other instances, until it is too old for any."""
        log.error("mail_unreadable", id=str(mail.id), cause=mail.cause)
        if self._clock.now() - mail.create_time > GIVE_UP_AFTER:
            await self._orders.delete(mail.id)
        return False

    async def _send(self, order: MailOrder) -> bool:
        if self._clock.now() - order.create_time > GIVE_UP_AFTER:
            log.error("mail_given_up", kind=order.kind, attempts=order.attempts)
            await self._orders.delete(order.id)
            return False
        message = await self._write(order)
        if message is None:
            await self._orders.delete(order.id)
            return False
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._carrier.send(message)
        except (OSError, aiosmtplib.SMTPException, TimeoutError) as error:
            log.warning("mail_postponed", kind=order.kind, attempts=order.attempts, cause=type(error).__name__)
            await self._orders.postpone(order.id)
            if isinstance(error, OSError | aiosmtplib.SMTPAuthenticationError):
                raise _CarrierAway from error
            return False
        await self._orders.delete(order.id)
        return True

    async def _write(self, order: MailOrder) -> EmailMessage | None:
        """Return the mail, with a fresh code if it needs one, or None if nobody is to get it."""
        letter = _LETTERS[order.kind]
        code = new_code() if letter.code else ""
        call = Call("mail", Caller(CallerKind.SERVICE, "identity"))

        async def effect(change: Change) -> Account | None:
            account = await self._orders.find_recipient(change.connection, order)
            if account is None or not account.is_active or (order.kind is MailKind.VERIFICATION and account.email_verified):
                return None
            if letter.code is not None:
                await self._accounts.put_code(change, account, letter.code, digest_of(code), self._clock.now() + letter.ttl)
                change.audit(AuditEvent(f"{letter.code}_code_issued", "user", str(account.id), tenant_id=account.tenant_id))
            return account

        if order.attempts == 1 and not await self._attempts.may_mail(order.tenant_id, order.recipient_key, order.kind):
            log.warning("mail_withheld", kind=order.kind)
            return None
        account = await self._database.change(call, Account | None, effect)  # type: ignore[arg-type]  # mypy knows no type forms
        return None if account is None else self._message(order, letter, account, code)

    def _message(self, order: MailOrder, letter: _Letter, account: Account, code: str) -> EmailMessage:
        message = EmailMessage(policy=SMTPUTF8)
        message["From"] = self._sender
        message["To"] = account.email
        message["Subject"] = f"{letter.subject} ({self._service_name})"
        message["Date"] = format_datetime(self._clock.now())
        message["Message-ID"] = f"<{order.id}@{parseaddr(self._sender)[1].rpartition('@')[2] or 'localhost'}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: keeps out-of-office answers away
        message.set_content(self._text(letter, code), cte="7bit")
        return message

    def _text(self, letter: _Letter, code: str) -> str:
        lines = ["Hello,", "", letter.text]
        if letter.code is not None:
            hours = int(letter.ttl.total_seconds() // 3600)
            lines += ["", f"Code: {code}", f"Link: {self._base_url}/{letter.page}#code={code}"]
            lines += ["", f"It can be used once, within {'an hour' if hours == 1 else f'{hours} hours'}."]
        return "\n".join([*lines, ""])


class MailFiles:
    """Writes mail into a folder, for machines without a mail server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, message: EmailMessage) -> None:
        """Write `message` as one file, whole or not at all."""
        await asyncio.to_thread(self._write, message)

    def _write(self, message: EmailMessage) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = str(message["Message-ID"]).strip("<>").partition("@")[0].replace("/", "_")
        draft = self._folder / f".{name}.draft"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(message.as_bytes())
        draft.rename(self._folder / f"{name}.eml")


@dataclass(frozen=True, slots=True)
class MailServer:
    """Hands mail to an SMTP server. Its certificate is verified, unless there is no TLS at all."""

    host: str
    port: int
    tls: Literal["starttls", "tls", "none"]
    username: str | None = None
    password: str | None = None

    async def send(self, message: EmailMessage) -> None:
        """Hand over `message`."""
        await aiosmtplib.send(
            message,
            hostname=self.host,
            port=self.port,
            username=self.username,
            password=self.password,
            use_tls=self.tls == "tls",
            start_tls=self.tls == "starttls",
            timeout=SEND_TIMEOUT,
        )
