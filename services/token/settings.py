"""What token reads beyond the chassis."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from services.chassis.settings import ChassisSettings, Secret


class TokenSettings(ChassisSettings, frozen=True, kw_only=True):
    """Settings of token. A key pair in the environment becomes the first signing key; without one, the first is made."""

    strong_secrets: ClassVar[tuple[str, ...]] = ("SECURITY_SALT",)

    JWT_ALGORITHM: Literal["RS256", "PS256", "ES256", "Ed25519"] = "RS256"
    JWT_PRIVATE_KEY: Secret = Secret()
    JWT_PUBLIC_KEY: str = ""
    JWT_KEY_ID: Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9._-]*\Z")] = ""
    SIGN_TOGETHER: bool = True  # RS256 signatures of calls that come close together are made together, where the processor can
    ALLOW_OPEN_KEY_FILE: bool = False  # lets JWT_PRIVATE_KEY_FILE and KEY_ENCRYPTION_KEY_FILE be readable by others
    KEY_ENCRYPTION_KEY: Secret = Secret()  # several, newest first, separated by commas, while it is changed
    KEY_ROTATION_PERIOD: Annotated[float, Meta(ge=0)] = 30 * 86400  # seconds that a key signs; 0 = until asked
    KEY_PROMOTION_LIMIT: Annotated[float, Meta(ge=0)] = 600  # seconds beyond 2 x JWKS_MAX_AGE for verifiers that have not reported the next key
    JWKS_MAX_AGE: Annotated[float, Meta(ge=0.2, le=86400)] = 300  # seconds that others may keep the key set
    ACCESS_TOKEN_TTL: Annotated[int, Meta(ge=30, le=3600)] = 300  # seconds
    REFRESH_TOKEN_IDLE_TTL: Annotated[int, Meta(ge=60)] = 14 * 86400  # seconds between uses
    REFRESH_TOKEN_TTL: Annotated[int, Meta(ge=60)] = 90 * 86400  # seconds from login, whatever the use

    def problems(self) -> Iterator[str]:
        """Yield what only the settings together show."""
        yield from super().problems()
        if self.JWT_PUBLIC_KEY and not self.JWT_PRIVATE_KEY:
            yield "JWT_PUBLIC_KEY needs its JWT_PRIVATE_KEY: set both, or neither to have a key made"
        if 0 < self.KEY_ROTATION_PERIOD < 4 * self.JWKS_MAX_AGE:
            yield "KEY_ROTATION_PERIOD must be at least 4 x JWKS_MAX_AGE, or 0: a key is published for twice that age before it signs"
        if self.APP_ENV == "production" and self.JWKS_MAX_AGE < 10:
            yield "JWKS_MAX_AGE is below 10 s, which is for tests, and APP_ENV is production"
        if self.REFRESH_TOKEN_IDLE_TTL > self.REFRESH_TOKEN_TTL:
            yield "REFRESH_TOKEN_IDLE_TTL must not be longer than REFRESH_TOKEN_TTL"
