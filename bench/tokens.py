"""Tokens that no server has seen, made once a run."""

import asyncio
import os
from collections.abc import Sequence

from bench.figures import Bench
from bench.material import many_user_tokens


async def fresh_tokens(bench: Bench) -> Sequence[str]:
    """Return the tokens that each new instance is asked about once, the same for every group; they are in `token_file` too."""
    kept = bench.stack.token_file
    if not kept.exists():
        count = bench.extent.fresh_tokens * (bench.extent.rounds + 1)
        bench.say(f"signing {count:,} tokens")
        made = await asyncio.to_thread(many_user_tokens, bench.stack.signer, count, cores=len(os.sched_getaffinity(0)))
        kept.write_text("\n".join(made), encoding="ascii")
    return kept.read_text(encoding="ascii").splitlines()
