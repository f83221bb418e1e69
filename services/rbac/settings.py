"""What rbac reads beyond the chassis."""

from collections.abc import Iterator

from pydantic import Field

from services.chassis.settings import ChassisSettings
from services.rbac.levels import Levels
from services.rbac.memory import PART_BYTES
from services.rbac.prompt_servicer import QUESTION_BYTES

MIB = 1024 * 1024


class RbacSettings(ChassisSettings):
    """Settings of rbac."""

    ACR_LEVELS: str = "pwd,mfa,hwk"  # the authentication context classes that logins may have, weakest first
    POLICY_MEMORY: int = Field(64, ge=1, le=65536)  # MiB, about: of policies that an instance remembers, and a quarter of it of questions

    @property
    def levels(self) -> Levels:
        """The classes of logins."""
        return Levels([part.strip() for part in self.ACR_LEVELS.split(",")])

    @property
    def policy_weight(self) -> int:
        """What is remembered of policies may weigh so many parts."""
        return self.POLICY_MEMORY * MIB * 3 // 4 // PART_BYTES

    @property
    def questions(self) -> int:
        """So many questions are remembered."""
        return self.POLICY_MEMORY * MIB // 4 // QUESTION_BYTES

    def problems(self) -> Iterator[str]:
        """Yield what only the settings together show."""
        yield from super().problems()
        names = [part.strip() for part in self.ACR_LEVELS.split(",")]
        if not all(names) or len(set(names)) != len(names):
            yield "ACR_LEVELS must name each class once, weakest first, with commas between"
