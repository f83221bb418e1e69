"""What identity reads beyond the chassis."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from services.chassis.settings import ChassisSettings, Secret


class IdentitySettings(ChassisSettings, frozen=True, kw_only=True):
    """Settings of identity."""

    PASSWORD_HASH: Literal["bcrypt", "argon2id"] = "bcrypt"  # noqa: S105
    BCRYPT_COST: Annotated[int, Meta(ge=10, le=16)] = 12  # OWASP ASVS: at least 10
    HASH_WORKERS: Annotated[int, Meta(ge=0, le=256)] = 0  # processes; 0: one fewer than there are cores
    PASSWORD_MIN_LENGTH: Annotated[int, Meta(ge=8, le=64)] = 15  # NIST SP 800-63B: 15 where the password is the only factor
    REQUIRE_EMAIL_VERIFICATION: bool = False
    SMTP_HOST: str = ""
    SMTP_PORT: Annotated[int, Meta(ge=1, le=65535)] = 587
    SMTP_USERNAME: str = ""
    SMTP_PASSWORD: Secret = Secret()
    SMTP_FROM: str = "no-reply@localhost"
    SMTP_TLS: Literal["starttls", "tls", "none"] = "starttls"
    MAIL_DIR: str = ""
    BOOTSTRAP_ADMIN_EMAIL: str = ""
    BOOTSTRAP_ADMIN_PASSWORD: Secret = Secret()

    def problems(self) -> Iterator[str]:
        """Yield what only the settings together show."""
        yield from super().problems()
        if not self.SMTP_HOST and not self.MAIL_DIR:
            yield "mail has nowhere to go: set SMTP_HOST, or MAIL_DIR to have mail written as files"
        one_time = self.BOOTSTRAP_ADMIN_PASSWORD.reveal()
        if self.APP_ENV == "production" and one_time and (len(one_time) < 16 or len(set(one_time)) < 8):
            yield "BOOTSTRAP_ADMIN_PASSWORD is weak, and APP_ENV is production: who guesses it first is the administrator; use 16 random characters"
        if self.APP_ENV == "production" and not self.SMTP_HOST:
            yield "SMTP_HOST is missing, and APP_ENV is production"
        if self.APP_ENV == "production" and not self.PUBLIC_BASE_URL.startswith("https://"):
            yield "PUBLIC_BASE_URL must begin with https:// when APP_ENV is production: it stands in mails and in every token"
