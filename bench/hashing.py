"""The ceiling under every login: bcrypt and nothing else, run as a worker on the measured core."""

import asyncio
import time

import bcrypt

from bench.workers import Answer, work

PASSWORD = b"64 characters, as a peppered password has: 0123456789012345678901"


async def main() -> None:
    """Compare a password `count` times at `cost`, as often as is asked."""
    kept: dict[int, bytes] = {}

    async def run(job: Answer) -> Answer:
        if job["cost"] not in kept:
            kept[job["cost"]] = bcrypt.hashpw(PASSWORD, bcrypt.gensalt(job["cost"]))
        began, before = time.monotonic(), time.process_time_ns()
        for _ in range(job["count"]):
            bcrypt.checkpw(PASSWORD, kept[job["cost"]])
        return {"units": job["count"], "cpu": time.process_time_ns() - before, "seconds": time.monotonic() - began}

    await work(run)


if __name__ == "__main__":
    asyncio.run(main())
