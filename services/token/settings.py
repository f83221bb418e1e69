"""What token reads beyond the chassis."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, SecretStr

from services.chassis.settings import ChassisSettings


class TokenSettings(ChassisSettings):
    """Settings of token. A key pair in the environment becomes the first signing key; without one, the first is made."""

    strong_secrets: ClassVar[tuple[str, ...]] = ("SECURITY_SALT",)

    JWT_ALGORITHM: Literal["RS256", "PS256", "ES256", "Ed25519"] = "RS256"
    JWT_PRIVATE_KEY: SecretStr = SecretStr("")
    JWT_PUBLIC_KEY: str = ""
    JWT_KEY_ID: str = Field("", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    KEY_ENCRYPTION_KEY: SecretStr = SecretStr("")
    ACCESS_TOKEN_TTL: int = Field(300, ge=30, le=3600)  # seconds
    REFRESH_TOKEN_IDLE_TTL: int = Field(14 * 86400, ge=60)  # seconds between uses
    REFRESH_TOKEN_TTL: int = Field(90 * 86400, ge=60)  # seconds from login, whatever the use

    def problems(self) -> Iterator[str]:
        """Yield what only the settings together show."""
        yield from super().problems()
        if self.JWT_PUBLIC_KEY and not self.JWT_PRIVATE_KEY.get_secret_value():
            yield "JWT_PUBLIC_KEY needs its JWT_PRIVATE_KEY: set both, or neither to have a key made"
        if self.REFRESH_TOKEN_IDLE_TTL > self.REFRESH_TOKEN_TTL:
            yield "REFRESH_TOKEN_IDLE_TTL must not be longer than REFRESH_TOKEN_TTL"
