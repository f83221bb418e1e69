"""Hashes that cost nothing: what is left after a crash does not depend on them, and a thousand rounds would take half of their time for hashing."""

import os
import pickle
from collections.abc import Sequence
from io import BytesIO

from services.identity import hash_process
from services.identity.hasher import Done, Priority
from services.identity.passwords import Passwords, Scheme

LEAST = 4  # of bcrypt; no service can be told to


class CheapPasswords(Passwords):
    """Passwords at the least cost."""

    def __init__(self, pepper: bytes, *, scheme: Scheme, cost: int) -> None:
        del cost
        super().__init__(pepper, scheme=scheme, cost=LEAST)


class OwnHasher:
    """Stands in for a hash process: a hash that takes a millisecond needs none, and to start one takes longer than a round."""

    is_lost = False
    resident = 0

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.is_loaded = False

    async def load(self, modules: Sequence[str], priority: Priority) -> None:
        """Be ready."""
        del modules, priority
        self.is_loaded = True

    async def do(self, work: bytes, patience: float) -> Done:
        """Answer as a hash process does."""
        del patience
        answer = BytesIO()
        hash_process._answer(pickle.loads(work), answer)  # of this process
        return Done(*pickle.loads(answer.getvalue()[hash_process.LENGTH.size :]))

    async def end(self) -> None:
        """Do nothing: nothing was started."""
