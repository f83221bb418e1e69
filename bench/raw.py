"""The ceiling: RSA as `cryptography` does it and nothing else, run as a worker on the measured core."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from bench.material import Signer
from bench.workers import Answer, work

BETWEEN_LOOKS = 20  # operations between looks at the clock


async def main(key: Path) -> None:
    """Sign or verify what a token's signature covers, for as long as is asked."""
    signer = Signer.load(key.read_text(encoding="ascii"))  # noqa: ASYNC240  (before anything is measured)
    data = signer.user_token().rpartition(".")[0].encode()
    made, public = signer.key.sign(data, padding.PKCS1v15(), hashes.SHA256()), signer.key.public_key()
    operations: dict[str, Callable[[], object]] = {
        "sign": lambda: signer.key.sign(data, padding.PKCS1v15(), hashes.SHA256()),
        "verify": lambda: public.verify(made, data, padding.PKCS1v15(), hashes.SHA256()),
    }

    async def run(job: Answer) -> Answer:
        return spend(operations[job["do"]], job["seconds"])

    await work(run)


def spend(operation: Callable[[], object], seconds: float) -> Answer:
    """Repeat `operation` for that long; return how often, the CPU nanoseconds and the seconds."""
    began, before, count = time.monotonic(), time.process_time_ns(), 0
    while time.monotonic() - began < seconds:
        for _ in range(BETWEEN_LOOKS):
            operation()
        count += BETWEEN_LOOKS
    return {"units": count, "cpu": time.process_time_ns() - before, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
