"""What identity reads beyond the chassis."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, SecretStr

from services.chassis.settings import ChassisSettings


class IdentitySettings(ChassisSettings):
    """Settings of identity."""

    PASSWORD_HASH: Literal["bcrypt", "argon2id"] = "bcrypt"  # noqa: S105
    BCRYPT_COST: int = Field(12, ge=10, le=16)  # OWASP ASVS: at least 10
    HASH_WORKERS: int = Field(0, ge=0, le=256)  # processes; 0: one fewer than there are cores
    PASSWORD_MIN_LENGTH: int = Field(15, ge=8, le=64)  # NIST SP 800-63B: 15 where the password is the only factor
    REQUIRE_EMAIL_VERIFICATION: bool = False
    SMTP_HOST: str = ""
    SMTP_PORT: int = Field(587, ge=1, le=65535)
    SMTP_USERNAME: str = ""
    SMTP_PASSWORD: SecretStr = SecretStr("")
    SMTP_FROM: str = "no-reply@localhost"
    SMTP_TLS: Literal["starttls", "tls", "none"] = "starttls"
    MAIL_DIR: str = ""
    BOOTSTRAP_ADMIN_EMAIL: str = ""
    BOOTSTRAP_ADMIN_PASSWORD: SecretStr = SecretStr("")

    def problems(self) -> Iterator[str]:
        """Yield what only the settings together show."""
        yield from super().problems()
        if not self.SMTP_HOST and not self.MAIL_DIR:
            yield "mail has nowhere to go: set SMTP_HOST, or MAIL_DIR to have mail written as files"
        one_time = self.BOOTSTRAP_ADMIN_PASSWORD.get_secret_value()
        if self.APP_ENV == "production" and one_time and (len(one_time) < 16 or len(set(one_time)) < 8):
            yield "BOOTSTRAP_ADMIN_PASSWORD is weak, and APP_ENV is production: who guesses it first is the administrator; use 16 random characters"
        if self.APP_ENV == "production" and not self.SMTP_HOST:
            yield "SMTP_HOST is missing, and APP_ENV is production"
        if self.APP_ENV == "production" and not self.PUBLIC_BASE_URL.startswith("https://"):
            yield "PUBLIC_BASE_URL must begin with https:// when APP_ENV is production: it stands in mails and in every token"
