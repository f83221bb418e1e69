"""A small program that asks who may do what: many checks at once, remembered until something changes.

With the stack of scripts/up running, and an OAuth client that has the scope permissions.check:

    WATCHWORD_TARGET=127.0.0.1:9090 CLIENT_ID=... CLIENT_SECRET=... \\
        .venv/bin/python -m docs.examples.check_permissions user:0198f2c4-... invoices.read invoices.pay

It prints each decision, then waits, and prints whatever changes.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import timedelta

from watchword import Client, ClientCredentials, Decision
from watchword.errors import WatchwordError

LOOK_EVERY = 0.2  # seconds


async def look(client: Client, subject: str, permissions: Sequence[str]) -> list[Decision]:
    """Ask all at once: one call, or none if everything is remembered."""
    return await asyncio.gather(*(client.check(subject, permission) for permission in permissions))


async def main(subject: str, permissions: Sequence[str]) -> int:
    """Print what `subject` may do, and go on until interrupted."""
    credentials = ClientCredentials(os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"])
    known: Sequence[Decision | None] = [None] * len(permissions)
    async with Client(os.environ["WATCHWORD_TARGET"], credentials=credentials, cache_size=1000, max_staleness=timedelta(seconds=5)) as client:
        while True:
            try:
                present = await look(client, subject, permissions)
            except WatchwordError as error:
                print(f"{error.reason}: {error}", file=sys.stderr)
                return 1
            for permission, decision, before in zip(permissions, present, known, strict=True):
                if before is None or decision.outcome is not before.outcome:
                    print(f"{permission}: {decision.outcome} ({decision.reason})", flush=True)
            known = present
            await asyncio.sleep(LOOK_EVERY)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
