"""What rbac reads beyond the chassis."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from services.chassis.settings import ChassisSettings
from services.rbac.levels import Levels

MIB = 1024 * 1024


class RbacSettings(ChassisSettings, frozen=True, kw_only=True):
    """Settings of rbac."""

    ACR_LEVELS: str = "pwd,mfa,hwk"  # the authentication context classes that logins may have, weakest first
    POLICY_MEMORY: Annotated[int, Meta(ge=1, le=65536)] = 64  # MiB, about: of policies that an instance remembers, and a quarter of it of questions

    @property
    def levels(self) -> Levels:
        """The classes of logins."""
        return Levels([part.strip() for part in self.ACR_LEVELS.split(",")])

    @property
    def policy_bytes(self) -> int:
        """What is remembered of policies may take so much, about."""
        return self.POLICY_MEMORY * MIB * 3 // 4

    @property
    def question_bytes(self) -> int:
        """What is remembered of questions may take so much, about."""
        return self.POLICY_MEMORY * MIB // 4

    def problems(self) -> Iterator[str]:
        """Yield what only the settings together show."""
        yield from super().problems()
        names = [part.strip() for part in self.ACR_LEVELS.split(",")]
        if not all(names) or len(set(names)) != len(names):
            yield "ACR_LEVELS must name each class once, weakest first, with commas between"
